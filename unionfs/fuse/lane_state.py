"""What the lane remembers between requests that carry no handles.

With OPEN and OPENDIR declined the kernel names files by inode alone, and a listing goes
on at an offset without saying whose it is. `Files` keeps recently used files open,
`Listings` gives every name of a directory a cookie of its own.

Invariant: a cookie never means another name, so a listing that goes on after the
directory has changed neither skips nor repeats a name that was there all the time.
All methods need the engine's lock (see `unionfs.fuse.lane`).
"""

from __future__ import annotations

import bisect
import resource
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from unionfs.union import Engine

__all__ = ["Files", "Listings"]

_SMALLEST: Final = 16
_LARGEST: Final = 256


class Files:
    """One engine handle per file, the least recently used ones closed first.

    `capacity` is the number of descriptors; by default a part of what the process may have.
    """

    def __init__(self, engine: Engine, capacity: int | None = None) -> None:
        self._engine = engine
        if capacity is None:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            capacity = _LARGEST if soft == resource.RLIM_INFINITY else soft // 4
            capacity = max(_SMALLEST, min(capacity, _LARGEST))
        self._capacity = capacity
        self._handles: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, ino: int) -> bool:
        return ino in self._handles

    def handle(self, ino: int) -> int:
        """Return the handle of a regular file, opened if need be."""
        handle = self._handles.get(ino)
        if handle is None:
            handle = self._engine.open(ino, 0)
            self.adopt(ino, handle)
        else:
            self._handles.move_to_end(ino)
        return handle

    def adopt(self, ino: int, handle: int) -> None:
        """Keep a handle that the engine has just given."""
        old = self._handles.pop(ino, None)
        self._handles[ino] = handle
        if old is not None:
            self._engine.release(old)
        elif len(self._handles) > self._capacity:
            self._engine.release(self._handles.popitem(last=False)[1])

    def forget(self, ino: int) -> None:
        """Close a file that the kernel knows no longer."""
        handle = self._handles.pop(ino, None)
        if handle is not None:
            self._engine.release(handle)


class _Listing:
    """Names in the order of their cookies, which only grow."""

    __slots__ = ("cookies", "names", "next")

    def __init__(self, names: list[bytes]) -> None:
        self.names = names
        self.next = len(names) + 1
        self.cookies: Sequence[int] = range(1, self.next)

    def update(self, current: list[bytes]) -> None:
        """Take over what a directory contains now; names that stay keep their cookies."""
        if current == self.names:
            return
        there = set(current)
        known = set(self.names)
        kept = [pair for pair in zip(self.cookies, self.names, strict=True) if pair[1] in there]
        for name in current:
            if name not in known:
                kept.append((self.next, name))
                self.next += 1
        self.cookies = [cookie for cookie, _ in kept]
        self.names = [name for _, name in kept]


class Listings:
    """Listings by directory, kept until the kernel forgets the directory."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[int, _Listing] = {}

    def __len__(self) -> int:
        return len(self._known)

    def entries(self, ino: int, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield (cookie, name) behind the cookie `after`; 0 looks at the directory anew."""
        listing = self._known.get(ino)
        if listing is None:
            listing = self._known[ino] = _Listing(self._engine.names(ino))
        elif after == 0:
            listing.update(self._engine.names(ino))
        start = bisect.bisect_right(listing.cookies, after)
        for index in range(start, len(listing.names)):
            yield listing.cookies[index], listing.names[index]

    def forget(self, ino: int) -> None:
        """Drop the listing of a directory that the kernel knows no longer."""
        self._known.pop(ino, None)
