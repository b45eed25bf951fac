"""What the kernel offers over FUSE: the INIT request of a scratch mount, read and not answered.

Invariant: the mount is gone when `read_init()` returns; nobody ever waits for an answer,
because the device is closed first.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
from typing import Any, Final

from unionfs.errors import UnionfsError
from unionfs.fuse.device import mount_device, unmount
from unionfs.fuse.options import MountOptions
from unionfs.fuse.protocol import IN_HEADER, Op, offered

__all__ = ["FEATURES", "parse_init", "read_init"]

_INIT: Final = struct.Struct("=IIII")
_BUFFER: Final = 1 << 16
_MILLISECONDS: Final = 5000

#: Names of FUSE_INIT flags that matter to a union (include/uapi/linux/fuse.h).
FEATURES: Final = {
    "posix locks": 1 << 1,
    "umask left to us": 1 << 12,
    "readdirplus": 1 << 13,
    "async direct io": 1 << 15,
    "writeback cache": 1 << 16,
    "no open needed": 1 << 17,
    "parallel dir operations": 1 << 18,
    "handle killpriv": 1 << 19,
    "posix acl": 1 << 20,
    "max pages": 1 << 22,
    "symlink cache": 1 << 23,
    "no opendir needed": 1 << 24,
    "explicit invalidation": 1 << 25,
    "handle killpriv v2": 1 << 28,
    "setxattr ext": 1 << 29,
    "create supp group": 1 << 34,
    "expire only": 1 << 35,
    "direct io mmap": 1 << 36,
    "passthrough": 1 << 37,
    "no export": 1 << 38,
    "resend": 1 << 39,
    "idmapped mounts": 1 << 40,
    "io_uring": 1 << 41,
}


def parse_init(request: bytes) -> dict[str, Any]:
    """Return `version`, `max_readahead` (bytes) and `features` of a FUSE_INIT request.

    Raises ValueError for anything else.
    """
    if len(request) < IN_HEADER.size + _INIT.size:
        raise ValueError("too short for FUSE_INIT")
    if IN_HEADER.unpack_from(request)[1] != Op.INIT:
        raise ValueError("not FUSE_INIT")
    major, minor, read_ahead, _ = _INIT.unpack_from(request, IN_HEADER.size)
    flags = offered(request)
    return {
        "version": f"{major}.{minor}",
        "max_readahead": read_ahead,
        "features": [name for name, bit in FEATURES.items() if flags & bit],
    }


def read_init(target: bytes) -> dict[str, Any]:
    """Mount a FUSE device on the directory `target`, return what the kernel offers, unmount.

    Raises `UnionfsError` with the reason when that does not work.
    """
    options = MountOptions().settled(uid=os.geteuid(), writable=True)
    fd = mount_device(target, options)
    try:
        if not select.select([fd], [], [], _MILLISECONDS / 1000)[0]:
            raise UnionfsError("the kernel sent no FUSE_INIT")
        return parse_init(os.read(fd, _BUFFER))
    except (OSError, ValueError) as exc:
        raise UnionfsError(f"no usable FUSE_INIT: {exc}") from exc
    finally:
        os.close(fd)  # first: the unmount must not wait for an answer
        with contextlib.suppress(UnionfsError):
            unmount(target, lazy=True)
