"""Open files and directories.

All handles of a file share one backing fd on its node. Handles therefore follow a
copy-up without anything to do: the fd is replaced, and reading, writing and fstat go on
with the new file. It is opened for writing only when somebody writes.

Invariant: a node's `opens` is the number of its handles, and its `fd` is closed with the
last of them.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator

from unionfs.union.copyup import CopyUp, open_lower
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.options import DirItem
from unionfs.union.tree import Tree, error

__all__ = ["Handles"]


class _DirHandle:
    """An open directory: the names it had when it was opened or rewound."""

    __slots__ = ("names", "node", "used")

    def __init__(self, node: DirNode, names: list[bytes]) -> None:
        self.node = node
        self.names = names
        self.used = False


class Handles:
    """Handles by number, files and directories apart."""

    def __init__(self, tree: Tree, copyup: CopyUp | None) -> None:
        self._tree = tree
        self._copyup = copyup
        self._numbers = itertools.count(1)
        self._files: dict[int, Node] = {}
        self._dirs: dict[int, _DirHandle] = {}

    # -- files -------------------------------------------------------------------

    def open(self, node: Node, flags: int) -> int:
        """Open a regular file; with O_TRUNC no data is copied up.

        As in Linux O_TRUNC also empties what is opened for reading alone (open(2)).
        """
        if node.is_dir:
            raise error(errno.EISDIR)
        if node.fmt != stat.S_IFREG:
            raise error(errno.ENXIO)
        truncating = bool(flags & os.O_TRUNC)
        writing = truncating or flags & os.O_ACCMODE != os.O_RDONLY
        if writing:
            copyup = self.writable()
            if truncating:
                copyup.bring_up(node, 0)
        fd = self.backing(node, writing=writing and node.branch == UPPER)
        if truncating:
            os.ftruncate(fd, 0)
        return self._add(node)

    def adopt(self, node: Node, fd: int) -> int:
        """Make the handle of a file that has just been created and is open as `fd`."""
        node.fd, node.fd_writable = fd, True
        return self._add(node)

    def _add(self, node: Node) -> int:
        number = next(self._numbers)
        node.opens += 1
        self._files[number] = node
        return number

    def file(self, number: int) -> Node:
        """Return the node of an open file; EBADF without one."""
        node = self._files.get(number)
        if node is None:
            raise error(errno.EBADF)
        return node

    def inode(self, number: int) -> int:
        """Return the inode of an open file or directory; EBADF without one."""
        node = self._files.get(number)
        return node.ino if node is not None else self._dir(number).node.ino

    def writable(self) -> CopyUp:
        """Return the copy-up of a rw engine; EROFS in a read-only one."""
        if self._copyup is None:
            raise error(errno.EROFS)
        return self._copyup

    def backing(self, node: Node, *, writing: bool) -> int:
        """Return the node's backing fd, opened or reopened as needed."""
        if node.fd >= 0 and (node.fd_writable or not writing):
            return node.fd
        branch, dirfd, name = self._tree.place(node)
        if node.branch != UPPER:
            fd = open_lower(branch, dirfd, name)
        else:
            fd = branch.open_file(dirfd, name, os.O_RDWR if writing else os.O_RDONLY)
        if node.fd >= 0:
            os.close(node.fd)
        node.fd, node.fd_writable = fd, writing
        return fd

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Read from a file."""
        return os.pread(self.file(number).fd, size, offset)

    def write(self, number: int, offset: int, data: bytes | memoryview) -> int:
        """Write to a file, which is copied up at the first time."""
        return os.pwrite(self.writable_fd(number), data, offset)

    def writable_fd(self, number: int) -> int:
        """Return the backing fd of a file, in the rw branch and open for writing."""
        node = self.file(number)
        if node.branch != UPPER:
            self.writable().bring_up(node)
        return node.fd if node.fd_writable else self.backing(node, writing=True)

    def truncate(self, node: Node, size: int) -> None:
        """Set a file's size; a lower one is copied up only so far."""
        self.writable().bring_up(node, size)
        if node.fd >= 0:
            os.ftruncate(self.backing(node, writing=True), size)
            return
        branch, dirfd, name = self._tree.place(node)
        fd = branch.open_file(dirfd, name, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def fsync(self, number: int, *, datasync: bool) -> None:
        """Write a file to disk; a lower one is there already."""
        node = self.file(number)
        if node.branch == UPPER and not self._tree.options.volatile:
            (os.fdatasync if datasync else os.fsync)(node.fd)

    def release(self, number: int) -> None:
        """Close a handle."""
        node = self.file(number)
        del self._files[number]
        node.opens -= 1
        # A deleted file without an anchor could not be opened again.
        if not node.opens and node.fd >= 0 and (not node.gone or node.anchor >= 0):
            os.close(node.fd)
            node.fd, node.fd_writable = -1, False
        self._tree.release(node)

    # -- directories -------------------------------------------------------------

    def opendir(self, node: DirNode) -> int:
        """Open a directory."""
        number = next(self._numbers)
        self._dirs[number] = _DirHandle(node, self._tree.names(node))
        node.opens += 1
        return number

    def _dir(self, number: int) -> _DirHandle:
        handle = self._dirs.get(number)
        if handle is None:
            raise error(errno.EBADF)
        return handle

    def readdir(self, number: int, start: int) -> Iterator[DirItem]:
        """Yield entries from offset `start` on; names that are gone by now are skipped.

        A yielded entry's node lives until the next step unless somebody refers to it.
        """
        tree, handle = self._tree, self._dir(number)
        node = handle.node
        if start == 0 and handle.used:
            handle.names = tree.names(node)
        handle.used = True
        names = handle.names
        children = node.children if tree.trusts_children else {}
        for index in range(start, len(names)):
            name = names[index]
            found = children.get(name) or tree.find(node, name)
            if found is None:
                continue
            try:
                yield DirItem(name, tree.attr(found), index + 1)
            finally:
                if found.idle:
                    tree.release(found)

    def fsyncdir(self, number: int) -> None:
        """Write a directory's entries to disk."""
        fd = self.fsync_fd(self._dir(number).node)
        if fd >= 0:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def fsync_fd(self, node: DirNode) -> int:
        """Return an fd, the caller's to close, whose fsync(2) writes a directory; -1 for none."""
        if not node.upper or node.gone or self._tree.options.volatile:
            return -1
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(b".", flags, dir_fd=self._tree.fd(node, UPPER))

    def releasedir(self, number: int) -> None:
        """Close a directory handle."""
        node = self._dir(number).node
        del self._dirs[number]
        node.opens -= 1
        self._tree.release(node)
