"""A tree over a rw branch that somebody else changes: a read-only view of a live mount.

Invariant: before a name is answered, the rw branch's part of its directory has been looked at
again, so an answer is never older than the question. A node whose backing file is no longer
the one of its name is `gone`; who has it open keeps it.
"""

from __future__ import annotations

import os
import time
from typing import Final

from unionfs.branch import Child, DirScan, Status
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.tree import Tree

__all__ = ["FollowingTree"]

#: A directory that changed so shortly before it was listed may change again without a new
#: time stamp (the clock of file systems ticks every few ms): nanoseconds.
_RACY: Final = 100_000_000


class FollowingTree(Tree):
    """Lower branches stay as they are; the rw branch is listed anew whenever it has changed."""

    trusts_children = False

    def scan(self, node: DirNode) -> DirScan:
        """Return the rw branch's part of a directory as it is now."""
        if not node.upper or node.gone:
            return DirScan()
        fd = self.fd(node, UPPER)
        st = os.stat(b".", dir_fd=fd)
        stamp = (st.st_ctime_ns, st.st_mtime_ns, st.st_ino)
        if node.scan is None or node.stamp != stamp:
            self.stats.scans += 1
            racy = time.time_ns() - max(stamp[:2]) < _RACY
            node.scan = self.branches[UPPER].scan(fd)
            node.stamp = None if racy else stamp
        return node.scan

    def below(self, node: DirNode, scan: DirScan) -> dict[bytes, Child]:
        """Return what the lower branches give; an opaque marker may go away again."""
        return {} if scan.opaque else super().below(node, scan)

    def look(self, node: DirNode, name: bytes) -> tuple[Node, Status | None] | None:
        """Find a visible name, its node made anew if another file has that name now."""
        known = node.children.get(name)
        if known is not None and not self._is_current(node, name, known):
            self._retire(node, name, known)
        met = super().look(node, name)
        found = None if met is None else met[0]
        if found is not None and found.more and (node, name) in found.more:
            # This name has just been seen to be right, its first one may be gone.
            found.more.remove((node, name))
            if found.parent is not None:
                found.more.append((found.parent, found.name))
            self.release_anchor(found)
            found.parent, found.name = node, name
        return met

    def has(self, node: DirNode, name: bytes) -> bool:
        """Tell whether a name is visible."""
        return self.find(node, name) is not None

    def _is_current(self, node: DirNode, name: bytes, known: Node) -> bool:
        scan = self.scan(node)
        lower: tuple[int, ...] = ()
        if name in scan.entries:
            try:
                status = self.branches[UPPER].status(self.fd(node, UPPER), name)
            except FileNotFoundError:
                return False
            if known.key != (UPPER, status.dev, status.ino) or known.fmt != status.fmt:
                return False
            known.nlink = status.nlink
            if name not in scan.whiteouts:
                lower = self.lower_dirs(node, name)
        else:
            child = self.below(node, scan).get(name)
            if name in scan.whiteouts or child is None or known.branch != child.branches[0]:
                return False
            lower = child.branches
        return not isinstance(known, DirNode) or known.lower == lower

    def _retire(self, node: DirNode, name: bytes, known: Node) -> None:
        pending = [known]
        while pending:  # what is in use below stays where it is
            current = pending.pop()
            if isinstance(current, DirNode):
                for child in current.children.values():
                    self.anchor(child, current)
                    pending.append(child)
        self.detach(known, node, name)
        if not known.gone:
            return
        self.inodes.forget_key(known)
        if isinstance(known, DirNode):
            for position in (UPPER, *known.lower):
                self.fds.drop(known, position)
        self.release(known)
