"""Which directories are worth being listed as a whole, guessed from the names looked for in them.

A program that looks for many names of a directory one by one (git status, imports, make) will
look for more of them, and then for those of the directories beside it, in the order of their
names. A directory is worth listing once names for a part of it (one in `_WORTH`, two at least) were
looked for. Where this was so before for its neighbours the first name is enough, and the
directories that follow come with it: twice as many as were listed in a row before it, up to
`_MOST`.

Invariant: a directory is named at most once as a neighbour, and once for itself if it has not been
listed by then, until it is forgotten; a large one only for itself. What is remembered is bounded by
what the kernel knows, and in each row of neighbours by `_ROW`.
"""

from __future__ import annotations

import bisect
from typing import Final, Protocol

__all__ = ["Directories", "Sought"]

_WORTH: Final = 32
_FEWEST: Final = 2
#: Neighbours found worth it after which the first name is enough, for directories not too large.
_SURE: Final = 2
_SMALL: Final = 512
_MOST: Final = 16
_ROW: Final = 4096
_NAMED: Final = -1


class Directories(Protocol):
    """What has to be known of the directories; numbers are those of inodes."""

    def count_names(self, ino: int) -> int:
        """Return about how many names a directory has."""

    def parent(self, ino: int) -> int:
        """Return a directory's parent; the root is its own."""

    def path(self, ino: int) -> bytes:
        """Return the path relative to the root, which is empty itself."""

    def directories(self, ino: int) -> list[bytes]:
        """Return the names of a directory's subdirectories, sorted."""


class _Row:
    """Directories with the same parent: their names, sorted, and which have been named."""

    __slots__ = ("found", "named", "names", "prefix")

    def __init__(self, prefix: bytes, names: list[bytes]) -> None:
        self.prefix = prefix
        self.names = names
        self.named: set[int] = set()
        self.found = 0

    def place(self, name: bytes) -> int:
        """Return where a name is, or -1."""
        index = bisect.bisect_left(self.names, name)
        return index if index < len(self.names) and self.names[index] == name else -1

    def following(self, index: int) -> list[bytes]:
        """Name those after the directory at a place that are worth it too."""
        self.named.add(index)
        before = index
        while before and index - before < _MOST and before - 1 in self.named:
            before -= 1
        last = index + min(2 * (index - before), _MOST)
        after = range(index + 1, min(last + 1, len(self.names)))
        chosen = [i for i in after if i not in self.named]
        self.named.update(chosen)
        return [self.prefix + self.names[i] for i in chosen]


class Sought:
    """The directories of one mount in which names are looked for.

    `looked` is called for every name that is found; all that asks `directories` needs their lock.
    """

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        #: How many more names must be looked for; `_NAMED` when that has no more to say.
        self._left: dict[int, int] = {}
        #: Those named that the kernel has not begun to list.
        self._awaited: set[int] = set()
        self._rows: dict[int, _Row] = {}

    def looked(self, directory: int) -> bool:
        """Note that a name was looked for and found; tell whether to ask `worth`."""
        left = self._left.get(directory)
        if left is None:
            return True
        if left == _NAMED:
            return False
        self._left[directory] = left - 1
        return left <= 1

    def worth(self, directory: int) -> list[bytes]:
        """Return the paths of directories to list now, that one first; needs the lock."""
        left = self._left.get(directory)
        parent = self._directories.parent(directory)
        row = self._rows.get(parent)
        if left is None:
            count = self._directories.count_names(directory)
            sure = row is not None and row.found >= _SURE and count <= _SMALL
            needed = 1 if sure else max(_FEWEST, count // _WORTH)
            if needed > 1:
                self._left[directory] = needed - 1
                return []
        self._left[directory] = _NAMED
        self._awaited.add(directory)
        path = self._directories.path(directory)
        if parent == directory:
            return [path]
        if row is None:
            few = self._directories.count_names(parent) <= _ROW
            names = self._directories.directories(parent) if few else []
            row = self._rows[parent] = _Row(path[: path.rfind(b"/") + 1], names)
        row.found += 1
        index = row.place(path[len(row.prefix) :])
        return [path, *row.following(index)] if index >= 0 else [path]

    def too_large(self, directory: int) -> bool:
        """Tell whether one about to be listed was named as a neighbour, and is large."""
        return directory not in self._awaited and self._directories.count_names(directory) > _SMALL

    def listed(self, directory: int) -> None:
        """Note that the kernel lists a directory: its names need not be looked for."""
        self._left[directory] = _NAMED
        self._awaited.discard(directory)

    def unlisted(self, directory: int) -> None:
        """Note that this directory and those named before will not be listed."""
        for number in (directory, *self._awaited):
            self._left.pop(number, None)
        self._awaited.clear()
        self._rows.clear()

    def forget(self, directory: int) -> None:
        """Drop what is known of a directory that the kernel knows no longer."""
        self._left.pop(directory, None)
        self._awaited.discard(directory)
        self._rows.pop(directory, None)
