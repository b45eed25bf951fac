"""Small file operations relative to directory descriptors, for the store only.

Invariant: no symbolic link is ever followed, nothing but regular files is read, and every
descriptor is close-on-exec.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

from unionfs.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["directory", "open_dir", "open_forced", "read_file", "remove_tree", "write_file"]

_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER_ALL: Final = 0o700


def open_dir(name: bytes, dir_fd: int | None = None) -> int:
    """Open a directory that is not a symbolic link, else `OSError` (ENOTDIR or ELOOP)."""
    return os.open(name, _DIR, dir_fd=dir_fd)


@contextlib.contextmanager
def directory(name: bytes, dir_fd: int | None = None) -> Iterator[int]:
    """Open a directory like `open_dir` and close it at the end of the block."""
    fd = open_dir(name, dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def read_file(name: bytes, dir_fd: int, limit: int, what: str) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises `FileNotFoundError` when it is absent and `StoreError` (beginning with `what`) when it
    is larger or anything but a regular file. A FIFO does not block.
    """
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd
        )
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise StoreError(f"{what} is not a regular file") from error
        raise
    with open(fd, "rb", buffering=0) as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise StoreError(f"{what} is not a regular file")
        if info.st_size > limit:
            raise StoreError(f"{what} is larger than {limit} bytes")
        chunks = []
        left = limit + 1
        while left and (chunk := file.read(left)):
            chunks.append(chunk)
            left -= len(chunk)
    return b"".join(chunks)


def write_file(name: bytes, data: bytes, dir_fd: int, *, sync: bool = False) -> None:
    """Make a new file of mode 0600 with this content; on disk at return if `sync`."""
    fd = os.open(
        name,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=dir_fd,
    )
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(fd)


def _grant(name: bytes, dir_fd: int) -> None:
    """Give the owner all rights on a directory that cannot be opened for want of them."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        # fchmod(2) refuses O_PATH; the /proc link leads to this inode and nothing else.
        os.chmod(b"/proc/self/fd/%d" % fd, _OWNER_ALL)
    finally:
        os.close(fd)


def open_forced(name: bytes, dir_fd: int) -> int:
    """Open a directory of ours that is going to be removed, whatever its mode is."""
    try:
        fd = open_dir(name, dir_fd)
    except PermissionError:
        _grant(name, dir_fd)
        fd = open_dir(name, dir_fd)
    try:
        if os.fstat(fd).st_mode & _OWNER_ALL != _OWNER_ALL:
            os.fchmod(fd, _OWNER_ALL)
    except OSError:
        os.close(fd)
        raise
    return fd


def _hoist(name: bytes, dir_fd: int, top_fd: int) -> bytes:
    """Move a directory to `top_fd` under a fresh name and return that name."""
    fresh = b"removed-" + secrets.token_hex(12).encode()
    try:
        os.rename(name, fresh, src_dir_fd=dir_fd, dst_dir_fd=top_fd)
    except PermissionError:
        # Moving a directory changes its `..`, for which it must be writable.
        _grant(name, dir_fd)
        os.rename(name, fresh, src_dir_fd=dir_fd, dst_dir_fd=top_fd)
    return fresh


def remove_tree(name: bytes, dir_fd: int) -> None:
    """Remove a file or a whole directory; no error if it is absent.

    Subdirectories are first moved up into `name` and then emptied one after another, so depth
    costs neither descriptors nor stack, and nothing can lead outside. The tree must be ours alone.
    """
    try:
        top = open_forced(name, dir_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=dir_fd)
        return
    try:
        pending: list[bytes] = []
        _empty(top, top, pending)
        while pending:
            child = pending.pop()
            with_fd = open_forced(child, top)
            try:
                _empty(with_fd, top, pending)
            finally:
                os.close(with_fd)
            os.rmdir(child, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dir_fd)


def _empty(fd: int, top: int, pending: list[bytes]) -> None:
    """Unlink the files of `fd`; its subdirectories end in `top` and, by name, in `pending`."""
    with os.scandir(fd) as entries:
        found = [
            (os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries
        ]
    for name, is_dir in found:
        if not is_dir:
            os.unlink(name, dir_fd=fd)
        elif fd == top:
            pending.append(name)
        else:
            pending.append(_hoist(name, fd, top))
