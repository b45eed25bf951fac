"""The FUSE wire format as far as the lane speaks it (the kernel's uapi/linux/fuse.h).

Invariant: pure packing and unpacking. Numbers are in the machine's byte order, which is
the protocol's; times before 1970 and sizes keep their sign.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from unionfs.union import Attr

__all__ = [
    "ATTR_OUT",
    "DIRENT",
    "ENTRY_OUT",
    "FATTR_ATIME",
    "FATTR_ATIME_NOW",
    "FATTR_GID",
    "FATTR_MODE",
    "FATTR_MTIME",
    "FATTR_MTIME_NOW",
    "FATTR_SIZE",
    "FATTR_UID",
    "FOPEN_KEEP_CACHE",
    "FOPEN_NOFLUSH",
    "FOPEN_PASSTHROUGH",
    "INVAL_INODE",
    "IN_HEADER",
    "NOTIFY_INVAL_INODE",
    "NOTIFY_STORE",
    "OPEN_OUT",
    "OUT_HEADER",
    "SETATTR_IN",
    "WRITE_IN",
    "InitFlag",
    "Op",
    "offered",
    "pack_attr",
    "pack_dirent",
    "pack_entry",
    "pack_listed",
    "timeout",
]


class Op(enum.IntEnum):
    """Request kinds that the lane knows."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47


class InitFlag(enum.IntFlag):
    """Features agreed on in INIT."""

    ATOMIC_O_TRUNC = 1 << 3
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
#: The kernel leaves it to the server to take setuid and setgid away, with HANDLE_KILLPRIV_V2.
FATTR_KILL_SUIDGID: Final = 1 << 11
#: These say how a SETATTR came about, not what to set.
FATTR_ABOUT: Final = 1 << 6 | 1 << 9  # a handle, a lock owner
WRITE_KILL_SUIDGID: Final = 1 << 2
OPEN_KILL_SUIDGID: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7
#: Codes of notifications: drop what is known of an inode, fill the page cache.
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_STORE: Final = 4

#: len, opcode, unique, nodeid, uid, gid, pid, padding
IN_HEADER: Final = struct.Struct("=IIQQIIII")
#: Where INIT has its flags in the request, the upper half behind the lower.
_FLAGS_ASKED: Final = IN_HEADER.size + 12
_FLAGS: Final = struct.Struct("=I")
_ALL_FLAGS: Final = struct.Struct("=Q")
#: len, error, unique
OUT_HEADER: Final = struct.Struct("=IiQ")
#: fh, offset, size, flags, lock owner, open flags, padding; the same for READ and READDIR
WRITE_IN: Final = struct.Struct("=QQIIQII")
#: valid, -, fh, size, lock owner, atime, mtime, ctime, their ns, mode, -, uid, gid, -
SETATTR_IN: Final = struct.Struct("=IIQQQqqqIIIIIIII")
#: nodeid, first byte or -1 for the attributes alone, number of bytes
INVAL_INODE: Final = struct.Struct("=Qqq")
#: fh, open flags, backing id
OPEN_OUT: Final = struct.Struct("=QIi")
#: ino, offset, length of the name, type; the name follows, and padding
DIRENT: Final = struct.Struct("=QQII")

_ATTR: Final = "QQQqqqIIIIIIIIII"
#: nodeid, generation, entry and attribute timeouts (s, s, ns, ns), attributes
ENTRY_OUT: Final = struct.Struct("=QQQQII" + _ATTR)
#: ENTRY_OUT and DIRENT in one
_LISTED: Final = struct.Struct(f"{ENTRY_OUT.format}{DIRENT.format[1:]}")
#: timeout (s, ns), padding, attributes
ATTR_OUT: Final = struct.Struct("=QII" + _ATTR)

_ALIGN: Final = 8
_PADDING: Final = [b"\0" * length for length in range(_ALIGN)]
_BILLION: Final = 1_000_000_000
_BLOCK: Final = 4096
_DEV_MASK: Final = 0xFFFFFFFF


def offered(message: bytes | memoryview) -> InitFlag:
    """Return what the kernel offers in an INIT request, features without a name here included."""
    flags = InitFlag(_FLAGS.unpack_from(message, _FLAGS_ASKED)[0])
    if flags & InitFlag.INIT_EXT and len(message) >= _FLAGS_ASKED + _ALL_FLAGS.size:
        flags = InitFlag(_ALL_FLAGS.unpack_from(message, _FLAGS_ASKED)[0])
    return flags


def timeout(seconds: float) -> tuple[int, int]:
    """Return a timeout as whole seconds and ns."""
    whole = int(seconds)
    return whole, int((seconds - whole) * _BILLION)


def _fields(attr: Attr, uid: int, gid: int) -> tuple[int, ...]:
    ino, mode, nlink, _, _, rdev, size, blocks, atime, mtime, ctime = attr
    return (
        ino,
        size,
        blocks,
        atime // _BILLION,
        mtime // _BILLION,
        ctime // _BILLION,
        atime % _BILLION,
        mtime % _BILLION,
        ctime % _BILLION,
        mode,
        nlink,
        uid,
        gid,
        rdev & _DEV_MASK,
        _BLOCK,
        0,
    )


def pack_attr(attr: Attr, uid: int, gid: int, attr_timeout: tuple[int, int]) -> bytes:
    """Return the answer to GETATTR; `uid` and `gid` as they are shown."""
    return ATTR_OUT.pack(*attr_timeout, 0, *_fields(attr, uid, gid))


def pack_entry(
    attr: Attr, uid: int, gid: int, entry_timeout: tuple[int, int], attr_timeout: tuple[int, int]
) -> bytes:
    """Return the answer to LOOKUP and to whatever makes a name."""
    entry_s, entry_ns = entry_timeout
    attr_s, attr_ns = attr_timeout
    return ENTRY_OUT.pack(attr.ino, 0, entry_s, attr_s, entry_ns, attr_ns, *_fields(attr, uid, gid))


def pack_dirent(ino: int, offset: int, name: bytes, kind: int) -> bytes:
    """Return an entry of READDIR; `kind` is the type as d_type has it."""
    length = len(name)
    return DIRENT.pack(ino, offset, length, kind) + name + _PADDING[-length % _ALIGN]


def pack_listed(
    attr: Attr,
    offset: int,
    name: bytes,
    owner: tuple[int, int],
    timeouts: tuple[int, int, int, int],
) -> bytes:
    """Return an entry of READDIRPLUS; `timeouts` are of entry and attributes: s, s, ns, ns."""
    ino, length = attr.ino, len(name)
    fields = _fields(attr, *owner)
    packed = _LISTED.pack(ino, 0, *timeouts, *fields, ino, offset, length, attr.mode >> 12)
    return packed + name + _PADDING[-length % _ALIGN]
