"""What a branch changes in the layers below it, as `docker diff` shows it.

The comparison is of the merged view before and after: a path that was not visible is added (A),
one that is no longer visible is deleted (D, the topmost directory only), one whose type, mode,
owner, device number, link target, extended attributes, size, time or content differ is changed
(C). Times of directories do not count, since every operation in them changes them; the root is
never reported.

Invariant: the result is sorted by path and says each path once; what it says does not depend on
how the branch spells it (a whiteout and an entry of one name, opaque markers, whiteouts that hide
nothing).
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Sequence
from typing import Final

import attrs

from unionfs.branch import Branch, Dialect, DirView, Stack, Status
from unionfs.errors import show
from unionfs.store.rw import open_rw

__all__ = ["Change", "ChangeKind", "changes", "compare"]

_CHUNK: Final = 256 * 1024


class ChangeKind(enum.Enum):
    """The kinds of the first Docker, with its letters."""

    MODIFY = "C"
    ADD = "A"
    DELETE = "D"


@attrs.frozen
class Change:
    """One changed `path`: absolute inside the image, raw bytes.

    `str()` is the line for people, `A /p`, with unprintable characters escaped.
    """

    kind: ChangeKind
    path: bytes

    def __str__(self) -> str:
        return f"{self.kind.value} {show(self.path)}"


def changes(layers: Sequence[bytes], rw: bytes, dialect: Dialect | None = None) -> list[Change]:
    """Return what the branch at `rw` changes in `layers` (directories, top first).

    A missing `rw` changes nothing. `dialect` says how it marks deletions; None finds out.
    """
    branch = open_rw(rw, dialect)
    if branch is None:
        return []
    with branch:
        if not layers:
            return compare(branch, None)
        with Stack.open(layers) as stack:
            return compare(branch, stack)


def compare(branch: Branch, below: Stack | None) -> list[Change]:
    """Return what an open branch changes in the merged view `below` (None: nothing there)."""
    return _Comparison(branch, below).run()


class _Comparison:
    def __init__(self, branch: Branch, below: Stack | None) -> None:
        self._branch = branch
        self._below = below
        self._found: list[Change] = []
        #: Directories to visit, and whether what is below is replaced as a whole.
        self._pending: list[tuple[bytes, bool]] = [(b"", False)]

    def run(self) -> list[Change]:
        while self._pending:
            path, replaced = self._pending.pop()
            below = None if self._below is None else self._below.view(path)
            fd = self._branch.open_path(path)
            try:
                self._directory(fd, path, below, replaced=replaced)
            finally:
                os.close(fd)
        return sorted(self._found, key=lambda change: change.path)

    def _add(self, kind: ChangeKind, path: bytes) -> None:
        self._found.append(Change(kind, b"/" + path))

    def _directory(self, fd: int, path: bytes, below: DirView | None, *, replaced: bool) -> None:
        scan = self._branch.scan(fd)
        listing = {} if below is None else below.listing
        replaced = replaced or scan.opaque
        prefix = path + b"/" if path else b""
        gone = listing.keys() if replaced else scan.whiteouts & listing.keys()
        for name in gone - scan.entries.keys():
            self._add(ChangeKind.DELETE, prefix + name)
        for name, fmt in scan.entries.items():
            if below is None or name not in listing:
                self._add(ChangeKind.ADD, prefix + name)
            elif self._differs(fd, name, below):
                self._add(ChangeKind.MODIFY, prefix + name)
            if fmt == stat.S_IFDIR:
                # Entry and whiteout of one name in one branch: the directory replaces the old one.
                self._pending.append((prefix + name, replaced or name in scan.whiteouts))

    def _differs(self, fd: int, name: bytes, below: DirView) -> bool:
        branch = self._branch
        other, other_fd = below.top(name)
        new, old = branch.status(fd, name), other.status(other_fd, name)
        if _facts(new) != _facts(old):
            return True
        if new.fmt == stat.S_IFLNK:
            if branch.readlink(fd, name) != other.readlink(other_fd, name):
                return True
        elif new.fmt == stat.S_IFREG and not _same_content(
            branch, fd, other, other_fd, name, new.size
        ):
            return True
        return branch.all_xattrs(fd, name) != other.all_xattrs(other_fd, name)


def _facts(st: Status) -> tuple[int, ...]:
    if st.fmt == stat.S_IFDIR:
        return (st.mode, st.uid, st.gid)
    if st.fmt == stat.S_IFLNK:
        return (st.fmt, st.uid, st.gid, st.mtime_ns)
    return (st.mode, st.uid, st.gid, st.rdev, st.size if st.fmt == stat.S_IFREG else 0, st.mtime_ns)


def _same_content(
    one: Branch, one_fd: int, two: Branch, two_fd: int, name: bytes, size: int
) -> bool:
    """Compare two files of equal size and time: only their bytes can tell."""
    first = one.open_file(one_fd, name, os.O_RDONLY)
    try:
        second = two.open_file(two_fd, name, os.O_RDONLY)
        try:
            offset = 0
            while offset < size:
                left, right = os.pread(first, _CHUNK, offset), os.pread(second, _CHUNK, offset)
                length = min(len(left), len(right))
                if left[:length] != right[:length] or not length:
                    return False
                offset += length
            return True
        finally:
            os.close(second)
    finally:
        os.close(first)
