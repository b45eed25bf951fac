"""The union engine: one object with the operations of a filesystem, by inode number.

It knows nothing of FUSE. Every method raises OSError with the errno that the system call
should give; `Engine.start` raises the errors of `unionfs.errors` for people.

Invariant: layers are only ever read; the rw branch changes by atomic steps. All methods
belong to one thread (or one lock), except `CopyPlan.copy`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import attrs

from unionfs.branch import Status, whiteout
from unionfs.closing import Closing
from unionfs.union import introspect, listing, provenance
from unionfs.union.changes import Changes
from unionfs.union.copyup import CopyPlan
from unionfs.union.foreign import FollowingTree
from unionfs.union.handles import Handles
from unionfs.union.hardlinks import HardLinks
from unionfs.union.inodes import ROOT_INO
from unionfs.union.node import UPPER, DirNode, Node
from unionfs.union.opening import check_paths, lock, open_branch, open_layer, open_writer
from unionfs.union.options import Attr, Caller, Created, DirItem, EngineOptions, SetAttr, Stats
from unionfs.union.restore import Restored
from unionfs.union.tree import Tree, error
from unionfs.union.undo import Undo

__all__ = ["Engine"]

_NAME_FIELD = 9


class Engine(Closing):
    """A union of read-only layers under an optional rw branch; made by `start`."""

    root = ROOT_INO

    def __init__(self, tree: Tree, lock_fd: int) -> None:
        self._tree = tree
        self._lock = lock_fd
        links = HardLinks(tree)
        #: Grows with everything that may change what others have been told.
        self.changes = 0
        self._changes = Changes(tree, links) if tree.writer is not None else None
        self._handles = self._changes.handles if self._changes else Handles(tree, None)
        self._held: list[Node] = []
        self.closed = False

    @classmethod
    def start(
        cls,
        layers: Sequence[bytes],
        rw: bytes | None,
        *,
        options: EngineOptions | None = None,
    ) -> Self:
        """Open the union of `layers`, top first, under the directory `rw`.

        Raises UsageError, NotFoundError, UnsupportedError, BusyError (rw in use elsewhere),
        StoreError (unreadable journal) or OSError.
        """
        options = options or EngineOptions()
        with contextlib.ExitStack() as undo:
            lowers = [undo.enter_context(open_layer(path)) for path in layers]
            upper, writer, lock_fd = None, None, -1
            if rw is not None:
                upper = undo.enter_context(open_branch(rw))
            check_paths(layers, rw)
            if rw is not None and (options.follow or options.show_markers):
                options = attrs.evolve(options, read_only=True)
            for branch in (*lowers, *([upper] if upper is not None else ())):
                branch.show_markers = options.show_markers
            if upper is not None and not options.read_only:
                lock_fd = lock(upper)
                undo.callback(os.close, lock_fd)
                writer = open_writer(upper, options)
            kind = FollowingTree if options.follow and upper is not None else Tree
            tree = kind(lowers, upper, writer, options)
            undo.callback(tree.close)
            engine = cls(tree, lock_fd)
            undo.pop_all()
        return engine

    def close(self) -> None:
        """Release everything and remove the work area; open files are gone with it."""
        self.closed = True
        with contextlib.ExitStack() as rest:  # even if the rw branch's filesystem has failed
            if self._lock >= 0:
                rest.callback(os.close, self._lock)
            for branch in self._tree.branches[0 if self._tree.upper is not None else 1 :]:
                rest.callback(branch.close)
            if self._changes is not None:
                rest.callback(self._changes.work.close)
            rest.callback(self._tree.close)

    @property
    def stats(self) -> Stats:
        """Counters since `start`."""
        return self._tree.stats

    @property
    def native(self) -> bool:
        """Whether the rw branch keeps ownership, devices and privileged xattrs for real."""
        return self._tree.writer is not None and self._tree.writer.native

    @property
    def read_only(self) -> bool:
        """Whether every change is refused with EROFS."""
        return self._changes is None

    def _writable(self) -> Changes:
        if self._changes is None:
            raise error(errno.EROFS)
        self.changes += 1
        return self._changes

    # -- nodes and attributes ------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attr:
        """Find a name and count one reference on it; ENOENT without it."""
        tree = self._tree
        tree.stats.lookups += 1
        directory = tree.dir(parent)
        known = directory.children.get(name) if tree.trusts_children else None
        if known is None:
            tree.stats.fetched += 1
            known, attr = tree.need_attr(directory, name)
        else:
            attr = tree.attr(known)
        known.refs += 1
        return attr

    def lookup_all(self, parent: int, names: Sequence[bytes]) -> list[Attr | None]:
        """Do as `lookup` for names of one directory; None for one that is gone.

        What cannot be read ends the list; OSError when that is the first.
        """
        return listing.attributes(self._tree, self._tree.dir(parent), names)

    def remember(self, ino: int) -> None:
        """Count one reference on a node that `readdir` has just yielded."""
        self._tree.node(ino).refs += 1

    def forget(self, ino: int, count: int = 1) -> None:
        """Take references back; a node without any is dropped."""
        node = self._tree.inodes.by_ino.get(ino)
        if node is not None and ino != ROOT_INO:
            node.refs = max(0, node.refs - count)
            self._tree.release(node)

    def is_known(self, ino: int) -> bool:
        """Tell whether a number is that of a live file or directory."""
        return ino in self._tree.inodes.by_ino

    @property
    def live(self) -> int:
        """How many files and directories somebody refers to."""
        return len(self._tree.inodes.by_ino)

    def compact(self) -> None:
        """Keep no room for files that were forgotten."""
        self._tree.inodes.compact()

    def getattr(self, ino: int, fh: int | None = None) -> Attr:
        """Return attributes; handles follow their node, so `fh` needs no look."""
        del fh
        return self._tree.attr(self._tree.node(ino))

    def setattr(self, ino: int, changes: SetAttr, fh: int | None = None) -> Attr:
        """Change attributes; owner, mode, size, times in this order."""
        del fh
        node = self._tree.node(ino)
        self._writable().attributes.set(node, changes)
        return self._tree.attr(node)

    def readlink(self, ino: int) -> bytes:
        """Return a symbolic link's target."""
        branch, fd, name = self._tree.place(self._tree.node(ino))
        return branch.readlink(fd, name)

    def getxattr(self, ino: int, name: str) -> bytes:
        """Return an extended attribute's value; ENODATA without it."""
        node = self._tree.node(ino)
        if provenance.is_virtual(name):
            return provenance.value(self._tree, node, name)
        branch, fd, entry = self._tree.place(node)
        return branch.get_xattr(fd, entry, name)

    def listxattr(self, ino: int) -> list[str]:
        """Return the names of the visible extended attributes."""
        node = self._tree.node(ino)
        branch, fd, entry = self._tree.place(node)
        found = branch.list_xattrs(fd, entry)
        return found + provenance.names(node) if self._tree.options.show_xattrs else found

    def setxattr(self, ino: int, name: str, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute, with `flags` as the system call has them."""
        self._writable().attributes.set_xattr(self._tree.node(ino), name, value, flags)

    def check_xattr(self, ino: int, name: str, flags: int) -> None:
        """Refuse what `setxattr` would, or with XATTR_REPLACE `removexattr`; copies nothing up."""
        self._writable().attributes.check_xattr(self._tree.node(ino), name, flags)

    def removexattr(self, ino: int, name: str) -> None:
        """Remove an extended attribute; ENODATA without it."""
        self._writable().attributes.remove_xattr(self._tree.node(ino), name)

    def statfs(self) -> os.statvfs_result:
        """Return the rw branch's numbers (the top layer's without one); f_namemax is 251."""
        tree = self._tree
        position = UPPER if tree.upper is not None else UPPER + 1
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=tree.branches[position].fd)
        try:
            values = list(os.fstatvfs(fd))
        finally:
            os.close(fd)
        values[_NAME_FIELD] = min(values[_NAME_FIELD], whiteout.MAX_NAME)
        return os.statvfs_result(values)

    # -- names ---------------------------------------------------------------------

    def _counted(self, node: Node, status: Status | None = None) -> Attr:
        node.refs += 1
        return self._tree.attr(node, status)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attr:
        """Make a device, fifo, socket or empty file; counts one reference."""
        if stat.S_IFMT(mode) in (stat.S_IFDIR, stat.S_IFLNK):
            raise error(errno.EPERM, name)
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        changes = self._writable()
        made = changes.names.make(self._tree.dir(parent), name, mode, caller, rdev=rdev)
        return self._counted(*made)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        """Make a directory; counts one reference."""
        made = self._writable().names.mkdir(self._tree.dir(parent), name, mode, caller)
        return self._counted(*made)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attr:
        """Make a symbolic link; counts one reference."""
        mode = stat.S_IFLNK | 0o777
        changes = self._writable()
        made = changes.names.make(self._tree.dir(parent), name, mode, caller, target=target)
        return self._counted(*made)

    def link(self, ino: int, parent: int, name: bytes) -> Attr:
        """Give a file one more name; counts one reference."""
        node = self._tree.node(ino)
        self._writable().names.link(node, self._tree.dir(parent), name)
        return self._counted(node)

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> Created:
        """Create and open a file (an existing one is opened, without O_EXCL); one reference."""
        changes, directory = self._writable(), self._tree.dir(parent)
        if not flags & os.O_EXCL and not whiteout.is_reserved(name):
            existing = self._tree.find(directory, name)
            if existing is not None:
                fh = self._handles.open(existing, flags)
                return Created(fh, self._counted(existing), new=False)
        made, fd = changes.names.create(directory, name, mode, caller)
        fh = self._handles.adopt(made[0], fd)
        return Created(fh, self._counted(*made), new=True)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a file's name."""
        self._writable().names.unlink(self._tree.dir(parent), name)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._writable().names.rmdir(self._tree.dir(parent), name)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """Rename with the flags of renameat2(2): 0, RENAME_NOREPLACE or RENAME_EXCHANGE."""
        tree = self._tree
        changes = self._writable()
        try:
            changes.rename.rename(tree.dir(parent), name, tree.dir(new_parent), new_name, flags)
        finally:
            self._let_go()

    # -- files and directories -----------------------------------------------------

    def open(self, ino: int, flags: int) -> int:
        """Open a regular file; a lower one opened for writing is not copied up by that."""
        self.changes += bool(flags & os.O_TRUNC)
        return self._handles.open(self._tree.node(ino), flags)

    def by_name(self, inos: Iterable[int]) -> list[int]:
        """Return files and directories in the order of their names, any one of those with several.

        Left out is what nobody refers to.
        """
        return listing.by_name(self._tree, inos)

    def open_once(self, ino: int) -> int:
        """Open a regular file of a layer, the descriptor the caller's to close; -1 if it cannot."""
        opened = listing.open_files(self._tree, (ino,))
        return opened[0][1] if opened else -1

    def open_layer_files(self, inos: Iterable[int]) -> list[tuple[int, int]]:
        """Open those that are regular files of layers; return (inode, fd), the caller's to close.

        Left out is what cannot be opened.
        """
        return listing.open_files(self._tree, inos)

    def read(self, fh: int, offset: int, size: int) -> bytes:
        """Read up to `size` bytes."""
        return self._handles.read(fh, offset, size)

    def write(self, fh: int, offset: int, data: bytes | memoryview) -> int:
        """Write, after copying a lower file up; return the number of bytes written."""
        self.changes += 1
        return self._handles.write(fh, offset, data)

    def flush(self, fh: int) -> None:
        """Do what close(2) of one descriptor asks for: nothing is buffered here."""
        self._handles.file(fh)

    def fsync(self, fh: int, datasync: bool = False) -> None:  # noqa: FBT001, FBT002  # shaped as the FUSE request
        """Write a file to disk unless the engine is volatile."""
        self._handles.fsync(fh, datasync=datasync)

    def fileno(self, fh: int) -> int:
        """Return the backing fd of an open file: duplicate it to keep it beyond the next call."""
        return self._handles.file(fh).fd

    def writable_fileno(self, fh: int) -> int:
        """Do as `fileno` for a file that is going to be changed, after copying a lower one up.

        `changed` is to be called when it has been.
        """
        self.changes += 1
        return self._handles.writable_fd(fh)

    def changed(self) -> None:
        """Note that a file was changed through `writable_fileno`."""
        self.changes += 1

    def check_allocation(self, mode: int, length: int) -> None:
        """Refuse what fallocate(2) would for any file of the rw branch; copies nothing up."""
        self._writable().work.check_allocation(mode, length)

    def release(self, fh: int) -> None:
        """Close a file handle."""
        self._handles.release(fh)

    def opendir(self, ino: int) -> int:
        """Open a directory and take the snapshot of its names."""
        return self._handles.opendir(self._tree.dir(ino))

    def readdir(self, fh: int, start: int) -> Iterator[DirItem]:
        """Yield entries from offset `start` on, without `.` and `..`; counts no reference.

        A yielded entry's node lives until the next step unless `remember` is called.
        Starting at 0 again takes a new snapshot of the names.
        """
        return self._handles.readdir(fh, start)

    def names(self, ino: int) -> list[bytes]:
        """Return the visible names of a directory, without `.` and `..`."""
        return self._tree.names(self._tree.dir(ino))

    def fsyncdir(self, fh: int) -> None:
        """Write a directory to disk unless the engine is volatile."""
        self._handles.fsyncdir(fh)

    def fsync_fd(self, ino: int) -> int:
        """Return an fd, the caller's to close, whose fsync(2) writes a directory; -1 for none."""
        return self._handles.fsync_fd(self._tree.dir(ino))

    def releasedir(self, fh: int) -> None:
        """Close a directory handle."""
        self._handles.releasedir(fh)

    def parent_of_file(self, ino: int) -> int:
        """Return the number of a directory that a file is in; 0 when it is in none."""
        node = self._tree.node(ino)
        return 0 if node.gone or node.parent is None else node.parent.ino

    def path(self, ino: int) -> bytes:
        """Return a directory's path relative to the root, which is empty itself."""
        return self._tree.path(self._tree.dir(ino))

    def count_names(self, ino: int) -> int:
        """Return how many names a directory has, hidden ones among them."""
        return listing.count(self._tree, self._tree.dir(ino))

    def directories(self, ino: int) -> list[bytes]:
        """Return the names of a directory's subdirectories, sorted."""
        return listing.directories(self._tree, self._tree.dir(ino))

    def parent(self, ino: int) -> int:
        """Return the number of a directory's parent; the root is its own."""
        parent = self._tree.dir(ino).parent
        return ROOT_INO if parent is None else parent.ino

    # -- undoing -------------------------------------------------------------------

    def restore(
        self,
        undo: Undo,
        path: bytes,
        *,
        blind: bool = False,
        only_plan: bool = False,
        stake: str | None = None,
    ) -> Restored:
        """Take back what the rw branch did at a path of the image (see `unionfs.union.restore`).

        `blind`: the layers are not those of the branch; `stake`: of the plan that somebody agreed
        to. Raises `UnionfsError` and OSError.
        """
        return self._writable().restore.run(
            undo, path, blind=blind, only_plan=only_plan, stake=stake
        )

    # -- for those who watch ---------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """Return counts since the start, and of what is live now."""
        return introspect.counters(self._tree)

    def facts(self, ino: int, name: bytes | None = None) -> introspect.Facts:
        """Return the path of an inode, or of a name in it, and which branch gives it."""
        return introspect.facts(self._tree, ino, name)

    def inode_of(self, fh: int) -> int:
        """Return the inode of an open file or directory."""
        return self._handles.inode(fh)

    def known(self, path: bytes = b"") -> tuple[list[tuple[int, bytes]], list[int]]:
        """Return the (directory, name) pairs and inodes that others may know from a path on.

        Who asks for them is about to have them asked for anew, so it counts as a change.
        """
        self.changes += 1
        return introspect.known(self._tree, path)

    # -- copy-up in steps ------------------------------------------------------------

    def open_paths(self) -> list[bytes]:
        """Return the path of every file somebody has open, one name each."""
        return [
            b"/".join(filter(None, (self._tree.path(node.parent), node.name)))
            for node in self._tree.inodes.by_ino.values()
            if node.fd >= 0 and not node.gone and node.parent is not None
        ]

    def copy_up_size(self, ino: int) -> int:
        """Return how many bytes a copy-up of this node would copy; 0 when none is due."""
        node = self._tree.inodes.by_ino.get(ino)
        if node is None or node.fmt != stat.S_IFREG or node.branch == UPPER:
            return 0
        return self._tree.status(node).size

    def is_heavy(self, parent: int, name: bytes, limit: int) -> bool:
        """Tell whether renaming `name` copies the content of a directory or of a file > `limit`."""
        tree = self._tree
        node = tree.find(tree.dir(parent), name)
        if isinstance(node, DirNode):
            tree.scan(node)
            return not node.upper or bool(node.lower)
        return node is not None and node.branch != UPPER and tree.status(node).size > limit

    def needs_copy_up(self, ino: int) -> bool:
        """Tell whether a change of this node would copy it up first."""
        return self._tree.node(ino).branch != UPPER

    def plan_copy_up(self, ino: int) -> CopyPlan | None:
        """Prepare a copy-up; None when there is nothing left to copy.

        Then call `CopyPlan.copy` (in any thread) and `finish_copy_up`, or `abandon`.
        """
        return self._writable().copyup.plan(self._tree.node(ino))

    def finish_copy_up(self, plan: CopyPlan) -> None:
        """Make a copied file count; of several copies of one file the first one does."""
        self._writable().copyup.finish(plan)

    def plan_rename_copies(self, parent: int, name: bytes) -> list[int]:
        """Return the files that renaming `name` will copy up; EXDEV when they are too many.

        Their numbers stay valid until the next call of this method or of `rename`.
        """
        changes, tree = self._writable(), self._tree
        self._let_go()
        for ino in changes.rename.plan_copies(tree.dir(parent), name):
            node = tree.node(ino)
            node.refs += 1
            self._held.append(node)
        return [node.ino for node in self._held]

    def _let_go(self) -> None:
        for node in self._held:
            node.refs -= 1
            self._tree.release(node)
        self._held.clear()
