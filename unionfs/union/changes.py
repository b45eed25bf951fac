"""The parts of an engine that change its rw branch, put together.

Invariant: what a crash left half-done is finished before the first of them is used.
"""

from __future__ import annotations

import os

from unionfs.union.attributes import Attributes
from unionfs.union.copyup import CopyUp
from unionfs.union.handles import Handles
from unionfs.union.hardlinks import HardLinks
from unionfs.union.journal import Journal
from unionfs.union.names import Names
from unionfs.union.opening import make_root
from unionfs.union.rename import Rename
from unionfs.union.restore import Restore
from unionfs.union.tree import Tree
from unionfs.union.workarea import WorkArea

__all__ = ["Changes"]


class Changes:
    """The parts that exist only with a rw branch."""

    def __init__(self, tree: Tree, links: HardLinks) -> None:
        writer = tree.writer
        if writer is None:
            raise ValueError("no rw branch")
        self.work = WorkArea(writer.branch)
        tree.work_fd = self.work.fd
        self.journal = Journal(writer.branch, self.work, tree.stats)
        try:
            self.journal.replay()
            self.work.sweep()
            make_root(tree, writer)
        except BaseException:
            os.close(self.work.fd)
            raise
        self.copyup = CopyUp(tree, writer, self.work, self.journal, links)
        self.handles = Handles(tree, self.copyup)
        self.names = Names(tree, writer, self.work, self.journal, self.copyup)
        self.rename = Rename(tree, self.work, self.journal, self.copyup, self.names)
        self.attributes = Attributes(tree, writer, self.work, self.copyup, self.handles)
        self.restore = Restore(tree, writer, self.work, self.journal, self.names)
