"""System calls that the standard library does not offer; the only user of ctypes.

Invariant: every function raises `OSError` with errno and file name set, exactly as
the `os` module does, and nothing else in unionfs imports ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import time
from typing import Final

__all__ = [
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "FALLOC_PUNCH_HOLE",
    "MNT_DETACH",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "MS_SLAVE",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "allow_memory",
    "begin_write_out",
    "clone_file",
    "close_from",
    "deny_memory",
    "device_of",
    "die_with_parent",
    "drop_bounding",
    "fallocate",
    "filesystem_type",
    "make_read_only",
    "mount",
    "open_in_root",
    "open_unchangeable",
    "pivot_root",
    "renameat2",
    "set_dumpable",
    "syncfs",
    "umount",
    "unshare",
    "write_out",
]

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MNT_DETACH: Final = 0x2
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
RENAME_NOREPLACE: Final = 0x1
RENAME_EXCHANGE: Final = 0x2
CLONE_FS: Final = 0x200
CAP_SYS_MODULE: Final = 16
CAP_SYS_ADMIN: Final = 21
FALLOC_PUNCH_HOLE: Final = 2
_FICLONE: Final = 0x40049409
# The new mount API has one number per call on every architecture (but alpha).
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_AT_FDCWD: Final = -100
_MAX_HANDLE: Final = 128
#: More than any struct statfs, which begins with the type.
_STATFS_SIZE: Final = 256
_STATFS_TYPE: Final = struct.Struct("@l")
_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE
_WAIT_WRITE_WAIT: Final = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER

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
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.syscall.restype = ctypes.c_long


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE),
    )


_libc.name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_FileHandle),
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)


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


def begin_write_out(fd: int, offset: int, size: int) -> None:
    """Have a range's dirty data begin to be written (man 2 sync_file_range)."""
    _check(_libc.sync_file_range(fd, offset, size, _WRITE))


def write_out(fd: int) -> None:
    """Write a file's dirty data, not its metadata, to its device (man 2 sync_file_range)."""
    _check(_libc.sync_file_range(fd, 0, 0, _WAIT_WRITE_WAIT))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate or give back a range of a file; `mode` is of FALLOC_FL_* (man 2 fallocate)."""
    _check(_libc.fallocate(fd, mode, offset, length))


def filesystem_type(fd: int) -> int:
    """Return the magic number of the filesystem that holds `fd` (man 2 fstatfs)."""
    found = ctypes.create_string_buffer(_STATFS_SIZE)
    _check(_libc.fstatfs(fd, found))
    number: int = _STATFS_TYPE.unpack_from(found)[0]
    return number


def allow_memory(area: mmap.mmap) -> None:
    """Let an area be read and written again (mprotect(2))."""
    _protect(area, mmap.PROT_READ | mmap.PROT_WRITE)


def deny_memory(area: mmap.mmap) -> None:
    """Have system calls on an area fail with EFAULT, those that run too; Python must not touch it.

    The kernel pins the pages it reads from one by one, and none after this has returned.
    """
    _protect(area, 0)  # PROT_NONE


def _protect(area: mmap.mmap, protection: int) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    _check(_libc.mprotect(address, len(area), protection))


def trim_memory() -> None:
    """Give the kernel back what free(3) has kept, where the C library can (malloc_trim(3))."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def clone_file(source_fd: int, target_fd: int) -> None:
    """Share the source's data blocks with the target (FICLONE, ioctl_ficlone(2))."""
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


# Namespaces and processes (unionfs.run) and mounts. System calls from number 424 on have the same
# number on every architecture; glibc has no function for the four below.
_SYS_OPEN_TREE: Final = 428
_SYS_CLOSE_RANGE: Final = 436
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_AT_RECURSIVE: Final = 0x8000
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 0x1
_MOUNT_ATTR_RDONLY: Final = 0x1
_MOUNT_ATTR_NOATIME: Final = 0x10
_MOUNT_ATTR_ANY_ATIME: Final = 0x70
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10
#: Seconds to wait after each try of what others may disturb.
_AGAIN: Final = (*[0.0] * 50, *[0.01] * 100)

_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.pivot_root.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
_libc.prctl.argtypes = (
    ctypes.c_int,
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_ulong,
)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def unshare(flags: int) -> None:
    """Leave the namespaces named by `CLONE_NEW*` flags for new ones (man 2 unshare)."""
    _check(_libc.unshare(flags))


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Swap the root mount of this mount namespace (man 2 pivot_root)."""
    _check(_libc.pivot_root(new_root, put_old), new_root)


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when the parent thread ends (prctl(2))."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def set_dumpable(dumpable: bool) -> None:  # noqa: FBT001  # the kernel's own flag
    """Allow or forbid others to look into this process through /proc and ptrace (prctl(2))."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0))


def drop_bounding(capability: int) -> None:
    """Give up a capability for this process and all it will execute; EINVAL if there is none."""
    _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))


def close_from(lowest: int) -> None:
    """Close every descriptor from `lowest` on (man 2 close_range)."""
    arguments = (ctypes.c_uint(lowest), ctypes.c_uint(2**32 - 1), ctypes.c_uint(0))
    _check(_libc.syscall(ctypes.c_long(_SYS_CLOSE_RANGE), *arguments))


def open_in_root(root_fd: int, path: bytes, flags: int) -> int:
    """Open `path` with `root_fd` as the root of all its links; no magic links (man 2 openat2).

    A `..` is refused with EAGAIN when anything on the machine was renamed or mounted meanwhile,
    so it is tried again, in the end without success if that goes on for a second or so.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    number = ctypes.c_long(_SYS_OPENAT2)
    for pause in _AGAIN:
        fd: int = _libc.syscall(number, ctypes.c_int(root_fd), path, ctypes.byref(how), size)
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
        time.sleep(pause)
    _check(fd, path)
    return fd


def make_read_only(target: bytes) -> None:
    """Make a mount and all mounts below it read-only (man 2 mount_setattr, Linux 5.12)."""
    _mount_setattr(_AT_FDCWD, target, _AT_RECURSIVE, _MountAttr(attr_set=_MOUNT_ATTR_RDONLY))


def open_unchangeable(file: int) -> int:
    """Open a regular file once more, in a read-only mount of its own without access times.

    Whoever opens the result again cannot write to it, and changes no access time by reading. The
    mount ends with the last descriptor (man 2 open_tree, mount_setattr; Linux 5.12). EPERM without
    CAP_SYS_ADMIN, EINVAL where mounts must not be copied.
    """
    copy = _syscall(_SYS_OPEN_TREE, file, b"", _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC)
    try:
        wanted = _MountAttr(
            _MOUNT_ATTR_NOATIME | _MOUNT_ATTR_RDONLY, _MOUNT_ATTR_ANY_ATIME, MS_PRIVATE, 0
        )
        _mount_setattr(copy, b"", _AT_EMPTY_PATH, wanted)
        return os.open(f"/proc/self/fd/{copy}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(copy)


def _mount_setattr(dirfd: int, path: bytes, flags: int, wanted: _MountAttr) -> None:
    number, size = ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_size_t(ctypes.sizeof(wanted))
    where, how = ctypes.c_int(dirfd), ctypes.c_uint(flags)
    _check(_libc.syscall(number, where, path, how, ctypes.byref(wanted), size), path)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    values = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *values))
    _check(result)
    return result


def fsopen(fstype: bytes) -> int:
    """Return a new filesystem context (man 2 fsopen); ENODEV when the kernel has no such type."""
    return _syscall(_SYS_FSOPEN, fstype, _CLOEXEC)


def fsconfig_set(fd: int, key: bytes, value: bytes | None = None) -> None:
    """Set an option of a filesystem context; the kernel takes values up to 255 bytes."""
    command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
    _syscall(_SYS_FSCONFIG, fd, command, key, value, 0)


def fsconfig_create(fd: int) -> None:
    """Make the superblock of a filesystem context."""
    _syscall(_SYS_FSCONFIG, fd, _FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fd: int, attributes: int = 0) -> int:
    """Return a descriptor of the mount of a context, attached nowhere (`MOUNT_ATTR_*` flags)."""
    return _syscall(_SYS_FSMOUNT, fd, _CLOEXEC, attributes)


def move_mount(fd: int, target: bytes) -> None:
    """Attach a detached mount at `target` (man 2 move_mount)."""
    _syscall(_SYS_MOVE_MOUNT, fd, b"", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH)


_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_SIZE: Final = 256
_STATX_DEV_AT: Final = 136  # stx_dev_major and stx_dev_minor


def device_of(path: bytes) -> tuple[int, int]:
    """Return the device of what a path leads to, without asking a server (man 2 statx).

    stat(2) would wait for the process behind a FUSE or network filesystem.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    where, flags = ctypes.c_int(_AT_FDCWD), ctypes.c_int(_AT_STATX_DONT_SYNC)
    _check(_libc.statx(where, path, flags, ctypes.c_uint(0), buffer), path)
    major, minor = struct.unpack_from("=II", buffer, _STATX_DEV_AT)
    return major, minor


def file_handle(dirfd: int, name: bytes) -> tuple[int, bytes]:
    """Return type and bytes of a file's handle, links not followed (man 2 name_to_handle_at).

    EOPNOTSUPP where the filesystem has no handles.
    """
    handle = _FileHandle(_MAX_HANDLE, 0)
    mount_id = ctypes.c_int()
    _check(
        _libc.name_to_handle_at(dirfd, name, ctypes.byref(handle), ctypes.byref(mount_id), 0), name
    )
    return handle.handle_type, bytes(handle.f_handle[: handle.handle_bytes])


def has_all_ids() -> bool:
    """Tell whether the present user namespace has every id, as the first one does."""
    with open("/proc/self/uid_map", encoding="ascii") as table:
        return table.read().split() == ["0", "0", "4294967295"]


def has_capability(number: int) -> bool:
    """Tell whether the caller holds a `CAP_*` capability, in its own user namespace."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapEff:"):
                return bool(int(line[7:], 16) >> number & 1)
    return False
