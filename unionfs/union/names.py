"""Making and removing names: create, mkdir, mknod, symlink, link, unlink, rmdir.

A new entry that one system call can make completely is made in place; any other is made
in the work area and moved. Deleting never copies anything up but the parent directory.

Invariant: after every call the rw branch holds a whiteout exactly where something lower
is hidden by nothing else, and an opaque marker exactly in directories over hidden ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from unionfs.branch import DirScan, Status, Writer, whiteout
from unionfs.union import acl
from unionfs.union.copyup import CopyUp, disk_type
from unionfs.union.journal import Journal, Op, Place, Step
from unionfs.union.node import UPPER, DirNode, Inherit, Node
from unionfs.union.options import Attr, Caller
from unionfs.union.tree import Tree, error
from unionfs.union.workarea import WorkArea, remove_tree

__all__ = ["Names", "check_new"]

_PERM = 0o777
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def check_new(name: bytes) -> None:
    """Refuse names that nobody may make: reserved, too long, or no names at all."""
    if whiteout.is_reserved(name):
        raise error(errno.EPERM, name)
    if len(name) > whiteout.MAX_NAME:
        raise error(errno.ENAMETOOLONG, name)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise error(errno.EINVAL, name)


def _read_umask() -> int:
    """Return the process's umask; umask(2) could only be asked by changing it."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return _PERM


#: What has been made, and its status if that is still right.
Made = tuple[Node, Status | None]


class Names:
    """Changes of names in one engine that has a rw branch."""

    def __init__(
        self, tree: Tree, writer: Writer, work: WorkArea, journal: Journal, copyup: CopyUp
    ) -> None:
        self._tree = tree
        self._writer = writer
        self._work = work
        self._journal = journal
        self._copyup = copyup
        self._euid, self._egid = os.geteuid(), os.getegid()
        self._umask = _read_umask()

    # -- making ------------------------------------------------------------------

    def create(self, parent: DirNode, name: bytes, mode: int, caller: Caller) -> tuple[Made, int]:
        """Create a regular file; return it and an fd open for reading and writing."""
        fd, hidden = self._prepare(parent, name)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        gid, mode, access, _ = self._inherited(parent, caller.gid, mode)
        wanted = (mode, caller.uid, gid)
        if not hidden and not access and self._is_plain(*wanted):
            file = os.open(name, _CREATE, stat.S_IMODE(mode), dir_fd=fd)
            made = self._made_in_place(fd, parent, name, wanted, file)
        else:
            temp = self._work.new_name()
            file = self._writer.create_file(self._work.fd, temp, *wanted)
            try:
                made = self._install(parent, name, temp, access=access)
            except OSError:
                os.close(file)
                raise
        return made, file

    def mkdir(self, parent: DirNode, name: bytes, mode: int, caller: Caller) -> Made:
        """Create a directory, opaque if something lower is hidden at its name."""
        fd, hidden = self._prepare(parent, name)
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        gid, mode, access, default = self._inherited(parent, caller.gid, mode)
        wanted = (mode, caller.uid, gid)
        opaque = self._tree.lower_fmt(parent, name) is not None
        if not hidden and not default and self._is_plain(*wanted):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=fd)
            made = self._made_in_place(fd, parent, name, wanted)
        else:
            temp = self._work.new_name()
            self._writer.create(self._work.fd, temp, *wanted)
            made = self._install(parent, name, temp, access, default, opaque=opaque)
        node, _ = made
        if isinstance(node, DirNode):
            node.scan, node.listing = DirScan(), {}
            node.scan.opaque = opaque
        return made

    def make(
        self,
        parent: DirNode,
        name: bytes,
        mode: int,
        caller: Caller,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Made:
        """Create a symbolic link, device, fifo, socket or (mknod) an empty file."""
        fd, hidden = self._prepare(parent, name)
        gid, mode, access, _ = self._inherited(parent, caller.gid, mode)
        wanted = (mode, caller.uid, gid)
        if stat.S_ISLNK(mode) and not hidden and self._is_plain(*wanted):
            os.symlink(target, name, dir_fd=fd)
            return self._made_in_place(fd, parent, name, wanted)
        temp = self._work.new_name()
        self._writer.create(self._work.fd, temp, *wanted, rdev=rdev, target=target)
        return self._install(parent, name, temp, access)

    def link(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Give a file one more name."""
        self._check_free(parent, name)
        if node.is_dir:
            raise error(errno.EPERM, name)
        _, hidden = self._prepare(parent, name)
        self._copyup.bring_up(node)
        branch, source_fd, source = self._tree.place(node)
        if node.gone and node.nlink == 0:
            raise error(errno.ENOENT, name)
        if hidden:
            temp = self._work.new_name()
            os.link(
                source,
                temp,
                src_dir_fd=source_fd,
                dst_dir_fd=self._work.fd,
                follow_symlinks=False,
            )
            status = self._move_in(parent, name, temp)
        else:
            fd = self._tree.fd(parent, UPPER)
            os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=fd, follow_symlinks=False)
            status = branch.status(fd, name)
        self._tree.scan(parent).entries[name] = disk_type(status)
        node.nlink += 1
        self._tree.attach(node, parent, name)

    def _check_free(self, parent: DirNode, name: bytes) -> None:
        check_new(name)
        if parent.gone:
            raise error(errno.ENOENT, name)
        if self._tree.has(parent, name):
            raise error(errno.EEXIST, name)

    def _prepare(self, parent: DirNode, name: bytes) -> tuple[int, bool]:
        """Check a new name; return the parent's rw fd and whether a whiteout is there."""
        self._check_free(parent, name)
        fd = self._copyup.ensure_dir(parent)
        return fd, name in self._tree.scan(parent).whiteouts

    def _is_plain(self, mode: int, uid: int, gid: int) -> bool:
        """Tell whether creating in place gives these attributes with no further call."""
        if stat.S_IMODE(mode) & (~_PERM | self._umask) and not stat.S_ISLNK(mode):
            return False
        if self._writer.native:
            return (uid, gid) == (self._euid, self._egid) and not self._writer.branch.marked
        floor = 0o700 if stat.S_ISDIR(mode) else 0o600
        readable = mode & floor == floor or stat.S_ISLNK(mode)
        return uid == 0 and gid == 0 and readable

    def _made_in_place(
        self, fd: int, parent: DirNode, name: bytes, wanted: tuple[int, int, int], file: int = -1
    ) -> Made:
        """Enter what has just been made, open as `file` if that; correct what was imposed on it."""
        branch = self._writer.branch
        status = branch.status(fd, name) if file < 0 else branch.new_status(file)
        mode, uid, gid = wanted
        if stat.S_ISLNK(mode):
            mode = status.mode
        if (status.mode, status.uid, status.gid) != (mode, uid, gid):
            self._writer.set_attributes(fd, name, mode, uid, gid)
            status = branch.status(fd, name)
        node = self._enter(parent, name, status)
        # Keeping a number that does not follow from the file changes its ctime.
        return node, None if self._tree.inodes.is_synthetic(node.ino) else status

    def _install(
        self,
        parent: DirNode,
        name: bytes,
        temp: bytes,
        access: bytes = b"",
        default: bytes = b"",
        *,
        opaque: bool = False,
    ) -> Made:
        """Move an entry from the work area to its name, over a whiteout if any; enter it."""
        work_fd = self._work.fd
        try:
            if access:
                self._writer.set_xattr(work_fd, temp, acl.ACCESS, access)
            if default:
                self._writer.set_xattr(work_fd, temp, acl.DEFAULT, default)
            if opaque:
                inner = self._writer.branch.open_dir(work_fd, temp)
                try:
                    self._work.make_opaque(inner)
                finally:
                    os.close(inner)
        except OSError:
            self.empty_trash(temp)
            raise
        return self._enter(parent, name, self._move_in(parent, name, temp)), None

    def _move_in(self, parent: DirNode, name: bytes, temp: bytes) -> Status:
        """Move a finished entry to its name; return its status, the ctime that before."""
        work_fd = self._work.fd
        scan = self._tree.scan(parent)
        try:
            status = self._writer.branch.status(work_fd, temp)
            place = self._place(parent, name)
            steps = [Step(Op.MOVE, place, self._journal.work_place(temp))]
            if name in scan.whiteouts:
                steps.append(Step(Op.UNHIDE, place))
            self._journal.run(steps)
        except OSError:
            self.empty_trash(temp)
            raise
        scan.whiteouts.discard(name)
        return status

    def _enter(self, parent: DirNode, name: bytes, status: Status) -> Node:
        self._tree.scan(parent).entries[name] = disk_type(status)
        return self._tree.enter(parent, name, UPPER, status)

    def _place(self, parent: DirNode, name: bytes) -> Place:
        return Place(self._tree.fd(parent, UPPER), self._tree.path(parent), name)

    # -- what a directory gives its new entries -------------------------------------

    def _inherited(self, parent: DirNode, gid: int, mode: int) -> tuple[int, int, bytes, bytes]:
        """Return gid, mode, access ACL and default ACL of a new entry."""
        taken = parent.inherit
        if taken is None:
            taken = parent.inherit = self._read_inherit(parent)
        forced, default = taken
        access = b""
        if forced >= 0:
            gid = forced
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        if default and not stat.S_ISLNK(mode):
            mode, access = acl.inherit(default, mode)
        return gid, mode, access, default if stat.S_ISDIR(mode) else b""

    def _read_inherit(self, parent: DirNode) -> Inherit:
        branch, fd, name = self._tree.place(parent)
        status = branch.status(fd, name)
        default = b""
        with contextlib.suppress(OSError):
            default = branch.get_xattr(fd, name, acl.DEFAULT)
        return status.gid if status.mode & stat.S_ISGID else -1, default

    # -- removing ----------------------------------------------------------------

    def unlink(self, parent: DirNode, name: bytes) -> None:
        """Remove a file's name; nothing is copied up but the parent directory."""
        node = self._tree.need(parent, name)
        if node.is_dir:
            raise error(errno.EISDIR, name)
        self._copyup.ensure_dir(parent)
        steps = self.hide_steps(parent, name)
        removal = []
        if name in self._tree.scan(parent).entries:
            removal.append(Step(Op.REMOVE, self._place(parent, name)))
        kept = self.keep(node, parent, name)
        try:
            self._journal.run(steps + removal)
        except OSError:
            self.drop_kept(kept)
            raise
        if steps:
            self._tree.scan(parent).whiteouts.add(name)
        self.forget_name(node, parent, name, kept)

    def hide_steps(self, parent: DirNode, name: bytes) -> list[Step]:
        """Return the step that keeps a lower entry from showing once its cover is gone."""
        below = self._tree.lower_fmt(parent, name) is not None
        if not below or name in self._tree.scan(parent).whiteouts:
            return []
        return [Step(Op.HIDE, self._place(parent, name))]

    def keep(self, node: Node, parent: DirNode, name: bytes) -> bytes:
        """Link an upper file that is still in use to a name in the work area; return that.

        Where that cannot be done (full disk) an open file is left with its fd, others with
        nothing: deleting goes on. A second link instead of a move, so that a rename over the
        file stays one step.
        """
        if node.branch != UPPER or node.more or node.idle:
            return b""
        return self.keep_name(parent, name)

    def keep_name(self, parent: DirNode, name: bytes) -> bytes:
        """Link an upper file to a name in the work area; return that, empty if it cannot be."""
        kept = self._work.new_name()
        try:
            os.link(
                name,
                kept,
                src_dir_fd=self._tree.fd(parent, UPPER),
                dst_dir_fd=self._work.fd,
                follow_symlinks=False,
            )
        except OSError:
            return b""
        return kept

    def drop_kept(self, kept: bytes) -> None:
        """Take back what `keep` did: the file has not lost its name after all."""
        if kept:
            os.unlink(kept, dir_fd=self._work.fd)

    def forget_name(self, node: Node, parent: DirNode, name: bytes, kept: bytes) -> None:
        """Follow the removal of a file's name in memory."""
        tree = self._tree
        tree.scan(parent).entries.pop(name, None)
        node.nlink = max(0, node.nlink - 1)
        tree.detach(node, parent, name)
        if kept:
            node.anchor, node.name = self._work.fd, kept
        # A layer's file is never another one: undeleted it is this node again.
        if node.gone and node.nlink == 0 and node.branch == UPPER:
            tree.inodes.forget_key(node)
        tree.release(node)

    def rmdir(self, parent: DirNode, name: bytes) -> None:
        """Remove a directory without visible entries; its whiteouts go with it."""
        tree = self._tree
        node = tree.need(parent, name)
        if not isinstance(node, DirNode):
            raise error(errno.ENOTDIR, name)
        if not tree.is_empty(node):
            raise error(errno.ENOTEMPTY, name)
        self._copyup.ensure_dir(parent)
        steps = self.hide_steps(parent, name)
        final = tree.attr(node)
        if steps or not self._rmdir_at_once(node, parent, name):
            trash, removal = self.dir_removal_steps(node, parent, name)
            self._journal.run(steps + removal)
            self.empty_trash(trash)
        if steps:
            tree.scan(parent).whiteouts.add(name)
        self.forget_dir(node, parent, name, final)

    def _rmdir_at_once(self, node: DirNode, parent: DirNode, name: bytes) -> bool:
        """Remove a directory that is empty on disk too; False when it is not."""
        scan = self._tree.scan(node)
        if not node.upper or scan.whiteouts or scan.opaque:
            return False
        try:
            os.rmdir(name, dir_fd=self._tree.fd(parent, UPPER))
        except OSError as exc:
            if exc.errno != errno.ENOTEMPTY:
                raise
            return False
        return True

    def dir_removal_steps(
        self, node: DirNode, parent: DirNode, name: bytes
    ) -> tuple[bytes, list[Step]]:
        """Return how an upper directory without visible entries goes: into the work area."""
        if not node.upper:
            return b"", []
        trash = self._work.new_name()
        source = self._place(parent, name)
        return trash, [Step(Op.MOVE, self._journal.work_place(trash), source)]

    def empty_trash(self, trash: bytes) -> None:
        """Remove what has been moved away; leftovers wait for the next sweep."""
        if trash:
            with contextlib.suppress(OSError):
                remove_tree(self._work.fd, trash)

    def forget_dir(self, node: DirNode, parent: DirNode, name: bytes, final: Attr) -> None:
        """Follow the removal of a directory in memory; `final` is what it still shows."""
        tree = self._tree
        tree.scan(parent).entries.pop(name, None)
        tree.fds.drop(node, UPPER)
        tree.cut(node)
        node.final = final._replace(nlink=0)
        node.scan = DirScan()
        tree.detach(node, parent, name)
        tree.inodes.forget_key(node)
        tree.release(node)
