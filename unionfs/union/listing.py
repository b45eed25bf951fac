"""Many files at once: the attributes of a directory's entries, the contents of its files.

Invariant: the same nodes and attributes as name by name; only what is the same for all of
them is looked up once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from typing import Final

from unionfs.branch import Status
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.options import Attr
from unionfs.union.tree import Tree

__all__ = ["attributes", "by_name", "count", "directories", "open_files"]

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def attributes(tree: Tree, directory: DirNode, names: Sequence[bytes]) -> list[Attr | None]:
    """Count a reference on each entry and return its attributes; None for one that is gone.

    What cannot be read ends the list; OSError when that is the first.
    """
    found: list[Attr | None] = []
    scan = tree.scan(directory)
    plain = tree.trusts_children and not directory.gone
    below = tree.below(directory, scan) if plain else {}
    children = directory.children if tree.trusts_children else {}
    position = fd = -1
    tree.stats.lookups += len(names)
    for name in names:
        known = children.get(name)
        met: tuple[Node, Status | None] | None = None if known is None else (known, None)
        try:
            if met is None:
                tree.stats.fetched += 1
                child = below.get(name)
                if child is None or name in scan.entries or name in scan.whiteouts:
                    met = tree.look(directory, name)
                else:
                    if child.branches[0] != position:
                        position = child.branches[0]
                        fd = tree.fd(directory, position)
                    met = tree.meet(fd, directory, name, position, child.branches)
            if met is None:
                found.append(None)
                continue
            node, status = met
            if status is None or status.nlink > 1 or node.branch != position:
                position = -1  # other directories may have been opened, and `fd` closed
            found.append(tree.attr(node, status))
        except FileNotFoundError:
            found.append(None)
            continue
        except OSError:
            if not found:
                raise
            break
        node.refs += 1
    return found


def count(tree: Tree, directory: DirNode) -> int:
    """Return how many names a directory has, hidden ones among them."""
    scan = tree.scan(directory)
    return len(scan.entries) + len(tree.below(directory, scan))


def directories(tree: Tree, directory: DirNode) -> list[bytes]:
    """Return the names of a directory's subdirectories, sorted."""
    scan = tree.scan(directory)
    below = tree.below(directory, scan)
    entries = scan.entries

    def fmt(name: bytes) -> int:
        return entries[name] if name in entries else below[name].fmt

    return sorted(name for name in tree.names(directory) if fmt(name) == stat.S_IFDIR)


def by_name(tree: Tree, inos: Iterable[int]) -> list[int]:
    """Return those that are known in the order of their names."""
    nodes = tree.inodes.by_ino
    return sorted((ino for ino in inos if ino in nodes), key=lambda ino: nodes[ino].name)


def open_files(tree: Tree, inos: Iterable[int]) -> list[tuple[int, int]]:
    """Open those that are regular files of layers; return (inode, fd), the caller's to close.

    Left out is what cannot be opened.
    """
    found = []
    flags = _READ | os.O_NOATIME
    place: tuple[DirNode, int] | None = None
    directory = -1
    for ino in inos:
        node = tree.inodes.by_ino.get(ino)
        if node is None or node.fmt != stat.S_IFREG or node.branch == UPPER:
            continue
        if node.gone or node.parent is None:
            continue
        try:
            if place != (node.parent, node.branch):
                directory = tree.fd(node.parent, node.branch)
                place = (node.parent, node.branch)
            try:
                fd = os.open(node.name, flags, dir_fd=directory)
            except PermissionError:
                flags = _READ  # only the owner and root may leave the access time alone
                fd = os.open(node.name, flags, dir_fd=directory)
        except OSError:
            continue
        found.append((ino, fd))
    return found
