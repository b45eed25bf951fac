"""What one branch says about one path: its entry, and everything that hides what is below.

Invariant: a probe looks up names, it lists no directory, so its cost is the depth of the path;
it follows no link. Names of markers are asked of `unionfs.branch.whiteout` only.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Sequence

import attrs

from unionfs.branch import Branch, Dialect, Status, whiteout
from unionfs.branch.branch import proc_path

__all__ = ["Barrier", "Barring", "Probe", "join", "kind_name", "probe", "split_path"]

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


class Barring(enum.Enum):
    """Why nothing of the branches below shows at a path."""

    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    NOT_DIRECTORY = "not a directory"
    ENTRY = "entry"


@attrs.frozen
class Barrier:
    """Something that ends the search in the branches below.

    `at` is the path that is hidden (WHITEOUT), the opaque directory (OPAQUE), the ancestor that
    is no directory, or the path itself (ENTRY). `marker` is the path of the marker inside the
    branch, empty where an entry or an attribute does it. `fmt` is the type of that entry.
    """

    kind: Barring
    at: bytes
    marker: bytes = b""
    fmt: int = 0


@attrs.frozen
class Probe:
    """What a branch has at a path. `barriers` are ordered from the root down."""

    entry: Status | None
    barriers: tuple[Barrier, ...]


def join(directory: bytes, name: bytes) -> bytes:
    """Return the relative path of `name` in `directory` (empty: the root)."""
    return directory + b"/" + name if directory else name


def kind_name(fmt: int) -> str:
    """Return the word for an S_IF* type."""
    return _KINDS.get(fmt, "entry")


def split_path(path: bytes) -> list[bytes]:
    """Return the components of a path inside an image; `.` and `..` are taken as text.

    The root is its own parent, as everywhere in Unix.
    """
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


def probe(branch: Branch, parts: Sequence[bytes]) -> Probe:
    """Look up a path in one branch."""
    barriers: list[Barrier] = []
    at = b""
    fd = os.dup(branch.fd)
    try:
        for depth, name in enumerate(parts):
            barriers += _opaque(branch, fd, at)
            inner = join(at, name)
            barriers += _whiteout(branch, fd, at, name)
            status = _status(branch, fd, name)
            if status is None:
                return Probe(None, tuple(barriers))
            last = depth == len(parts) - 1
            if status.fmt != stat.S_IFDIR:
                kind = Barring.ENTRY if last else Barring.NOT_DIRECTORY
                barriers.append(Barrier(kind, inner, b"", status.fmt))
                return Probe(status if last else None, tuple(barriers))
            below = branch.open_dir(fd, name)
            os.close(fd)
            fd, at = below, inner
        barriers += _opaque(branch, fd, at)
        return Probe(branch.status(fd, b"."), tuple(barriers))
    finally:
        os.close(fd)


def _lstat(fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise


def _status(branch: Branch, fd: int, name: bytes) -> Status | None:
    """Return the entry of a name; markers are none."""
    found = _lstat(fd, name)
    if found is None or whiteout.is_reserved(name):
        return None
    if branch.dialect is not Dialect.AUFS and _is_zero_device(found):
        return None
    return branch.status(fd, name)


def _is_zero_device(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _opaque(branch: Branch, fd: int, at: bytes) -> list[Barrier]:
    if branch.dialect is Dialect.AUFS:
        if _lstat(fd, whiteout.OPAQUE) is None:
            return []
        return [Barrier(Barring.OPAQUE, at, join(at, whiteout.OPAQUE))]
    attribute = whiteout.opaque_xattr(branch.dialect)
    try:
        found = attribute is not None and os.getxattr(proc_path(fd, b"."), attribute) == b"y"
    except OSError:
        found = False
    return [Barrier(Barring.OPAQUE, at)] if found else []


def _whiteout(branch: Branch, fd: int, at: bytes, name: bytes) -> list[Barrier]:
    if branch.dialect is not Dialect.AUFS:
        found = _lstat(fd, name)
        if found is None or not _is_zero_device(found):
            return []
        return [Barrier(Barring.WHITEOUT, join(at, name), join(at, name))]
    marker, content = whiteout.marker_for(name)
    if whiteout.is_reserved(name) or _lstat(fd, marker) is None:
        return []
    if content and name not in branch.scan(fd).whiteouts:
        return []  # a file of that name which does not hold the hidden name means nothing
    return [Barrier(Barring.WHITEOUT, join(at, name), join(at, marker))]
