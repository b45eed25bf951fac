"""What the explorer knows: every directory of every branch as read, and its merge under a lens.

A lens compares the layers up to `top` with those up to `below`. Every name that a layer up to `top`
has in a directory gets one kind: what came, changed, went, or was gone before already.

Invariant: a directory is read once in each branch that has it, and only when somebody opens it or
something in it; the merges are those of `unionfs.branch.merge`, so this shows what a mount shows.
Reading may happen in several threads; what is read is never changed afterwards.
"""

from __future__ import annotations

import bisect
import contextlib
import enum
import os
import stat
from collections.abc import Callable
from typing import Final, Self

import attrs

from unionfs.branch import Branch, Child, DirScan, Status, merge
from unionfs.insight.probe import join, split_path
from unionfs.insight.where import Where

__all__ = ["ALL_KINDS", "Cancelled", "Entry", "Explorer", "Folder", "Kind", "Lens", "Tick", "up_to"]

#: Called every now and then by long work; raises `Cancelled` to end it.
Tick = Callable[[], None]


class Cancelled(Exception):  # noqa: N818  # no error: somebody wanted it
    """Long work was given up because nobody waits for it any more."""


class Kind(enum.Enum):
    """What became of a name; the value is the mark by which it is shown."""

    ADDED = "+"
    CHANGED = "~"
    DELETED = "-"
    HIDDEN = "!"
    SAME = " "


ALL_KINDS: Final = frozenset(Kind)


@attrs.frozen
class Lens:
    """The layers up to number `top` are shown and compared with those up to `below`."""

    top: int
    below: int


@attrs.frozen
class Entry:
    """A name in a folder.

    `number` is the branch whose entry is meant: the one that shows it, or for what is gone the one
    that last showed it. `opens` says that there is a directory to look into, be it one whose place
    something else took.
    """

    name: bytes
    kind: Kind
    number: int
    is_dir: bool
    opens: bool


class Raw:
    """A directory as the branches have it: their scans, top first, and what could not be read."""

    __slots__ = ("failed", "scans")

    def __init__(self) -> None:
        self.scans: dict[int, DirScan] = {}
        self.failed: dict[int, str] = {}


class Folder:
    """One directory under a lens.

    `now` and `before` are its merges; the numbers in `shows` and `showed` are the branches that
    make them, top first, and empty where the directory is not visible. `names` are sorted, and all
    that some layer up to the lens's top has.
    """

    __slots__ = (
        *("before", "dirs", "lens", "names", "now", "path", "raw", "showed", "shows", "statuses"),
        "sums",
    )

    def __init__(
        self, lens: Lens, path: bytes, shows: tuple[int, ...], showed: tuple[int, ...], raw: Raw
    ) -> None:
        self.lens = lens
        self.path = path
        self.shows = shows
        self.showed = showed
        self.raw = raw
        self.now = _merged(raw, shows)
        self.before = self.now if showed == shows else _merged(raw, showed)
        held = [scan.entries for number, scan in raw.scans.items() if number <= lens.top]
        self.names = sorted(set().union(*held) if len(held) != 1 else held[0])
        #: Names that some branch has as a directory.
        self.dirs = {name for names in held for name, fmt in names.items() if fmt == stat.S_IFDIR}
        self.statuses: dict[bytes, Status | str] = {}
        #: Bytes in directories, as far as somebody asked for them.
        self.sums: dict[bytes, int] = {}

    def entry(self, name: bytes) -> Entry:
        """Return a name's entry; the empty name is the folder itself (for the root only)."""
        if not name:
            kind = _kind(self.shows or None, self.showed or None)
            return Entry(name, kind, max(self.shows or self.raw.scans or (1,)), True, True)
        now, before = self.now.get(name), self.before.get(name)
        kind = _kind(now and now.branches, before and before.branches)
        found = now or before
        if found is not None:
            number, is_dir = found.branches[0], found.is_dir
        else:
            number, fmt = next(
                (number, scan.entries[name])
                for number, scan in self.raw.scans.items()
                if number <= self.lens.top and name in scan.entries
            )
            is_dir = fmt == stat.S_IFDIR
        return Entry(name, kind, number, is_dir, name in self.dirs)

    def sides(self, name: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the branches that make the directory `name` now and those that made it before."""
        return _dirs(self.now.get(name)), _dirs(self.before.get(name))

    def kind(self, name: bytes) -> Kind:
        """Return a name's kind alone."""
        now, before = self.now.get(name), self.before.get(name)
        return _kind(now and now.branches, before and before.branches)

    def has(self, name: bytes) -> bool:
        """Tell whether some layer up to the lens's top has the name."""
        place = bisect.bisect_left(self.names, name)
        return place < len(self.names) and self.names[place] == name

    def is_shown(self, name: bytes, kinds: frozenset[Kind]) -> bool:
        """Tell whether a name is wanted, for itself or as the way to something that may be."""
        kind = self.kind(name)
        if kind in kinds:
            return True
        # Something came, went or changed in a changed directory, or it would not be one.
        return kind is Kind.CHANGED and self.now[name].is_dir and bool(kinds & _CHANGES)

    @property
    def problem(self) -> str:
        """What could not be read, in words; empty when all was."""
        return ", ".join(
            f"layer {number}: {reason}"
            for number, reason in self.raw.failed.items()
            if number <= self.lens.top
        )


_CHANGES: Final = frozenset({Kind.ADDED, Kind.CHANGED, Kind.DELETED})


def _kind(now: tuple[int, ...] | None, before: tuple[int, ...] | None) -> Kind:
    if now is None:
        return Kind.HIDDEN if before is None else Kind.DELETED
    if before is None:
        return Kind.ADDED
    return Kind.SAME if now == before else Kind.CHANGED


def _merged(raw: Raw, numbers: tuple[int, ...]) -> dict[bytes, Child]:
    return merge((number, raw.scans[number]) for number in numbers if number in raw.scans)


def up_to(where: Where, number: int) -> Where:
    """Return `where` with the branches up to a number only."""
    return attrs.evolve(
        where, branches=tuple(named for named in where.branches if named.number <= number)
    )


class Explorer:
    """The branches, open. `reads` counts the directories read."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.reads = 0
        self._raw: dict[bytes, Raw] = {}
        with contextlib.ExitStack() as stack:
            self._branches: dict[int, Branch] = {
                named.number: stack.enter_context(named.open()) for named in where.branches
            }
            self._open = stack.pop_all()

    def close(self) -> None:
        """Close the branches."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def top(self) -> int:
        """The number of the topmost branch."""
        return self.where.branches[0].number

    def lens(self, top: int, *, aggregated: bool) -> Lens:
        """Return the lens for a layer: against the one below, or all changes since the base."""
        return Lens(top, 1 if aggregated else top - 1)

    def branches(self, number: int) -> list[Branch]:
        """Return the open branches up to a number, top first."""
        return [branch for at, branch in self._branches.items() if at <= number]

    def branch(self, number: int) -> Branch:
        """Return the open branch of a number."""
        return self._branches[number]

    def forget(self) -> None:
        """Read every directory anew from now on."""
        self._raw = {}

    def root(self, lens: Lens) -> Folder:
        """Return the root under a lens."""
        numbers = tuple(self._branches)
        return Folder(
            lens,
            b"",
            tuple(number for number in numbers if number <= lens.top),
            tuple(number for number in numbers if number <= lens.below),
            self._read(b"", numbers),
        )

    def inner(self, folder: Folder, name: bytes) -> Folder | None:
        """Return a folder in another, also one that is gone; None where there never was one."""
        if name not in folder.dirs:
            return None
        numbers = tuple(
            number
            for number, scan in folder.raw.scans.items()
            if scan.entries.get(name) == stat.S_IFDIR
        )
        path = join(folder.path, name)
        return Folder(folder.lens, path, *folder.sides(name), self._read(path, numbers))

    def folder(self, lens: Lens, path: bytes) -> Folder | None:
        """Return the folder at a path."""
        found: Folder | None = self.root(lens)
        for name in split_path(path):
            found = found and self.inner(found, name)
        return found

    def _read(self, path: bytes, numbers: tuple[int, ...]) -> Raw:
        found = self._raw.get(path)
        if found is None:
            found = Raw()
            for number in numbers:
                try:
                    found.scans[number] = self._scan(self._branches[number], path)
                except OSError as exc:
                    found.failed[number] = exc.strerror or str(exc)
            self._raw[path] = found
        return found

    def _scan(self, branch: Branch, path: bytes) -> DirScan:
        fd = branch.open_path(path)
        try:
            self.reads += 1
            return branch.scan(fd)
        finally:
            os.close(fd)

    def status(self, folder: Folder, name: bytes) -> Status | str:
        """Return the attributes of a name, or why there are none; asked of the disk once."""
        found = folder.statuses.get(name)
        if found is None:
            branch = self._branches[folder.entry(name).number]
            try:
                found = self._status(branch, folder.path, name)
            except OSError as exc:
                found = exc.strerror or str(exc)
            folder.statuses[name] = found
        return found

    @staticmethod
    def _status(branch: Branch, path: bytes, name: bytes) -> Status:
        fd = branch.open_path(path)
        try:
            return branch.status(fd, name or b".")
        finally:
            os.close(fd)

    def target(self, folder: Folder, name: bytes) -> bytes:
        """Return where a symbolic link leads; empty when it is none any more."""
        branch = self._branches[folder.entry(name).number]
        try:
            fd = branch.open_path(folder.path)
            try:
                return branch.readlink(fd, name)
            finally:
                os.close(fd)
        except OSError:
            return b""

    def source(self, folder: Folder, name: bytes) -> int:
        """Return the number up to which the branches show the name as it is shown here."""
        entry = folder.entry(name)
        if entry.kind is Kind.HIDDEN:
            return entry.number
        return folder.lens.below if entry.kind is Kind.DELETED else folder.lens.top


def _dirs(child: Child | None) -> tuple[int, ...]:
    return child.branches if child is not None and child.is_dir else ()
