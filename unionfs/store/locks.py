"""The two kinds of locks of a store, both flock(2), both gone with the process that held them.

`store_lock`: `graph/.lock`, exclusive for a moment while names in the graph or tags change.
`hold_image` and `try_exclusive`: on the directory of an entry or of a staging area; shared by
those who use it (mounts, imports that build on it), exclusive by its maker or remover.

Invariant: no lock outlives its holder, so nothing has to be cleaned up after a crash, and
every descriptor is close-on-exec, so no child program keeps a lock by accident.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from typing import TYPE_CHECKING, Final

from unionfs.errors import BusyError, StoreError, UnsupportedError, show

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOCK_NAME", "hold_image", "store_lock", "try_exclusive"]

LOCK_NAME: Final = b".lock"
_DENIED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class _Held(threading.local):
    """The store locks of this thread: (device, inode) of the lock file -> (depth, exclusive)."""

    def __init__(self) -> None:
        self.locks: dict[tuple[int, int], tuple[int, bool]] = {}


_held: Final = _Held()


def _open_lock(graph_fd: int, *, exclusive: bool) -> int | None:
    """Open the lock file, making it when absent; None if a reader cannot have one."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(LOCK_NAME, flags | os.O_RDWR | os.O_CREAT, 0o600, dir_fd=graph_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError("graph/.lock of the store is a symbolic link; remove it") from error
        if error.errno not in _DENIED:
            raise
        if exclusive:
            where = os.path.dirname(os.readlink(b"/proc/self/fd/%d" % graph_fd))
            raise UnsupportedError(
                f"the image store {show(where)} cannot be written by you ({error.strerror});"
                " choose another with --root or $UNIONFS_ROOT"
            ) from error
    # A store that the caller may only read: lock what is there, or do without.
    try:
        return os.open(LOCK_NAME, flags | os.O_RDONLY, dir_fd=graph_fd)
    except OSError as error:
        if error.errno in (*_DENIED, errno.ENOENT):
            return None
        raise


@contextlib.contextmanager
def store_lock(graph_fd: int, exclusive: bool) -> Iterator[None]:  # noqa: FBT001  # the call reads well: store_lock(fd, exclusive=True)
    """Hold the lock of the store whose `graph/` is open as `graph_fd`; waits for it.

    Re-entrant within a thread (an exclusive lock includes a shared one); asking for exclusive
    while holding shared is a defect of the caller and raises `RuntimeError`. Keep it short.
    """
    fd = _open_lock(graph_fd, exclusive=exclusive)
    if fd is None:
        yield
        return
    try:
        info = os.fstat(fd)
        key = (info.st_dev, info.st_ino)
        depth, has_exclusive = _held.locks.get(key, (0, False))
        if depth and exclusive and not has_exclusive:
            raise RuntimeError("a shared store lock cannot become exclusive")
        if not depth:
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            has_exclusive = exclusive
        _held.locks[key] = (depth + 1, has_exclusive)
        try:
            yield
        finally:
            if depth:
                _held.locks[key] = (depth, has_exclusive)
            else:
                del _held.locks[key]
    finally:
        os.close(fd)


def hold_image(dir_fd: int) -> int:
    """Return a new descriptor of the directory `dir_fd` that holds a shared lock on it.

    Whoever keeps the descriptor open keeps the image from being deleted. Raises `BusyError`
    if the entry is being made or removed. Use `Graph.hold`, which also checks that the
    directory still is the entry of that name.
    """
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise BusyError("the image is being written or removed at the moment; try again") from error
    return fd


def try_exclusive(dir_fd: int) -> bool:
    """Lock the open directory `dir_fd` exclusively; False if anybody holds it.

    The lock lasts until `dir_fd` is closed.
    """
    try:
        fcntl.flock(dir_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
