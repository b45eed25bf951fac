"""Changing attributes and extended attributes.

Invariant: a change that the arguments forbid fails before anything is copied up, and an
entry is copied up before it changes, never changed in a layer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from unionfs.branch import Status, Writer, xattrs
from unionfs.branch.branch import proc_path
from unionfs.union import acl
from unionfs.union.copyup import CopyUp
from unionfs.union.handles import Handles
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.options import SetAttr
from unionfs.union.tree import Tree, error
from unionfs.union.workarea import WorkArea, quiet

__all__ = ["Attributes"]

_SETUID_BITS: Final = stat.S_ISUID | stat.S_ISGID
_CAPABILITY: Final = "security.capability"


class Attributes:
    """Attribute changes in one engine that has a rw branch."""

    def __init__(
        self, tree: Tree, writer: Writer, work: WorkArea, copyup: CopyUp, handles: Handles
    ) -> None:
        self._tree = tree
        self._work = work
        self._writer = writer
        self._copyup = copyup
        self._handles = handles

    def set(self, node: Node, changes: SetAttr) -> None:
        """Change owner, then mode, then size, then times, as one chown would undo the other."""
        if isinstance(node, DirNode):
            if node.final is not None:
                raise error(errno.ENOENT)
            node.inherit = None
        if changes.size is not None:
            if node.is_dir:
                raise error(errno.EISDIR)
            if node.fmt != stat.S_IFREG:
                raise error(errno.EINVAL)
        self._copyup.bring_up(node, changes.size)
        if changes.uid is not None or changes.gid is not None:
            self._chown(node, changes.uid, changes.gid)
        if changes.mode is not None and node.fmt != stat.S_IFLNK:
            self._chmod(node, stat.S_IMODE(changes.mode))
        if changes.size is not None:
            self._handles.truncate(node, changes.size)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            self._set_times(node, changes.atime_ns, changes.mtime_ns)

    def _chown(self, node: Node, uid: int | None, gid: int | None) -> None:
        branch, fd, name = self._tree.place(node)
        new_uid = -1 if uid is None else uid
        new_gid = -1 if gid is None else gid
        if self._writer.native or node.fmt in (stat.S_IFREG, stat.S_IFDIR):
            self._writer.set_owner(fd, name, new_uid, new_gid)
        else:
            status = branch.status(fd, name)
            wanted = status._replace(
                uid=status.uid if uid is None else uid,
                gid=status.gid if gid is None else gid,
            )
            if status.placeholder:
                self._writer.set_owner(fd, name, new_uid, new_gid)
            elif wanted != status:
                self._replace_special(node, wanted)
        if node.fmt == stat.S_IFREG:
            with contextlib.suppress(OSError):
                self._writer.remove_xattr(fd, name, _CAPABILITY)

    def _chmod(self, node: Node, mode: int) -> None:
        branch, fd, name = self._tree.place(node)
        if not self._writer.native and node.fmt not in (stat.S_IFREG, stat.S_IFDIR):
            status = branch.status(fd, name)
            if mode & _SETUID_BITS and not status.placeholder:
                self._replace_special(node, status._replace(mode=node.fmt | mode))
                return
        self._writer.set_mode(fd, name, mode)
        self._acl_follows_mode(fd, name, mode)

    def _replace_special(self, node: Node, wanted: Status) -> None:
        """Put a placeholder in the place of a real link, fifo or socket that cannot hold this.

        EPERM when it has several names: they could not all be replaced at once.
        """
        branch, fd, name = self._tree.place(node)
        if node.nlink != 1 or node.gone:
            raise error(errno.EPERM)
        target = branch.readlink(fd, name) if wanted.fmt == stat.S_IFLNK else b""
        work_fd, temp = self._work.fd, self._work.new_name()
        self._writer.create(work_fd, temp, wanted.mode, wanted.uid, wanted.gid, target=target)
        self._writer.set_times(work_fd, temp, wanted.atime_ns, wanted.mtime_ns)
        with contextlib.suppress(OSError):
            number = b"%d" % node.ino
            os.setxattr(proc_path(work_fd, temp), self._tree.ino_xattr, number)
        with quiet(fd):
            os.rename(temp, name, src_dir_fd=work_fd, dst_dir_fd=fd)
        made = branch.status(fd, name)
        self._tree.inodes.rekey(node, (UPPER, made.dev, made.ino))
        for parent, inner in node.names():
            self._tree.scan(parent).entries[inner] = stat.S_IFREG

    def _acl_follows_mode(self, fd: int, name: bytes, mode: int) -> None:
        """Do for a stored ACL what the kernel does for a real one."""
        if self._writer.native:
            return
        with contextlib.suppress(OSError):
            access = self._writer.branch.get_xattr(fd, name, acl.ACCESS)
            self._writer.set_xattr(fd, name, acl.ACCESS, acl.with_mode(access, mode))

    def _set_times(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        branch, fd, name = self._tree.place(node)
        if atime_ns is None or mtime_ns is None:
            atime_now, mtime_now = branch.times(fd, name)
            atime_ns = atime_now if atime_ns is None else atime_ns
            mtime_ns = mtime_now if mtime_ns is None else mtime_ns
        self._writer.set_times(fd, name, atime_ns, mtime_ns)

    # -- extended attributes -----------------------------------------------------

    def _list(self, node: Node) -> list[str]:
        branch, fd, entry = self._tree.place(node)
        return branch.list_xattrs(fd, entry)

    def check_xattr(self, node: Node, name: str, flags: int) -> None:
        """Refuse what setxattr(2) with these flags does, before anything is copied up for it.

        Removing is refused as XATTR_REPLACE is. What the rw branch has is left to its filesystem.
        """
        if xattrs.is_hidden(name):
            raise error(errno.EPERM)
        if node.branch != UPPER and flags:
            there = name in self._list(node)
            if there and flags & os.XATTR_CREATE:
                raise error(errno.EEXIST)
            if not there and flags & os.XATTR_REPLACE:
                raise error(errno.ENODATA)

    def set_xattr(self, node: Node, name: str, value: bytes, flags: int) -> None:
        """Set an attribute (flags of setxattr(2)); an ACL sets the mode as well."""
        self.check_xattr(node, name, flags)
        self._copyup.bring_up(node)
        branch, fd, entry = self._tree.place(node)
        self._writer.set_xattr(fd, entry, name, value, flags)
        if isinstance(node, DirNode):
            node.inherit = None
        if name == acl.ACCESS and not self._writer.native:
            mode = branch.status(fd, entry).mode
            self._writer.set_mode(fd, entry, stat.S_IMODE(acl.mode_of(value, mode)))

    def remove_xattr(self, node: Node, name: str) -> None:
        """Remove an attribute; ENODATA without one, and then nothing is copied up."""
        self.check_xattr(node, name, os.XATTR_REPLACE)
        self._copyup.bring_up(node)
        _, fd, entry = self._tree.place(node)
        self._writer.remove_xattr(fd, entry, name)
        if isinstance(node, DirNode):
            node.inherit = None
