"""Layers unpacked one by one, as tools do that store them one by one: spelled as they came.

`literal` writes markers as the files that the archive has. `overlay` turns them into overlayfs's
own while unpacking, one member after the other, as containerd and dockerd do: a whiteout becomes
a device at once, whatever else the layer has at that name. That is naive on purpose.

Invariant: nothing is written outside of the root, whatever the archive says: parents are resolved
with the root as the root of all links (openat2(2)), the last component is never followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from unionfs import _sys
from unionfs.archive.entry import Entry, Kind
from unionfs.archive.tarstream import TarStream
from unionfs.branch import Dialect, whiteout
from unionfs.branch.branch import proc_path
from unionfs.branch.whiteout import Meaning
from unionfs.errors import HostileArchiveError, UnionfsError, show
from unionfs.insight.engines.layers import LayerSource
from unionfs.insight.engines.workplace import RefusedError, need_space
from unionfs.insight.probe import split_path
from unionfs.store._fs import remove_tree

__all__ = ["unpack", "unpack_all"]

_TYPES: Final = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT: Final = os.O_PATH | os.O_DIRECTORY
#: What unpackers pass over in attributes that they may not set.
_IGNORED: Final = (errno.EPERM, errno.ENOTSUP, errno.EINVAL)


def unpack_all(
    sources: list[LayerSource], place: bytes, dialect: Dialect, *, whole: bool
) -> list[bytes]:
    """Unpack layers into `place`, base first; return their directories, base first.

    `dialect` AUFS leaves markers as they are. Without `whole` owners and devices are left out.
    Raises `RefusedError`, `LeftOutError`, `OSError`.
    """
    need_space(place, sum(source.size for source in sources))
    made = []
    for number, source in enumerate(sources, 1):
        if dialect is Dialect.AUFS and source.directory is not None:
            made.append(source.directory)
            continue
        path = os.path.join(place, b"layer%d" % number)
        os.mkdir(path, 0o755)
        try:
            unpack(source.stream(), path, dialect, whole=whole)
        except (HostileArchiveError, RefusedError) as error:
            raise RefusedError(f"{source.title}: {error}") from error
        made.append(path)
    return made


def unpack(
    stream: TarStream, path: bytes, dialect: Dialect, *, whole: bool, strict: bool = False
) -> None:
    """Unpack one layer into the empty directory `path`.

    With `strict` an attribute that cannot be set is an error and trusted.* are set, too.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _Unpacker(fd, dialect, whole=whole, strict=strict).run(stream)
    finally:
        os.close(fd)


class _Unpacker:
    """One layer on its way to disk."""

    def __init__(self, root: int, dialect: Dialect, *, whole: bool, strict: bool) -> None:
        self._root = root
        self._dialect = dialect
        self._whole = whole
        self._strict = strict
        #: Directories get their attributes last: modes may close them, entries change times.
        self._directories: dict[bytes, Entry] = {}

    def run(self, stream: TarStream) -> None:
        for entry in stream:
            try:
                self._member(entry, stream)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise RefusedError(f"{show(entry.name)}: {error.strerror}") from error
        for path, entry in sorted(self._directories.items(), reverse=True):
            parent, name = self._split(path.split(b"/") if path else [])
            with self._open(parent) as fd, contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    self._attributes(fd, name, entry)

    @staticmethod
    def _split(parts: list[bytes]) -> tuple[bytes, bytes]:
        return b"/".join(parts[:-1]), parts[-1] if parts else b"."

    @contextlib.contextmanager
    def _open(self, path: bytes) -> Iterator[int]:
        fd = _sys.open_in_root(self._root, path or b".", _PARENT)
        try:
            yield fd
        finally:
            os.close(fd)

    def _member(self, entry: Entry, stream: TarStream) -> None:
        parts = split_path(entry.name)
        if not parts:
            if entry.kind is Kind.DIRECTORY:
                self._directories[b""] = entry
            return
        parent, name = self._split(parts)
        self._make_parents(parts[:-1])
        with self._open(parent) as fd:
            if self._dialect is not Dialect.AUFS and whiteout.is_reserved(name):
                self._marker(fd, name)
                return
            if self._make_room(fd, name, entry):
                self._create(fd, name, entry, stream)
        if entry.kind is Kind.DIRECTORY:
            self._directories[b"/".join(parts)] = entry

    def _make_parents(self, parts: list[bytes]) -> None:
        there = len(parts)
        while True:
            try:
                with self._open(b"/".join(parts[:there])):
                    break
            except FileNotFoundError:
                there -= 1
        for depth in range(there, len(parts)):
            with self._open(b"/".join(parts[:depth])) as fd:
                os.mkdir(parts[depth], 0o755, dir_fd=fd)

    def _marker(self, fd: int, name: bytes) -> None:
        if name == whiteout.OPAQUE:
            attribute = whiteout.opaque_xattr(self._dialect)
            if attribute is None:
                raise UnionfsError("markers are converted for overlayfs only")
            os.setxattr(proc_path(fd, b"."), attribute, b"y")
            return
        if whiteout.classify(name).meaning is Meaning.INVALID:
            raise RefusedError(f"{show(name)}: an invalid whiteout")
        os.mknod(name[len(whiteout.PREFIX) :], stat.S_IFCHR, 0, dir_fd=fd)

    @staticmethod
    def _make_room(fd: int, name: bytes, entry: Entry) -> bool:
        """Remove what is in the way; False if a directory is there already, and wanted."""
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
        if stat.S_ISDIR(st.st_mode) and entry.kind is Kind.DIRECTORY:
            return False
        inner = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        try:
            remove_tree(name, inner)
        finally:
            os.close(inner)
        return True

    def _create(self, fd: int, name: bytes, entry: Entry, stream: TarStream) -> None:
        if entry.kind is Kind.DIRECTORY:
            os.mkdir(name, 0o755, dir_fd=fd)
            return
        if entry.kind is Kind.HARDLINK:
            parent, other = self._split(split_path(entry.linkname))
            with self._open(parent) as source:
                os.link(other, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
            return
        if entry.kind is Kind.FILE:
            file = os.open(name, _CREATE, 0o600, dir_fd=fd)
            try:
                for offset, data in stream.payload():
                    _write(file, data, offset)
                os.ftruncate(file, entry.size)
            finally:
                os.close(file)
        elif entry.kind is Kind.SYMLINK:
            os.symlink(entry.linkname, name, dir_fd=fd)
        else:
            rdev = os.makedev(*entry.rdev)
            if not self._whole and entry.kind is not Kind.FIFO and rdev:
                return  # nobody but root can; what is compared leaves them out
            os.mknod(name, _TYPES[entry.kind] | 0o600, rdev, dir_fd=fd)
        self._attributes(fd, name, entry)

    def _attributes(self, fd: int, name: bytes, entry: Entry) -> None:
        """Set owner, attributes, mode and times, in the order in which none undoes another."""
        path = proc_path(fd, name)
        if self._whole:
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        for attribute, value in entry.xattrs.items():
            if attribute.startswith(b"trusted.") and not self._strict:
                continue  # unpackers refuse them
            try:
                os.setxattr(path, attribute, value, follow_symlinks=False)
            except OSError as error:
                if self._strict or error.errno not in _IGNORED:
                    raise
        if entry.kind is not Kind.SYMLINK:
            os.chmod(path, entry.mode & 0o7777)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=fd, follow_symlinks=False)


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, offset)
        offset += done
        view = view[done:]
