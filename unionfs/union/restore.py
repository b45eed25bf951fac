"""Taking back what a rw branch changed, while the union goes on.

The plan (`unionfs.union.restoring`) is carried out by journaled runs of steps that move what
goes into the work area; then the live nodes are brought into line with the disk. A file that
goes while somebody uses it lives on for them, as after unlink(2). A directory that both the
rw branch and the layers have stays the same directory.

Invariant: after a crash every path is as before or as after, and what an interrupted run had
begun is finished by the replay. Only attributes of directories are set one by one at the end.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

import attrs

from unionfs.branch import Branch, Stack, Writer, whiteout
from unionfs.branch.branch import proc_path
from unionfs.closing import opened
from unionfs.errors import ConflictError, show
from unionfs.union.journal import Journal, Op, Place, Step
from unionfs.union.names import Names
from unionfs.union.node import UPPER
from unionfs.union.reconcile import Reconcile
from unionfs.union.restoring import plan_restore
from unionfs.union.tree import Tree
from unionfs.union.undo import Plan, Template, Undo
from unionfs.union.workarea import WorkArea, quiet

__all__ = ["Restore", "Restored"]

#: Directories that one run of the journal changes at most: each costs a descriptor.
_BATCH: Final = 256


@attrs.define
class Restored:
    """What was done, and what whoever caches the union must forget.

    `entries` are (directory, name) pairs, `inodes` numbers; both only as far as somebody may
    know them. `discard` removes what has gone from the disk: call it once, in any thread.
    """

    plan: Plan
    entries: list[tuple[int, bytes]] = attrs.field(factory=list)
    inodes: list[int] = attrs.field(factory=list)
    _work: WorkArea | None = None
    _trash: list[bytes] = attrs.field(factory=list)

    def discard(self) -> None:
        """Remove what has been moved away; leftovers wait for the next sweep."""
        if self._work is not None:
            for name in self._trash:
                _discard(self._work, name)
            self._trash = []


def _discard(work: WorkArea, name: bytes) -> None:
    """Remove a tree of any depth: directories are moved up before they are emptied."""
    pending = [name]
    with contextlib.suppress(OSError):
        while pending:
            current = pending.pop()
            try:
                os.unlink(current, dir_fd=work.fd)
                continue
            except (IsADirectoryError, PermissionError):
                pass
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(current, flags, dir_fd=work.fd)
            try:
                for inner in os.listdir(fd):
                    try:
                        os.unlink(inner, dir_fd=fd)
                    except (IsADirectoryError, PermissionError):
                        moved = work.new_name()
                        os.rename(inner, moved, src_dir_fd=fd, dst_dir_fd=work.fd)
                        pending.append(moved)
            finally:
                os.close(fd)
            os.rmdir(current, dir_fd=work.fd)


class Restore:
    """Undoing in one engine that has a rw branch."""

    def __init__(
        self, tree: Tree, writer: Writer, work: WorkArea, journal: Journal, names: Names
    ) -> None:
        self._tree = tree
        self._writer = writer
        self._work = work
        self._journal = journal
        self._names = names

    def run(
        self,
        undo: Undo,
        path: bytes,
        *,
        blind: bool = False,
        only_plan: bool = False,
        stake: str | None = None,
    ) -> Restored:
        """Take back what `undo` says at a path; `blind`: the layers are not the branch's own.

        `stake` is that of the plan which somebody agreed to. Raises as `plan_restore`,
        ConflictError when something else would be lost by now, and OSError.
        """
        tree = self._tree
        lowers = [] if blind else tree.branches[UPPER + 1 :]
        plan = plan_restore(self._writer.branch, lowers, undo, path)
        if stake is not None and stake != plan.stake(undo):
            raise ConflictError(
                f"what would be lost at {show(path)} has changed meanwhile, so nothing was done;"
                " look at it again (--dry-run)"
            )
        done = Restored(plan, work=self._work)
        if plan.empty or only_plan:
            return done
        memory = Reconcile(tree, self._names, plan)
        finished = False
        try:
            self._change(plan, done)
            finished = True
        finally:
            memory.follow(done=finished)
        for at in plan.dressed:
            self._dress(at)
        done.entries, done.inodes = memory.entries, sorted(memory.inodes)
        return done

    # -- the disk ------------------------------------------------------------------

    def _change(self, plan: Plan, done: Restored) -> None:
        branch = self._writer.branch
        for path in plan.closed:
            with opened(branch.open_path(path)) as fd, quiet(fd):
                self._work.make_opaque(fd)
        temps = {(at, name): self._build(template) for at, name, template in plan.built}
        work: dict[bytes, list[tuple[Op, bytes, bytes]]] = {}

        def add(op: Op, at: bytes, name: bytes, other: bytes = b"") -> None:
            work.setdefault(at, []).append((op, name, other))

        def away(at: bytes, name: bytes) -> None:
            trash = self._work.new_name()
            done._trash.append(trash)  # noqa: SLF001  # our own class
            add(Op.MOVE, at, name, trash)

        for at, name in plan.hidden:
            add(Op.HIDE, at, name)
        for (at, name), temp in temps.items():
            add(Op.LINK, at, name, temp)
        for at, name in plan.removed:
            away(at, name)
        for at, name in plan.unhidden:
            add(Op.UNHIDE, at, name)
        for at in plan.opened:
            away(at, whiteout.OPAQUE)
        # The deepest first: what is to stay hidden is so before the marker above it goes.
        order = sorted(work, key=lambda at: (-len(at.split(b"/")) if at else 0, at))
        for start in range(0, len(order), _BATCH):
            with contextlib.ExitStack() as fds:
                steps = []
                for at in order[start : start + _BATCH]:
                    fd = fds.enter_context(opened(branch.open_path(at)))
                    steps += [self._step(fd, at, *item) for item in work[at]]
                self._journal.run(steps)

    def _step(self, fd: int, at: bytes, op: Op, name: bytes, other: bytes) -> Step:
        place = Place(fd, at, name)
        if op is Op.MOVE:
            return Step(op, self._journal.work_place(other), place)
        if op is Op.LINK:  # a directory from the work area
            return Step(Op.MOVE, place, self._journal.work_place(other))
        return Step(op, place)

    def _build(self, template: Template) -> bytes:
        """Make a directory as the layers have it in the work area; return its name there."""
        temp = self._work.new_name()
        self._make(template, self._work.fd, temp)
        return temp

    def _make(self, template: Template, dirfd: int, name: bytes) -> None:
        source, source_fd = self._lower(template.path)
        try:
            status = source.status(source_fd, b".")
            self._writer.create(dirfd, name, status.mode, status.uid, status.gid)
            with opened(self._writer.branch.open_dir(dirfd, name)) as fd:
                for hidden in template.hidden:
                    self._work.hide(fd, hidden)
                for inner, below in template.kept.items():
                    if below is not None:
                        self._make(below, fd, inner)
            self._writer.set_xattrs(dirfd, name, source.all_xattrs(source_fd, b"."))
            number = b"%d" % self._tree.inodes.number(status.dev, status.ino)
            with contextlib.suppress(OSError):
                path = proc_path(dirfd, name)
                os.setxattr(path, self._tree.ino_xattr, number, follow_symlinks=False)
            self._writer.set_times(dirfd, name, status.atime_ns, status.mtime_ns)
        finally:
            os.close(source_fd)

    def _lower(self, path: bytes) -> tuple[Branch, int]:
        """Return the topmost layer that gives a directory of the layers, and its fd there."""
        stack = Stack(self._tree.branches[UPPER + 1 :])
        view = stack.view(path)
        if view is None:
            raise FileNotFoundError(path)
        position, fd = next(iter(view.fds.items()))
        return stack.branches[position], os.dup(fd)

    def _dress(self, at: bytes) -> None:
        """Give a directory of the rw branch the attributes that the layers' one has."""
        source, source_fd = self._lower(at)
        branch, writer = self._writer.branch, self._writer
        try:
            with opened(branch.open_path(at)) as fd:
                status = source.status(source_fd, b".")
                mode = status.mode if at else self._tree.root_mode(status.mode)
                wanted = source.all_xattrs(source_fd, b".")
                for name in branch.list_xattrs(fd, b"."):
                    if name not in wanted:
                        writer.remove_xattr(fd, b".", name)
                writer.set_attributes(fd, b".", mode, status.uid, status.gid)
                writer.set_xattrs(fd, b".", wanted)
                writer.set_times(fd, b".", status.atime_ns, status.mtime_ns)
        finally:
            os.close(source_fd)
