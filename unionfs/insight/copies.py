"""Copies of layers as plain directories, spelled as they were shipped, for repairs and experiments.

Markers stay what they are in the archive; owners, devices and attributes that the caller cannot
make real are recorded in the form of a plain user's branch. Only names that no disk can hold are
spelled otherwise: a whiteout of a name over 251 bytes.

Invariant: `copied` appears complete or not at all, and the merged view of the copies is that of
the layers.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.tarstream import TarStream
from unionfs.branch import Branch, Writer, whiteout
from unionfs.branch.whiteout import Meaning
from unionfs.errors import UnsupportedError, show
from unionfs.insight.engines.layers import LayerSource
from unionfs.insight.engines.reference import seen_of
from unionfs.insight.engines.workplace import need_space
from unionfs.insight.probe import join, split_path
from unionfs.insight.staged import staged_directory
from unionfs.store._fs import remove_tree

__all__ = ["copied"]


@contextlib.contextmanager
def copied(sources: Sequence[LayerSource], place: bytes) -> Iterator[list[bytes]]:
    """Copy layers (given base first) into the new directory `place`; give their paths, top first.

    The directory gets its name when the block ends without an error, so the paths are other ones
    inside of it. Raises `ConflictError` if `place` exists, `UnsupportedError` for what cannot be
    kept, `OSError`.
    """
    with staged_directory(place) as base:
        need_space(base, sum(source.size for source in sources))
        paths: list[bytes] = []
        for number, source in enumerate(sources, 1):
            path = os.path.join(base, b"layer%d" % number)
            os.mkdir(path, 0o755)
            _copy(source.stream(), path, source.title)
            paths.insert(0, path)
        yield paths


def _copy(stream: TarStream, path: bytes, title: str) -> None:
    with Branch.open(path) as branch:
        _Copy(branch, title).run(stream)


class _Copy:
    """One layer on its way into a directory."""

    def __init__(self, branch: Branch, title: str) -> None:
        self._branch = branch
        self._writer = Writer.probe(branch)
        self._title = title
        self._directories: dict[bytes, Entry] = {}

    def run(self, stream: TarStream) -> None:
        for entry in stream:
            path = b"/".join(split_path(entry.name))
            try:
                self._member(path, entry, stream)
            except OSError as error:
                raise UnsupportedError(
                    f"{self._title}: {show(b'/' + path)} cannot be copied: {error.strerror}"
                ) from error
        # Directories last, deepest first: what is written in them changes their times.
        for path, entry in sorted(self._directories.items(), reverse=True):
            parent, _, name = path.rpartition(b"/")
            fd = self._branch.open_path(parent)
            try:
                self._writer.set_attributes(
                    fd, name or b".", stat.S_IFDIR | entry.mode & 0o7777, entry.uid, entry.gid
                )
                self._attributes(fd, name or b".", entry)
            finally:
                os.close(fd)

    def _member(self, path: bytes, entry: Entry, stream: TarStream) -> None:
        if not path:
            self._directories[path] = entry
            return
        parent, _, name = path.rpartition(b"/")
        fd = self._parent(parent)
        try:
            name, content = _on_disk(name)
            if entry.kind is Kind.DIRECTORY:
                self._directories[path] = entry
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        return
            self._make_room(fd, path, name)
            self._create(fd, name, entry, stream, content)
        finally:
            os.close(fd)

    def _parent(self, path: bytes) -> int:
        """Open a directory, making what is only implied and replacing what is none."""
        try:
            return self._branch.open_path(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        fd, at = os.dup(self._branch.fd), b""
        for name in path.split(b"/"):
            at = join(at, name)
            try:
                inner = self._branch.open_dir(fd, name)
            except (FileNotFoundError, NotADirectoryError):
                self._make_room(fd, at, name)
                self._writer.create(fd, name, stat.S_IFDIR | 0o755, 0, 0)
                inner = self._branch.open_dir(fd, name)
            os.close(fd)
            fd = inner
        return fd

    def _make_room(self, fd: int, path: bytes, name: bytes) -> None:
        inner = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        try:
            remove_tree(name, inner)
        finally:
            os.close(inner)
        gone = [item for item in self._directories if (item + b"/").startswith(path + b"/")]
        for item in gone:
            if item != path:
                del self._directories[item]

    def _create(
        self, fd: int, name: bytes, entry: Entry, stream: TarStream, content: bytes
    ) -> None:
        if entry.kind is Kind.HARDLINK:
            parent, _, other = b"/".join(split_path(entry.linkname)).rpartition(b"/")
            source = self._branch.open_path(parent)
            try:
                os.link(other, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(source)
            return
        if entry.kind is Kind.FILE:
            file = self._writer.create_file(fd, name, entry.mode, entry.uid, entry.gid)
            with open(file, "r+b", buffering=0) as out:
                for offset, data in stream.payload():
                    out.seek(offset)
                    out.write(data)
                out.truncate(entry.size)
                if content:
                    out.write(content)
        else:
            seen = seen_of(entry, b"")
            mode = seen.fmt | seen.mode
            self._writer.create(
                fd, name, mode, entry.uid, entry.gid, rdev=seen.rdev, target=entry.linkname
            )
        self._attributes(fd, name, entry)

    def _attributes(self, fd: int, name: bytes, entry: Entry) -> None:
        if entry.xattrs:
            found = {os.fsdecode(key): value for key, value in entry.xattrs.items()}
            self._writer.set_xattrs(fd, name, found)
        self._writer.set_times(fd, name, entry.mtime_ns, entry.mtime_ns)


def _on_disk(name: bytes) -> tuple[bytes, bytes]:
    """Return the file name and content of a member: another one for a whiteout too long for it."""
    if len(name) <= whiteout.NAME_MAX:
        return name, b""
    marker = whiteout.classify(name)
    return whiteout.marker_for(marker.target) if marker.meaning is Meaning.WHITEOUT else (name, b"")
