"""A directory in which an unprivileged user types commands at a shell.

Invariant: nothing in it belongs to root but the program's wrapper; when it ends, whatever
is still mounted below it is unmounted and the directory is gone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from support.rootless import NOBODY, run_as_nobody, runtime

__all__ = ["Workspace", "workspace"]

#: Not /tmp: that may be a tmpfs, and those keep user xattrs only since Linux 6.6.
_PLACE: Final = "/var/tmp"


@attrs.frozen
class Workspace:
    """`path` is the home and working directory of the user; `unionfs` is on the PATH."""

    path: Path

    @property
    def env(self) -> dict[str, str]:
        """Return what the user's environment has besides a plain one."""
        return {
            "HOME": str(self.path),
            "PATH": f"{self.path / '.bin'}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(self.path / ".run"),
            "XDG_DATA_HOME": str(self.path / ".data"),
            "TMPDIR": str(self.path / ".tmp"),
        }

    def sh(self, line: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run one line of shell; output is captured."""
        options.setdefault("timeout", 300)
        env = {**self.env, **options.pop("env", {})}
        return run_as_nobody(["sh", "-c", line], env=env, cwd=self.path, **options)

    def give(self, source: Path, name: str) -> Path:
        """Copy a file or directory into the workspace, owned by the user."""
        target = self.path / name
        subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True)
        _give_away(target)
        return target

    def take_down(self) -> None:
        """Unmount what is left, inner mounts first."""
        prefix = f"{self.path}/"
        for target in reversed(_mounts()):
            if target.startswith(prefix):
                self.sh(f"unionfs umount --lazy {shlex.quote(target)}")
        for target in reversed(_mounts()):
            if target.startswith(prefix):
                subprocess.run(["fusermount3", "-u", "-z", target], check=False)


def _mounts() -> list[str]:
    table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    return [line.split()[4] for line in table.splitlines()]


def _give_away(path: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["chown", "-hR", f"{NOBODY}:{NOBODY}", path], check=True)


@contextmanager
def workspace() -> Iterator[Workspace]:
    """Make a workspace; it ends with the context."""
    path = Path(tempfile.mkdtemp(prefix="unionfs-", dir=_PLACE))
    try:
        path.chmod(0o755)
        for name in (".run", ".data", ".tmp"):
            (path / name).mkdir(mode=0o700)
        _give_away(path)
        binaries = path / ".bin"
        binaries.mkdir()
        program = binaries / "unionfs"
        words = shlex.join([*runtime().argv, "-m", "unionfs"])
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
        place = Workspace(path)
        try:
            yield place
        finally:
            place.take_down()
    finally:
        shutil.rmtree(path, ignore_errors=True)
