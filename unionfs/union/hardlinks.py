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
            scan = branch.scan(fd)
        except PermissionError:  # what cannot be listed is not visible either
            os.close(fd)
            continue
        try:
            for name, fmt in scan.entries.items():
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
        """Return every visible place of a lower file, known to the kernel or not.

        The caller releases the directories.
        """
        position, _, ino = self._tree.identify(node)
        places = node.names()
        for path in self.table(position).get(ino, ()):
            *parts, name = path.split(b"/")
            parent = self._enter(parts, position)
            if parent is None:
                continue
            if (parent, name) not in places and self._shows(parent, name, position):
                places.append((parent, name))
            else:
                self._tree.release(parent)
        return places

    def _count(self, node: Node) -> int:
        if self._tree.branches[node.branch].path not in self._loaders:
            return node.nlink
        places = self.members(node)
        for parent, _ in places:
            self._tree.release(parent)
        return max(1, len(places))

    def _enter(self, parts: list[bytes], position: int) -> DirNode | None:
        """Return the directory at a layer's path if the layer still gives it."""
        current = self._tree.root
        for part in parts:
            inner = self._tree.find(current, part)
            if not isinstance(inner, DirNode) or position not in inner.lower:
                self._tree.release(current if inner is None else inner)
                return None
            current = inner
        return current

    def _shows(self, parent: DirNode, name: bytes, position: int) -> bool:
        """Tell whether a directory shows the layer's own entry of that name."""
        tree = self._tree
        scan = tree.scan(parent)
        if name in scan.entries or name in scan.whiteouts or tree.lower_fmt(parent, name) is None:
            return False
        if parent.listing is None:
            return False
        return parent.listing[name].branches[0] == position
