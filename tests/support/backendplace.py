"""A directory with a store and mounts of any back end of its own, driven by the command line.

Invariant: what was mounted below it is gone afterwards, whatever the test did.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from support.commands import Done, child_env
from unionfs.fuse import registry

__all__ = ["Place", "backend_place", "until"]

#: An emulated machine says how many times slower it is.
_SECONDS: Final = 60 * int(os.environ.get("UNIONFS_TEST_PATIENCE", "1"))


class Place:
    """A directory of its own for a store, a runtime directory and everything mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "run").mkdir(mode=0o700)
        self.env = child_env(
            XDG_RUNTIME_DIR=str(path / "run"), UNIONFS_ROOT=str(path / "store"), LC_ALL="C.UTF-8"
        )
        self.argv = [sys.executable, "-m", "unionfs"]

    def __call__(self, *arguments: object) -> Done:
        done = subprocess.run(
            [*self.argv, *map(str, arguments)],
            cwd=self.path,
            env=self.env,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            timeout=300,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: object) -> str:
        done = self(*arguments)
        assert done.status == 0, f"{arguments}: {done.err}"
        return done.out

    def fails(self, *arguments: object, status: int = 1) -> str:
        done = self(*arguments)
        assert (done.status, done.err.count("\n")) == (status, 1), done.err
        return done.err

    def mounts(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(self.ok("mounts", "--json"))
        return [item for item in listed if item["target"].startswith(f"{self.path}/")]

    def state(self) -> list[str]:
        return [item["state"] for item in self.mounts()]

    def kernel_types(self) -> list[str]:
        """Return the types of what is mounted below, as the kernel tells it."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [
            line.partition(" - ")[2].split()[0]
            for line in lines
            if line.split()[4].startswith(f"{self.path}/")
        ]

    def kill_keeper(self) -> None:
        (mount,) = self.mounts()
        fd = os.pidfd_open(mount["pid"])
        os.kill(mount["pid"], signal.SIGKILL)
        assert select.select([fd], [], [], _SECONDS)[0]
        os.close(fd)

    def runtime(self) -> list[str]:
        """Return what is left in the runtime directory."""
        return sorted(os.listdir(self.path / "run" / "unionfs"))

    def names(self, directory: str = "mnt") -> list[str]:
        return sorted(os.listdir(self.path / directory))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < end, "it never became so"
        time.sleep(0.05)


@contextlib.contextmanager
def backend_place() -> Iterator[Place]:
    path = Path(tempfile.mkdtemp(prefix="unionfs-backend-", dir="/var/tmp"))
    path.chmod(0o755)
    place = Place(path)
    try:
        yield place
    finally:
        place("umount", "--all", "--lazy")
        for entry in reversed(registry.mount_table()):
            if entry.target.startswith(os.fsencode(f"{path}/")):  # of a test that failed
                subprocess.run(["umount", "--lazy", entry.target], check=False)
        assert place.kernel_types() == []
        until(lambda: place.mounts() == [] or place.state() == ["stale"])  # keepers finish
        shutil.rmtree(path)
