"""Which files will be read next, guessed from the order of those that were.

Programs that read a tree (tar, grep -r, cp) open the files of a directory in the order in
which it was listed. After two in a row the next ones are worth sending ahead. Every file
that is then asked for where it was expected buys several more (`_GROWTH` times as many as
the last one, up to `_MOST`); the first of the directory that is asked for somewhere else ends
it. What was bought and is left when a directory ends goes into the next one that is listed,
since no request tells how far a reader has come in what it already has. Directories that are
read at the same time take turns.

Invariant: no more is sent than was bought, and what is remembered is bounded: the last
`_DIRECTORIES` listings with at most `_ENTRIES` files together, `_STREAMS` readers. To look for
those who read in no order costs as much for each listing as looking at `_SEARCHED` files.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

__all__ = ["Guess"]

_FIRST: Final = 8
_GROWTH: Final = 4
#: For all readers together, but that each may have the first few.
_MOST: Final = 512
#: A run: so many files asked for in order.
_RUN: Final = 2
#: Files that a reader may leave out, or have got by other ways, without being out of order.
_GAP: Final = 8
#: A reader that is so close behind needs what is sent next no more: leap over so many.
_CLOSE: Final = 2
_LEAP: Final = 4
_DIRECTORIES: Final = 256
_ENTRIES: Final = 1 << 18
_SEARCHED: Final = 1 << 18
_STREAMS: Final = 8


class _Order:
    """The files of a directory as it was listed; those before `front` are done with."""

    __slots__ = ("begun", "credit", "files", "front", "grant", "run", "searched")

    def __init__(self) -> None:
        self.files = array("Q")
        self.front = 0
        self.begun = 0
        self.searched = 0
        self.run = self.credit = 0
        self.grant = _FIRST

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to send."""
        return self.front >= len(self.files)

    def find(self, file: int) -> int:
        """Return where a file is; ValueError when it is nowhere."""
        with contextlib.suppress(ValueError):
            return self.files.index(file, max(self.front - _MOST, 0), self.front)
        self.searched += len(self.files)
        return self.files.index(file)


class Guess:
    """What one mount's readers are doing. All numbers are inode numbers."""

    def __init__(self) -> None:
        self._orders: OrderedDict[int, _Order] = OrderedDict()
        self._entries = 0
        #: Those with something bought, the next one to send from first.
        self._streams: list[_Order] = []
        self._last: _Order | None = None

    def listed(self, directory: int, files: Iterable[int], *, anew: bool) -> None:
        """Note regular files that the kernel is told of; `anew` begins a listing."""
        order = self._orders.get(directory)
        if order is None or anew:
            if order is not None:
                self._drop(order)
            order = self._orders[directory] = _Order()
        before = len(order.files)
        order.files.extend(files)
        self._entries += len(order.files) - before
        self._orders.move_to_end(directory)
        while len(self._orders) > 1 and self._too_much():
            self._drop(self._orders.popitem(last=False)[1])
        if order not in self._streams:
            self._inherit(order)

    def _inherit(self, order: _Order) -> None:
        """Go on here with what was bought for a directory that has ended."""
        for other in self._streams:
            if other.is_done:
                order.run, order.grant, order.credit = other.run, other.grant, other.credit
                self._wrong(other)
                self._streams.append(order)
                return

    def _drop(self, order: _Order) -> None:
        self._entries -= len(order.files)
        self._wrong(order)

    def _too_much(self) -> bool:
        return len(self._orders) > _DIRECTORIES or self._entries > _ENTRIES

    def asked(self, directory: int, file: int) -> None:
        """Note that the beginning of a file was asked for."""
        order = self._orders.get(directory)
        if order is None:
            return
        files, front = order.files, order.front
        for index in range(front, min(front + _GAP, len(files))):
            if files[index] == file:
                order.front = index + 1
                self._right(order)
                return
        if order.searched > _SEARCHED:
            self._wrong(order)
            return
        try:
            index = order.find(file)
        except ValueError:
            return  # not one of those that can be sent
        if order.begun <= index < front:
            if front - index <= _CLOSE:
                order.front = min(front + _LEAP, len(files))
        else:
            order.begun = order.front = index + 1
            self._wrong(order)
            order.run = 1

    def _right(self, order: _Order) -> None:
        order.run += 1
        if order.run < _RUN:
            return
        if order not in self._streams:
            if len(self._streams) == _STREAMS:
                self._wrong(self._streams[0])
            self._streams.append(order)
        left = _MOST - sum(other.credit for other in self._streams if other is not order)
        order.credit = max(order.credit, _FIRST, min(order.grant, left))
        order.grant = min(order.grant * _GROWTH, _MOST)

    def _wrong(self, order: _Order) -> None:
        order.run = order.credit = 0
        order.grant = _FIRST
        if order in self._streams:
            self._streams.remove(order)

    def take(self, most: int) -> list[int]:
        """Return the next files to send, of one directory, few or none."""
        for order in self._streams:
            if order.is_done:
                continue
            files = order.files[order.front : order.front + min(most, order.credit)].tolist()
            order.credit -= len(files)
            order.front += len(files)
            self._streams.remove(order)
            if order.credit:
                self._streams.append(order)
            self._last = order
            return files
        return []

    def stop(self) -> None:
        """Take back what was bought for the directory of the files last taken."""
        if self._last is not None:
            self._wrong(self._last)

    def forget(self, directory: int) -> None:
        """Drop the listing of a directory that the kernel knows no longer."""
        order = self._orders.pop(directory, None)
        if order is not None:
            self._drop(order)
