"""Request handlers: a thin adapter between pyfuse3 and the union engine.

Invariant: a handler without `await` is atomic (all run on one trio thread), so metadata
is answered inline and needs no locks; what takes long is awaited in `Lift`. Every
handler is wrapped by `boundary.handler`. Ids are translated in `unionfs.fuse.policy`.

The kernel may keep what it learns, absent names included, for as long as it likes:
nobody but this mount changes the branches (`coherent` sets all timeouts to 0).

The kernel applies the umask before we are asked, also under a directory with a default
ACL, where POSIX would not: pyfuse3 cannot turn that off.
"""

# ruff: noqa: ARG002, FBT001  # the signatures are those of pyfuse3.Operations
from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from unionfs.fuse.boundary import handler
from unionfs.fuse.idmap import IdMap
from unionfs.fuse.lift import Lift
from unionfs.fuse.meter import Recorder
from unionfs.fuse.options import MountOptions
from unionfs.fuse.policy import Policy
from unionfs.union import Attr, Caller, Engine, SetAttr
from unionfs.union.names import check_new

if TYPE_CHECKING:
    from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ModeT, XAttrNameT

__all__ = ["Operations"]

_log = logging.getLogger(__name__)
#: Bytes from which a read that misses the page cache is worth a thread.
_BIG_READ: Final = 1 << 16
_DOTS: Final = 2  # offsets taken by "." and ".."


class Operations(pyfuse3.Operations):
    """Serves one engine. `on_ready` is called once, when the kernel has greeted the session."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    #: Who counts the requests (`unionfs.fuse.boundary`).
    recorder: Recorder | None = None

    def __init__(
        self,
        engine: Engine,
        options: MountOptions,
        ids: tuple[IdMap, IdMap],
        on_ready: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.options = options
        self.users, self.groups = ids
        self.lift = Lift(engine)
        # The kernel enforces ACLs only together with default_permissions.
        self.enable_acl = bool(options.default_permissions) and options.acl
        self.policy = Policy(ids, kernel_acls=self.enable_acl)
        self._on_ready = on_ready
        self._pending: dict[int, int] = {}
        self._directories: dict[int, int] = {}
        self._renaming = trio.Lock()

    def init(self) -> None:
        """Report that the mount works; pyfuse3 demands that nothing is raised."""
        try:
            self._on_ready()
        except Exception:  # noqa: BLE001  # logged; raising would end the session
            _log.exception("reporting readiness failed")

    # -- attributes --------------------------------------------------------------

    def _entry(self, attr: Attr) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = attr.ino
        entry.st_mode = attr.mode
        entry.st_nlink = attr.nlink
        entry.st_uid = self.users.shown(attr.uid)
        entry.st_gid = self.groups.shown(attr.gid)
        entry.st_rdev = attr.rdev
        entry.st_size = attr.size
        entry.st_blocks = attr.blocks
        entry.st_atime_ns = attr.atime_ns
        entry.st_mtime_ns = attr.mtime_ns
        entry.st_ctime_ns = attr.ctime_ns
        entry.entry_timeout = self.options.entry_timeout
        entry.attr_timeout = self.options.attr_timeout
        return entry

    def _absent(self) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self.options.negative_timeout
        return entry

    def _caller(self, ctx: RequestContext) -> Caller:
        return self.policy.caller(ctx.uid, ctx.gid)

    @handler
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Find a name; an absent one is an answer that the kernel may keep."""
        try:
            return self._entry(self.engine.lookup(parent_inode, name))
        except FileNotFoundError:
            return self._absent()

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Release references of the kernel; there is nobody to tell about an error."""
        for inode, count in inode_list:
            self.policy.forget(inode)
            try:
                self.engine.forget(inode, count)
            except Exception:  # noqa: BLE001  # logged; nobody waits for an answer
                _log.exception("forget of inode %d failed", inode)

    @handler
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Return the attributes."""
        return self._entry(self.engine.getattr(inode))

    @handler
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change mode, owner, size and times; truncation to nothing copies no data."""
        changes = SetAttr(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=self.users.chown(attr.st_uid) if fields.update_uid else None,
            gid=self.groups.chown(attr.st_gid) if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        # Cutting a file copies only what remains of it.
        if changes.size is None or changes.size > self.lift.inline_limit:
            await self.lift.up(inode)
        if changes.mode is not None:
            self.policy.forget(inode)
        return self._entry(self.engine.setattr(inode, changes, fh))

    @handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Return the numbers of the file system that writes go to."""
        numbers = self.engine.statfs()
        data = StatvfsData()
        data.f_bsize = numbers.f_bsize  # glibc's posix_fallocate writes in steps of it
        data.f_frsize = numbers.f_frsize
        data.f_blocks = numbers.f_blocks
        data.f_bfree = numbers.f_bfree
        data.f_bavail = numbers.f_bavail
        data.f_files = numbers.f_files
        data.f_ffree = numbers.f_ffree
        data.f_favail = numbers.f_favail
        data.f_namemax = numbers.f_namemax
        return data

    # -- names -------------------------------------------------------------------

    @handler
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Return the target of a symbolic link."""
        return self.engine.readlink(inode)

    @handler
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a device, fifo, socket or regular file."""
        return self._entry(self.engine.mknod(parent_inode, name, mode, rdev, self._caller(ctx)))

    @handler
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        return self._entry(self.engine.mkdir(parent_inode, name, mode, self._caller(ctx)))

    @handler
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        return self._entry(self.engine.symlink(parent_inode, name, target, self._caller(ctx)))

    @handler
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Give a file another name."""
        check_new(new_name)  # before anything is copied for it
        await self.lift.up(inode)
        return self._entry(self.engine.link(inode, new_parent_inode, new_name))

    @handler
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a name that is not a directory's."""
        self.engine.unlink(parent_inode, name)

    @handler
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        self.engine.rmdir(parent_inode, name)

    @handler
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Rename; large files below are copied up first, without holding up others."""
        if not flags & pyfuse3.RENAME_EXCHANGE:
            check_new(name_new)  # before anything is copied for it
        # One at a time: a plan holds its inodes only until the next one is made.
        async with self._renaming:
            plan = self.engine.plan_rename_copies
            await self.lift.up_all(plan(parent_inode_old, name_old))
            if flags & pyfuse3.RENAME_EXCHANGE:
                await self.lift.up_all(plan(parent_inode_new, name_new))
            self.engine.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # -- files -------------------------------------------------------------------

    def _info(self, handle: int, inode: int, flags: int) -> FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._pending[handle] = inode
        return FileInfo(fh=handle, keep_cache=not self.options.coherent)

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file; nothing is copied before the first write."""
        handle = self.engine.open(inode, flags)
        if flags & os.O_TRUNC and ctx.uid:
            # The kernel does it at every other change of content, but not here.
            self.policy.drop_setuid(self.engine, inode)
        return self._info(handle, inode, flags)

    @handler
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Create and open a file; the kernel has applied the umask."""
        caller = self._caller(ctx)
        handle, attr, _ = self.engine.create(parent_inode, name, mode, flags, caller)
        return self._info(handle, attr.ino, flags), self._entry(attr)

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read; only at the end of the file less than `size` bytes."""
        if size < _BIG_READ:
            return self.engine.read(fh, off, size)
        # pyfuse3 sends any contiguous buffer; its annotation says bytes.
        return cast("bytes", await self.lift.read(fh, off, size))

    @handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write all of `buf`; the first write of a handle may copy the file up."""
        inode = self._pending.get(fh)
        if inode is not None:
            await self.lift.up(inode)
            self._pending.pop(fh, None)
        return self.engine.write(fh, off, buf)

    @handler
    async def flush(self, fh: FileHandleT) -> None:
        """Have the kernel never ask again: nothing is buffered here."""
        raise FUSEError(errno.ENOSYS)

    @handler
    async def release(self, fh: FileHandleT) -> None:
        """Close a file handle."""
        self._pending.pop(fh, None)
        self.engine.release(fh)

    @handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Bring a file's content to disk."""
        if not self.options.volatile:
            await self.lift.fsync(fh, datasync=datasync)

    @handler
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """Have the kernel never ask: without default_permissions its user may do everything."""
        raise FUSEError(errno.ENOSYS)

    # -- directories -------------------------------------------------------------

    @handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        handle = self.engine.opendir(inode)
        self._directories[handle] = inode
        return handle

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List from `start_id`; the kernel takes a reference on each entry it accepts."""
        if start_id < _DOTS and not self._reply_dots(fh, start_id, token):
            return
        reply = pyfuse3.readdir_reply
        for item in self.engine.readdir(fh, max(start_id - _DOTS, 0)):
            if not reply(token, item.name, self._entry(item.attr), item.next_offset + _DOTS):
                return
            self.engine.remember(item.attr.ino)

    def _reply_dots(self, fh: int, start_id: int, token: ReaddirToken) -> bool:
        """Report the directory and its parent, on which no references are taken."""
        inode = self._directories[fh]
        for offset, name in ((1, b"."), (2, b"..")):
            if offset <= start_id:
                continue
            number = inode if offset == 1 else self.engine.parent(inode)
            if not pyfuse3.readdir_reply(
                token, name, self._entry(self.engine.getattr(number)), offset
            ):
                return False
        return True

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory handle."""
        self._directories.pop(fh, None)
        self.engine.releasedir(fh)

    @handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Bring a directory's names to disk."""
        self.engine.fsyncdir(fh)

    # -- extended attributes -----------------------------------------------------

    @handler
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Return an attribute; the kernel asks for the capability before every write."""
        return self.policy.get_xattr(self.engine, inode, name)

    @handler
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        """Set an attribute."""
        self.engine.check_xattr(inode, os.fsdecode(name), 0)
        await self.lift.up(inode)
        self.policy.set_xattr(self.engine, inode, name, value, 0)
        self._acl_changed(inode, name)

    @handler
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an attribute."""
        self.engine.check_xattr(inode, os.fsdecode(name), os.XATTR_REPLACE)
        await self.lift.up(inode)
        self.policy.remove_xattr(self.engine, inode, name)
        self._acl_changed(inode, name)

    def _acl_changed(self, inode: int, name: bytes) -> None:
        """Have the kernel ask for the mode again: an ACL may have changed it."""
        if self.policy.is_foreign_acl(name):
            with contextlib.suppress(OSError):
                pyfuse3.invalidate_inode(inode, attr_only=True)

    @handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Return the names of the attributes."""
        return [os.fsencode(name) for name in self.engine.listxattr(inode)]
