"""Requests of the direct lane that change nothing: names, attributes, contents, listings.

OPEN and OPENDIR are declined with ENOSYS from the first one on: the kernel then never
sends them again, keeps contents and listings cached, and names files by inode. A kernel
that insists on them is given handles without a meaning, and so is one that is to read big
files itself (`unionfs.fuse.passthrough`). So no handle that matters to contents ever crosses
the device: copy-up happens at the first WRITE, truncation at open is a SETATTR, and a file
that is unlinked while open lives until FORGET.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
from collections.abc import Callable
from typing import Final

from unionfs.fuse import protocol
from unionfs.fuse.lane_lists import Lists
from unionfs.fuse.lane_request import (
    COUNTS,
    LATER,
    PAIR,
    SILENT,
    Context,
    Outcome,
    Request,
    no_system_call,
)
from unionfs.fuse.policy import CAPABILITY
from unionfs.fuse.protocol import InitFlag, Op

__all__ = ["Reads"]

_log = logging.getLogger(__name__)

#: Where contents begin in what they are read into: aligned pages are copied faster.
_START: Final = mmap.PAGESIZE
_STATFS: Final = struct.Struct("=QQQQQIIII24x")
_COUNT: Final = struct.Struct("=Q")
_GENTLE: Final = (errno.EOPNOTSUPP, errno.EINVAL)


class Reads:
    """Handlers by opcode in `table`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._engine, self._lock = context.engine, context.lock
        self._files = context.files
        #: For the lane, to have something done while no request waits.
        self.lists = Lists(context)
        self._ahead = context.ahead
        self._scout = context.scout
        self._passthrough = context.passthrough
        #: What the kernel offers in INIT.
        self.offered = InitFlag(0)
        absent_s, absent_ns = protocol.timeout(context.options.negative_timeout)
        self._absent = protocol.ENTRY_OUT.pack(0, 0, absent_s, 0, absent_ns, *[0] * 17)
        self._room = memoryview(mmap.mmap(-1, _START))
        #: Files and directories that the kernel has forgotten.
        self.forgotten = 0
        self.table: dict[int, Callable[[Request], Outcome]] = {
            Op.LOOKUP: self.lookup,
            Op.FORGET: self.forget,
            Op.BATCH_FORGET: self.batch_forget,
            Op.GETATTR: self.getattr,
            Op.READLINK: self.readlink,
            Op.STATFS: self.statfs,
            Op.GETXATTR: self.getxattr,
            Op.LISTXATTR: self.listxattr,
            Op.OPEN: self.open,
            Op.OPENDIR: self.opendir,
            Op.FLUSH: self.declined,
            Op.ACCESS: self.declined,
            Op.INTERRUPT: self.declined,
            Op.IOCTL: self.declined,  # isatty(3) of every program that opens a file
            Op.RELEASE: self.release,
            Op.RELEASEDIR: self.nothing,
            Op.READ: self.read,
            Op.READDIR: self.readdir,
            Op.READDIRPLUS: self.readdirplus,
        }

    # -- names and attributes ------------------------------------------------------

    def lookup(self, request: Request) -> Outcome:
        """Find a name; an absent one is an answer that the kernel may keep."""
        name = request.name()
        try:
            with self._lock:
                attr = self._engine.lookup(request.nodeid, name)
        except FileNotFoundError:
            return self._absent
        self._scout.looked(request.nodeid, request.pid)
        return self._context.entry(attr)

    def forget(self, request: Request) -> Outcome:
        """Release references of the kernel; there is nobody to tell about an error."""
        self._forget(request.nodeid, _COUNT.unpack_from(request.body)[0])
        return SILENT

    def batch_forget(self, request: Request) -> Outcome:
        """Release references on many files."""
        count, _ = PAIR.unpack_from(request.body)
        for inode, number in COUNTS.iter_unpack(request.body[8 : 8 + count * COUNTS.size]):
            self._forget(inode, number)
        return SILENT

    def _forget(self, inode: int, count: int) -> None:
        try:
            with self._lock:
                self._context.policy.forget(inode)
                self._files.forget(inode)
                self.lists.forget(inode)
                self._scout.forget(inode)
                self._engine.forget(inode, count)
                if not self._engine.is_known(inode):
                    self._ahead.forget(inode)
                    self._passthrough.forget(inode)
                    self.forgotten += 1
        except Exception:  # noqa: BLE001  # logged; nobody waits for an answer
            _log.exception("forget of inode %d failed", inode)

    def getattr(self, request: Request) -> Outcome:
        """Return the attributes."""
        with self._lock:
            attr = self._engine.getattr(request.nodeid)
        return self._context.attr(attr)

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
        size, _ = PAIR.unpack_from(request.body)
        name = request.name(PAIR.size)
        if name == CAPABILITY:  # the kernel is about to write
            self._ahead.hold(request.nodeid)
        with self._lock:
            value = self._context.policy.get_xattr(self._engine, request.nodeid, name)
        return _sized(value, size)

    def listxattr(self, request: Request) -> Outcome:
        """Return the names of the extended attributes, each with a NUL."""
        size, _ = PAIR.unpack_from(request.body)
        with self._lock:
            names = self._engine.listxattr(request.nodeid)
        return _sized(b"".join(os.fsencode(name) + b"\0" for name in names), size)

    # -- handles, of which there are none --------------------------------------------

    def open(self, request: Request) -> Outcome:
        """Decline, or agree where the kernel cannot do without or reads files itself."""
        if self._passthrough.agreed:
            flags, _ = PAIR.unpack_from(request.body)
            with self._lock:
                answer = self._passthrough.open(request.nodeid, flags)
            if answer is not None:
                return answer
        if self.offered & InitFlag.NO_OPEN_SUPPORT:
            return self.declined(request)
        return protocol.OPEN_OUT.pack(0, protocol.FOPEN_KEEP_CACHE, 0)

    def release(self, request: Request) -> Outcome:
        """Agree to the end of a handle."""
        with self._lock:
            self._passthrough.release(request.nodeid)
        return b""

    def opendir(self, request: Request) -> Outcome:
        """Decline, or agree where the kernel cannot do without."""
        if self.offered & InitFlag.NO_OPENDIR_SUPPORT:
            return self.declined(request)
        return protocol.OPEN_OUT.pack(0, 0, 0)

    def declined(self, request: Request) -> Outcome:
        """Have the kernel never ask again, where it can remember that."""
        del request
        raise no_system_call()

    def nothing(self, request: Request) -> Outcome:
        """Agree to the end of a handle."""
        del request
        return b""

    # -- contents ----------------------------------------------------------------------

    def read(self, request: Request) -> Outcome:
        """Read from the page cache; what is not there is waited for by a worker."""
        _, offset, size, *_ = protocol.WRITE_IN.unpack_from(request.body)
        if len(self._room) < _START + size:
            self._room = memoryview(mmap.mmap(-1, _START + size))
        room = self._room[_START : _START + size]
        inode, engine = request.nodeid, self._engine
        self._ahead.hold(inode)
        with self._lock:
            if not offset:
                self._ahead.asked(engine.parent_of_file(inode), inode)
                done = self._read_once(inode, room)
                if done:
                    return self._room[_START - protocol.OUT_HEADER.size : _START + done]
            fd = engine.fileno(self._files.handle(inode))
            done = _read_cached(fd, room, offset)
            if done < size and offset + done < os.fstat(fd).st_size:
                own = os.dup(fd)
                self._context.work.read(request.unique, own, offset, size)
                return LATER
        return self._room[_START - protocol.OUT_HEADER.size : _START + done]

    def _read_once(self, inode: int, room: memoryview) -> int:
        """Read the beginning of a file that is not open, all that there is room for or nothing.

        Most files are small and read once: for those a handle would be made for nothing.
        """
        if inode in self._files:
            return 0
        fd = self._engine.open_once(inode)
        if fd < 0:
            return 0
        try:
            done = _read_cached(fd, room, 0)
            return done if done == len(room) or done == os.fstat(fd).st_size else 0
        finally:
            os.close(fd)

    # -- directories -------------------------------------------------------------------

    def readdir(self, request: Request) -> Outcome:
        """List names alone."""
        return self.lists.names(request)

    def readdirplus(self, request: Request) -> Outcome:
        """List with attributes; the kernel takes a reference on each entry but the dots."""
        return self.lists.entries(request)


def _sized(value: bytes, size: int) -> bytes:
    """Answer as getxattr(2) does: the value, or its length if there is no room to give it."""
    if not size:
        return PAIR.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


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
