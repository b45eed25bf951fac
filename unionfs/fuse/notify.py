"""Telling the kernel what it must not believe any longer.

Notifications go straight to the device, from a thread: the kernel takes the directory's lock
for one about a name, and whoever holds that lock may be waiting for an answer of ours (so
neither the event loop nor a lane may write them).

Invariant: a kernel that does not know a name or an inode needs no telling, so ENOENT is
success; after `close` nothing is written to a descriptor that is somebody else's by then.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterable
from typing import Final

from unionfs.fuse.protocol import OUT_HEADER

__all__ = ["Notifier"]

#: Codes of uapi/linux/fuse.h (enum fuse_notify_code).
_INODE: Final = 2
_ENTRY: Final = 3
#: ino, offset, length: from 0 on, contents and listings are dropped as well.
_INODE_OUT: Final = struct.Struct("=Qqq")
#: parent, length of the name, flags
_ENTRY_OUT: Final = struct.Struct("=QII")
#: Look the name up again at its next use (Linux 6.2). Without this flag, which older kernels pass
#: over, the name is dropped at once, and what is mounted on it with it.
_EXPIRE: Final = 1
_UNKNOWN: Final = (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ENOTDIR, errno.EINVAL)


class Notifier:
    """Writes notifications to one device; it works on a duplicate of `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Write nothing any more."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

    def forget(self, entries: Iterable[tuple[int, bytes]], inodes: Iterable[int]) -> None:
        """Have names looked up, and attributes, contents and listings asked for anew."""
        for parent, name in entries:
            self._write(_ENTRY, _ENTRY_OUT.pack(parent, len(name), _EXPIRE) + name + b"\0")
        for ino in inodes:
            self._write(_INODE, _INODE_OUT.pack(ino, 0, 0))

    def _write(self, code: int, payload: bytes) -> None:
        with self._lock:
            if self._fd < 0:
                return
            own = os.dup(self._fd)
        try:
            os.write(own, OUT_HEADER.pack(OUT_HEADER.size + len(payload), code, 0) + payload)
        except OSError as exc:
            if exc.errno not in _UNKNOWN:
                raise
        finally:
            os.close(own)
