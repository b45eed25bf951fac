"""Where engines run: a temporary directory, child processes, a mount namespace of their own.

Everything that is mounted by the kernel is mounted in a child's mount namespace, so it is gone
with the child whatever happens; a plain user's child is root of a user namespace besides. Children
end with their parent (prctl(2)), also when that is killed.

Invariant: when `workplace` ends, its directory and all processes started in it are gone; what a
killed run leaves is a directory that nobody holds locked, and the next run removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

import msgspec

from unionfs import _sys
from unionfs.errors import UnionfsError, show
from unionfs.insight.engines.seen import Outcome, Status
from unionfs.kernel.mounted import mounts_on
from unionfs.kernel.probe import enter_user_namespace
from unionfs.store._fs import remove_tree

__all__ = [
    "LeftOutError",
    "RefusedError",
    "apart",
    "guarded",
    "is_whole",
    "need_space",
    "program",
    "room",
    "run",
    "serving",
    "spawn",
    "workplace",
]

_PREFIX: Final = b"unionfs-compare-"
_SECONDS: Final = 60.0
_PAUSE: Final = 0.005
#: Seconds for killed programs to be gone.
_GRACE: Final = 5.0
_BUSY: Final = (errno.ENOTEMPTY, errno.EBUSY, errno.ENOENT)
#: Bytes that a small file takes on disk.
_BLOCK: Final = 4096
_HEADROOM: Final = 64 << 20


class LeftOutError(UnionfsError):
    """An engine cannot work here (not there, not allowed, no space): not the layers' fault."""


class RefusedError(UnionfsError):
    """An engine cannot take these layers."""


@contextlib.contextmanager
def workplace() -> Iterator[bytes]:
    """Make a directory below $TMPDIR for the block; remove those of runs that were killed."""
    top = os.fsencode(tempfile.gettempdir())
    _sweep(top)
    path, lock = _make(top)
    try:
        yield path
    finally:
        try:
            _remove(path)
        finally:
            os.close(lock)


def _make(top: bytes) -> tuple[bytes, int]:
    """Make a directory and lock it, so that others can tell that it is in use."""
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=top)
        lock = _locked(path)
        if lock is not None and os.path.isdir(path):
            return path, lock
        if lock is not None:  # somebody swept it before it was locked
            os.close(lock)


def _locked(path: bytes) -> int | None:
    """Lock a directory of ours; None if it is in use or gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _sweep(top: bytes) -> None:
    for name in os.listdir(top):
        path = os.path.join(top, name)
        lock = _locked(path) if name.startswith(_PREFIX) else None
        if lock is not None:
            # What cannot be removed (a mount of a process that still ends) stays for the next one.
            with contextlib.suppress(OSError):
                _remove(path, grace=0)
            os.close(lock)


def _remove(path: bytes, grace: float = _GRACE) -> None:
    parent, name = os.path.split(path)
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    limit = time.monotonic() + grace
    try:
        while True:
            try:
                remove_tree(name, fd)
            except OSError as error:
                # A program that was killed a moment ago may still be writing.
                if error.errno not in _BUSY or time.monotonic() > limit:
                    raise
                time.sleep(_PAUSE)
            else:
                return
    finally:
        os.close(fd)


@contextlib.contextmanager
def room(place: bytes, name: str) -> Iterator[bytes]:
    """Make a directory inside the workplace for one engine, and remove it afterwards."""
    path = os.path.join(place, name.encode())
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        _remove(path)


def need_space(place: bytes, wanted: int, entries: int = 0) -> None:
    """Raise `LeftOutError` unless `wanted` bytes in so many files fit into the workplace."""
    free = os.statvfs(place)
    available = free.f_bavail * free.f_frsize
    wanted += entries * _BLOCK + _HEADROOM
    if available < wanted:
        raise LeftOutError(
            f"it needs {wanted >> 20} MiB in {show(os.path.dirname(place))}, where"
            f" {available >> 20} are free; set TMPDIR to a larger place"
        )


# -- namespaces --------------------------------------------------------------------


def is_whole() -> bool:
    """Tell whether the present user namespace has all ids, so that owners can be real."""
    return _sys.has_all_ids() and os.geteuid() == 0


def apart(action: Callable[[], Outcome]) -> Outcome:
    """Run `action` in a child with a mount namespace (a plain user: as root of a user namespace).

    What it raises comes back as an outcome: `LeftOutError`, `UnsupportedError` and `OSError`
    before anything was shown as left out, `RefusedError` as refused.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(action, writer, parent)
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            answer = pipe.read()
    finally:
        for victim in (-child, child):  # the group has what the child started
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not answer:
        return Outcome(Status("left out", f"its process was ended (wait status {status})"))
    kind, body = answer[:1], answer[1:]
    if kind == b"!":
        raise RuntimeError(body.decode("utf-8", "replace"))
    return msgspec.msgpack.decode(body, type=Outcome)


def _in_child(action: Callable[[], Outcome], writer: int, parent: int) -> NoReturn:
    answer = b""
    try:
        _sys.die_with_parent(signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)  # Ctrl-C is the parent's to handle
        if os.getppid() == parent:
            answer = b"=" + msgspec.msgpack.encode(guarded(lambda: _in_namespace(action)))
    except BaseException:  # noqa: BLE001  # a defect: told to the parent, which raises it
        answer = b"!" + traceback.format_exc().encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError), open(writer, "wb") as pipe:
        pipe.write(answer)
    os._exit(0)


def _in_namespace(action: Callable[[], Outcome]) -> Outcome:
    try:
        if _sys.has_capability(_sys.CAP_SYS_ADMIN):
            _sys.unshare(_sys.CLONE_NEWNS)
        else:
            enter_user_namespace()
        # What others unmount meanwhile must go away here, too; ours stays here.
        _sys.mount(b"none", b"/", b"", _sys.MS_REC | _sys.MS_SLAVE, b"")
    except OSError as error:
        raise LeftOutError(f"no namespaces here ({error.strerror}); try as root") from error
    return action()


def guarded(action: Callable[[], Outcome]) -> Outcome:
    """Run `action` and turn what it refuses into an outcome."""
    try:
        return action()
    except RefusedError as error:
        return Outcome(Status("refused", str(error)))
    except (UnionfsError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError):
            names = f"{show(error.filename)}: " if isinstance(error.filename, bytes | str) else ""
            text = f"{names}{error.strerror or error}"
        return Outcome(Status("left out", text))


# -- programs ----------------------------------------------------------------------


def spawn(argv: Sequence[str | bytes], cwd: bytes, output: int, *, end: int) -> int:
    """Start a program that gets the signal `end` when this process ends; return its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _sys.die_with_parent(end)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        os.chdir(cwd)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if os.getppid() == parent:
            os.execvp(argv[0], list(argv))  # noqa: S606  # names of programs, no shell
    finally:
        os._exit(127)


def run(argv: Sequence[str | bytes], cwd: bytes, log: bytes) -> tuple[int, str]:
    """Run a program to its end; return its exit status and the last line that it said."""
    with open(log, "w+b") as output:
        pid = spawn(argv, cwd, output.fileno(), end=signal.SIGKILL)
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except BaseException:
            _stop(pid, signal.SIGKILL)
            raise
        output.seek(0)
        return status, _last_line(output.read())


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return show(lines[-1]) if lines else ""


@contextlib.contextmanager
def serving(
    argv: Sequence[str | bytes], target: bytes, cwd: bytes, log: bytes, *, end: int
) -> Iterator[None]:
    """Run a program that serves a mount on `target`, and wait until it is there.

    It is ended with the signal `end` after the block. `LeftOutError` when it does not mount.
    """
    with open(log, "w+b") as output:
        pid = spawn(argv, cwd, output.fileno(), end=end)
        ended = False
        try:
            limit = time.monotonic() + _SECONDS
            while not mounts_on(target):
                ended = os.waitpid(pid, os.WNOHANG)[0] == pid
                if ended or time.monotonic() > limit:
                    output.seek(0)
                    said = _last_line(output.read())
                    raise LeftOutError(said or "it did not mount")
                time.sleep(_PAUSE)
            yield
        finally:
            if not ended:
                _stop(pid, end)


def _stop(pid: int, number: int) -> None:
    """End a child of ours; by force when it does not go."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, number)
        if not select.select([fd], [], [], _SECONDS)[0]:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(fd)


def program(name: str) -> str:
    """Return where a program is; `LeftOutError` when it is not installed."""
    found = shutil.which(name)
    if found is None:
        raise LeftOutError(f"{name} is not installed")
    return found
