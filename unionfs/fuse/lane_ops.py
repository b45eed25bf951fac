"""Answers of the direct lane: request bytes in, reply bytes out.

Each handler gets a `Request` and returns the reply's payload, `PASS` (pyfuse3 answers),
`LATER` (a worker answers) or `SILENT` (no answer is due); OSError becomes the errno.
What is not listed in `table` is pyfuse3's.

OPEN and OPENDIR are declined with ENOSYS from the first one on: the kernel then never
sends them again, keeps contents and listings cached, and names files by inode. So no
handle ever crosses the device: copy-up happens at the first WRITE, truncation at open is
a SETATTR, and a file that is unlinked while open lives until FORGET.

Invariant: a handler holds the engine's lock only for short calls (`unionfs.fuse.guard`);
what copies or waits goes to `LaneWork` or to pyfuse3.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from unionfs.fuse import protocol
from unionfs.fuse.lane_state import Files, Listings
from unionfs.fuse.lane_work import LaneWork
from unionfs.fuse.lift import INLINE_LIMIT
from unionfs.fuse.options import MountOptions
from unionfs.fuse.policy import Policy
from unionfs.fuse.protocol import Op
from unionfs.union import Attr, Engine, SetAttr

__all__ = ["LATER", "PASS", "SILENT", "LaneOps", "Outcome", "Request"]

_log = logging.getLogger(__name__)

PASS: Final = -1
LATER: Final = -2
SILENT: Final = -3
#: A payload, or one of the three above.
Outcome = bytes | memoryview | int

_HEADER: Final = protocol.IN_HEADER.size
_OUT_HEADER: Final = protocol.OUT_HEADER.size
_PAIR: Final = struct.Struct("=II")
_FOUR: Final = struct.Struct("=IIII")
_COUNT: Final = struct.Struct("=Q")
_STATFS: Final = struct.Struct("=QQQQQIIII24x")
_OPEN_OUT: Final = struct.Struct("=QII")
_DOTS: Final = 2  # offsets taken by "." and ".."
_ALIGN: Final = 8
_DATASYNC: Final = 1
_BILLION: Final = 1_000_000_000
_GENTLE: Final = (errno.EOPNOTSUPP, errno.EINVAL)


class Request:
    """One request; `body` is valid until the next one is read."""

    __slots__ = ("body", "gid", "nodeid", "opcode", "uid", "unique")

    def __init__(self, message: memoryview) -> None:
        fields = protocol.IN_HEADER.unpack_from(message)
        _, self.opcode, self.unique, self.nodeid, self.uid, self.gid, _, _ = fields
        self.body = message[_HEADER:]

    def name(self, start: int = 0) -> bytes:
        """Return the name that fills the body from `start` on."""
        return bytes(self.body[start:-1])


class LaneOps:
    """Handlers over one engine and its `lock`; `work` takes what would hold up others."""

    def __init__(
        self,
        engine: Engine,
        lock: threading.Lock,
        options: MountOptions,
        policy: Policy,
        work: LaneWork,
    ) -> None:
        self._engine = engine
        self._lock = lock
        self._options = options
        self._policy = policy
        self._work = work
        self._entry_timeout = protocol.timeout(options.entry_timeout)
        self._attr_timeout = protocol.timeout(options.attr_timeout)
        self.files = Files(engine)
        self.listings = Listings(engine)
        absent_s, absent_ns = protocol.timeout(options.negative_timeout)
        self._absent = protocol.ENTRY_OUT.pack(0, 0, absent_s, 0, absent_ns, *[0] * 17)
        self._buffer = bytearray()
        self.table: dict[int, Callable[[Request], Outcome]] = {
            Op.LOOKUP: self.lookup,
            Op.FORGET: self.forget,
            Op.BATCH_FORGET: self.batch_forget,
            Op.GETATTR: self.getattr,
            Op.SETATTR: self.setattr,
            Op.READLINK: self.readlink,
            Op.STATFS: self.statfs,
            Op.GETXATTR: self.getxattr,
            Op.LISTXATTR: self.listxattr,
            Op.OPEN: self.declined,
            Op.OPENDIR: self.declined,
            Op.FLUSH: self.declined,
            Op.ACCESS: self.declined,
            Op.INTERRUPT: self.declined,
            Op.IOCTL: self.declined,  # isatty(3) of every program that opens a file
            Op.RELEASE: self.nothing,
            Op.RELEASEDIR: self.nothing,
            Op.READ: self.read,
            Op.READDIRPLUS: self.readdirplus,
            Op.WRITE: self.write,
            Op.CREATE: self.create,
            Op.MKDIR: self.mkdir,
            Op.MKNOD: self.mknod,
            Op.SYMLINK: self.symlink,
            Op.UNLINK: self.unlink,
            Op.RMDIR: self.rmdir,
            Op.FSYNC: self.fsync,
            Op.FSYNCDIR: self.fsyncdir,
        }

    # -- attributes --------------------------------------------------------------

    def _entry(self, attr: Attr) -> bytes:
        return protocol.pack_entry(
            attr,
            self._policy.users.shown(attr.uid),
            self._policy.groups.shown(attr.gid),
            self._entry_timeout,
            self._attr_timeout,
        )

    def _attr(self, attr: Attr) -> bytes:
        users, groups = self._policy.users, self._policy.groups
        return protocol.pack_attr(
            attr, users.shown(attr.uid), groups.shown(attr.gid), self._attr_timeout
        )

    def lookup(self, request: Request) -> Outcome:
        """Find a name; an absent one is an answer that the kernel may keep."""
        name = request.name()
        try:
            with self._lock:
                attr = self._engine.lookup(request.nodeid, name)
        except FileNotFoundError:
            return self._absent
        return self._entry(attr)

    def forget(self, request: Request) -> Outcome:
        """Release references of the kernel; there is nobody to tell about an error."""
        self._forget(request.nodeid, _COUNT.unpack_from(request.body)[0])
        return SILENT

    def batch_forget(self, request: Request) -> Outcome:
        """Release references on many files."""
        count, _ = _PAIR.unpack_from(request.body)
        pairs = request.body[8 : 8 + count * protocol.FORGET_ONE.size]
        for inode, number in protocol.FORGET_ONE.iter_unpack(pairs):
            self._forget(inode, number)
        return SILENT

    def _forget(self, inode: int, count: int) -> None:
        try:
            with self._lock:
                self._policy.forget(inode)
                self.files.forget(inode)
                self.listings.forget(inode)
                self._engine.forget(inode, count)
        except Exception:  # noqa: BLE001  # logged; nobody waits for an answer
            _log.exception("forget of inode %d failed", inode)

    def getattr(self, request: Request) -> Outcome:
        """Return the attributes."""
        with self._lock:
            attr = self._engine.getattr(request.nodeid)
        return self._attr(attr)

    def setattr(self, request: Request) -> Outcome:
        """Change mode, owner, size and times; a long copy-up is pyfuse3's."""
        fields = protocol.SETATTR_IN.unpack_from(request.body)
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
        cut = valid & protocol.FATTR_SIZE and size <= INLINE_LIMIT
        if not cut and self._is_long(request.nodeid):
            return PASS
        users, groups = self._policy.users, self._policy.groups
        changes = SetAttr(
            mode=mode & 0o7777 if valid & protocol.FATTR_MODE else None,
            uid=users.chown(uid) if valid & protocol.FATTR_UID else None,
            gid=groups.chown(gid) if valid & protocol.FATTR_GID else None,
            size=size if valid & protocol.FATTR_SIZE else None,
            atime_ns=_time(valid, protocol.FATTR_ATIME, protocol.FATTR_ATIME_NOW, atime, atime_ns),
            mtime_ns=_time(valid, protocol.FATTR_MTIME, protocol.FATTR_MTIME_NOW, mtime, mtime_ns),
        )
        with self._lock:
            attr = self._engine.setattr(request.nodeid, changes)
        return self._attr(attr)

    def _is_long(self, inode: int) -> bool:
        with self._lock:
            return self._engine.copy_up_size(inode) > INLINE_LIMIT

    def statfs(self, request: Request) -> Outcome:
        """Return the numbers of the file system that writes go to."""
        del request
        with self._lock:
            numbers = self._engine.statfs()
        return _STATFS.pack(
            numbers.f_blocks,
            numbers.f_bfree,
            numbers.f_bavail,
            numbers.f_files,
            numbers.f_ffree,
            numbers.f_bsize,
            numbers.f_namemax,
            numbers.f_frsize,
            0,
        )

    def readlink(self, request: Request) -> Outcome:
        """Return the target of a symbolic link."""
        with self._lock:
            return self._engine.readlink(request.nodeid)

    def getxattr(self, request: Request) -> Outcome:
        """Return an extended attribute or, asked with size 0, its length."""
        size, _ = _PAIR.unpack_from(request.body)
        with self._lock:
            value = self._policy.get_xattr(self._engine, request.nodeid, request.name(8))
        return _sized(value, size)

    def listxattr(self, request: Request) -> Outcome:
        """Return the names of the extended attributes, each with a NUL."""
        size, _ = _PAIR.unpack_from(request.body)
        with self._lock:
            names = self._engine.listxattr(request.nodeid)
        return _sized(b"".join(os.fsencode(name) + b"\0" for name in names), size)

    # -- handles, of which there are none ------------------------------------------

    def declined(self, request: Request) -> Outcome:
        """Have the kernel never ask again, where it can remember that."""
        del request
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def nothing(self, request: Request) -> Outcome:
        """Agree; the kernel sends this only until an OPEN has been declined."""
        del request
        return b""

    # -- contents ------------------------------------------------------------------

    def read(self, request: Request) -> Outcome:
        """Read from the page cache; what is not there is waited for by a worker."""
        _, offset, size, *_ = protocol.WRITE_IN.unpack_from(request.body)
        if len(self._buffer) < _OUT_HEADER + size:
            self._buffer = bytearray(_OUT_HEADER + size)
        room = memoryview(self._buffer)[_OUT_HEADER : _OUT_HEADER + size]
        with self._lock:
            fd = self._engine.fileno(self.files.handle(request.nodeid))
            done = _read_cached(fd, room, offset)
            if done < size and offset + done < os.fstat(fd).st_size:
                own = os.dup(fd)
                self._work.read(request.unique, own, offset, size)
                return LATER
        return memoryview(self._buffer)[: _OUT_HEADER + done]

    def write(self, request: Request) -> Outcome:
        """Write; the first write to a file may copy it up, a big one in a worker."""
        _, offset, size, *_ = protocol.WRITE_IN.unpack_from(request.body)
        start = protocol.WRITE_IN.size
        data = request.body[start : start + size]
        inode = request.nodeid
        if self._work.is_lifting(inode) or self._is_long(inode):
            kept = bytes(data)
            self._work.lift(request.unique, inode, lambda: self._write(inode, offset, kept))
            return LATER
        return self._write(inode, offset, data)

    def _write(self, inode: int, offset: int, data: bytes | memoryview) -> bytes:
        with self._lock:
            done = self._engine.write(self.files.handle(inode), offset, data)
        return _PAIR.pack(done, 0)

    def fsync(self, request: Request) -> Outcome:
        """Bring a file's content to disk."""
        if self._options.volatile:
            return b""
        _, flags = struct.unpack_from("=QI", request.body)
        with self._lock:
            own = os.dup(self._engine.fileno(self.files.handle(request.nodeid)))
        self._work.fsync(request.unique, own, datasync=bool(flags & _DATASYNC))
        return LATER

    def fsyncdir(self, request: Request) -> Outcome:
        """Bring a directory's names to disk."""
        with self._lock:
            handle = self._engine.opendir(request.nodeid)
            try:
                self._engine.fsyncdir(handle)
            finally:
                self._engine.releasedir(handle)
        return b""

    # -- directories -----------------------------------------------------------------

    def readdirplus(self, request: Request) -> Outcome:
        """List with attributes; the kernel takes a reference on each entry but the dots."""
        _, offset, size, *_ = protocol.WRITE_IN.unpack_from(request.body)
        inode, engine = request.nodeid, self._engine
        out: list[bytes] = []
        room = size
        with self._lock:
            for position, name in ((1, b"."), (2, b"..")):
                if offset < position:
                    number = inode if position == 1 else engine.parent(inode)
                    entry = protocol.ENTRY_OUT.pack(*[0] * 22)
                    out.append(entry + _dirent(number, position, name, 0o040000))
                    room -= len(out[-1])
            for cookie, name in self.listings.entries(inode, max(offset - _DOTS, 0)):
                fixed = protocol.ENTRY_OUT.size + protocol.DIRENT.size
                room -= fixed + len(name) + -len(name) % _ALIGN
                if room < 0:
                    break
                try:
                    attr = engine.lookup(inode, name)
                except FileNotFoundError:
                    room += fixed + len(name) + -len(name) % _ALIGN
                    continue
                except OSError:
                    if not out:
                        raise
                    break  # met again, and reported, where the next listing starts
                out.append(self._entry(attr))
                out.append(_dirent(attr.ino, cookie + _DOTS, name, attr.mode))
        return b"".join(out)

    # -- names -------------------------------------------------------------------------

    def create(self, request: Request) -> Outcome:
        """Create a file; the kernel has applied the umask."""
        flags, mode, _, _ = _FOUR.unpack_from(request.body)
        caller = self._policy.caller(request.uid, request.gid)
        with self._lock:
            handle, attr = self._engine.create(
                request.nodeid, request.name(_FOUR.size), mode, flags, caller
            )
            self.files.adopt(attr.ino, handle)
        return self._entry(attr) + _OPEN_OUT.pack(0, protocol.FOPEN_KEEP_CACHE, 0)

    def mkdir(self, request: Request) -> Outcome:
        """Make a directory."""
        mode, _ = _PAIR.unpack_from(request.body)
        caller = self._policy.caller(request.uid, request.gid)
        with self._lock:
            attr = self._engine.mkdir(request.nodeid, request.name(_PAIR.size), mode, caller)
        return self._entry(attr)

    def mknod(self, request: Request) -> Outcome:
        """Make a device, fifo, socket or regular file."""
        mode, rdev, _, _ = _FOUR.unpack_from(request.body)
        caller = self._policy.caller(request.uid, request.gid)
        name = request.name(_FOUR.size)
        with self._lock:
            attr = self._engine.mknod(request.nodeid, name, mode, rdev, caller)
        return self._entry(attr)

    def symlink(self, request: Request) -> Outcome:
        """Make a symbolic link."""
        name, target = request.name().split(b"\0")
        caller = self._policy.caller(request.uid, request.gid)
        with self._lock:
            attr = self._engine.symlink(request.nodeid, name, target, caller)
        return self._entry(attr)

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


def _time(valid: int, given: int, now: int, seconds: int, ns: int) -> int | None:
    if valid & now:
        return time.time_ns()
    return seconds * _BILLION + ns if valid & given else None


def _sized(value: bytes, size: int) -> bytes:
    """Answer as getxattr(2) does: the value, or its length if there is no room to give it."""
    if not size:
        return _PAIR.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _dirent(number: int, offset: int, name: bytes, mode: int) -> bytes:
    padding = b"\0" * (-len(name) % _ALIGN)
    return protocol.DIRENT.pack(number, offset, len(name), mode >> 12) + name + padding


def _read_cached(fd: int, room: memoryview, offset: int) -> int:
    """Read what needs no disk; filesystems that cannot tell are read anyway."""
    try:
        return os.preadv(fd, [room], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return 0
    except OSError as exc:
        if exc.errno not in _GENTLE:
            raise
    return os.preadv(fd, [room], offset)
