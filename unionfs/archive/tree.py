"""A plain directory as the tar stream of one layer.

Invariant: nothing outside the directory is read (dir fds, no link followed), the order of
members is the byte order of their names, and hard links stay hard links. A plain user
stands for the image's root: files of the caller go out as owned by 0.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from typing import Final

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.tarwrite import end_of_archive, member_header, padding
from unionfs.errors import StoreError, show

__all__ = ["ChunkReader", "tree_tar"]

_CHUNK: Final = 256 * 1024
_DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
#: Labels of the host's policy say nothing about the image.
_NOT_COPIED: Final = ("security.selinux",)


class ChunkReader(io.RawIOBase):
    """An iterator of chunks as a readable file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, target: bytearray | memoryview) -> int:  # type: ignore[override]  # Buffer has no len()
        """Fill `target` from the current chunk; 0 when there are no more."""
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _xattrs(path: str) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:  # the filesystem has none
        return found
    for name in names:
        if name not in _NOT_COPIED:
            try:
                found[os.fsencode(name)] = os.getxattr(path, name, follow_symlinks=False)
            except OSError:  # listed but not readable for us (trusted.*)
                continue
    return found


def _names(fd: int) -> Iterator[bytes]:
    return iter(sorted(os.listdir(f"/proc/self/fd/{fd}".encode())))


class _Walk:
    """The walk over one tree; remembers where it met each hard-linked file first."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._first: dict[tuple[int, int], bytes] = {}
        self._uid = os.geteuid()
        self._gid = os.getegid()

    def members(self) -> Iterator[bytes]:
        """Yield the members depth first, each directory before what is in it."""
        yield from self._member(self._root, b".", b"./", os.fstat(self._root))
        # A stack of our own: a tree may be deeper than Python's calls can nest.
        stack = [(os.dup(self._root), b"", _names(self._root))]
        try:
            while stack:
                fd, prefix, names = stack[-1]
                name = next(names, None)
                if name is None:
                    stack.pop()
                    os.close(fd)
                    continue
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                yield from self._member(fd, name, prefix + name, status)
                if stat.S_ISDIR(status.st_mode):
                    inner = os.open(name, _DIR_FLAGS, dir_fd=fd)
                    stack.append((inner, prefix + name + b"/", _names(inner)))
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _member(self, fd: int, name: bytes, path: bytes, status: os.stat_result) -> Iterator[bytes]:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:  # a socket: tar has no type for it (image-spec layer.md)
            return
        linkname = b""
        key = (status.st_dev, status.st_ino)
        if kind is not Kind.DIRECTORY and status.st_nlink > 1:
            linkname = self._first.setdefault(key, path)
            if linkname != path:
                kind = Kind.HARDLINK
            else:
                linkname = b""
        if kind is Kind.SYMLINK:
            linkname = os.readlink(name, dir_fd=fd)
        plain_user = self._uid != 0
        here = f"/proc/self/fd/{fd}/{os.fsdecode(name)}"
        entry = Entry(
            name=path,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=0 if plain_user and status.st_uid == self._uid else status.st_uid,
            gid=0 if plain_user and status.st_gid == self._gid else status.st_gid,
            size=status.st_size if kind is Kind.FILE else 0,
            mtime_ns=status.st_mtime_ns,
            linkname=linkname,
            rdev=(os.major(status.st_rdev), os.minor(status.st_rdev))
            if kind in {Kind.CHAR, Kind.BLOCK}
            else (0, 0),
            xattrs={} if kind is Kind.HARDLINK else _xattrs(here),
        )
        if kind is not Kind.FILE:
            yield member_header(entry)
            return
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=fd)
        try:
            opened = os.fstat(file)
            if (opened.st_dev, opened.st_ino, opened.st_size) != (*key, entry.size):
                raise StoreError(f"{show(path)}: changed while it was read; try again")
            yield member_header(entry)
            left = entry.size
            while left:
                data = os.read(file, min(left, _CHUNK))
                if not data:
                    raise StoreError(f"{show(path)}: became shorter while it was read; try again")
                left -= len(data)
                yield data
        finally:
            os.close(file)
        yield padding(entry.size)


def tree_tar(path: bytes) -> Iterator[bytes]:
    """Yield the tar stream of a directory; `./` comes first and carries the root's attributes."""
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield from _Walk(root).members()
    finally:
        os.close(root)
    yield end_of_archive()
