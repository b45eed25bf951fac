"""Live nodes brought into line with a rw branch that a restoring has changed on disk.

Before: what goes and is in use gets a second name in the work area, as at unlink(2), and the
attributes of directories that go are remembered. After: every live node on the way to what
was changed, and below, is compared with what the disk now says at its name.

Invariant: no node refers to a file that is not at its place any more, and whatever the
kernel may know wrongly is in the lists of `Restored`.
"""

from __future__ import annotations

import contextlib
import stat
from typing import Final

from unionfs.branch import DirScan
from unionfs.union.names import Names
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.options import Attr
from unionfs.union.tree import Tree
from unionfs.union.undo import Plan, Targets

__all__ = ["Reconcile"]

#: What a removed directory shows whose attributes could not be read.
_NOTHING: Final = Attr(0, stat.S_IFDIR, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class Reconcile:
    """Made before the change; `follow` after it, whether it failed or not."""

    def __init__(self, tree: Tree, names: Names, plan: Plan) -> None:
        self._tree = tree
        self._names = names
        self._plan = plan
        self._kept: dict[Node, bytes] = {}
        self._finals: dict[Node, Attr] = {}
        self.entries: list[tuple[int, bytes]] = []
        self.inodes: set[int] = set()
        for at, name in plan.removed:
            parent = self._live(at)
            node = None if parent is None else parent.children.get(name)
            if parent is not None and node is not None:
                self._prepare(node, parent, name)

    def _live(self, at: bytes) -> DirNode | None:
        """Return the live node of a directory, if there is one."""
        current: Node | None = self._tree.root
        for name in at.split(b"/") if at else ():
            if not isinstance(current, DirNode):
                return None
            current = current.children.get(name)
        return current if isinstance(current, DirNode) else None

    def _prepare(self, node: Node, parent: DirNode, name: bytes) -> None:
        pending = [(node, parent, name)]
        while pending:
            current, directory, at = pending.pop()
            if isinstance(current, DirNode):
                with contextlib.suppress(OSError):
                    self._finals[current] = self._tree.attr(current)._replace(nlink=0)
                pending += [(inner, current, key) for key, inner in current.children.items()]
            elif current.branch == UPPER and current not in self._kept and not current.idle:
                kept = self._names.keep_name(directory, at)
                if kept:
                    self._kept[current] = kept

    # -- afterwards ------------------------------------------------------------------

    def follow(self, *, done: bool) -> None:
        """Compare what is live with the disk; `done`: everything planned has happened."""
        tree, plan = self._tree, self._plan
        touched = {
            key: node
            for key, node in tree.inodes.by_key.items()
            if done and key[0] == UPPER and plan.lost.get(key[1:])
        }
        self._directory(tree.root, plan.targets)
        for key, node in touched.items():
            node.nlink = max(0, node.nlink - plan.lost[key[1], key[2]])
            self.inodes.add(node.ino)
            if node.gone and node.nlink == 0:
                tree.inodes.forget_key(node)
        for node, kept in self._kept.items():
            if node.gone:
                node.anchor, node.name = tree.work_fd, kept
            else:
                self._names.drop_kept(kept)
            tree.release(node)
        self._recount()
        for at, names in plan.shown.items():
            directory = self._live(at)
            if directory is not None:
                self.inodes.add(directory.ino)
                # A directory that stays is not forgotten: something may be mounted on it.
                self.entries += [
                    (directory.ino, name)
                    for name in names
                    if not isinstance(directory.children.get(name), DirNode)
                ]
        for at in (*plan.dressed, *(at for at, _ in plan.removed)):
            directory = self._live(at)
            if directory is not None:
                self.inodes.add(directory.ino)

    def _recount(self) -> None:
        """Count the names of files of the layers again, of which some may have come back."""
        if not (self._plan.unhidden or self._plan.opened or self._plan.removed):
            return
        count = self._tree.count_links
        for node in list(self._tree.inodes.by_ino.values()):
            if node.is_dir or node.gone or node.branch == UPPER or node.links == 1:
                continue
            before, node.nlink = node.nlink, node.links
            if count is not None:
                node.nlink = count(node)
            if node.nlink != before:
                self.inodes.add(node.ino)

    def _directory(self, node: DirNode, targets: Targets | None) -> None:
        """Compare the children of a directory that is in line itself."""
        pending: list[tuple[DirNode, Targets | None]] = [(node, targets)]
        held = []
        while pending:
            current, wanted = pending.pop()
            current.opens += 1
            held.append(current)
            if wanted is None:
                self._appear(current)
            else:
                self._refresh(current)
            for name, child in list(current.children.items()):
                if wanted is not None and name not in wanted:
                    if isinstance(child, DirNode):
                        child.scan = None  # it may have been marked opaque
                    continue
                if self._child(current, name, child) and isinstance(child, DirNode):
                    pending.append((child, None if wanted is None else wanted[name]))
        for current in reversed(held):
            current.opens -= 1
            self._tree.release(current)

    def _appear(self, node: DirNode) -> None:
        """Refresh a directory of which all was taken back; note what was not there before."""
        before = set() if node.scan is None else set(self._tree.names(node))
        self._refresh(node)
        self.entries += [
            (node.ino, name)
            for name in self._tree.names(node)
            if name not in before and not isinstance(node.children.get(name), DirNode)
        ]

    def _refresh(self, node: DirNode) -> None:
        node.scan = node.listing = node.inherit = None
        if node.parent is None:
            node.lower = tuple(range(UPPER + 1, len(self._tree.branches)))
        self._tree.scan(node)

    def _child(self, parent: DirNode, name: bytes, child: Node) -> bool:
        """Compare one name; False when its node has gone."""
        tree = self._tree
        scan = tree.scan(parent)
        own, white = scan.entries.get(name), name in scan.whiteouts
        fmt = tree.lower_fmt(parent, name)
        low = (parent.listing or {}).get(name) if fmt is not None and not white else None
        there = own if own is not None else None if low is None else low.fmt
        if isinstance(child, DirNode):
            if there != stat.S_IFDIR:
                self._lose(child, parent, name)
                return False
            lower = low.branches if low is not None and low.is_dir else ()
            self._rebase(parent, name, child, lower, upper=own is not None)
            return True
        if own is not None:
            same = child.branch == UPPER and self._is_same(parent, name, child)
        else:
            same = low is not None and child.branch == low.branches[0]
        if not same:
            self._lose(child, parent, name)
        return same

    def _is_same(self, parent: DirNode, name: bytes, child: Node) -> bool:
        branch = self._tree.branches[UPPER]
        try:
            status = branch.status(self._tree.fd(parent, UPPER), name)
        except OSError:
            return False
        return child.key == (UPPER, status.dev, status.ino)

    def _rebase(
        self, parent: DirNode, name: bytes, node: DirNode, lower: tuple[int, ...], *, upper: bool
    ) -> None:
        """Follow a directory to the branches that give it now."""
        tree = self._tree
        for position in {UPPER, *node.lower, *lower}:
            tree.fds.drop(node, position)
        was = node.branch
        node.lower = lower
        node.branch = UPPER if upper else lower[0]
        branch = tree.branches[node.branch]
        status = branch.status(tree.fd(parent, node.branch), name)
        node.status = None if upper else status
        tree.inodes.rekey(node, (node.branch, status.dev, status.ino))
        if was != node.branch:
            self.inodes.add(node.ino)

    def _lose(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Take a name from a node, from all that a directory contains as well."""
        tree = self._tree
        self.entries.append((parent.ino, name))
        order = [(node, parent, name)]
        for current, _, _ in order:  # grows as it goes
            if isinstance(current, DirNode):
                current.scan = DirScan()
                order += [(child, current, key) for key, child in current.children.items()]
        for current, directory, key in reversed(order):
            if isinstance(current, DirNode):
                final = self._finals.get(current) or _NOTHING._replace(ino=current.ino)
                self._names.forget_dir(current, directory, key, final)
                continue
            tree.detach(current, directory, key)
            if current not in self._kept:
                tree.release(current)
