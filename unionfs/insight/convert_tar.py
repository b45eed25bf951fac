"""A layer archive from one whiteout dialect into another, member by member, and verified.

Members stay as they are and in their order; only markers are spelled anew: `.wh.NAME` is a device
0/0 in overlayfs's dialects, an opaque marker an attribute of its directory. As `convert` does for
directories, what overlayfs trips over is said in a way that it understands.

Invariant: nothing is unpacked, so nobody needs rights; the archive appears complete or not at all,
and over any layers below it shows what the original shows by the letter of OCI.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.tarstream import TarStream
from unionfs.archive.tarwrite import end_of_archive, member_header, padding
from unionfs.branch import Dialect, whiteout
from unionfs.branch.whiteout import Meaning
from unionfs.errors import ConflictError, UnionfsError, UnsupportedError, show
from unionfs.insight.convert import (
    ELSEWHERE,
    OVERLAY_PREFIXES,
    check_trees,
)
from unionfs.insight.engines.reference import digest_of
from unionfs.insight.probe import join, split_path
from unionfs.insight.shipped import Shipped, shipped_of
from unionfs.insight.where import NamedBranch

__all__ = ["Opener", "converted_chunks", "verify_archives"]

#: Gives the archive from its start, any number of times.
Opener = Callable[[], TarStream]

_MARKER_MODE: Final = 0o444
_OVERLAY: Final = tuple(prefix.encode() for prefix in OVERLAY_PREFIXES)
_ELSEWHERE: Final = tuple(suffix.encode() for suffix in ELSEWHERE)
_ZEROS: Final = bytes(1 << 16)


def converted_chunks(
    opener: Opener, origin: Dialect, target: Dialect, counts: list[int]
) -> Iterator[bytes]:
    """Yield the archive in the other dialect; `counts` get entries, whiteouts, opaque markers.

    Raises `ConflictError` for what cannot exist in the target dialect, `UnsupportedError` for a
    layer that overlayfs spread over several places, `HostileArchiveError`, `OSError`.
    """
    plan = _Plan(_shipped(opener, origin), origin, target)
    yield from plan.chunks(opener())
    counts[:] = plan.counts


def _shipped(opener: Opener, dialect: Dialect) -> Shipped:
    return shipped_of(NamedBranch(2, b"", dialect=dialect), opener())


class _Plan:
    """What becomes of each member, from a first reading of all."""

    def __init__(self, shipped: Shipped, origin: Dialect, target: Dialect) -> None:
        self._origin = origin
        self._target = target
        self._attribute = (whiteout.opaque_xattr(target) or "").encode()
        self.counts = [0, 0, 0]
        if shipped.invalid or shipped.below_marker:
            bad = [*shipped.invalid, *shipped.below_marker][0]
            raise ConflictError(f"{show(bad.path)}: no layer may hold that; see `unionfs lint`")
        if origin is not Dialect.AUFS and shipped.housekeeping:
            bad = shipped.housekeeping[0]
            raise ConflictError(f"{show(bad.path)}: a file of that name is a marker in AUFS form")
        self._dirs = {path for path, item in shipped.entries.items() if item.fmt == stat.S_IFDIR}
        self._entries = shipped.entries.keys()
        implied = _implied(shipped)
        # A directory beside its own whiteout is an opaque directory (OCI: the entry stays).
        beside = {path for path in shipped.whiteouts if path in self._dirs or path in implied}
        self._opaque = {*shipped.opaque, *beside}
        self._whiteouts = {
            path
            for path in shipped.whiteouts
            if path not in self._entries and path not in implied and not self._is_covered(path)
        }
        self._told: set[bytes] = set()
        if target is not Dialect.AUFS:
            for path in sorted(shipped.opaque.keys() - self._dirs - beside):
                raise ConflictError(
                    f"/{show(path)} is opaque, but the archive has no member for it, so nobody"
                    " knows its owner and mode; overlayfs needs them"
                )

    def _is_covered(self, path: bytes) -> bool:
        while path:
            path = path.rpartition(b"/")[0]
            if path in self._opaque:
                return True
        return False

    def chunks(self, stream: TarStream) -> Iterator[bytes]:
        for entry in stream:
            parts = split_path(entry.name)
            path = b"/".join(parts)
            hidden = self._hidden(path, entry)
            if hidden is not None:
                yield from self._marker(hidden, entry)
            elif not self._is_dropped(path):
                yield from self._member(path, entry, stream)
        yield end_of_archive()

    def _hidden(self, path: bytes, entry: Entry) -> tuple[Meaning, bytes] | None:
        """Return what a marker means and where; None for a member that is none."""
        if self._origin is not Dialect.AUFS:
            is_marker = entry.kind is Kind.CHAR and entry.rdev == (0, 0)
            return (Meaning.WHITEOUT, path) if is_marker else None
        parent, _, name = path.rpartition(b"/")
        marker = whiteout.classify(name)
        if marker.meaning is Meaning.WHITEOUT:
            return Meaning.WHITEOUT, join(parent, marker.target)
        return (Meaning.OPAQUE, parent) if marker.meaning is Meaning.OPAQUE else None

    @staticmethod
    def _is_dropped(path: bytes) -> bool:
        return any(whiteout.is_reserved(part) for part in path.split(b"/"))

    # -- members -----------------------------------------------------------------

    def _member(self, path: bytes, entry: Entry, stream: TarStream) -> Iterator[bytes]:
        self._check(path, entry)
        self.counts[0] += 1
        kept = {
            name: value for name, value in entry.xattrs.items() if not name.startswith(_OVERLAY)
        }
        is_opaque = entry.kind is Kind.DIRECTORY and path in self._opaque
        if is_opaque and self._attribute:
            kept[self._attribute] = b"y"
        yield member_header(attrs.evolve(entry, xattrs=kept, extents=None))
        if entry.kind is Kind.FILE:
            yield from _data(stream, entry)
        if is_opaque:
            yield from self._opaque_marker(path, entry, has_member=True)

    def _check(self, path: bytes, entry: Entry) -> None:
        shown = show(path)
        is_zero = entry.kind is Kind.CHAR and entry.rdev == (0, 0)
        if is_zero and self._target is not Dialect.AUFS:
            raise ConflictError(f"{shown} is a device 0/0, which overlayfs takes for a whiteout")
        for name in entry.xattrs:
            if name.startswith(_OVERLAY) and name.endswith(_ELSEWHERE):
                raise UnsupportedError(
                    f"{shown} was written by overlayfs with {show(name)}; its data is not all here"
                )
        if entry.kind is Kind.HARDLINK and self._is_dropped(b"/".join(split_path(entry.linkname))):
            raise ConflictError(
                f"{shown} is a hard link to {show(entry.linkname)}, which only AUFS knows; import"
                " the layer and export it again"
            )

    # -- markers -----------------------------------------------------------------

    def _marker(self, hidden: tuple[Meaning, bytes], entry: Entry) -> Iterator[bytes]:
        meaning, path = hidden
        if meaning is Meaning.OPAQUE or path in self._opaque:
            if path not in self._dirs:  # its directory is only implied
                yield from self._opaque_marker(path, entry, has_member=False)
            return
        if path not in self._whiteouts or path in self._told:
            return
        self._told.add(path)
        self.counts[1] += 1
        if self._target is Dialect.AUFS:
            parent, _, name = path.rpartition(b"/")
            yield _marker_file(join(parent, whiteout.PREFIX + name), entry)
        else:
            yield member_header(
                Entry(path, Kind.CHAR, mode=0, mtime_ns=entry.mtime_ns, rdev=(0, 0))
            )

    def _opaque_marker(self, path: bytes, entry: Entry, *, has_member: bool) -> Iterator[bytes]:
        if path in self._told:
            return
        self._told.add(path)
        self.counts[2] += 1
        if self._target is Dialect.AUFS:
            yield _marker_file(join(path, whiteout.OPAQUE), entry)
        elif not has_member:
            yield member_header(
                Entry(
                    path or b"./",
                    Kind.DIRECTORY,
                    mode=0o755,
                    mtime_ns=entry.mtime_ns,
                    xattrs={self._attribute: b"y"},
                )
            )


def _implied(shipped: Shipped) -> set[bytes]:
    """Return directories that exist only because a member lies in them."""
    found: set[bytes] = set()
    for path in shipped.entries:
        at = path.rpartition(b"/")[0]
        while at and at not in found:
            found.add(at)
            at = at.rpartition(b"/")[0]
    return found - shipped.entries.keys()


def _marker_file(path: bytes, like: Entry) -> bytes:
    return member_header(Entry(path, Kind.FILE, mode=_MARKER_MODE, mtime_ns=like.mtime_ns))


def _data(stream: TarStream, entry: Entry) -> Iterator[bytes]:
    """Yield a file's content, holes as zeros, and its padding."""
    at = 0
    for offset, data in stream.payload():
        yield from _holes(offset - at)
        yield data
        at = offset + len(data)
    yield from _holes(entry.size - at)
    yield padding(entry.size)


def _holes(count: int) -> Iterator[bytes]:
    while count > 0:
        step = min(count, len(_ZEROS))
        yield _ZEROS[:step]
        count -= step


# -- proof -------------------------------------------------------------------------


def verify_archives(first: Opener, one: Dialect, second: Opener, two: Dialect) -> None:
    """Check that two archives show the same over anything below; `UnionfsError` if not.

    The merged trees are compared as for directories, and every entry in attributes and content.
    """
    left, right = _shipped(first, one), _shipped(second, two)
    check_trees(left, right)
    old, new = _members(first, left), _members(second, right)
    for path in left.entries:
        if old.get(path) != new.get(path):
            raise UnionfsError(f"the copy of {show(b'/' + path)} differs")


def _members(opener: Opener, shipped: Shipped) -> dict[bytes, tuple[Entry, bytes]]:
    """Return the last member of every entry's name, and the digest of its content."""
    found: dict[bytes, tuple[Entry, bytes]] = {}
    stream = opener()
    for entry in stream:
        path = b"/".join(split_path(entry.name))
        if path in shipped.entries:
            kept = {
                name: value for name, value in entry.xattrs.items() if not name.startswith(_OVERLAY)
            }
            plain = attrs.evolve(entry, name=path, xattrs=kept, extents=None)
            found[path] = (plain, digest_of(stream, entry))
    return found
