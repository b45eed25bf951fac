"""The open part of the tree as numbered rows, without a row existing before somebody looks at it.

Invariant: `rows[rows.index(path)].path == path`; finding a row costs depth times log(open
directories), whatever the number of names; row 0 is the root.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator
from itertools import accumulate
from typing import NamedTuple

from unionfs.explore.model import Explorer, Folder, Kind, Lens, Tick
from unionfs.insight.probe import join, split_path

__all__ = ["Node", "Row", "Rows", "build"]


class Row(NamedTuple):
    """One line of the tree; the root has the empty name."""

    folder: Folder
    name: bytes
    depth: int
    is_open: bool

    @property
    def path(self) -> bytes:
        """The path relative to the root."""
        return join(self.folder.path, self.name) if self.name else b""


class Node:
    """An open folder: the names that are shown and the open folders among them."""

    __slots__ = ("ends", "folder", "inner", "names", "places", "starts", "total")

    def __init__(self, folder: Folder, names: list[bytes], inner: dict[bytes, Node]) -> None:
        self.folder = folder
        self.names = names
        self.inner = inner
        #: Positions in `names` of the open ones, and the rows that lie in them and those before.
        self.places = [bisect.bisect_left(names, name) for name in sorted(inner)]
        self.ends = list(accumulate(inner[name].total for name in sorted(inner)))
        #: Row at which each of them begins, counted from the first name.
        self.starts = [
            place + 1 + end for place, end in zip(self.places, [0, *self.ends], strict=False)
        ]
        self.total: int = len(names) + (self.ends[-1] if self.ends else 0)


class Rows:
    """The rows of an open root."""

    def __init__(self, root: Node) -> None:
        self.root = root

    def __len__(self) -> int:
        return self.root.total + 1

    def __getitem__(self, at: int) -> Row:
        if not 0 <= at < len(self):
            raise IndexError(at)
        if at == 0:
            return Row(self.root.folder, b"", 0, is_open=True)
        node, left, depth = self.root, at - 1, 1
        while True:
            k = bisect.bisect_right(node.starts, left)
            passed = node.ends[k - 1] if k else 0
            before = node.ends[k - 2] if k > 1 else 0
            if k == 0 or left >= node.starts[k - 1] + passed - before:
                name = node.names[left - passed]
                return Row(node.folder, name, depth, name in node.inner)
            left -= node.starts[k - 1]
            node = node.inner[node.names[node.places[k - 1]]]
            depth += 1

    def folders(self) -> Iterator[Folder]:
        """Yield every open folder."""
        pending = [self.root]
        while pending:
            node = pending.pop()
            yield node.folder
            pending += node.inner.values()

    def index(self, path: bytes) -> int | None:
        """Return the number of a path's row, None when it has none."""
        node, at = self.root, 0
        parts = split_path(path)
        for depth, name in enumerate(parts):
            place = bisect.bisect_left(node.names, name)
            if place == len(node.names) or node.names[place] != name:
                return None
            k = bisect.bisect_left(node.places, place)
            at += 1 + place + (node.ends[k - 1] if k else 0)
            if depth < len(parts) - 1:
                if name not in node.inner:
                    return None
                node = node.inner[name]
        return at

    def nearest(self, path: bytes) -> int:
        """Return the row of a path or of the nearest ancestor that has one."""
        while True:
            found = self.index(path)
            if found is not None:
                return found
            path = path.rpartition(b"/")[0]


def build(
    explorer: Explorer,
    lens: Lens,
    kinds: frozenset[Kind],
    opened: Collection[bytes],
    previous: Rows | None,
    tick: Tick,
) -> Rows:
    """Return the rows with the folders of `opened` open, as far as they exist under the lens.

    Folders of `previous` are taken over where the lens is the same.
    """
    known: dict[bytes, Folder] = {}
    if previous is not None and previous.root.folder.lens == lens:
        known = {folder.path: folder for folder in previous.folders()}
    by_parent: dict[bytes, list[bytes]] = {}
    for path in opened:
        parent, _, name = path.rpartition(b"/")
        if path:
            by_parent.setdefault(parent, []).append(name)

    def folder_of(parent: Folder, name: bytes) -> Folder | None:
        found = known.get(join(parent.path, name))
        return explorer.inner(parent, name) if found is None else found

    # Folders from the root down, then nodes from the leaves up: depth costs no stack.
    root = known[b""] if known else explorer.root(lens)
    order: list[tuple[Folder, Folder | None, bytes]] = [(root, None, b"")]
    for folder, _, _ in order:
        tick()
        for name in by_parent.get(folder.path, ()):
            inner = folder_of(folder, name) if folder.has(name) else None
            if inner is not None and folder.is_shown(name, kinds):
                order.append((inner, folder, name))
    inners: dict[int, dict[bytes, Node]] = {}

    def node_of(folder: Folder) -> Node:
        names = [item for item in folder.names if folder.is_shown(item, kinds)]
        return Node(folder, names, inners.pop(id(folder), {}))

    for folder, outer, last in reversed(order):
        if outer is not None:
            inners.setdefault(id(outer), {})[last] = node_of(folder)
    return Rows(node_of(root))
