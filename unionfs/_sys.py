"""System calls that the standard library does not offer; the only user of ctypes.

Invariant: every function raises `OSError` with errno and file name set, exactly as
the `os` module does, and nothing else in unionfs imports ctypes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import Final

__all__ = [
    "MNT_DETACH",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "clone_file",
    "mount",
    "renameat2",
    "syncfs",
    "umount",
]

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 0x2
RENAME_NOREPLACE: Final = 0x1
RENAME_EXCHANGE: Final = 0x2
_FICLONE: Final = 0x40049409

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_libc.syncfs.argtypes = (ctypes.c_int,)


def _check(result: int, *names: bytes) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), *names[:1])


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    """Mount a filesystem; the kernel cuts `data` beyond one page without an error (man 2 mount)."""
    _check(_libc.mount(source, target, fstype, flags, data), target)


def umount(target: bytes, flags: int = 0) -> None:
    """Unmount, with `flags` such as `MNT_DETACH` (man 2 umount2)."""
    _check(_libc.umount2(target, flags), target)


def renameat2(src_fd: int, src: bytes, dst_fd: int, dst: bytes, flags: int = 0) -> None:
    """Rename (man 2 renameat2); `flags` is 0, `RENAME_NOREPLACE` or `RENAME_EXCHANGE`."""
    _check(_libc.renameat2(src_fd, src, dst_fd, dst, flags), src)


def syncfs(fd: int) -> None:
    """Write the whole filesystem that holds `fd` to disk (man 2 syncfs)."""
    _check(_libc.syncfs(fd))


def clone_file(source_fd: int, target_fd: int) -> None:
    """Share the source's data blocks with the target (FICLONE, ioctl_ficlone(2))."""
    fcntl.ioctl(target_fd, _FICLONE, source_fd)
