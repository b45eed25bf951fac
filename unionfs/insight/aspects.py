"""In what two entries differ: type, mode, owner, device, size, content, target, xattrs, time.

Invariant: equal (device, inode) means equal without reading; otherwise contents are compared
byte by byte, for sizes and times prove nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs.branch import Branch, Status
from unionfs.insight.probe import kind_name

__all__ = ["Place", "differences", "place_at", "same_content"]

_CHUNK: Final = 256 * 1024


class Place(NamedTuple):
    """An entry by its branch, the fd of its directory and its name."""

    branch: Branch
    fd: int
    name: bytes

    def status(self) -> Status:
        """Return its attributes."""
        return self.branch.status(self.fd, self.name)


def place_at(branch: Branch, path: bytes) -> Place:
    """Open the directory of `path`; the caller closes `fd`."""
    parent, _, name = path.rpartition(b"/")
    return Place(branch, branch.open_path(parent), name or b".")


def differences(old: Place, new: Place, *, times: bool = True) -> tuple[str, ...]:
    """Return what differs, in words; without `times`, times do not count.

    Times of directories never count: every operation in them changes them.
    """
    return tuple(_differences(old, new, old.status(), new.status(), times=times))


def _differences(
    old: Place, new: Place, before: Status, after: Status, *, times: bool
) -> Iterator[str]:
    if before.fmt != after.fmt:
        yield f"type ({kind_name(before.fmt)} to {kind_name(after.fmt)})"
        return
    if before.fmt != stat.S_IFLNK and before.mode != after.mode:
        yield f"mode ({stat.S_IMODE(before.mode):04o} to {stat.S_IMODE(after.mode):04o})"
    if (before.uid, before.gid) != (after.uid, after.gid):
        yield f"owner ({before.uid}:{before.gid} to {after.uid}:{after.gid})"
    if before.rdev != after.rdev:
        yield "device number"
    if (before.dev, before.ino) != (after.dev, after.ino):
        if before.fmt == stat.S_IFLNK:
            if old.branch.readlink(old.fd, old.name) != new.branch.readlink(new.fd, new.name):
                yield "target"
        elif before.fmt == stat.S_IFREG:
            if before.size != after.size:
                yield f"size ({before.size} to {after.size})"
            elif not same_content(old, new):
                yield "content"
        if old.branch.all_xattrs(old.fd, old.name) != new.branch.all_xattrs(new.fd, new.name):
            yield "xattrs"
    if times and before.fmt != stat.S_IFDIR and before.mtime_ns != after.mtime_ns:
        yield "time"


def same_content(old: Place, new: Place) -> bool:
    """Compare two regular files of one size."""
    with (
        open(old.branch.open_file(old.fd, old.name, os.O_RDONLY), "rb", buffering=0) as left,
        open(new.branch.open_file(new.fd, new.name, os.O_RDONLY), "rb", buffering=0) as right,
    ):
        while True:
            one, two = _read(left.fileno()), _read(right.fileno())
            if one != two:
                return False
            if not one:
                return True


def _read(fd: int) -> bytes:
    """Read a whole chunk, or what is left."""
    parts = []
    left = _CHUNK
    while left:
        data = os.read(fd, left)
        if not data:
            break
        parts.append(data)
        left -= len(data)
    return b"".join(parts)
