"""Requests of the direct lane that change something.

Invariant: a copy-up that takes long is left to a worker, and what changes a file that is
being copied up there queues behind it; everything else is done at once, in the order the
kernel asks for it. Long is a copy of more than `INLINE_LIMIT` bytes, and of any if it must
reach the disk before it counts; only cutting a file keeps the lane while it copies the rest.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Final

from unionfs import _sys
from unionfs.fuse import protocol
from unionfs.fuse.lane_request import FOUR, LATER, PAIR, Context, Outcome, Request
from unionfs.fuse.lift import INLINE_LIMIT
from unionfs.fuse.policy import setuid_dropped
from unionfs.fuse.protocol import Op
from unionfs.union import SetAttr
from unionfs.union.names import check_new

__all__ = ["Changes"]

_DATASYNC: Final = 1
_BILLION: Final = 1_000_000_000
_RENAME: Final = struct.Struct("=Q")
_RENAME2: Final = struct.Struct("=QII")
_LINK: Final = struct.Struct("=Q")


class Changes:
    """Handlers by opcode in `table`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._engine, self._lock = context.engine, context.lock
        self._files, self._work = context.files, context.work
        self._ahead = context.ahead
        self._at_once = INLINE_LIMIT if context.options.volatile else 0
        self.table: dict[int, Callable[[Request], Outcome]] = {
            Op.SETATTR: self.setattr,
            Op.SETXATTR: self.setxattr,
            Op.REMOVEXATTR: self.removexattr,
            Op.WRITE: self.write,
            Op.FSYNC: self.fsync,
            Op.FSYNCDIR: self.fsyncdir,
            Op.CREATE: self.create,
            Op.MKDIR: self.mkdir,
            Op.MKNOD: self.mknod,
            Op.SYMLINK: self.symlink,
            Op.LINK: self.link,
            Op.UNLINK: self.unlink,
            Op.RMDIR: self.rmdir,
            Op.RENAME: self.rename,
            Op.RENAME2: self.rename2,
        }

    def _change(self, request: Request, inode: int, change: Callable[[], bytes]) -> Outcome:
        """Do a change under the lock, behind a copy-up in a worker if that is long.

        `change` must not refer to the request's body.
        """
        with self._lock:
            if not self._is_long(inode):
                return change()
        self._lift(request, inode, change)
        return LATER

    def _is_long(self, inode: int) -> bool:
        size = self._engine.copy_up_size(inode)
        return size > self._at_once or self._work.is_lifting(inode)

    def _lift(self, request: Request, inode: int, change: Callable[[], bytes]) -> None:
        def then() -> bytes:
            with self._lock:
                return change()

        self._work.lift(request.unique, inode, then)

    # -- attributes ----------------------------------------------------------------

    def setattr(self, request: Request) -> Outcome:
        """Change mode, owner, size and times; cutting copies only what remains."""
        fields = protocol.SETATTR_IN.unpack_from(request.body)
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
        users, groups = self._context.policy.users, self._context.policy.groups
        changes = SetAttr(
            mode=mode & 0o7777 if valid & protocol.FATTR_MODE else None,
            uid=users.chown(uid) if valid & protocol.FATTR_UID else None,
            gid=groups.chown(gid) if valid & protocol.FATTR_GID else None,
            size=size if valid & protocol.FATTR_SIZE else None,
            atime_ns=_time(valid, protocol.FATTR_ATIME, protocol.FATTR_ATIME_NOW, atime, atime_ns),
            mtime_ns=_time(valid, protocol.FATTR_MTIME, protocol.FATTR_MTIME_NOW, mtime, mtime_ns),
        )
        inode = request.nodeid
        # Asked for nothing: what is left of taking setuid away, which the kernel leaves to us. It
        # also asks so when root, who may keep setuid, writes to a file with a capability.
        empty = not valid & ~protocol.FATTR_ABOUT and request.uid != 0
        kills = changes.mode is None and (empty or bool(valid & protocol.FATTR_KILL_SUIDGID))

        def change() -> bytes:
            wanted = changes
            if wanted.mode is not None:
                self._context.policy.forget(inode)
            if kills:
                mode = self._engine.getattr(inode).mode
                wanted = changes._replace(mode=setuid_dropped(mode))
            return self._context.attr(self._engine.setattr(inode, wanted))

        def change_alone() -> bytes:
            self._ahead.wait(inode)
            with self._lock:
                return change()

        if changes.size is not None and self._ahead.hold(inode):
            self._work.lift(request.unique, inode, change_alone)
            return LATER
        if changes.size is not None and changes.size <= INLINE_LIMIT:
            with self._lock:
                return change()
        return self._change(request, inode, change)

    def setxattr(self, request: Request) -> Outcome:
        """Set an extended attribute."""
        size, flags = PAIR.unpack_from(request.body)
        rest = bytes(request.body[PAIR.size :])
        name, _, value = rest.partition(b"\0")
        inode, policy = request.nodeid, self._context.policy
        with self._lock:
            self._engine.check_xattr(inode, os.fsdecode(name), flags)

        def change() -> bytes:
            policy.set_xattr(self._engine, inode, name, value[:size], flags)
            self._acl_changed(inode, name)
            return b""

        return self._change(request, inode, change)

    def removexattr(self, request: Request) -> Outcome:
        """Remove an extended attribute."""
        inode, name, policy = request.nodeid, request.name(), self._context.policy
        with self._lock:
            self._engine.check_xattr(inode, os.fsdecode(name), os.XATTR_REPLACE)

        def change() -> bytes:
            policy.remove_xattr(self._engine, inode, name)
            self._acl_changed(inode, name)
            return b""

        return self._change(request, inode, change)

    def _acl_changed(self, inode: int, name: bytes) -> None:
        """Have the kernel ask for the mode again; where it enforces ACLs it knows."""
        if self._context.policy.is_foreign_acl(name):
            self._context.attributes_changed(inode)

    # -- contents ------------------------------------------------------------------

    def write(self, request: Request) -> Outcome:
        """Write; the first write to a file may copy it up, a big one in a worker."""
        _, offset, size, flags, *_ = protocol.WRITE_IN.unpack_from(request.body)
        kills = bool(flags & protocol.WRITE_KILL_SUIDGID)
        data = request.body[protocol.WRITE_IN.size :][:size]
        inode = request.nodeid
        self._ahead.hold(inode)
        with self._lock:
            if not self._is_long(inode):
                return self._write(inode, offset, data, kills=kills)
        kept = bytes(data)
        self._lift(request, inode, lambda: self._write(inode, offset, kept, kills=kills))
        return LATER

    def _write(self, inode: int, offset: int, data: bytes | memoryview, *, kills: bool) -> bytes:
        if kills:
            self._context.drop_setuid(inode)
        return PAIR.pack(self._engine.write(self._files.handle(inode), offset, data), 0)

    def fsync(self, request: Request) -> Outcome:
        """Bring a file's content to disk."""
        if self._context.options.volatile:
            return b""
        _, flags = struct.unpack_from("=QI", request.body)
        with self._lock:
            own = os.dup(self._engine.fileno(self._files.handle(request.nodeid)))
        self._work.fsync(request.unique, own, datasync=bool(flags & _DATASYNC))
        return LATER

    def fsyncdir(self, request: Request) -> Outcome:
        """Bring a directory's names to disk."""
        with self._lock:
            own = self._engine.fsync_fd(request.nodeid)
        if own < 0:
            return b""
        self._work.fsync(request.unique, own, datasync=False)
        return LATER

    # -- names -----------------------------------------------------------------------

    def create(self, request: Request) -> Outcome:
        """Create a file; the kernel has applied the umask.

        It may be there by now, though the kernel has just been told that it is not.
        """
        flags, mode, _, opening = FOUR.unpack_from(request.body)
        name, caller = request.name(FOUR.size), self._context.caller(request)
        with self._lock:
            handle, attr, new = self._engine.create(request.nodeid, name, mode, flags, caller)
            self._files.adopt(attr.ino, handle)
            policy, kills = self._context.policy, opening & protocol.OPEN_KILL_SUIDGID
            if new:
                policy.made(attr)
            elif kills and policy.drop_setuid(self._engine, attr.ino):
                attr = self._engine.getattr(attr.ino)
        opened = protocol.OPEN_OUT.pack(0, protocol.FOPEN_KEEP_CACHE, 0)
        return self._context.entry(attr) + opened

    def mkdir(self, request: Request) -> Outcome:
        """Make a directory."""
        mode, _ = PAIR.unpack_from(request.body)
        name, caller = request.name(PAIR.size), self._context.caller(request)
        with self._lock:
            attr = self._engine.mkdir(request.nodeid, name, mode, caller)
        return self._context.entry(attr)

    def mknod(self, request: Request) -> Outcome:
        """Make a device, fifo, socket or regular file."""
        mode, rdev, _, _ = FOUR.unpack_from(request.body)
        name, caller = request.name(FOUR.size), self._context.caller(request)
        with self._lock:
            attr = self._engine.mknod(request.nodeid, name, mode, rdev, caller)
        return self._context.entry(attr)

    def symlink(self, request: Request) -> Outcome:
        """Make a symbolic link."""
        name, target = request.names()
        caller = self._context.caller(request)
        with self._lock:
            attr = self._engine.symlink(request.nodeid, name, target, caller)
        return self._context.entry(attr)

    def link(self, request: Request) -> Outcome:
        """Give a file another name."""
        (inode,) = _LINK.unpack_from(request.body)
        parent, name = request.nodeid, request.name(_LINK.size)
        check_new(name)  # before anything is copied for it
        return self._change(
            request, inode, lambda: self._context.entry(self._engine.link(inode, parent, name))
        )

    def unlink(self, request: Request) -> Outcome:
        """Remove a name that is not a directory's."""
        with self._lock:
            self._engine.unlink(request.nodeid, request.name())
        return b""

    def rmdir(self, request: Request) -> Outcome:
        """Remove an empty directory."""
        with self._lock:
            self._engine.rmdir(request.nodeid, request.name())
        return b""

    def rename(self, request: Request) -> Outcome:
        """Rename, replacing what has the new name."""
        (new_parent,) = _RENAME.unpack_from(request.body)
        return self._rename(request, new_parent, request.names(_RENAME.size), 0)

    def rename2(self, request: Request) -> Outcome:
        """Rename with flags."""
        new_parent, flags, _ = _RENAME2.unpack_from(request.body)
        return self._rename(request, new_parent, request.names(_RENAME2.size), flags)

    def _rename(
        self, request: Request, new_parent: int, names: tuple[bytes, bytes], flags: int
    ) -> Outcome:
        parent, (name, new_name), engine = request.nodeid, names, self._engine
        places = [(parent, name)]
        if flags & _sys.RENAME_EXCHANGE:
            places.append((new_parent, new_name))
        else:
            check_new(new_name)  # before anything is copied for it

        def rename() -> bytes:
            engine.rename(parent, name, new_parent, new_name, flags)
            return b""

        with self._lock:
            heavy = any(engine.is_heavy(*place, self._at_once) for place in places)
            if not heavy and not self._work.is_renaming:
                return rename()
        self._work.rename(request.unique, places, rename)
        return LATER


def _time(valid: int, given: int, now: int, seconds: int, ns: int) -> int | None:
    if valid & now:
        return time.time_ns()
    return seconds * _BILLION + ns if valid & given else None
