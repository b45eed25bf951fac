"""Bringing lower files and directories into the rw branch before they change.

A copy is made in the work area, gets everything the original presents, and appears by
one rename; a file with several names appears under all of them, by the journal. Copying
is split: `plan` and `finish` are quick and belong to the engine's thread, `CopyPlan.copy`
moves the data and may run anywhere.

Invariant: what is visible does not change by a copy-up, times of parents included, and
a copy that was not finished leaves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from unionfs import _sys
from unionfs.branch import Branch, Status, Writer
from unionfs.branch.branch import proc_path
from unionfs.union.hardlinks import HardLinks
from unionfs.union.journal import Journal, Op, Place, Step
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.settle import begin, settler
from unionfs.union.tree import Tree, error
from unionfs.union.workarea import WorkArea, quiet

__all__ = ["CopyPlan", "CopyUp", "disk_type", "open_lower"]

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK: Final = 1 << 20
#: Data begin to be written in pieces of so many bytes.
_PIECE: Final = 1 << 23
#: What copy_file_range(2) answers when a filesystem or a pair of them cannot.
_NO_RANGE: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
_BLOCK: Final = 512
_LISTED: Final = (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK)


def disk_type(status: Status) -> int:
    """Return the type that a directory scan would tell for an entry."""
    if status.placeholder:
        return stat.S_IFREG
    return status.fmt if status.fmt in _LISTED else 0


def open_lower(branch: Branch, dirfd: int, name: bytes) -> int:
    """Open a layer's file for reading, without touching its access time if allowed."""
    try:
        return branch.open_file(dirfd, name, os.O_RDONLY | os.O_NOATIME)
    except PermissionError:
        return branch.open_file(dirfd, name, os.O_RDONLY)


def _copy_range(
    source: int, target: int, start: int, end: int, wrote: Callable[[int, int, int], None]
) -> None:
    """Copy a range; `wrote` is told of each piece: where it is and how long."""
    offset = start
    try:
        while offset < end:
            count = min(end - offset, _PIECE)
            done = os.copy_file_range(source, target, count, offset, offset)
            if not done:
                return
            wrote(target, offset, done)
            offset += done
    except OSError as exc:
        if exc.errno not in _NO_RANGE:
            raise
    while offset < end:
        data = os.pread(source, min(_CHUNK, end - offset), offset)
        if not data:
            return
        done = os.pwrite(target, data, offset)
        wrote(target, offset, done)
        offset += done


def _copy_sparse(
    source: int, target: int, size: int, wrote: Callable[[int, int, int], None]
) -> None:
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, min(end, size), wrote)
        offset = end


def _forget(target: int, offset: int, size: int) -> None:
    """Let the kernel choose when data are written that a crash may take, or that are few."""


class CopyPlan:
    """One copy on its way. `size` is the number of bytes that `copy` will read at most."""

    def __init__(
        self, node: Node, status: Status, work_fd: int, temp: bytes, source: int, size: int
    ) -> None:
        self.node = node
        self.status = status
        self.size = size
        self.temp = temp
        self.target = -1
        #: Has the data on disk before the name; None where a crash may take it.
        self.settle: Callable[[int], None] | None = None
        self.whole = True
        self.sparse = False
        #: Branches that cannot share blocks with the rw branch, known to all plans.
        self.unclonable: set[int] = set()
        self._position = node.branch
        self.copied = False
        self._work_fd = work_fd
        self._source = source

    def copy(self) -> None:
        """Make the new file with the data; touches nothing else and may run in a thread."""
        if self._source < 0 or self.copied:
            self.copied = True
            return
        self.target = os.open(self.temp, _CREATE, 0o600, dir_fd=self._work_fd)
        if self.size:
            self._copy_data()
            if self.settle is not None:
                self.settle(self.target)
        self.copied = True

    def _copy_data(self) -> None:
        if self.whole and self._clone():
            return
        wrote = _forget if self.settle is None or self.size <= _PIECE else begin
        if self.sparse:
            _copy_sparse(self._source, self.target, self.size, wrote)
            os.ftruncate(self.target, self.size)
        else:
            _copy_range(self._source, self.target, 0, self.size, wrote)

    def _clone(self) -> bool:
        """Share the data blocks if the filesystems can; ask only once if they cannot."""
        if self._position in self.unclonable:
            return False
        try:
            _sys.clone_file(self._source, self.target)
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV):
                self.unclonable.add(self._position)
            return False
        return True

    def close_source(self) -> None:
        """Release the original's fd."""
        if self._source >= 0:
            os.close(self._source)
            self._source = -1

    def abandon(self) -> None:
        """Undo whatever has been made; harmless after `CopyUp.finish`."""
        self.close_source()
        if self.target >= 0:
            os.close(self.target)
            self.target = -1
        if self.temp:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.temp, dir_fd=self._work_fd)
            self.temp = b""


class CopyUp:
    """Copy-ups of one engine that has a rw branch."""

    def __init__(
        self, tree: Tree, writer: Writer, work: WorkArea, journal: Journal, links: HardLinks
    ) -> None:
        self._tree = tree
        self._writer = writer
        self._work = work
        self._journal = journal
        self._links = links
        self._unclonable: set[int] = set()
        self._settle = None if tree.options.volatile else settler(work.fd)

    # -- directories -------------------------------------------------------------

    def ensure_dir(self, node: DirNode) -> int:
        """Copy a directory and its parents up; return its fd in the rw branch."""
        if not node.upper:
            chain: list[DirNode] = []
            current: DirNode | None = node
            while current is not None and not current.upper:
                if current.gone:
                    raise error(errno.ENOENT, current.name)
                chain.append(current)
                current = current.parent
            for inner in reversed(chain):
                self._copy_dir(inner)
        elif node.gone:
            raise error(errno.ENOENT, node.name)
        return self._tree.fd(node, UPPER)

    def _copy_dir(self, node: DirNode) -> None:
        tree, parent = self._tree, node.parent
        if parent is None:
            raise error(errno.EROFS)
        branch, fd, name = tree.place(node)
        status = node.status or branch.status(fd, name)
        temp = self._work.new_name()
        made = False
        try:
            self._writer.create(self._work.fd, temp, status.mode, status.uid, status.gid)
            made = True
            self._dress(node, branch, fd, name, status, temp)
            parent_fd = tree.fd(parent, UPPER)
            with quiet(parent_fd):
                os.rename(temp, node.name, src_dir_fd=self._work.fd, dst_dir_fd=parent_fd)
        except OSError:
            if made:
                os.rmdir(temp, dir_fd=self._work.fd)
            raise
        tree.scan(parent).entries[node.name] = stat.S_IFDIR
        node.branch = UPPER
        node.status = None
        node.inherit = None
        node.scan = None
        st = os.stat(b".", dir_fd=tree.fd(node, UPPER))
        tree.inodes.rekey(node, (UPPER, st.st_dev, st.st_ino))
        tree.stats.copy_ups += 1

    def _dress(
        self, node: Node, branch: Branch, fd: int, name: bytes, status: Status, temp: bytes
    ) -> None:
        """Give the copy its original's attributes, number and times, the last last."""
        work_fd = self._work.fd
        self._writer.set_xattrs(work_fd, temp, branch.all_xattrs(fd, name))
        # Filesystems without such attributes only lose the number at the next mount.
        with contextlib.suppress(OSError):
            os.setxattr(
                proc_path(work_fd, temp),
                self._tree.ino_xattr,
                b"%d" % node.ino,
                follow_symlinks=False,
            )
        self._writer.set_times(work_fd, temp, status.atime_ns, status.mtime_ns)

    # -- files -------------------------------------------------------------------

    def bring_up(self, node: Node, limit: int | None = None) -> None:
        """Copy an entry up at once, the data of a file only up to `limit` bytes."""
        plan = self.plan(node, limit)
        if plan is None:
            return
        try:
            plan.copy()
        except OSError:
            plan.abandon()
            raise
        self.finish(plan)

    def plan(self, node: Node, limit: int | None = None) -> CopyPlan | None:
        """Prepare copying a file; None when nothing is left to do (directories included)."""
        if isinstance(node, DirNode):
            self.ensure_dir(node)
            return None
        if node.branch == UPPER:
            return None
        branch, fd, name = self._tree.place(node)
        status = branch.status(fd, name)
        source, size = -1, 0
        if status.fmt == stat.S_IFREG and not status.placeholder:
            source = os.dup(node.fd) if node.fd >= 0 else open_lower(branch, fd, name)
            size = status.size if limit is None else min(limit, status.size)
        plan = CopyPlan(node, status, self._work.fd, self._work.new_name(), source, size)
        plan.settle = self._settle
        plan.unclonable = self._unclonable
        plan.whole = size == status.size
        plan.sparse = status.blocks * _BLOCK < status.size
        return plan

    def finish(self, plan: CopyPlan) -> None:
        """Make a copied file the one that counts; discard it when another copy already is."""
        node = plan.node
        unreachable = node.gone and node.anchor < 0
        if node.branch == UPPER or unreachable or not plan.copied:
            plan.abandon()
            return
        try:
            self._finish(plan, node)
        except OSError:
            plan.abandon()
            raise
        self._tree.stats.copy_ups += 1
        self._tree.stats.copy_up_bytes += plan.size

    def _finish(self, plan: CopyPlan, node: Node) -> None:
        tree, work_fd = self._tree, self._work.fd
        status = plan.status
        branch, fd, name = tree.place(node)
        if plan.target >= 0:
            self._writer.set_file_attributes(plan.target, status.mode, status.uid, status.gid)
        else:
            target = branch.readlink(fd, name) if status.fmt == stat.S_IFLNK else b""
            self._writer.create(
                work_fd,
                plan.temp,
                status.mode,
                status.uid,
                status.gid,
                rdev=status.rdev,
                target=target,
            )
        self._dress(node, branch, fd, name, status, plan.temp)
        places = self._links.members(node) if status.nlink > 1 else node.names()
        copy = tree.branches[UPPER].status(work_fd, plan.temp)
        self._appear(plan.temp, places)
        for parent, inner in places:
            tree.scan(parent).entries[inner] = disk_type(copy)
        node.branch = UPPER
        node.nlink = len(places)
        tree.inodes.rekey(node, (UPPER, copy.dev, copy.ino))
        self._adopt_place(plan, node, places)
        plan.close_source()
        if node.fd >= 0 and plan.target >= 0:
            os.close(node.fd)
            node.fd, node.fd_writable = plan.target, True
        elif plan.target >= 0:
            os.close(plan.target)
        plan.target = -1
        plan.temp = b""
        for parent, _ in places:
            tree.release(parent)

    def _appear(self, temp: bytes, places: list[tuple[DirNode, bytes]]) -> None:
        """Move the finished copy to its name; under several names by the journal."""
        if not places:
            return
        if len(places) == 1:
            parent, name = places[0]
            fd = self.ensure_dir(parent)
            with quiet(fd):
                os.rename(temp, name, src_dir_fd=self._work.fd, dst_dir_fd=fd)
            return
        with contextlib.ExitStack() as restored:
            # Duplicates: a big group may push fds out of the cache.
            fds = [os.dup(self.ensure_dir(parent)) for parent, _ in places]
            for fd in fds:
                restored.callback(os.close, fd)
            for fd in fds:
                restored.enter_context(quiet(fd))
            first, *others = [
                Place(fd, self._tree.path(parent), name)
                for fd, (parent, name) in zip(fds, places, strict=True)
            ]
            steps = [Step(Op.MOVE, first, self._journal.work_place(temp))]
            steps += [Step(Op.LINK, other, first) for other in others]
            self._journal.run(steps)

    def _adopt_place(self, plan: CopyPlan, node: Node, places: list[tuple[DirNode, bytes]]) -> None:
        """Update where an unlinked but open file is: in the work area, or found again."""
        if not node.gone:
            return
        if places:
            parent, name = places[0]
            self._tree.attach(node, parent, name)
            return
        if node.anchor >= 0 and node.anchor != self._work.fd:
            self._tree.anchors.release(node.anchor)
        node.anchor = self._work.fd
        node.name = plan.temp
