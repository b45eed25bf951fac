"""The reference: the layers of an image applied one after the other in memory, by OCI's letter.

Written from the image specification (layer.md) alone, so that it can judge the engines: it shares
nothing with them but the names of whiteouts. Of a layer's own members the last of a name counts.
Its whiteouts and opaque markers act on the layers below only, whatever their place in the archive.
Then it is put on top: a directory over a directory replaces its attributes and keeps what is in it,
everything else replaces what is there. Where the specification is silent, as our own stores do: a
directory that members only imply has the attributes of the one below, also if the layer hides that,
else mode 0755; whiteouts imply none; links on the way are not followed but replaced.

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
    """An entry of a tree. `file` is the same object for all names of one file.

    `implied` says of a layer's directory that the archive has no member for it.
    """

    __slots__ = ("children", "file", "implied", "seen")

    def __init__(self, seen: Seen, file: object = None, *, implied: bool = False) -> None:
        self.seen = seen
        self.file = object() if file is None else file
        self.implied = implied
        self.children: dict[bytes, _Node] = {}

    @property
    def is_dir(self) -> bool:
        return self.seen.fmt == stat.S_IFDIR


class Reference:
    """The tree that the layers applied so far give."""

    def __init__(self) -> None:
        self._root = _Node(_IMPLIED)

    def apply(self, stream: TarStream) -> None:
        """Put a layer on top. Raises `HostileArchiveError` for what readers must refuse."""
        layer = _Layer(self._root)
        markers: list[tuple[list[bytes], whiteout.Marker]] = []
        for entry in stream:
            parts = _components(entry.name)
            marker = _marker(parts)
            if marker.meaning in (Meaning.WHITEOUT, Meaning.OPAQUE):
                markers.append((parts[:-1], marker))
            else:
                layer.member(parts, entry, digest_of(stream, entry))
        layer.inherit()
        for parent, marker in markers:
            self._hide(parent, marker)
        self._merge(layer.root)

    def shown(self) -> Iterator[Shown]:
        """Yield everything that the tree shows, the root first."""
        pending = [(b"", self._root)]
        while pending:
            path, node = pending.pop()
            yield path, node.seen, None if node.is_dir else node.file
            prefix = path + b"/" if path else b""
            pending += [(prefix + name, child) for name, child in node.children.items()]

    def _hide(self, parent: list[bytes], marker: whiteout.Marker) -> None:
        node = _find(self._root, parent)
        if node is None:
            return
        if marker.meaning is Meaning.WHITEOUT:
            node.children.pop(marker.target, None)
        else:
            node.children.clear()

    def _merge(self, layer: _Node) -> None:
        pending = [(self._root, layer)]
        while pending:
            below, own = pending.pop()
            below.seen = own.seen
            for name, child in own.children.items():
                old = below.children.get(name)
                if old is not None and old.is_dir and child.is_dir:
                    pending.append((old, child))
                else:
                    below.children[name] = child


class _Layer:
    """The members of one layer by themselves, over what lies below (as it was)."""

    def __init__(self, below: _Node) -> None:
        self.root = _Node(_IMPLIED, implied=True)
        self._below = below
        self._housekeeping: dict[bytes, _Node] = {}

    def member(self, parts: list[bytes], entry: Entry, content: bytes) -> None:
        """Add a member; it replaces what the layer has at its name."""
        where = show(entry.name)
        if any(whiteout.is_reserved(part) for part in parts):
            self._housekeeping[b"/".join(parts)] = _Node(seen_of(entry, content))
            return
        if not parts:
            if entry.kind is not Kind.DIRECTORY:
                raise HostileArchiveError(f"{where}: the root is not a directory")
            self.root.seen, self.root.implied = seen_of(entry, content), False
            return
        if entry.kind is Kind.HARDLINK:
            node = self._linked(parts, _components(entry.linkname), where)
        else:
            node = _Node(seen_of(entry, content))
        holder = self._holder(parts[:-1])
        old = holder.children.get(parts[-1])
        if old is not None and old.is_dir and node.is_dir:
            old.seen, old.implied = node.seen, False
        else:
            holder.children[parts[-1]] = node

    def inherit(self) -> None:
        """Give directories that are only implied the attributes of those below."""
        pending: list[tuple[_Node | None, _Node]] = [(self._below, self.root)]
        while pending:
            below, own = pending.pop()
            if below is not None and below.is_dir and own.implied:
                own.seen = below.seen
            for name, child in own.children.items():
                if child.is_dir:
                    pending.append((_find(below, [name]), child))

    def _holder(self, parts: list[bytes]) -> _Node:
        """Return the directory at a path, making it and what is above it where need be."""
        node = self.root
        for part in parts:
            inner = node.children.get(part)
            if inner is None or not inner.is_dir:
                inner = node.children[part] = _Node(_IMPLIED, implied=True)
            node = inner
        return node

    def _linked(self, parts: list[bytes], target: list[bytes], where: str) -> _Node:
        own = _find(self.root, target) or self._housekeeping.get(b"/".join(target))
        found = own or _find(self._below, target)
        shorter = min(len(target), len(parts))
        replaces = target == parts or (own is not None and target[:shorter] == parts[:shorter])
        if found is None or found.is_dir or replaces:
            raise HostileArchiveError(f"{where}: a hard link to {show(b'/'.join(target))}")
        # To a file of a layer below, a link "may fail" (layer.md); a copy is as good as a link.
        return _Node(found.seen, found.file if own is not None else UNKNOWN_LINKS)


def _find(node: _Node | None, parts: list[bytes]) -> _Node | None:
    for part in parts:
        node = None if node is None else node.children.get(part)
    return node


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
