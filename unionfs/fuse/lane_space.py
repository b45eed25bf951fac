"""Requests of the direct lane about the room that contents take: holes, allocation, copies.

Invariant: a copy within the mount runs in a worker on descriptors of its own; both files are
whatever they are at that moment, as the kernel, which holds the target's lock, expects.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Final

from unionfs import _sys
from unionfs.fuse.lane_changes import Changes
from unionfs.fuse.lane_request import LATER, PAIR, Context, Outcome, Request
from unionfs.fuse.protocol import Op

__all__ = ["Space"]

#: fh, offset, whence, padding
_LSEEK: Final = struct.Struct("=QQII")
#: fh, offset, length, mode, padding
_FALLOCATE: Final = struct.Struct("=QQQII")
#: fh and offset of the source; inode, fh and offset of the target; length, flags
_COPY: Final = struct.Struct("=QQQQQQQ")
_OFFSET: Final = struct.Struct("=Q")
#: Bytes of one copy, at most: who asked must be able to stop in between.
_AT_ONCE: Final = 64 << 20
#: The same for a copy that others have to wait for.
_HELD_UP: Final = 1 << 20


class Space:
    """Handlers by opcode in `table`."""

    def __init__(self, context: Context, changes: Changes) -> None:
        self._engine, self._lock = context.engine, context.lock
        self._files, self._work = context.files, context.work
        self._ahead = context.ahead
        self._changes = changes
        self.table: dict[int, Callable[[Request], Outcome]] = {
            Op.LSEEK: self.lseek,
            Op.FALLOCATE: self.fallocate,
            Op.COPY_FILE_RANGE: self.copy_file_range,
        }

    def lseek(self, request: Request) -> Outcome:
        """Find data or a hole: what else there is to seek the kernel knows."""
        _, offset, whence, _ = _LSEEK.unpack_from(request.body)
        with self._lock:
            fd = self._engine.fileno(self._files.handle(request.nodeid))
            return _OFFSET.pack(os.lseek(fd, offset, whence))

    def fallocate(self, request: Request) -> Outcome:
        """Allocate, cut out or move a range."""
        _, offset, length, mode, _ = _FALLOCATE.unpack_from(request.body)
        inode = request.nodeid
        self._ahead.hold(inode)

        def allocate() -> bytes:
            fd = self._engine.writable_fileno(self._files.handle(inode))
            _sys.fallocate(fd, mode, offset, length)
            return b""

        return self._changes.change(request, inode, allocate)

    def copy_file_range(self, request: Request) -> Outcome:
        """Copy between two files of the mount; where it can the filesystem shares the blocks."""
        _, start, target, _, offset, length, _ = _COPY.unpack_from(request.body)
        inode, unique = request.nodeid, request.unique
        self._ahead.hold(target)

        def descriptors() -> tuple[int, int]:
            files, engine = self._files, self._engine
            out = os.dup(engine.writable_fileno(files.handle(target)))
            try:
                return os.dup(engine.fileno(files.handle(inode))), out
            except OSError:
                os.close(out)
                raise

        def copy_at_once() -> bytes:
            return _copy(*descriptors(), min(length, _HELD_UP), start, offset)

        with self._lock:
            if not self._changes.is_long(target):
                source, out = descriptors()
                self._work.run(
                    unique, lambda: _copy(source, out, min(length, _AT_ONCE), start, offset)
                )
                return LATER
        return self._changes.change(request, target, copy_at_once)


def _copy(source: int, target: int, length: int, start: int, offset: int) -> bytes:
    try:
        return PAIR.pack(os.copy_file_range(source, target, length, start, offset), 0)
    finally:
        os.close(source)
        os.close(target)
