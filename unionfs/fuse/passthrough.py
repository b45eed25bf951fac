"""Big files of a read-only mount read by the kernel itself: FUSE passthrough (Linux 6.9).

With each OPEN the kernel may be told a backing file, on which it then does every read and
mapping of that open file without a request. It costs the requests that the lane otherwise
has the kernel leave out, an OPEN and a RELEASE for every file, and needs CAP_SYS_ADMIN outside
of user namespaces; hence an option (`-o passthrough`). Writable mounts cannot have it: the
kernel opens a file for writing only on the same backing file as its readers
(`fuse_file_io_open` in fs/fuse/iomode.c), and a copy-up makes another one.

Invariant: all that have a file open at one time have it through the same backing file, or all
of them without one, since the kernel refuses (EIO) to mix. Nobody changes a layer through it: the
kernel opens the backing file as its opener does, so that one who means to write or to cut it is
refused here (a mount can be made writable behind our back), and the backing file lies in a
read-only mount of its own, in which reading leaves access times alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterable
from typing import Final

from unionfs import _sys
from unionfs.closing import opened
from unionfs.errors import UsageError, show
from unionfs.fuse.protocol import (
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    FOPEN_PASSTHROUGH,
    OPEN_OUT,
)
from unionfs.union import Engine

__all__ = ["STACK_DEPTH", "Passthrough", "reason_against"]

_log = logging.getLogger(__name__)

#: How deep filesystems may be stacked with this one. With 1 layers must not lie on an overlayfs,
#: and one overlayfs may lie on the mount; 2 (all there is) would turn that round.
STACK_DEPTH: Final = 1
#: Bytes; to read less by requests costs no more than giving a file to the kernel does.
_SMALLEST: Final = 1 << 20
#: _IOW(229, 1, struct fuse_backing_map) and _IOW(229, 2, uint32_t) of uapi/linux/fuse.h.
_BACKING_OPEN: Final = 0x4010E501
_BACKING_CLOSE: Final = 0x4004E502
#: fd, flags, padding
_BACKING_MAP: Final = struct.Struct("=iIQ")
_BACKING_ID: Final = struct.Struct("=I")
_LOOK: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_OVERLAYFS: Final = 0x794C7630
#: What is so each time: no O_DIRECT (open(2)), mounts not to be copied (open_tree(2)), stacking.
_FOR_GOOD: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ELOOP)
_STACKED: Final = "a layer lies on a filesystem that is itself stacked on others"


def reason_against(layers: Iterable[bytes]) -> str | None:
    """Return why files of these layers, not necessarily of all, are read through the server.

    UsageError for a caller who cannot have any.
    """
    if not (_sys.has_capability(_sys.CAP_SYS_ADMIN) and _sys.has_all_ids()):
        raise UsageError("option passthrough needs CAP_SYS_ADMIN outside of user namespaces")
    for layer in layers:
        with contextlib.suppress(OSError), opened(os.open(layer, _LOOK)) as fd:
            if _sys.filesystem_type(fd) == _OVERLAYFS:
                return f"{show(layer)} lies on an overlayfs"
    return None


class _Opened:
    """A file that somebody has open: its backing id, 0 for none, and how often it is open."""

    __slots__ = ("backing", "count")

    def __init__(self, backing: int) -> None:
        self.backing = backing
        self.count = 0


class Passthrough:
    """Backing files for what is opened on the device `fd`. All methods need the engine's lock.

    `agreed` says whether the kernel has, so that OPEN also says who cuts a file; `on` becomes false
    again when it gives no such right.
    """

    def __init__(self, fd: int, engine: Engine) -> None:
        self._fd = fd
        self._engine = engine
        self._files: dict[int, _Opened] = {}
        #: Device numbers of filesystems that cannot be used, and of those where O_DIRECT works.
        self._useless: set[int] = set()
        self._direct: set[int] = set()
        self._told: set[str] = set()
        self.on = self.agreed = False

    def __len__(self) -> int:
        return len(self._files)

    def agree(self) -> None:
        """Begin: the kernel is about to be told."""
        self.on = self.agreed = True

    def open(self, inode: int, flags: int) -> bytes | None:
        """Return the answer to OPEN of a regular file; None when it is not to be asked any more.

        EROFS for one who means to write to it, or to cut it.
        """
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not self.on:
            return None
        found = self._files.get(inode)
        if found is None:
            small = self._engine.getattr(inode).size < _SMALLEST
            found = self._files[inode] = _Opened(0 if small else self._backing(inode))
        found.count += 1
        if found.backing:
            return OPEN_OUT.pack(0, FOPEN_PASSTHROUGH | FOPEN_NOFLUSH, found.backing)
        return OPEN_OUT.pack(0, FOPEN_KEEP_CACHE, 0)

    def release(self, inode: int) -> None:
        """Note a RELEASE; after the last one the backing file is let go."""
        found = self._files.get(inode)
        if found is None:
            return
        found.count -= 1
        if not found.count:
            self.forget(inode)

    def forget(self, inode: int) -> None:
        """Let the backing file go of an inode that nobody has open, whatever RELEASEs have said."""
        found = self._files.pop(inode, None)
        if found is not None and found.backing:
            # A descriptor's reference is the kernel's own: this takes away the number alone.
            fcntl.ioctl(self._fd, _BACKING_CLOSE, _BACKING_ID.pack(found.backing))

    def _backing(self, inode: int) -> int:
        """Give the kernel a file of a layer; return the number it gives that, or 0."""
        fd = self._engine.open_once(inode)
        if fd < 0:
            return 0
        device = os.fstat(fd).st_dev
        try:
            if device in self._useless:
                return 0
            own = _sys.open_unchangeable(fd)
        except OSError as exc:
            self._refused(device, exc, f"the mount of a layer cannot be copied: {exc.strerror}")
            return 0
        finally:
            os.close(fd)
        try:
            if not self._takes_direct(own, device):
                return 0
            # Only what can be written to gets the result of ioctl(2) instead of its own bytes back.
            wanted = bytearray(_BACKING_MAP.pack(own, 0, 0))
            return int(fcntl.ioctl(self._fd, _BACKING_OPEN, wanted))
        except OSError as exc:
            self.on = exc.errno != errno.EPERM
            reason = _STACKED if exc.errno == errno.ELOOP else exc.strerror or str(exc)
            self._refused(device, exc, reason)
            return 0
        finally:
            os.close(own)

    def _takes_direct(self, fd: int, device: int) -> bool:
        """Tell whether a file can be opened with O_DIRECT; the kernel's EIO would say nothing."""
        if device not in self._direct:
            try:
                os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
            except OSError as exc:
                reason = "a layer's filesystem has no O_DIRECT, which whoever opens may want"
                self._refused(device, exc, reason)
                return False
            self._direct.add(device)
        return True

    def _refused(self, device: int, exc: OSError, reason: str) -> None:
        """Note what went wrong; what will go wrong again is not tried again."""
        if exc.errno in _FOR_GOOD:
            self._useless.add(device)
        if reason not in self._told:
            self._told.add(reason)
            _log.warning("files are read through the server: %s", reason)
