"""Which files will be read next, guessed from the order of those that were.

Programs that read a tree open the files of a directory in the order in which it was listed
(tar, grep -r, cp), or in the order of their names (cat *, rsync, whatever is written in Go). After
two in a row the next ones are worth sending ahead. Every file that is then asked for where it was
expected buys several more (`_GROWTH` times as many as the last one, up to `_MOST`); the first of
the directory that is asked for somewhere else ends it. What was bought and is left when a directory
ends goes into the next one that is listed, since no request tells how far a reader has come in what
it already has; one who reads by name is granted as much as before at the first file there, and half
of that at the next directory's if nothing showed that it was right.
Directories that are read at the same time take turns. Where many files of a directory are read in
no order (imports), one in `_PART`, each of them buys `_FIRST` others, while looking for where
they are does not cost too much (about a thousand files).

Invariant: no more is sent than was bought, and what is remembered is bounded: the last
`_DIRECTORIES` listings with at most `_ENTRIES` files together, `_STREAMS` readers. To look for
those who read in no order costs as much for each listing as looking at `_SEARCHED` files and
sorting `_SORTED` names once for each of its parts.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
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
_SORTED: Final = 1 << 12
#: In no order, but many: so many of a directory's files, and at least so many.
_PART: Final = 16
_MANY: Final = 8
_STREAMS: Final = 8


class _Order:
    """The files of a directory in the order that is believed in; all before `front` are done with.

    `listed` has them in the order of the listing, `named` in that of their names once that is
    known; `odd` counts those asked for in no order.
    """

    __slots__ = (
        *("begun", "credit", "files", "front", "grant", "last", "listed", "named", "odd"),
        *("run", "searched"),
    )

    def __init__(self) -> None:
        self.files = self.listed = array("Q")
        self.named: array[int] | None = None
        self.front = 0
        self.begun = 0
        self.searched = 0
        self.run = self.credit = self.odd = 0
        self.last = 0
        self.grant = _FIRST

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to send."""
        return self.front >= len(self.files)

    def is_scattered(self) -> bool:
        """Whether many files were asked for in no order."""
        return self.odd >= max(_MANY, len(self.listed) // _PART)

    @property
    def goes_on(self) -> bool:
        """Whether its reader will begin the next directory with the first files of the listing."""
        return self.files is self.listed and not self.is_scattered()

    @property
    def is_spent(self) -> bool:
        """Whether what is left of its credit is of no use to anybody."""
        return self.is_done and not self.goes_on

    def find(self, file: int) -> int:
        """Return where a file is; ValueError when it is nowhere."""
        with contextlib.suppress(ValueError):
            return self.files.index(file, max(self.front - _MOST, 0), self.front)
        self.searched += len(self.files)
        return self.files.index(file)

    def turn(
        self, file: int, by_name: Callable[[Sequence[int]], Iterable[int]], *, first: bool
    ) -> bool:
        """Go over to the other order if `file` comes soon after the last one there; tell so.

        With `first` it may also come soon after the beginning, if it is the first asked for.
        """
        if not (self.last or first) or len(self.listed) > _SORTED:
            return False
        if self.named is None:
            self.named = array("Q", by_name(self.listed))
        other = self.listed if self.files is self.named else self.named
        self.searched += 2 * len(other)
        try:
            last = other.index(self.last) if self.last else -1
            index = other.index(file, last + 1, last + 1 + _GAP)
        except ValueError:
            return False
        self.files, self.begun, self.front = other, max(last, 0), index + 1
        return True


class Guess:
    """What one mount's readers are doing. All numbers are inode numbers.

    `by_name` returns files of one directory in the order of their names.
    """

    def __init__(self, by_name: Callable[[Sequence[int]], Iterable[int]]) -> None:
        self._by_name = by_name
        self._orders: OrderedDict[int, _Order] = OrderedDict()
        self._entries = 0
        #: Those with something bought, the next one to send from first.
        self._streams: list[_Order] = []
        self._last: _Order | None = None
        #: What the last reader by name was granted, 0 when that went wrong.
        self._named = 0

    def listed(self, directory: int, files: Iterable[int], *, anew: bool) -> None:
        """Note regular files that the kernel is told of; `anew` begins a listing."""
        order = self._orders.get(directory)
        if order is None or anew:
            if order is not None:
                self._drop(order)
            order = self._orders[directory] = _Order()
        if order.named is not None:  # it is incomplete now
            order.named, order.files = None, order.listed
            order.begun = order.front = 0
            self._wrong(order)
        before = len(order.listed)
        order.listed.extend(files)
        self._entries += len(order.listed) - before
        self._orders.move_to_end(directory)
        while len(self._orders) > 1 and self._too_much():
            self._drop(self._orders.popitem(last=False)[1])
        if order not in self._streams:
            self._inherit(order)

    def _inherit(self, order: _Order) -> None:
        """Go on here with what was bought for a directory that has ended."""
        for other in self._streams:
            if other.is_done and other.goes_on:
                order.run, order.grant, order.credit = other.run, other.grant, other.credit
                self._wrong(other)
                self._streams.append(order)
                return

    def _drop(self, order: _Order) -> None:
        self._entries -= len(order.listed)
        self._wrong(order)

    def _too_much(self) -> bool:
        return len(self._orders) > _DIRECTORIES or self._entries > _ENTRIES

    def asked(self, directory: int, file: int) -> None:
        """Note that the beginning of a file was asked for."""
        order = self._orders.get(directory)
        if order is None:
            return
        files, front = order.files, order.front
        near = 0 if order.is_scattered() else _GAP
        for index in range(front, min(front + near, len(files))):
            if files[index] == file:
                order.front, order.last = index + 1, file
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
            return
        self._odd(order, file, index)
        order.last = file

    def _odd(self, order: _Order, file: int, index: int) -> None:
        """Note that a file was asked for where none was expected."""
        if not order.is_scattered():
            order.odd += 1
            if order.is_scattered():  # from now on
                order.begun = order.front = 0
        first = not order.last
        if order.is_scattered():
            self._buy(order, _FIRST)
        elif order.turn(file, self._by_name, first=self._named > 0):
            order.run = _RUN - 1
            if first:  # not confirmed: each time half as much
                order.grant = self._named
                self._named //= 2
                self._buy(order, order.grant)
            else:
                self._right(order)
        else:
            if order.files is order.named:
                self._named = 0
            order.begun = order.front = index + 1
            self._wrong(order)
            order.run = 1

    def _right(self, order: _Order) -> None:
        order.run += 1
        if order.run >= _RUN:
            self._buy(order, order.grant)
            order.grant = min(order.grant * _GROWTH, _MOST)
            if order.files is order.named:
                self._named = order.grant

    def _buy(self, order: _Order, count: int) -> None:
        if order not in self._streams:
            if len(self._streams) == _STREAMS:
                self._wrong(self._streams[0])
            self._streams.append(order)
        others = (other for other in self._streams if other is not order and not other.is_spent)
        left = _MOST - sum(other.credit for other in others)
        order.credit = max(order.credit, _FIRST, min(count, left))

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
