"""Renaming and exchanging, directories with lower content included.

A lower file is copied up first, a directory with all its visible content: it becomes
opaque where it is, which changes nothing visible, its inner markers go, and then it
moves as one. Above `MAX_ENTRIES` or `MAX_BYTES` of content to copy, rename(2) answers
EXDEV and mv(1) copies.

Invariant: what is visible changes at one point, by one journaled run of steps; what
happens before only prepares.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from unionfs import _sys
from unionfs.union.copyup import CopyUp
from unionfs.union.journal import Journal, Op, Place, Step
from unionfs.union.names import Names, check_new
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.options import Attr
from unionfs.union.tree import Tree, error
from unionfs.union.walk import walk
from unionfs.union.workarea import WorkArea, quiet

__all__ = ["MAX_BYTES", "MAX_ENTRIES", "Rename"]

#: Most lower entries and bytes that renaming one directory may copy up.
MAX_ENTRIES: Final = 100_000
MAX_BYTES: Final = 4 << 30


class Rename:
    """Renames in one engine that has a rw branch."""

    def __init__(
        self, tree: Tree, work: WorkArea, journal: Journal, copyup: CopyUp, names: Names
    ) -> None:
        self._tree = tree
        self._work = work
        self._journal = journal
        self._copyup = copyup
        self._names = names

    def rename(
        self, parent: DirNode, name: bytes, new_parent: DirNode, new_name: bytes, flags: int
    ) -> None:
        """Rename with the flags of renameat2(2); RENAME_WHITEOUT is EINVAL."""
        if flags not in (0, _sys.RENAME_NOREPLACE, _sys.RENAME_EXCHANGE):
            raise error(errno.EINVAL, new_name)
        check_new(new_name)
        node = self._tree.need(parent, name)
        if new_parent.gone:
            raise error(errno.ENOENT, new_name)
        other = self._tree.find(new_parent, new_name)
        exchange = flags == _sys.RENAME_EXCHANGE
        # Checked in the kernel's order (fs/namei.c, do_renameat2).
        if other is not None and flags == _sys.RENAME_NOREPLACE:
            raise error(errno.EEXIST, new_name)
        if other is None and exchange:
            raise error(errno.ENOENT, new_name)
        if self._is_within(new_parent, node):
            raise error(errno.EINVAL, new_name)
        if other is not None and self._is_within(parent, other):
            raise error(errno.EINVAL if exchange else errno.ENOTEMPTY, new_name)
        if other is node:  # two names of one file: rename(2) does nothing
            return
        with self._held(node):
            if other is not None and exchange:
                check_new(name)
                with self._held(other):
                    self._exchange((parent, name, node), (new_parent, new_name, other))
                return
            if other is not None:
                self._check_replace(node, other, new_name)
            self._move(node, (parent, name), (new_parent, new_name), other)

    @contextlib.contextmanager
    def _held(self, node: Node) -> Iterator[None]:
        """Keep a node that nobody may have looked up while its content is walked through."""
        node.opens += 1
        try:
            yield
        finally:
            node.opens -= 1
            self._tree.release(node)

    @staticmethod
    def _is_within(directory: DirNode, node: Node) -> bool:
        current: DirNode | None = directory
        while current is not None:
            if current is node:
                return True
            current = current.parent
        return False

    def _check_replace(self, node: Node, other: Node, name: bytes) -> None:
        if not isinstance(other, DirNode):
            if node.is_dir:
                raise error(errno.ENOTDIR, name)
            return
        if not node.is_dir:
            raise error(errno.EISDIR, name)
        if not self._tree.is_empty(other):
            raise error(errno.ENOTEMPTY, name)

    # -- moving ------------------------------------------------------------------

    def _move(
        self,
        node: Node,
        source: tuple[DirNode, bytes],
        target: tuple[DirNode, bytes],
        other: Node | None,
    ) -> None:
        tree = self._tree
        parent, name = source
        new_parent, new_name = target
        self._bring_up(node)
        self._copyup.ensure_dir(new_parent)
        steps = self._names.hide_steps(parent, name)
        hidden = bool(steps)
        kept = trash = b""
        final: Attr | None = None
        if isinstance(other, DirNode):
            final = tree.attr(other)
            trash, removal = self._names.dir_removal_steps(other, new_parent, new_name)
            steps += removal
        elif other is not None:
            kept = self._names.keep(other, new_parent, new_name)
        old, new = self._place(parent, name), self._place(new_parent, new_name)
        steps.append(Step(Op.MOVE, new, old))
        if new_name in tree.scan(new_parent).whiteouts:
            steps.append(Step(Op.UNHIDE, new))
        if isinstance(node, DirNode):
            steps += self._fit_opaque(node, new_parent, new_name, new)
        try:
            self._journal.run(steps)
        except OSError:
            self._names.drop_kept(kept)
            raise

        if isinstance(other, DirNode) and final is not None:
            self._names.empty_trash(trash)
            self._names.forget_dir(other, new_parent, new_name, final)
        elif other is not None:
            self._names.forget_name(other, new_parent, new_name, kept)
        scan, new_scan = tree.scan(parent), tree.scan(new_parent)
        fmt = scan.entries.pop(name)
        if hidden:
            scan.whiteouts.add(name)
        new_scan.entries[new_name] = fmt
        new_scan.whiteouts.discard(new_name)
        self._relink(node, source, target)

    def _relink(
        self, node: Node, source: tuple[DirNode, bytes], target: tuple[DirNode, bytes]
    ) -> None:
        """Move a node to its new place in memory."""
        old_parent, old_name = source
        new_parent, new_name = target
        if old_parent.children.get(old_name) is node:
            del old_parent.children[old_name]
        new_parent.children[new_name] = node
        if node.parent is old_parent and node.name == old_name:
            node.parent, node.name = new_parent, new_name
        elif node.more:
            node.more[node.more.index(source)] = target
        self._tree.release(old_parent)

    def _fit_opaque(
        self, node: DirNode, new_parent: DirNode, new_name: bytes, place: Place
    ) -> list[Step]:
        """Make a pure upper directory opaque if its new place needs that, else not."""
        tree = self._tree
        scan = tree.scan(node)
        needed = tree.lower_fmt(new_parent, new_name) is not None
        if needed and not scan.opaque:
            self._set_opaque(node)
        if scan.opaque and not needed:
            scan.opaque = False
            return [Step(Op.CLEAR, place)]
        return []

    def _set_opaque(self, node: DirNode) -> None:
        fd = self._tree.fd(node, UPPER)
        with quiet(fd):
            self._work.make_opaque(fd)
        self._tree.scan(node).opaque = True

    def _place(self, parent: DirNode, name: bytes) -> Place:
        return Place(self._tree.fd(parent, UPPER), self._tree.path(parent), name)

    # -- exchanging --------------------------------------------------------------

    def _exchange(self, one: tuple[DirNode, bytes, Node], two: tuple[DirNode, bytes, Node]) -> None:
        tree = self._tree
        (parent_1, name_1, node_1), (parent_2, name_2, node_2) = one, two
        self._bring_up(node_1)
        self._bring_up(node_2)
        place_1, place_2 = self._place(parent_1, name_1), self._place(parent_2, name_2)
        needless: list[Step] = []
        if isinstance(node_1, DirNode):
            needless += self._fit_opaque(node_1, parent_2, name_2, place_2)
        if isinstance(node_2, DirNode):
            needless += self._fit_opaque(node_2, parent_1, name_1, place_1)
        self._journal.run([Step(Op.SWAP, place_2, place_1)])
        for step in needless:
            self._journal.run([step])
        scan_1, scan_2 = tree.scan(parent_1), tree.scan(parent_2)
        fmt = scan_1.entries[name_1]
        scan_1.entries[name_1] = scan_2.entries[name_2]
        scan_2.entries[name_2] = fmt
        parent_1.opens += 1  # a parent must outlive the moment without its child
        self._relink(node_1, (parent_1, name_1), (parent_2, name_2))
        self._relink(node_2, (parent_2, name_2), (parent_1, name_1))
        parent_1.opens -= 1

    # -- bringing up -------------------------------------------------------------

    def plan_copies(self, parent: DirNode, name: bytes) -> Iterator[int]:
        """Yield the inode numbers of the files that a rename would copy up first.

        EXDEV when the content of a directory is beyond the limits.
        """
        node = self._tree.find(parent, name)
        if isinstance(node, DirNode):
            with self._held(node):
                self._check_limits(node)
                for inner in walk(self._tree, node):
                    if inner.branch != UPPER and not inner.is_dir:
                        yield inner.ino
        elif node is not None and node.branch != UPPER:
            yield node.ino

    def _check_limits(self, node: DirNode) -> None:
        entries = size = 0
        for inner in walk(self._tree, node):
            if inner.branch != UPPER:
                entries += 1
                size += 0 if inner.is_dir else self._tree.status(inner).size
                if entries > MAX_ENTRIES or size > MAX_BYTES:
                    raise error(errno.EXDEV, node.name)

    def _bring_up(self, node: Node) -> None:
        """Make the rw branch alone give a node and everything below it."""
        if not isinstance(node, DirNode):
            self._copyup.bring_up(node)
            return
        tree = self._tree
        tree.scan(node)
        if node.upper and not node.lower:
            return
        self._check_limits(node)
        self._copyup.ensure_dir(node)
        for inner in walk(tree, node):
            self._copyup.bring_up(inner)
        self._set_opaque(node)
        for inner in walk(tree, node):
            if isinstance(inner, DirNode):
                self._drop_markers(inner)
                tree.cut(inner)
        self._drop_markers(node)
        tree.cut(node)

    def _drop_markers(self, node: DirNode) -> None:
        """Remove the whiteouts of a directory that is opaque or lies in an opaque one.

        Opaque markers of inner directories stay: they say the truth wherever they go.
        """
        scan = self._tree.scan(node)
        if not scan.whiteouts:
            return
        fd = self._tree.fd(node, UPPER)
        with quiet(fd):
            for hidden in scan.whiteouts:
                self._work.unhide(fd, hidden)
        scan.whiteouts.clear()
