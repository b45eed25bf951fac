"""Files of an image by path: in a directory, or in a tar archive with random access.

Invariant: a path from a document (attacker's choice) is resolved below the directory or
within the archive only. On disk no symbolic link is followed and only regular files are opened;
in an archive links are followed inside it, as `docker save` writes them.
"""

from __future__ import annotations

import io
import os
import stat
from typing import BinaryIO, Final, Protocol

import attrs

from unionfs.archive.entry import Kind
from unionfs.archive.limits import Limits
from unionfs.archive.reader import Window
from unionfs.archive.tarstream import TarStream
from unionfs.closing import Closing
from unionfs.errors import HostileArchiveError, NotFoundError, show

__all__ = ["DirectoryFiles", "Files", "TarFiles"]

_MAX_HOPS: Final = 40
_DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO in place of a blob must not hang us before we can look at its type.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Files(Protocol):
    """What the readers of image formats need."""

    @property
    def what(self) -> str:
        """The name of the whole for messages."""
        ...

    def open(self, path: str) -> tuple[BinaryIO, int]:
        """Open a regular file; return it with its size. Raises NotFoundError."""
        ...

    def has(self, path: str) -> bool:
        """Tell whether `open` would find something."""
        ...


def _components(path: str, what: str) -> list[bytes]:
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise HostileArchiveError(f"{what}: a path that is no text") from None
    parts = [part for part in raw.split(b"/") if part not in {b"", b"."}]
    if raw.startswith(b"/") or b".." in parts or b"\0" in raw or not parts:
        raise HostileArchiveError(f"{what}: the path {show(path[:200])} leads out of the image")
    return parts


class DirectoryFiles(Closing):
    """Files below an open directory. Owns the descriptor."""

    def __init__(self, path: bytes) -> None:
        self.what = show(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str) -> tuple[BinaryIO, int]:
        """Open without following any link; see `Files.open`."""
        parts = _components(path, self.what)
        held = self._fd
        try:
            for part in parts[:-1]:
                inner = os.open(part, _DIR_FLAGS, dir_fd=held)
                if held != self._fd:
                    os.close(held)
                held = inner
            fd = os.open(parts[-1], _FILE_FLAGS, dir_fd=held)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise NotFoundError(f"{self.what}: has no {show(path[:200])}") from None
            raise HostileArchiveError(
                f"{self.what}: {show(path[:200])} cannot be opened as a plain file below the "
                f"directory ({error.strerror})"
            ) from None
        finally:
            if held != self._fd:
                os.close(held)
        file = os.fdopen(fd, "rb")
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise HostileArchiveError(f"{self.what}: {show(path[:200])} is no regular file")
        return file, status.st_size

    def has(self, path: str) -> bool:
        """Tell whether `path` is there as a plain file."""
        try:
            file, _ = self.open(path)
        except (NotFoundError, HostileArchiveError):
            return False
        file.close()
        return True

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)


@attrs.frozen
class _Member:
    kind: Kind
    offset: int
    size: int
    linkname: bytes


class TarFiles:
    """Members of an uncompressed, seekable tar archive; its headers are read once."""

    def __init__(self, file: BinaryIO, limits: Limits, what: str) -> None:
        self.what = what
        self._file = file
        self._members: dict[tuple[bytes, ...], _Member] = {}
        size = file.seek(0, io.SEEK_END)
        stream = TarStream.seeking(file, size, limits, what=what)
        for entry in stream:
            parts = tuple(part for part in entry.name.split(b"/") if part not in {b"", b"."})
            if not parts or entry.name.startswith(b"/") or b".." in parts:
                continue
            if entry.kind is Kind.FILE and entry.extents is not None:
                raise HostileArchiveError(f"{what}: {show(entry.name)} is sparse")
            old = self._members.get(parts)
            if old is not None and not old.kind is entry.kind is Kind.DIRECTORY:
                # skopeo takes the first, docker the last.
                raise HostileArchiveError(f"{what}: has {show(entry.name)} twice")
            self._members[parts] = _Member(
                entry.kind, stream.data_position, entry.size, entry.linkname
            )

    def top_level(self) -> list[bytes]:
        """Return the first components of all members, sorted."""
        return sorted({parts[0] for parts in self._members})

    def open(self, path: str) -> tuple[BinaryIO, int]:
        """Open a member, links inside the archive followed; see `Files.open`."""
        member = self._resolve(path)
        if member is None:
            raise NotFoundError(f"{self.what}: has no {show(path[:200])}")
        if member.kind is not Kind.FILE:
            raise HostileArchiveError(f"{self.what}: {show(path[:200])} is no regular file")
        window = Window(self._file, member.offset, member.offset + member.size)
        return io.BufferedReader(window), member.size

    def has(self, path: str) -> bool:
        """Tell whether `path` is a member or a link to one."""
        return self._resolve(path) is not None

    def _resolve(self, path: str) -> _Member | None:
        todo = _components(path, self.what)[::-1]
        done: list[bytes] = []
        hops = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                if not done:
                    raise HostileArchiveError(
                        f"{self.what}: {show(path[:200])} is a link that leads out of the archive"
                    )
                done.pop()
                continue
            done.append(part)
            member = self._members.get(tuple(done))
            if member is None or member.kind not in {Kind.SYMLINK, Kind.HARDLINK}:
                continue
            hops += 1
            if hops > _MAX_HOPS:
                raise HostileArchiveError(f"{self.what}: {show(path[:200])} is a loop of links")
            if member.kind is Kind.HARDLINK or member.linkname.startswith(b"/"):
                done.clear()
            else:
                done.pop()
            todo += [p for p in member.linkname.split(b"/")[::-1] if p not in {b"", b"."}]
        return self._members.get(tuple(done))
