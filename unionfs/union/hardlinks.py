"""Which names of a layer are one file, and which of them the union still shows.

Invariant: a layer's table is loaded or scanned at most once, and only when a file with
several names must be copied up (or its link count shown, if the store has a table).
"""

from __future__ import annotations

import os
import stat

from unionfs.branch import Branch
from unionfs.union.node import DirNode, Node
from unionfs.union.options import HardlinkTable
from unionfs.union.tree import Tree

__all__ = ["HardLinks", "scan_links"]


def scan_links(branch: Branch) -> HardlinkTable:
    """Return the hard-link table of a layer by walking all of it."""
    found: dict[int, list[bytes]] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        fd = branch.open_path(path)
        try:
            for name, fmt in branch.scan(fd).entries.items():
                inner = path + b"/" + name if path else name
                if stat.S_ISDIR(fmt):
                    pending.append(inner)
                    continue
                status = branch.status(fd, name)
                if status.nlink > 1:
                    found.setdefault(status.ino, []).append(inner)
        finally:
            os.close(fd)
    return {ino: tuple(sorted(paths)) for ino, paths in found.items() if len(paths) > 1}


class HardLinks:
    """Link groups of the lower branches."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._tables: dict[int, HardlinkTable] = {}
        self._loaders = tree.options.link_tables
        if self._loaders:
            tree.count_links = self._count

    def table(self, position: int) -> HardlinkTable:
        """Return the table of one lower branch."""
        table = self._tables.get(position)
        if table is None:
            branch = self._tree.branches[position]
            loader = self._loaders.get(branch.path)
            table = self._tables[position] = loader() if loader else scan_links(branch)
        return table

    def members(self, node: Node) -> list[tuple[DirNode, bytes]]:
        """Return every visible place of a lower file, known to the kernel or not."""
        position, _, ino = node.key
        places = node.names()
        for path in self.table(position).get(ino, ()):
            place = self._visible(path, position)
            if place is not None and place not in places:
                places.append(place)
        return places

    def _count(self, node: Node) -> int:
        position, _, _ = node.key
        if self._tree.branches[position].path not in self._loaders:
            return node.nlink
        return max(1, len(self.members(node)))

    def _visible(self, path: bytes, position: int) -> tuple[DirNode, bytes] | None:
        """Return the place of a layer's path if the union shows that very entry there."""
        tree = self._tree
        *dirs, name = path.split(b"/")
        current = tree.root
        for part in dirs:
            inner = tree.find(current, part)
            if not isinstance(inner, DirNode) or position not in inner.lower:
                return None
            current = inner
        scan = tree.scan(current)
        if name in scan.entries or name in scan.whiteouts or tree.lower_fmt(current, name) is None:
            return None
        if position not in current.lower or current.listing is None:
            return None
        return (current, name) if current.listing[name].branches[0] == position else None
