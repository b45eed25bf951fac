"""Copying a file of a layer below into a layer that is being made.

Invariant: a copy has the content and every attribute of its source, or an error says that the
source changed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from unionfs.branch import Branch, Status, Writer
from unionfs.errors import HostileArchiveError, show

__all__ = ["copy_file", "pinned", "write_all"]

_CHUNK: Final = 1 << 20


def copy_file(
    source: Branch,
    source_fd: int,
    name: bytes,
    st: Status,
    writer: Writer,
    dirfd: int,
    to_name: bytes,
) -> None:
    """Copy what is no directory; `st` are its attributes. Raises `HostileArchiveError`, OSError."""
    if st.fmt == stat.S_IFREG:
        out = writer.create_file(dirfd, to_name, st.mode, st.uid, st.gid)
        try:
            _copy_data(source, source_fd, name, out, st)
        finally:
            os.close(out)
    else:
        target = source.readlink(source_fd, name) if st.fmt == stat.S_IFLNK else b""
        writer.create(dirfd, to_name, st.mode, st.uid, st.gid, rdev=st.rdev, target=target)
    if st.fmt == stat.S_IFREG and st.mode & (stat.S_ISUID | stat.S_ISGID):
        writer.set_mode(dirfd, to_name, stat.S_IMODE(st.mode))
    writer.copy_attributes(source, source_fd, name, dirfd, to_name)


def _copy_data(source: Branch, source_fd: int, name: bytes, out: int, st: Status) -> None:
    data = source.open_file(source_fd, name, os.O_RDONLY)
    try:
        offset = 0
        while chunk := os.pread(data, _CHUNK, offset):
            write_all(out, offset, chunk)
            offset += len(chunk)
    finally:
        os.close(data)
    if offset != st.size:
        raise HostileArchiveError(f"{show(name)}: a file of a layer below changed its size")


@contextlib.contextmanager
def pinned(fd: int) -> Iterator[int]:
    """Give a copy of a descriptor whose owner may close it during the block."""
    own = os.dup(fd)
    try:
        yield own
    finally:
        os.close(own)


def write_all(fd: int, offset: int, chunk: bytes) -> None:
    """Write all of `chunk`, however the system call cuts it."""
    written = os.pwrite(fd, chunk, offset)
    while written < len(chunk):
        written += os.pwrite(fd, chunk[written:], offset + written)
