"""Big files of a read-only mount read by the kernel itself: FUSE passthrough (Linux 6.9).

With each OPEN the kernel may be told a backing file, on which it then does every read and
mapping of that open file without a request. It costs the requests that the lane otherwise
has the kernel leave out, an OPEN and a RELEASE for every file, and needs CAP_SYS_ADMIN outside
of user namespaces; hence an option (`-o passthrough`). Writable mounts cannot have it: the
kernel opens a file for writing only on the same backing file as its readers
(`fuse_file_io_open` in fs/fuse/iomode.c), and a copy-up makes another one.

Invariant: all that have a file open at one time have it through the same backing file, or all
of them without one, since the kernel refuses (EIO) to mix.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from typing import Final

from unionfs.fuse.protocol import (
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    FOPEN_PASSTHROUGH,
    OPEN_OUT,
    RELEASE_IN,
)
from unionfs.union import Engine

__all__ = ["STACK_DEPTH", "Passthrough"]

_log = logging.getLogger(__name__)

#: How deep filesystems may be stacked with this one. With 1 layers must not lie on an overlayfs,
#: and one overlayfs may lie on the mount; 2 (all there is) would turn that round.
STACK_DEPTH: Final = 1
#: Bytes; smaller files are read whole by one request, or by none.
_SMALLEST: Final = 1 << 17
#: _IOW(229, 1, struct fuse_backing_map) and _IOW(229, 2, uint32_t) of uapi/linux/fuse.h.
_BACKING_OPEN: Final = 0x4010E501
_BACKING_CLOSE: Final = 0x4004E502
#: fd, flags, padding
_BACKING_MAP: Final = struct.Struct("=iIQ")
_BACKING_ID: Final = struct.Struct("=I")
_ORDINARY: Final = 0
_COUNTED: Final = 1


class _Opened:
    """A file that somebody has open: its backing id, 0 for none, and how often it is open."""

    __slots__ = ("backing", "count")

    def __init__(self, backing: int) -> None:
        self.backing = backing
        self.count = 0


class Passthrough:
    """Backing files for what is opened on the device `fd`. All methods need the engine's lock.

    `on` is false until the kernel has agreed; it becomes false again when it gives no such right.
    """

    def __init__(self, fd: int, engine: Engine) -> None:
        self._fd = fd
        self._engine = engine
        self._files: dict[int, _Opened] = {}
        self._told = False
        self.on = False

    def __len__(self) -> int:
        return len(self._files)

    def open(self, inode: int) -> bytes:
        """Return the answer to OPEN of a regular file."""
        opened = self._files.get(inode)
        if opened is None:
            if self._engine.getattr(inode).size < _SMALLEST:
                return OPEN_OUT.pack(_ORDINARY, FOPEN_KEEP_CACHE, 0)
            opened = self._files[inode] = _Opened(self._backing(inode))
        opened.count += 1
        if opened.backing:
            return OPEN_OUT.pack(_COUNTED, FOPEN_PASSTHROUGH | FOPEN_NOFLUSH, opened.backing)
        return OPEN_OUT.pack(_COUNTED, FOPEN_KEEP_CACHE, 0)

    def release(self, inode: int, body: bytes | memoryview) -> None:
        """Note a RELEASE with this body; after the last one the backing file is let go."""
        opened = self._files.get(inode)
        if opened is None or RELEASE_IN.unpack_from(body)[0] != _COUNTED:
            return
        opened.count -= 1
        if not opened.count:
            self.forget(inode)

    def forget(self, inode: int) -> None:
        """Let the backing file go of an inode that nobody has open.

        An OPEN whose caller was killed has no RELEASE, but a FORGET comes in the end.
        """
        opened = self._files.pop(inode, None)
        if opened is not None and opened.backing:
            # A descriptor's reference is the kernel's own: this takes away the number alone.
            fcntl.ioctl(self._fd, _BACKING_CLOSE, _BACKING_ID.pack(opened.backing))

    def _backing(self, inode: int) -> int:
        """Give the kernel a file of a layer; return the number it gives that, or 0."""
        fd = self._engine.open_once(inode)
        if fd < 0:
            return 0
        try:
            # Only what can be written to gets the result of ioctl(2) instead of its own bytes back.
            wanted = bytearray(_BACKING_MAP.pack(fd, 0, 0))
            return int(fcntl.ioctl(self._fd, _BACKING_OPEN, wanted))
        except OSError as exc:
            self.on = exc.errno != errno.EPERM
            if not self._told:
                self._told = True
                _log.warning("no passthrough: %s", _why(exc))
            return 0
        finally:
            os.close(fd)


def _why(exc: OSError) -> str:
    if exc.errno == errno.EPERM:
        return "it needs CAP_SYS_ADMIN outside of user namespaces"
    if exc.errno == errno.ELOOP:
        return "a layer lies on a filesystem that is itself stacked on another (overlayfs)"
    return exc.strerror or str(exc)
