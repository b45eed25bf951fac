"""Virtual extended attributes: where an entry of the union comes from, for getfattr(1).

`user.unionfs.NAME` answers on files and directories. Linux refuses `user.` attributes on
everything else (xattr(7)), so links, devices, fifos and sockets have `system.unionfs.NAME`.

Invariant: nothing here is stored or copied: values are made when they are asked for, out of
the branches themselves, and the whole prefix belongs to the machinery (`branch.xattrs`),
so no attribute of a layer can pass for one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from unionfs.branch import DirScan, whiteout
from unionfs.branch.whiteout import Meaning
from unionfs.insight.probe import Barring, Probe, join, probe
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.tree import Tree, error

__all__ = ["is_virtual", "names", "value"]

_PLAIN: Final = "user.unionfs."
_SPECIAL: Final = "system.unionfs."
#: The kernel passes no longer value on (XATTR_SIZE_MAX, limits.h).
_LONGEST: Final = 65536
#: Room for the word about what did not fit.
_RESERVE: Final = 64


def is_virtual(name: str) -> bool:
    """Tell whether an attribute's name is one of ours, known or not."""
    return name.startswith((_PLAIN, _SPECIAL))


def names(node: Node) -> list[str]:
    """Return the names of the virtual attributes of an entry."""
    prefix = _prefix(node)
    return [prefix + name for name in _VALUES]


def _prefix(node: Node) -> str:
    return _PLAIN if node.fmt in (stat.S_IFREG, stat.S_IFDIR) else _SPECIAL


def value(tree: Tree, node: Node, name: str) -> bytes:
    """Return a virtual attribute's value; ENODATA when the entry has none of that name.

    `system.` answers only where `user.` cannot: the kernel checks the right to read an entry
    only for `user.`.
    """
    prefix = _prefix(node)
    make = _VALUES.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
    path = _path(tree, node)
    if make is None or path is None:
        raise error(errno.ENODATA)
    return make(_Place(tree, node, path))


def _path(tree: Tree, node: Node) -> bytes | None:
    """Return the path of an entry in the union; None when it has no name any more."""
    if node.gone:
        return None
    if isinstance(node, DirNode):
        return tree.path(node)
    return None if node.parent is None else join(tree.path(node.parent), node.name)


class _Place:
    """One path of the union, and every branch at it. Positions are those of the tree."""

    def __init__(self, tree: Tree, node: Node, path: bytes) -> None:
        self.tree = tree
        self.node = node
        self.path = path
        self.parts = path.split(b"/") if path else []
        self.is_marker = any(whiteout.is_reserved(part) for part in self.parts)

    def positions(self, above: int = UPPER - 1) -> range:
        """Return the positions of the branches below position `above`, top first."""
        first = UPPER if self.tree.upper is not None else UPPER + 1
        return range(max(first, above + 1), len(self.tree.branches))

    def probes(self) -> Iterator[tuple[int, Probe]]:
        """Yield what each branch says about the path, top first."""
        for position in self.positions():
            yield position, probe(self.tree.branches[position], self.parts)

    def full(self, position: int, path: bytes) -> bytes:
        """Return a path inside a branch as a path of the machine."""
        return join(self.tree.branches[position].path, path)


# -- the attributes ----------------------------------------------------------------


def _branch(place: _Place) -> bytes:
    return place.tree.branches[place.node.branch].path


def _layer(place: _Place) -> bytes:
    tree, position = place.tree, place.node.branch
    if position == UPPER:
        return b"rw"
    number = b"%d" % (len(tree.branches) - position)
    label = tree.options.labels.get(tree.branches[position].path, b"")
    return b" ".join(filter(None, (number, label)))


def _own_path(place: _Place) -> bytes:
    return place.full(place.node.branch, place.path)


def _all_paths(place: _Place) -> bytes:
    if place.is_marker:
        return _own_path(place)
    found = (at for at, probed in place.probes() if probed.entry is not None)
    return _joined(place.full(at, place.path) for at in found)


def _hides(place: _Place) -> bytes:
    if place.is_marker:
        return _joined(_behind_marker(place))
    return _joined([*_covered(place), *_hidden_inside(place)])


def _covered(place: _Place) -> Iterator[bytes]:
    """Yield the entries of the path that do not show (the rule of `branch.merge`)."""
    closed = seen = False
    for position, probed in place.probes():
        if probed.entry is not None:
            merges = probed.entry.fmt == stat.S_IFDIR or not seen
            if closed or not merges:
                yield place.full(position, place.path)
            seen = True
        closed = closed or bool(probed.barriers)


def _hidden_inside(place: _Place) -> Iterator[bytes]:
    """Yield the entries in a directory whose names do not show at all."""
    if isinstance(place.node, DirNode):
        visible = set(place.tree.names(place.node))
        for position, scan in _scans(place):
            for name in sorted(scan.entries.keys() - visible):
                if not whiteout.is_reserved(name):
                    yield place.full(position, join(place.path, name))


def _behind_marker(place: _Place) -> Iterator[bytes]:
    """Yield what the branches below have at the name that a shown whiteout takes away."""
    parent, _, name = place.path.rpartition(b"/")
    marker = whiteout.classify(name)
    if marker.meaning is not Meaning.WHITEOUT:
        return
    path = join(parent, marker.target)
    for position in place.positions(place.node.branch):
        if probe(place.tree.branches[position], path.split(b"/")).entry is not None:
            yield place.full(position, path)


def _whiteouts(place: _Place) -> bytes:
    if place.is_marker:
        return _own_path(place)
    found: dict[bytes, None] = {}
    for position, probed in place.probes():
        for barrier in probed.barriers:
            if barrier.kind in (Barring.WHITEOUT, Barring.OPAQUE):
                found[place.full(position, barrier.marker)] = None
    if isinstance(place.node, DirNode):
        for position, scan in _scans(place):
            for name in sorted(scan.whiteouts):
                marker = whiteout.marker_for(name)[0]
                found[place.full(position, join(place.path, marker))] = None
    return _joined(found)


def _scans(place: _Place) -> Iterator[tuple[int, DirScan]]:
    """Yield the listing of every branch that has a directory at the path, shown or not."""
    for position, probed in place.probes():
        if probed.entry is not None and probed.entry.fmt == stat.S_IFDIR:
            branch = place.tree.branches[position]
            fd = branch.open_path(place.path)
            try:
                yield position, branch.scan(fd)
            finally:
                os.close(fd)


def _joined(paths: Iterable[bytes]) -> bytes:
    """Return paths with NULs between them; `... N more` ends a list that is too long."""
    room = _LONGEST - _RESERVE
    kept: list[bytes] = []
    left = 0
    for path in paths:
        room -= len(path) + 1
        if left or room < 0:
            left += 1
        else:
            kept.append(path)
    return b"\0".join([*kept, b"... %d more" % left] if left else kept)


_VALUES: Final[dict[str, Callable[[_Place], bytes]]] = {
    "branch": _branch,
    "layer": _layer,
    "path": _own_path,
    "allpaths": _all_paths,
    "hides": _hides,
    "whiteouts": _whiteouts,
}
