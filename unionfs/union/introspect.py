"""What a running engine can tell about itself: counters, who answers a path, what is known.

Invariant: nothing here changes what the union shows; `known` drops listings, which are read
again when they are needed.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from unionfs.insight.probe import Barring, join, probe
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.tree import Tree

__all__ = ["Facts", "counters", "facts", "known"]


class Facts(NamedTuple):
    """A path with the branch that gives it (None: none does) and the markers that decide."""

    path: bytes
    branch: str | None
    markers: tuple[bytes, ...]


def _title(tree: Tree, position: int) -> str:
    return "rw" if position == UPPER else f"layer {len(tree.branches) - position}"


def _path(tree: Tree, node: Node) -> bytes:
    if isinstance(node, DirNode):
        return tree.path(node)
    return join(tree.path(node.parent), node.name) if node.parent is not None else node.name


def facts(tree: Tree, ino: int, name: bytes | None) -> Facts:
    """Return the facts of a live inode, or of a name in a directory with the markers met."""
    node = tree.inodes.by_ino.get(ino)
    if node is None:
        return Facts(b"", None, ())
    if name is None:
        path = b"/" + _path(tree, node)
        return Facts(path + b" (deleted)" if node.gone else path, _title(tree, node.branch), ())
    path = join(_path(tree, node), name)
    child = node.children.get(name) if isinstance(node, DirNode) else None
    branch = None if child is None else _title(tree, child.branch)
    return Facts(b"/" + path, branch, tuple(_markers(tree, path, child)))


def _markers(tree: Tree, path: bytes, child: Node | None) -> list[bytes]:
    """Return whiteouts and opaque markers of the path, down to the first branch that ends it."""
    found = []
    first = UPPER if tree.upper is not None else UPPER + 1
    for position in range(first, len(tree.branches)):
        if child is not None and position >= child.branch:
            break
        try:
            probed = probe(tree.branches[position], path.split(b"/"))
        except OSError:
            continue
        for barrier in probed.barriers:
            if barrier.kind in (Barring.WHITEOUT, Barring.OPAQUE):
                where = os.fsencode(_title(tree, position))
                found.append(b"%b:/%b" % (where, barrier.marker or barrier.at))
        if probed.barriers:
            break
    return found


def counters(tree: Tree) -> dict[str, Any]:
    """Return counts since the start, and of what is live now."""
    stats = tree.stats
    nodes = tree.inodes.by_ino
    first = UPPER if tree.upper is not None else UPPER + 1
    loaded = sum(tree.loads)
    return {
        "lookups": stats.lookups,
        "cache_hits": stats.lookups - stats.fetched,
        "entries_read": loaded,
        "directories_read": stats.scans,
        "copy_ups": stats.copy_ups,
        "copy_up_bytes": stats.copy_up_bytes,
        "journaled": stats.journaled,
        "live_nodes": len(nodes),
        "open_files": sum(1 for node in nodes.values() if node.fd >= 0),
        "branches": [
            {
                "branch": _title(tree, position),
                "path": tree.branches[position].path,
                "entries_read": tree.loads[position],
            }
            for position in range(first, len(tree.branches))
        ],
    }


def known(tree: Tree, path: bytes) -> tuple[list[tuple[int, bytes]], list[int]]:
    """Return what others may know at a path and below it: (directory, name) pairs, and inodes.

    Names of directories are left out: something may be mounted on them. Listings of these
    directories are read again when they are next needed.
    """
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    current: Node | None = tree.root
    entries: list[tuple[int, bytes]] = []
    for depth, name in enumerate(parts):
        if not isinstance(current, DirNode):
            return entries, []
        if depth == len(parts) - 1:
            _reread(current)
            if not isinstance(current.children.get(name), DirNode):
                entries.append((current.ino, name))
        current = current.children.get(name)
    if current is None:
        return entries, []
    inodes = []
    pending = [current]
    while pending:
        node = pending.pop()
        inodes.append(node.ino)
        if isinstance(node, DirNode):
            _reread(node)
            for name, child in node.children.items():
                if not child.is_dir:
                    entries.append((node.ino, name))
                pending.append(child)
    return entries, inodes


def _reread(node: DirNode) -> None:
    if not node.gone:
        node.scan = None
        if node.lower:
            node.listing = None
