"""Layers applied one on another in memory, by the letter of the OCI image specification.

Whiteouts and opaque markers act on the layers below only, whatever their place in an archive;
an entry replaces what is below it unless both are directories; links are not followed.

Invariant: the tree after `apply` is what the merged view of the layers so far shows, and
every item that ceased to be visible is in the returned effects exactly once.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

import attrs

from unionfs.insight.probe import join
from unionfs.insight.shipped import Item, Shipped

__all__ = ["Effect", "Lost", "Node", "Tree"]


class Node:
    """A visible entry: the item that gives it, the number of its layer, the entries in it."""

    __slots__ = ("children", "item", "layer")

    def __init__(self, item: Item, layer: int) -> None:
        self.item = item
        self.layer = layer
        self.children: dict[bytes, Node] = {}

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return self.item.fmt == stat.S_IFDIR


@attrs.frozen
class Lost:
    """An item that a later layer hid or replaced; `layer` is the one that shipped it."""

    path: bytes
    item: Item
    layer: int


@attrs.frozen
class Effect:
    """What one marker or entry of a layer does to the layers below.

    `kind` is `whiteout`, `opaque` or `entry`; `path` the hidden path, the opaque directory or
    the entry; `item` the marker or entry. `lost` is everything that it hides, parents first;
    `covered` says that another marker of the same layer had hidden it already.
    """

    kind: str
    path: bytes
    item: Item
    lost: tuple[Lost, ...]
    covered: bool = False


class Tree:
    """What the layers applied so far show."""

    def __init__(self) -> None:
        self.root = Node(Item(b"", stat.S_IFDIR, mode=0o755), 0)

    def find(self, path: bytes) -> Node | None:
        """Return the entry at a relative path (empty: the root), or None."""
        node: Node | None = self.root
        for part in path.split(b"/") if path else ():
            node = node.children.get(part) if node is not None else None
        return node

    def walk(self, node: Node | None = None, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Yield (path, node) of everything below a node (None: the root), parents first."""
        pending = [(path, self.root if node is None else node)]
        while pending:
            at, current = pending.pop()
            inner = [(join(at, name), child) for name, child in sorted(current.children.items())]
            pending += reversed(inner)
            if at != path:
                yield at, current

    def apply(self, shipped: Shipped) -> list[Effect]:
        """Put a layer on top; return its effects, outer paths first."""
        effects = [
            *(self._opaque(shipped, path, item) for path, item in _outer_first(shipped.opaque)),
            *(self._white(shipped, path, item) for path, item in _outer_first(shipped.whiteouts)),
        ]
        effects += self._entries(shipped)
        return sorted(effects, key=lambda effect: effect.path.split(b"/"))

    def _lose(self, path: bytes, node: Node) -> Iterator[Lost]:
        yield Lost(path, node.item, node.layer)
        for at, inner in self.walk(node, path):
            yield Lost(at, inner.item, inner.layer)

    def _opaque(self, shipped: Shipped, path: bytes, item: Item) -> Effect:
        node = self.find(path)
        covered = shipped.covered(path) is not None
        if node is None or not node.is_dir:
            return Effect("opaque", path, item, (), covered)
        lost = [
            found
            for name, child in sorted(node.children.items())
            for found in self._lose(join(path, name), child)
        ]
        node.children.clear()
        return Effect("opaque", path, item, tuple(lost), covered)

    def _white(self, shipped: Shipped, path: bytes, item: Item) -> Effect:
        parent, _, name = path.rpartition(b"/")
        covered = parent in shipped.opaque or shipped.covered(path) is not None
        holder = self.find(parent)
        node = holder.children.pop(name, None) if holder is not None else None
        if node is None:
            return Effect("whiteout", path, item, (), covered)
        return Effect("whiteout", path, item, tuple(self._lose(path, node)), covered)

    def _entries(self, shipped: Shipped) -> Iterator[Effect]:
        number = shipped.branch.number
        for path, item in _outer_first(shipped.entries):
            if not path:
                self.root.item, self.root.layer = item, number
                continue
            holder, lost = self._parents(path, number)
            name = path.rpartition(b"/")[2]
            node = holder.children.get(name)
            if node is None:
                holder.children[name] = Node(item, number)
            elif node.is_dir and item.fmt == stat.S_IFDIR:
                node.item, node.layer = item, number
            elif node.item is not item:
                lost += self._lose(path, node)
                holder.children[name] = Node(item, number)
            if lost:
                yield Effect("entry", path, item, tuple(lost))

    def _parents(self, path: bytes, number: int) -> tuple[Node, list[Lost]]:
        """Return the node that holds `path`, making what is only implied."""
        node, at = self.root, b""
        lost: list[Lost] = []
        for part in path.split(b"/")[:-1]:
            at = join(at, part)
            inner = node.children.get(part)
            if inner is None or not inner.is_dir:
                if inner is not None:
                    lost += self._lose(at, inner)
                inner = Node(Item(at, stat.S_IFDIR, mode=0o755), number)
                node.children[part] = inner
            node = inner
        return node, lost


def _outer_first(items: dict[bytes, Item]) -> Iterable[tuple[bytes, Item]]:
    return sorted(items.items(), key=lambda pair: pair[0].split(b"/"))
