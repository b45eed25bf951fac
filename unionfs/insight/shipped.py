"""What a layer ships, as it is spelled: every entry and every marker, before any interpretation.

Read from a directory, or from an archive before the store brings it into normal form. Only
names and attributes are read, no contents (but those of long whiteouts).

Invariant: items of an archive are in its order, those of a directory sorted with parents first;
nothing is left out, also not what every union ignores.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

import attrs

from unionfs.archive.compression import decompress
from unionfs.archive.entry import Entry, Kind
from unionfs.archive.image import SourceImage
from unionfs.archive.limits import DEFAULT, Limits
from unionfs.archive.tarstream import TarStream
from unionfs.archive.tree import ChunkReader
from unionfs.branch import Branch, Dialect, Status, whiteout
from unionfs.branch.branch import proc_path
from unionfs.branch.whiteout import Meaning
from unionfs.insight.probe import join, split_path
from unionfs.insight.where import NamedBranch
from unionfs.store.export import replay_layer

__all__ = [
    "LEFT_OUT",
    "Item",
    "Shipped",
    "archive_branches",
    "read_archive_layer",
    "read_branch",
    "read_stored",
    "shipped_of",
]

_TYPES: Final = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.HARDLINK: stat.S_IFREG,
}
#: How notes of the store end that tell of markers which it did not keep.
LEFT_OUT: Final = (
    "a whiteout that hides nothing was left out",
    "marked opaque, but there is no such directory",
    "more warnings",
)
#: Names that no disk can hold are a finding, not an error; nothing is written here.
_LIMITS: Final = attrs.evolve(DEFAULT, component=DEFAULT.path)
_OVERLAY_XATTRS: Final = ("trusted.overlay.", "user.overlay.")


@attrs.define(eq=False)
class Item:
    """One entry or marker of a layer.

    `path` is relative, without `.` and `..`. `size` counts bytes of content, for the first name
    of a file only. `fmt` is the S_IF* type; a hard link of an archive is a file whose `link` is
    the other name. `group` is the same for all names of one file. `overlay` are the xattrs that
    mean something to overlayfs, with their values. `target` is where a symbolic link leads.
    """

    path: bytes
    fmt: int
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    link: bytes | None = None
    group: object = None
    overlay: dict[str, bytes] = attrs.field(factory=dict)
    target: bytes = b""

    @property
    def name(self) -> bytes:
        """The last component."""
        return self.path.rpartition(b"/")[2]

    @property
    def parent(self) -> bytes:
        """The path without the last component."""
        return self.path.rpartition(b"/")[0]

    @property
    def is_zero_device(self) -> bool:
        """Whether this is a character device 0/0, overlayfs's whiteout."""
        return self.fmt == stat.S_IFCHR and self.rdev == 0


@attrs.define
class Shipped:
    """A layer's items, sorted by what they mean in its dialect.

    `entries`: path -> item, the last of a name. `whiteouts`: hidden path -> marker. `opaque`:
    directory (root: empty) -> marker. `housekeeping` and `invalid` are names that mean nothing.
    `below_marker` are entries under a directory whose name is reserved. `is_archive` says that
    directories may be missing which the items imply.
    """

    branch: NamedBranch
    items: list[Item]
    is_archive: bool = False
    entries: dict[bytes, Item] = attrs.field(factory=dict)
    whiteouts: dict[bytes, Item] = attrs.field(factory=dict)
    opaque: dict[bytes, Item] = attrs.field(factory=dict)
    housekeeping: list[Item] = attrs.field(factory=list)
    invalid: list[Item] = attrs.field(factory=list)
    below_marker: list[Item] = attrs.field(factory=list)
    duplicates: list[Item] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        sort = self._sort_aufs if self.branch.dialect is Dialect.AUFS else self._sort_overlay
        for item in self.items:
            sort(item)

    def _entry(self, item: Item) -> None:
        known = self.entries.get(item.path)
        if known is not None and item.path and not known.fmt == item.fmt == stat.S_IFDIR:
            self.duplicates.append(item)
        self.entries[item.path] = item

    def _sort_aufs(self, item: Item) -> None:
        if any(whiteout.is_reserved(part) for part in item.parent.split(b"/")):
            self.below_marker.append(item)
            return
        marker = whiteout.classify(item.name)
        if marker.meaning is Meaning.ENTRY:
            self._entry(item)
        elif marker.meaning is Meaning.WHITEOUT:
            self.whiteouts[join(item.parent, marker.target)] = item
        elif marker.meaning is Meaning.LONG_WHITEOUT and item.link:
            self.whiteouts[join(item.parent, item.link)] = item
        elif marker.meaning is Meaning.OPAQUE:
            self.opaque[item.parent] = item
        elif marker.meaning is Meaning.INVALID:
            self.invalid.append(item)
        else:
            self.housekeeping.append(item)

    def _sort_overlay(self, item: Item) -> None:
        if any(whiteout.is_reserved(part) for part in item.path.split(b"/")):
            self.housekeeping.append(item)  # overlayfs makes them, the union never shows them
            return
        if item.is_zero_device:
            self.whiteouts[item.path] = item
            return
        self._entry(item)
        attribute = whiteout.opaque_xattr(self.branch.dialect)
        if attribute is not None and item.overlay.get(attribute) == b"y":
            self.opaque[item.path] = item

    def covered(self, path: bytes) -> Item | None:
        """Return the marker of this layer that hides everything at `path` from the parent up.

        That is an opaque directory above it or a whiteout of one: markers inside have no work.
        """
        while path:
            path = path.rpartition(b"/")[0]
            found = self.opaque.get(path) or (self.whiteouts.get(path) if path else None)
            if found is not None:
                return found
        return None


# -- directories -------------------------------------------------------------------


def read_branch(named: NamedBranch, seen_one: Callable[[], None] = lambda: None) -> Shipped:
    """Read a branch's directory tree. Raises `OSError`.

    `seen_one` is called after every entry; what it raises ends the reading.
    """
    items = []
    with named.open() as branch:
        for item in _walk(branch):
            items.append(item)
            seen_one()
    items.sort(key=lambda item: item.path.split(b"/"))
    seen: set[object] = set()
    for item in items:
        if item.group in seen:
            item.size = 0
        elif item.group is not None:
            seen.add(item.group)
    return Shipped(named, items)


def _walk(branch: Branch) -> Iterator[Item]:
    pending = [b""]
    yield _item(branch, branch.fd, b".", b"")
    while pending:
        at = pending.pop()
        fd = branch.open_path(at)
        try:
            for name in branch.raw_names(fd):
                if not at and name in (whiteout.WORK_DIR, whiteout.OVERLAY_DIR):
                    yield Item(name, stat.S_IFDIR)
                    continue
                item = _item(branch, fd, name, join(at, name))
                if item.fmt == stat.S_IFDIR:
                    pending.append(item.path)
                yield item
        finally:
            os.close(fd)


def _item(branch: Branch, fd: int, name: bytes, path: bytes) -> Item:
    status: Status = branch.status(fd, name)
    size, group = 0, None
    if status.fmt == stat.S_IFREG:
        size = status.size
        if status.nlink > 1:
            group = (status.dev, status.ino)
    link = None
    if whiteout.classify(name).meaning is Meaning.LONG_WHITEOUT:
        link = _long_target(branch, fd, name)
    overlay = {}
    if status.fmt in (stat.S_IFREG, stat.S_IFDIR):
        overlay = _overlay_xattrs(proc_path(fd, name))
    return Item(
        path,
        status.fmt,
        size,
        stat.S_IMODE(status.mode),
        status.uid,
        status.gid,
        status.rdev,
        link,
        group,
        overlay,
        branch.readlink(fd, name) if status.fmt == stat.S_IFLNK else b"",
    )


def _long_target(branch: Branch, fd: int, name: bytes) -> bytes | None:
    """Return the hidden name that a long whiteout holds, None when it is not one."""
    try:
        file = branch.open_file(fd, name, os.O_RDONLY)
    except OSError:
        return None
    try:
        target = os.read(file, whiteout.NAME_MAX + 1)
    finally:
        os.close(file)
    return target if whiteout.marker_for(target)[0] == name else None


def _overlay_xattrs(path: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    found = {}
    for name in names:
        if name.startswith(_OVERLAY_XATTRS):
            try:
                found[name] = os.getxattr(path, name, follow_symlinks=False)
            except OSError:
                found[name] = b""
    return found


# -- archives ----------------------------------------------------------------------


def read_stored(named: NamedBranch) -> Shipped:
    """Read a layer of the store as its archive spelled it, else its directory."""
    entry = named.entry
    if entry is None or entry.facts is None or not entry.facts.has_record:
        return read_branch(named)
    stream = TarStream(ChunkReader(replay_layer(entry)), _LIMITS, what=named.title)
    return shipped_of(named, stream)


def read_archive_layer(named: NamedBranch, raw: BinaryIO, limits: Limits = _LIMITS) -> Shipped:
    """Read a layer's archive, compressed or not. Raises `HostileArchiveError`."""
    return shipped_of(named, TarStream(decompress(raw, limits), limits, what=named.title))


def archive_branches(image: SourceImage) -> tuple[NamedBranch, ...]:
    """Return labels for the layers of an image in a source, top first."""
    count = len(image.layers)
    return tuple(
        NamedBranch(
            count - position,
            b"",
            names=image.references if position == 0 else (),
            layer_id=(layer.diff_id or "").removeprefix("sha256:") or "unknown",
            diff_id=layer.diff_id or "",
        )
        for position, layer in enumerate(reversed(image.layers))
    )


def shipped_of(named: NamedBranch, stream: Iterable[Entry]) -> Shipped:
    """Sort the members of an archive by what they mean."""
    items = []
    groups: dict[bytes, object] = {}
    for entry in stream:
        path = b"/".join(split_path(entry.name))
        link = None
        if entry.kind is Kind.HARDLINK:
            link = b"/".join(split_path(entry.linkname))
            groups[path] = groups.setdefault(link, object())
        else:
            groups.pop(path, None)
        items.append(
            Item(
                path,
                _TYPES[entry.kind],
                entry.size if entry.kind is Kind.FILE else 0,
                entry.mode & 0o7777,
                entry.uid,
                entry.gid,
                os.makedev(*entry.rdev),
                link,
                None,
                {
                    os.fsdecode(name): value
                    for name, value in entry.xattrs.items()
                    if os.fsdecode(name).startswith(_OVERLAY_XATTRS)
                },
                entry.linkname if entry.kind is Kind.SYMLINK else b"",
            )
        )
    for item in items:
        item.group = groups.get(item.path)
    return Shipped(named, items, is_archive=True)
