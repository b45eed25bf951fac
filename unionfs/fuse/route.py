"""Which directories will be listed next, guessed from the order of those that were.

Programs that walk a tree list a directory, then go down into its subdirectories one after
the other, in the order of the listing.

Invariant: what is remembered is bounded (`_MOST` directories), and nothing is foretold before
`_RUN` directories in a row were met where they were expected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

__all__ = ["Route"]

_RUN: Final = 2
_MOST: Final = 4096
#: Directories that a walk may leave out without having lost its way.
_SKIP: Final = 16


class Route:
    """The way of one mount's walkers. All numbers are inode numbers."""

    def __init__(self) -> None:
        self._expected: deque[int] = deque()
        self._run = 0
        self._parts = 0

    def entered(self, directory: int) -> None:
        """Note that a directory's listing begins."""
        self._parts = 0
        for index, expected in enumerate(islice(self._expected, _SKIP)):
            if expected == directory:
                for _ in range(index + 1):
                    self._expected.popleft()
                self._run += 1
                return
        self._expected.clear()
        self._run = 0

    def met(self, directories: Sequence[int]) -> None:
        """Note the subdirectories in the next part of the listing last begun."""
        self._expected.rotate(-self._parts)
        self._expected.extendleft(reversed(directories))
        self._expected.rotate(self._parts)
        self._parts += len(directories)
        while len(self._expected) > _MOST:
            self._expected.pop()

    def ahead(self, count: int) -> list[int]:
        """Return the directories that will be listed next."""
        return list(islice(self._expected, count)) if self._run >= _RUN else []
