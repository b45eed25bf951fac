"""Requests of the direct lane about the room that contents take: holes, allocation, copies.

Invariant: what may take long runs in a worker on descriptors of its own, the kernel keeping
other changes of the file away; it counts as a change once more when it is done, so that
nothing that was looked up meanwhile is given away afterwards.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Final

from unionfs import _sys
from unionfs.fuse.lane_request import LATER, PAIR, Context, Outcome, Request, no_system_call
from unionfs.fuse.protocol import Op

__all__ = ["Space"]

#: fh, offset, whence, padding
_LSEEK: Final = struct.Struct("=QqII")
#: fh, offset, length, mode, padding
_FALLOCATE: Final = struct.Struct("=QqqII")
#: fh and offset of the source; inode, fh and offset of the target; length, flags
_COPY: Final = struct.Struct("=QqQQqQQ")
_OFFSET: Final = struct.Struct("=Q")
#: Bytes of one copy, at most: who asked must be able to stop in between.
_AT_ONCE: Final = 64 << 20


class Space:
    """Handlers by opcode in `table`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._engine, self._lock = context.engine, context.lock
        self._files, self._work = context.files, context.work
        self._ahead = context.ahead
        self.table: dict[int, Callable[[Request], Outcome]] = {
            Op.LSEEK: self.lseek,
            Op.FALLOCATE: self.fallocate,
            Op.COPY_FILE_RANGE: self.copy_file_range,
        }

    def lseek(self, request: Request) -> Outcome:
        """Find data or a hole: what else there is to seek the kernel knows.

        In a rw mount it is to take everything for data: what was written through a mapping is
        not known here before it is written out, and no request tells of it.
        """
        if not self._engine.read_only:
            raise no_system_call()
        _, offset, whence, _ = _LSEEK.unpack_from(request.body)
        if offset < 0:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        with self._lock:
            fd = self._engine.fileno(self._files.handle(request.nodeid))
            return _OFFSET.pack(os.lseek(fd, offset, whence))

    def fallocate(self, request: Request) -> Outcome:
        """Allocate or cut out a range."""
        _, offset, length, mode, _ = _FALLOCATE.unpack_from(request.body)
        inode, uid = request.nodeid, request.uid
        self._ahead.hold(inode)
        with self._lock:
            if self._engine.needs_copy_up(inode):
                self._engine.check_allocation(mode, length)

        def allocate() -> bytes:
            with self._lock:
                self._changes(inode, uid)
                fd = os.dup(self._engine.writable_fileno(self._files.handle(inode)))
            try:
                _sys.fallocate(fd, mode, offset, length)
            finally:
                os.close(fd)
            return b""

        return self._start(request.unique, inode, allocate)

    def copy_file_range(self, request: Request) -> Outcome:
        """Copy between two files of the mount; where it can the filesystem shares the blocks."""
        _, start, target, _, offset, length, _ = _COPY.unpack_from(request.body)
        inode, uid = request.nodeid, request.uid
        self._ahead.hold(target)

        def copy() -> bytes:
            with self._lock:
                engine, files = self._engine, self._files
                self._changes(target, uid)
                out = os.dup(engine.writable_fileno(files.handle(target)))
                try:
                    source = os.dup(engine.fileno(files.handle(inode)))
                except BaseException:
                    os.close(out)
                    raise
            try:
                count = min(length, _AT_ONCE)
                return PAIR.pack(os.copy_file_range(source, out, count, start, offset), 0)
            finally:
                os.close(source)
                os.close(out)

        return self._start(request.unique, target, copy)

    def _changes(self, inode: int, uid: int) -> None:
        """Do what a write by `uid` does to setuid; these requests do not say whether to."""
        if uid:
            self._context.drop_setuid(inode)

    def _start(self, unique: int, inode: int, change: Callable[[], bytes]) -> Outcome:
        """Have a worker change a file, which is copied up first if need be."""

        def job() -> bytes:
            try:
                return change()
            finally:
                with self._lock:
                    self._engine.changed()

        self._work.lift(unique, inode, job)
        return LATER
