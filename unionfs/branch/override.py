"""Ownership, mode and type kept in an xattr where the caller may not make them real.

The format is that of containers/storage and fuse-overlayfs, so their trees and ours
read alike: `user.containers.override_stat` = `UID:GID:MODE[:TYPE]`, mode in octal,
type one of file, dir, symlink, pipe, socket, block-MAJOR-MINOR, char-MAJOR-MINOR.

Invariant: `Override.parse(o.encode()) == o`, and anything malformed gives None, so a
hostile value can hide nothing and never raises.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final

import attrs

__all__ = ["ENCODED_PREFIX", "MAX_ID", "OWNER_XATTR", "STAT_XATTR", "Override"]

STAT_XATTR: Final = "user.containers.override_stat"
#: xattrs a plain user may not set are stored under this prefix (fuse-overlayfs's convention).
ENCODED_PREFIX: Final = "user.containers.override_"
#: On the branch root: the real `UID:GID` that stand for image ids 0:0 where nothing is recorded.
OWNER_XATTR: Final = "user.unionfs.owner"
#: Largest id; 2**32 - 1 means "no change" to chown(2).
MAX_ID: Final = 2**32 - 2

_TYPES: Final = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}
_NAMES: Final = {fmt: name for name, fmt in _TYPES.items()}
_DEVICES: Final = {"block": stat.S_IFBLK, "char": stat.S_IFCHR}
_PATTERN: Final = re.compile(
    r"(\d{1,10}):(\d{1,10}):0?([0-7]{1,6})"
    r"(?::(file|dir|symlink|pipe|socket|(?:block|char)-\d{1,10}-\d{1,10}))?",
    re.ASCII,
)


@attrs.frozen
class Override:
    """Presented `uid`, `gid`, permission bits `mode` (0-07777), file type and device number.

    `fmt` is an S_IF* constant, or 0 when the value has no type field (the file's own counts).
    """

    uid: int
    gid: int
    mode: int
    fmt: int = 0
    rdev: int = 0

    @classmethod
    def parse(cls, value: bytes) -> Override | None:
        """Decode an xattr value; None when it is malformed or an id is out of range."""
        match = _PATTERN.fullmatch(value.decode("ascii", "replace"))
        if match is None:
            return None
        uid, gid, mode = int(match[1]), int(match[2]), int(match[3], 8)
        if uid > MAX_ID or gid > MAX_ID:
            return None
        kind = match[4]
        if kind is None:
            return cls(uid, gid, mode & 0o7777)
        if kind in _TYPES:
            return cls(uid, gid, mode & 0o7777, _TYPES[kind])
        name, major, minor = kind.split("-")
        if int(major) >= 2**12 or int(minor) >= 2**20:
            return None
        rdev = os.makedev(int(major), int(minor))
        return cls(uid, gid, mode & 0o7777, _DEVICES[name], rdev)

    def encode(self) -> bytes:
        """Return the xattr value."""
        text = f"{self.uid}:{self.gid}:{self.mode:04o}"
        if self.fmt in _NAMES:
            text += f":{_NAMES[self.fmt]}"
        elif self.fmt:
            name = "block" if self.fmt == stat.S_IFBLK else "char"
            text += f":{name}-{os.major(self.rdev)}-{os.minor(self.rdev)}"
        return text.encode()
