"""The reference: the layers of an image applied one after the other in memory, by OCI's letter.

Written from the image specification (layer.md) alone, so that it can judge the engines: it shares
nothing with them but the names of whiteouts. A layer's whiteouts and opaque markers act on the
layers below only, whatever their place in the archive; then its members are applied in order. A
directory over a directory replaces its attributes and keeps what is in it, everything else is
removed first. Where the specification is silent, as our own stores do: a directory that members
only imply keeps the attributes that it has, or is made with mode 0755; whiteouts imply none;
links on the way are not followed but replaced.

Invariant: the result depends on the archives alone, not on rights, disks or kernels.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.tarstream import TarStream
from unionfs.branch import whiteout
from unionfs.branch.whiteout import Meaning
from unionfs.errors import HostileArchiveError, show
from unionfs.insight.engines.seen import UNKNOWN_LINKS, Seen, Shown, kept_xattrs

__all__ = ["Reference", "digest_of", "seen_of"]

_TYPES: Final = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
_IMPLIED: Final = Seen(stat.S_IFDIR, 0o755)
_ZEROS: Final = bytes(1 << 16)


class _Node:
    """An entry of the tree. `file` is the same object for all names of one file."""

    __slots__ = ("children", "file", "layer", "seen")

    def __init__(self, seen: Seen, layer: int, file: object = None) -> None:
        self.seen = seen
        self.layer = layer
        self.file = object() if file is None else file
        self.children: dict[bytes, _Node] = {}

    @property
    def is_dir(self) -> bool:
        return self.seen.fmt == stat.S_IFDIR


class Reference:
    """The tree that the layers applied so far give."""

    def __init__(self) -> None:
        self._root = _Node(_IMPLIED, 0)
        self._layer = 0
        self._housekeeping: dict[bytes, _Node] = {}
        #: What whiteouts of the present layer took away: links of the layer may still mean it.
        self._taken: dict[bytes, _Node] = {}

    def apply(self, stream: TarStream) -> None:
        """Put a layer on top. Raises `HostileArchiveError` for what readers must refuse."""
        self._layer += 1
        self._housekeeping = {}
        self._taken = {}
        members: list[tuple[list[bytes], Entry, bytes]] = []
        markers: list[tuple[list[bytes], whiteout.Marker]] = []
        for entry in stream:
            parts = _components(entry.name)
            marker = _marker(parts)
            if marker.meaning in (Meaning.WHITEOUT, Meaning.OPAQUE):
                markers.append((parts[:-1], marker))
            else:
                members.append((parts, entry, digest_of(stream, entry)))
        for parent, marker in markers:
            self._hide(parent, marker)
        for parts, entry, content in members:
            if any(whiteout.is_reserved(part) for part in parts):
                self._housekeeping[b"/".join(parts)] = _Node(seen_of(entry, content), self._layer)
            else:
                self._member(parts, entry, content)

    def shown(self) -> Iterator[Shown]:
        """Yield everything that the tree shows, the root first."""
        pending = [(b"", self._root)]
        while pending:
            path, node = pending.pop()
            yield path, node.seen, None if node.is_dir else node.file
            prefix = path + b"/" if path else b""
            pending += [(prefix + name, child) for name, child in node.children.items()]

    # -- markers -----------------------------------------------------------------

    def _hide(self, parent: list[bytes], marker: whiteout.Marker) -> None:
        node = self._find(parent)
        if node is None or not node.is_dir:
            return
        gone = [marker.target] if marker.meaning is Meaning.WHITEOUT else list(node.children)
        for name in gone:
            child = node.children.pop(name, None)
            if child is not None:
                self._taken[b"/".join([*parent, name])] = child

    def _find(self, parts: list[bytes]) -> _Node | None:
        node: _Node | None = self._root
        for part in parts:
            node = None if node is None else node.children.get(part)
        return node

    # -- members -----------------------------------------------------------------

    def _member(self, parts: list[bytes], entry: Entry, content: bytes) -> None:
        where = show(entry.name)
        if not parts:
            if entry.kind is not Kind.DIRECTORY:
                raise HostileArchiveError(f"{where}: the root is not a directory")
            self._root.seen = seen_of(entry, content)
            return
        if entry.kind is Kind.HARDLINK:
            node = self._linked(parts, _components(entry.linkname), where)
        else:
            node = _Node(seen_of(entry, content), self._layer)
        holder = self._holder(parts[:-1])
        old = holder.children.get(parts[-1])
        if old is not None and old.is_dir and node.is_dir:
            old.seen, old.layer = node.seen, self._layer
        else:
            holder.children[parts[-1]] = node

    def _holder(self, parts: list[bytes]) -> _Node:
        """Return the directory at a path, making it and what is above it where need be."""
        node = self._root
        for part in parts:
            inner = node.children.get(part)
            if inner is None or not inner.is_dir:
                inner = node.children[part] = _Node(_IMPLIED, self._layer)
            node = inner
        return node

    def _linked(self, parts: list[bytes], target: list[bytes], where: str) -> _Node:
        found = self._find(target) or self._housekeeping.get(b"/".join(target))
        found = found or self._find_taken(target)
        if found is None or found.is_dir or target == parts:
            raise HostileArchiveError(f"{where}: a hard link to {show(b'/'.join(target))}")
        if found.layer == self._layer:
            return _Node(found.seen, self._layer, found.file)
        # To a file of a layer below, a link "may fail" (layer.md); a copy is as good as a link.
        return _Node(found.seen, self._layer, UNKNOWN_LINKS)

    def _find_taken(self, target: list[bytes]) -> _Node | None:
        for length in range(len(target), 0, -1):
            node: _Node | None = self._taken.get(b"/".join(target[:length]))
            for part in target[length:]:
                node = None if node is None else node.children.get(part)
            if node is not None:
                return node
        return None


def _components(name: bytes) -> list[bytes]:
    """Return the components of a member's name, taken as text."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise HostileArchiveError(f"{show(name)}: it leads out of the image")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


def _marker(parts: list[bytes]) -> whiteout.Marker:
    """Say what a member is; refuse names that nothing in an image can have."""
    for position, part in enumerate(parts):
        marker = whiteout.classify(part)
        if marker.meaning is Meaning.INVALID:
            raise HostileArchiveError(f"{show(b'/'.join(parts))}: an invalid whiteout")
        is_last = position == len(parts) - 1
        if marker.meaning in (Meaning.WHITEOUT, Meaning.OPAQUE):
            if not is_last:
                raise HostileArchiveError(f"{show(b'/'.join(parts))}: it lies below a whiteout")
            return marker
        if marker.meaning is not Meaning.ENTRY:
            return marker  # housekeeping, with all that is in it
    return whiteout.Marker(Meaning.ENTRY)


def seen_of(entry: Entry, content: bytes) -> Seen:
    """Return a member as an entry of a tree; `content` is its digest, for files."""
    fmt = _TYPES.get(entry.kind, stat.S_IFREG)
    is_device = fmt in (stat.S_IFCHR, stat.S_IFBLK)
    return Seen(
        fmt,
        entry.mode & 0o7777,
        entry.uid,
        entry.gid,
        os.makedev(*entry.rdev) if is_device else 0,
        entry.size if fmt == stat.S_IFREG else 0,
        entry.mtime_ns,
        entry.linkname if fmt == stat.S_IFLNK else content,
        kept_xattrs({os.fsdecode(name): value for name, value in entry.xattrs.items()}),
    )


def digest_of(stream: TarStream, entry: Entry) -> bytes:
    """Return the SHA-256 of a file as its readers see it, holes as zeros; empty for others."""
    if entry.kind is not Kind.FILE:
        return b""
    digest = hashlib.sha256()
    at = 0
    for offset, data in stream.payload():
        _zeros(digest, offset - at)
        digest.update(data)
        at = offset + len(data)
    _zeros(digest, entry.size - at)
    return digest.digest()


def _zeros(digest: hashlib._Hash, count: int) -> None:
    while count > 0:
        step = min(count, len(_ZEROS))
        digest.update(_ZEROS[:step])
        count -= step
