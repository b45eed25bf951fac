"""Real mounts in the three ways a person can have one: root, plain user, user namespace.

Invariant: a `Place` unmounts everything below its directory and ends every process it
started, whatever the test did. All programs run with the credentials of the way.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest

from support.rootless import NOBODY, runtime

__all__ = ["LAYER", "WAYS", "Child", "MountFailedError", "Place", "place_for", "tree_of"]

WAYS: Final = ("root", "user", "userns")
_BASE: Final = "/var/tmp"  # user xattrs; /tmp may be an old tmpfs
_DROP: Final = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
#: An emulated machine says how many times slower it is.
_SECONDS: Final = 60 * int(os.environ.get("UNIONFS_TEST_PATIENCE", "1"))
#: The lower layer of the table of operations: a file, a directory, a link, a hard-linked pair.
LAYER: Final = """
mkdir -p base/d; printf lower > base/f; printf aaa > base/d/a; printf bbb > base/d/b
ln -s f base/s; printf pair > base/p; ln base/p base/q; chmod 755 base base/d
"""

#: Run in the way's credentials; speaks JSON on its standard streams.
_CONTROL: Final = r"""
import json, os, sys
from unionfs import mounts
from unionfs.errors import UnionfsError
ask = json.loads(sys.argv[1])
def enc(text): return None if text is None else os.fsencode(text)
try:
    if ask["do"] == "mount" or ask["do"] == "foreground":
        request = mounts.MountRequest(
            target=enc(ask["target"]), layers=tuple(map(enc, ask["layers"])), rw=enc(ask["rw"]),
            ephemeral=ask["ephemeral"], options=mounts.MountOptions.parse(ask["options"]),
            option_text=tuple(ask["options"]), hold=tuple(map(enc, ask["hold"])),
            scratch=enc(ask["scratch"]), force=ask["force"], ready_fd=ask["ready_fd"],
            image_name=ask["image"])
        if ask["do"] == "foreground":
            mounts.run_foreground(request, lambda record: print("ready", flush=True))
            print("ended", flush=True)
            sys.exit(0)
        record = mounts.start_mount(request)
        print(json.dumps({"pid": record.pid, "rw": record.rw and os.fsdecode(record.rw),
                          "log": os.fsdecode(record.log), "device": record.device}))
    elif ask["do"] == "list":
        print(json.dumps([{"target": os.fsdecode(m.target), "state": m.state.value,
                           "pid": m.record and m.record.pid} for m in mounts.list_mounts()]))
    elif ask["do"] == "clean":
        print(json.dumps([os.fsdecode(m.target) for m in mounts.clean()]))
    else:
        mounts.umount(enc(ask["target"]), lazy=ask["lazy"])
        print("null")
except UnionfsError as exc:
    print(json.dumps({"kind": type(exc).__name__, "message": str(exc)}))
    sys.exit(9)
"""


class MountFailedError(Exception):
    """What the library said; `kind` is the name of its error class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Child(subprocess.Popen[str]):
    """A program that a test has started; an exception in its `with` block ends it."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


class Place:
    """A directory and the credentials of one way; `path` is the working directory."""

    def __init__(self, way: str, path: Path, prefix: Sequence[str]) -> None:
        self.way = way
        self.path = path
        self.prefix = tuple(prefix)
        #: Options that every mount gets.
        self.options: tuple[str, ...] = ()
        self.env = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(path),
            "XDG_RUNTIME_DIR": str(path / ".run"),
            "UNIONFS_ROOT": str(path / ".store"),
            **runtime().env,
        }
        self.python = runtime().argv
        self._children: list[Child] = []

    def patch(self, code: str) -> None:
        """Have every Python of the place, the daemon too, run `code` when it starts."""
        (self.path / "patch").mkdir(exist_ok=True)
        with (self.path / "patch/sitecustomize.py").open("a") as file:
            file.write(code)
        self.env["PYTHONPATH"] = f"{self.path}/patch:{self.env['PYTHONPATH']}"

    # -- running things ----------------------------------------------------------

    def run(
        self, *argv: str | os.PathLike[str], check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the place; its output is text."""
        env = {**self.env, **options.pop("env", {})}
        options.setdefault("stdin", subprocess.DEVNULL)
        result = subprocess.run(
            [*self.prefix, *argv],
            env=env,
            cwd=options.pop("cwd", self.path),
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_SECONDS,
            check=False,
            **options,
        )
        if check and result.returncode:
            raise AssertionError(f"{argv} -> {result.returncode}: {result.stdout}{result.stderr}")
        return result

    def sh(self, script: str, **options: Any) -> str:
        """Run a shell script that must succeed; return what it prints."""
        return self.run("sh", "-euc", script, **options).stdout

    def fails(self, script: str) -> str:
        """Run a shell script that must fail; return what it complains."""
        result = self.run("sh", "-euc", script, check=False)
        assert result.returncode, f"{script} did not fail: {result.stdout}"
        return result.stderr

    def py(self, code: str, *argv: str) -> str:
        """Run Python code; return what it prints."""
        return self.run(*self.python, "-c", code, *argv).stdout

    def start(self, *argv: str | os.PathLike[str], **options: Any) -> Child:
        """Start a program; the caller waits for its end, a failure of the test ends it."""
        options = {"env": self.env, "cwd": self.path, "text": True, **options}
        child = Child([*self.prefix, *argv], **options)
        self._children.append(child)
        return child

    # -- mounting ----------------------------------------------------------------

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """Return the question for the control program."""
        for name in ("target", "rw", "scratch"):
            if words.get(name) is not None:
                words[name] = str(self.path / words[name])
        for name in ("layers", "hold"):
            words[name] = [str(self.path / item) for item in words.get(name, ())]
        defaults: dict[str, Any] = {
            "rw": None, "ephemeral": False, "options": [], "scratch": None, "force": False,
            "ready_fd": None, "lazy": False, "image": None,
        }  # fmt: skip
        return {**defaults, **words, "do": do}

    def control(self, question: dict[str, Any], **options: Any) -> Any:
        """Put a question; MountFailedError with what the library answers."""
        env = options.pop("env", {})
        result = self.run(
            *self.python, "-c", _CONTROL, json.dumps(question), check=False, env=env, **options
        )
        if result.returncode not in (0, 9):
            raise AssertionError(result.stdout + result.stderr)
        answer = json.loads(result.stdout)
        if result.returncode:
            raise MountFailedError(answer["kind"], answer["message"])
        return answer

    def mount(self, *layers: str, target: str = "mnt", **words: Any) -> dict[str, Any]:
        """Mount layers (default: `base`) in the background; the daemon's pid and rw branch."""
        if target not in os.listdir(self.path):  # others may not stat a user's mount
            self.sh(f"mkdir {target}")
        words["options"] = [*self.options, *words.get("options", ())]
        question = self.ask("mount", target=target, layers=layers or ("base",), **words)
        answer: dict[str, Any] = self.control(question)
        return answer

    def umount(self, target: str = "mnt", *, lazy: bool = False) -> None:
        """Unmount."""
        self.control(self.ask("umount", target=target, lazy=lazy))

    def mounts(self) -> list[dict[str, Any]]:
        """Return what `list_mounts` says about this place; the machine may have others."""
        found: list[dict[str, Any]] = self.control(self.ask("list"))
        return [item for item in found if item["target"].startswith(f"{self.path}/")]

    def clean(self) -> list[str]:
        """Clean up as `clean` does; return what that was here (see `mounts`)."""
        found: list[str] = self.control(self.ask("clean"))
        return [target for target in found if target.startswith(f"{self.path}/")]

    def foreground(self, **words: Any) -> list[str]:
        """Return the command that mounts in the foreground."""
        words["options"] = [*self.options, *words.get("options", ())]
        question = self.ask("foreground", target="mnt", **{"layers": ("base",), **words})
        return [*self.python, "-c", _CONTROL, json.dumps(question)]

    def mount_table(self) -> list[str]:
        """Return the mountpoints below the place, as its namespace sees them."""
        text = self.run("cat", "/proc/self/mountinfo").stdout
        return [line.split()[4] for line in text.splitlines() if f" {self.path}/" in line]

    def kill(self, pid: int) -> None:
        """SIGKILL a daemon and wait until it is gone."""
        fd = os.pidfd_open(pid)
        os.kill(pid, 9)
        import select

        select.select([fd], [], [], _SECONDS)
        os.close(fd)

    def leftovers(self) -> list[str]:
        """Return the names in the runtime directory."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self.path / ".run" / "unionfs"))
        return []

    def close(self) -> None:
        """End every program and unmount everything below."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
                child.wait(_SECONDS)
        for target in reversed(self.mount_table()):
            for command in (["umount", "-l", target], ["fusermount3", "-u", "-z", target]):
                if self.run(*command, check=False).returncode == 0:
                    break


def tree_of(path: Path) -> list[str]:
    """Return the sorted relative names below a directory; directories end in `/`."""
    found = []
    for item in path.rglob("*"):
        is_dir = item.is_dir() and not item.is_symlink()
        found.append(f"{item.relative_to(path)}{'/' if is_dir else ''}")
    return sorted(found)


@functools.cache
def _userns_works() -> bool:
    drop = _DROP if os.geteuid() == 0 else ()
    probe = [*drop, "unshare", "-Urm", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def place_for(way: str) -> Iterator[Place]:
    """Make a place; skips when this machine does not offer the way."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse that everybody may open (make test sets it)")
    root = os.geteuid() == 0
    if way == "root" and not root:
        pytest.skip("needs uid 0")
    if way == "user" and shutil.which("fusermount3") is None:
        pytest.skip("needs fusermount3 (package fuse3)")
    if way == "userns" and not _userns_works():
        pytest.skip("this kernel gives user namespaces to root only")
    path = Path(tempfile.mkdtemp(prefix="unionfs-place-", dir=_BASE))
    path.chmod(0o755)
    (path / ".run").mkdir(mode=0o700)
    drop: tuple[str, ...] = ()
    if way != "root" and root:
        drop = _DROP
        os.chown(path, NOBODY, NOBODY)
        os.chown(path / ".run", NOBODY, NOBODY)
    holder = None
    try:
        if way == "userns":
            holder = subprocess.Popen(
                [*drop, "unshare", "-Urm", "sh", "-c", "echo; exec sleep 1000"],
                stdout=subprocess.PIPE,
            )
            assert holder.stdout is not None
            holder.stdout.readline()
            enter = ("nsenter", "-t", str(holder.pid), "-U", "-m", f"--wdns={path}")
            drop = (*drop, *enter, "--preserve-credentials")
        place = Place(way, path, drop)
        try:
            yield place
        finally:
            place.close()
    finally:
        if holder is not None:
            holder.kill()
            holder.communicate()
        for _ in range(3):  # the daemon may still be removing its work area
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
            time.sleep(0.2)
    if sys.exc_info()[0] is None:
        assert not path.exists(), f"{path} could not be removed: still mounted?"
