"""Listings of the direct lane, those that will be asked for next made in advance.

While a walker takes in one directory the listings of the next ones are made (`unionfs.fuse.route`),
so that both work at the same time: by the lane's thread between two requests, a little at a time,
since a second thread would have to share Python with it; by `Context.thread` while that sends files
ahead, one in turn with some of those. Whoever asks for one that is not finished finishes it.

Invariant: a listing made in advance is given away only if nothing has changed in the union since
it was begun; otherwise, and when nobody comes for it, its references are taken back. There
are at most `_WAITING` of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from typing import Final

from unionfs.fuse import protocol
from unionfs.fuse.lane_request import Context, Request
from unionfs.fuse.route import Route

__all__ = ["Lists"]

_DOTS: Final = 2  # offsets taken by "." and ".."
_ALIGN: Final = 8
_REGULAR: Final = stat.S_IFREG >> 12
_DIRECTORY: Final = stat.S_IFDIR >> 12
_WAITING: Final = 8
#: Entries that are looked at without letting others have the engine in between.
_BATCH: Final = 64
#: The same for the lane's thread, between two requests.
_LITTLE: Final = 16

#: Directory and offset.
_Place = tuple[int, int]
#: The same and the room for the answer.
_Wanted = tuple[int, int, int]


class _Part:
    """A part of a listing: bytes for at most `room`, and the entries they refer to.

    `pending` are (cookie, name) pairs that are still to be looked at; `change` is the state of
    the union when it was begun.
    """

    __slots__ = (
        *("answer", "change", "directory", "entries", "following", "offset", "pending", "room"),
    )

    def __init__(self, directory: int, offset: int, room: int, change: int) -> None:
        self.directory = directory
        self.offset = offset
        self.room = room
        self.change = change
        self.answer = bytearray()
        #: (inode, type) of each.
        self.entries: list[tuple[int, int]] = []
        self.pending: list[tuple[int, bytes]] = []
        self.following = 0

    def of_type(self, kind: int) -> list[int]:
        """Return the inodes of one type."""
        return [ino for ino, found in self.entries if found == kind]


class Lists:
    """Answers READDIR and READDIRPLUS."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._engine, self._lock = context.engine, context.lock
        self._listings = context.listings
        self._ahead = context.ahead
        self._scout = context.scout
        self._on = context.options.ahead
        self._route = Route()
        self._made: OrderedDict[_Place, _Part] = OrderedDict()
        self._wanted: list[_Wanted] = []
        #: Whether no files are sent, so that the lane's thread makes them.
        self._alone = True
        self._sent = 0
        #: What the lane's thread is making.
        self._under_way: _Part | None = None
        self._thread = context.thread
        self._thread.add("making listings in advance", self._take, self._make)
        #: Parts that were made in advance and given away.
        self.foreseen = 0

    def forget(self, inode: int) -> None:
        """Drop the listing of a directory that the kernel knows no longer; needs the lock."""
        self._listings.forget(inode)
        for place in [place for place in self._made if place[0] == inode]:
            self._drop(self._made.pop(place))

    # -- answers -----------------------------------------------------------------------

    def names(self, request: Request) -> bytes:
        """List names alone."""
        _, offset, room, *_ = protocol.WRITE_IN.unpack_from(request.body)
        with self._lock:
            part = self._begin(request.nodeid, offset, room, plus=False)
            while self._go_on(part, plus=False):
                pass
            self._drop(part)
        return bytes(part.answer)

    def entries(self, request: Request) -> bytes:
        """List with attributes and a reference on each entry but the dots."""
        _, offset, room, *_ = protocol.WRITE_IN.unpack_from(request.body)
        directory = request.nodeid
        if self._scout.refuses(directory, offset, request.pid):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if not offset:
            self._scout.lists(directory)
        with self._lock:
            part = self._made.pop((directory, offset), None)
            if part is not None and (part.room, part.change) != (room, self._engine.changes):
                self._drop(part)
                part = None
            if part is not None:
                self.foreseen += 1
            else:
                part = self._begin(directory, offset, room, plus=True)
            while self._go_on(part, plus=True):
                pass
        if self._on:
            self._ahead.listed(directory, part.of_type(_REGULAR), anew=not offset)
            if request.pid != self._scout.pid:
                self._foresee(offset, part)
        return bytes(part.answer)

    def _begin(self, directory: int, offset: int, room: int, *, plus: bool) -> _Part:
        part = _Part(directory, offset, room, self._engine.changes)
        nobody = bytes(protocol.ENTRY_OUT.size) if plus else b""
        for position, name in ((1, b"."), (2, b"..")):
            if offset < position:
                number = directory if position == 1 else self._engine.parent(directory)
                part.answer += nobody + protocol.pack_dirent(number, position, name, _DIRECTORY)
        part.following = max(offset, _DOTS)
        self._fill(part, plus=plus)
        return part

    def _fill(self, part: _Part, *, plus: bool) -> None:
        """Choose as many names as there is room for."""
        fixed = protocol.DIRENT.size + (protocol.ENTRY_OUT.size if plus else 0)
        room = part.room - len(part.answer)
        for entry in self._listings.entries(part.directory, part.following - _DOTS):
            length = len(entry[1])
            room -= fixed + length + -length % _ALIGN
            if room < 0:
                break
            part.pending.append(entry)

    def _go_on(self, part: _Part, *, plus: bool, most: int = _BATCH) -> bool:
        """Look at some of the pending names; tell whether there are more. Needs the lock."""
        batch, part.pending = part.pending[:most], part.pending[most:]
        if not batch:
            return False
        try:
            found = self._engine.lookup_all(part.directory, [name for _, name in batch])
        except OSError:
            if not part.answer:
                raise
            found = []
        for (cookie, name), attr in zip(batch, found, strict=False):
            part.following = cookie + _DOTS
            if attr is None:
                continue
            kind = attr.mode >> 12
            part.entries.append((attr.ino, kind))
            if plus:
                part.answer += self._context.listed(attr, part.following, name)
            else:
                part.answer += protocol.pack_dirent(attr.ino, part.following, name, kind)
        if len(found) < len(batch):
            part.pending.clear()  # met again, and reported, where the next part starts
        elif not part.pending and not part.answer:
            self._fill(part, plus=plus)  # all these have gone meanwhile
        return bool(part.pending)

    def _drop(self, part: _Part) -> None:
        for ino, _ in part.entries:
            self._engine.forget(ino)

    # -- in advance --------------------------------------------------------------------

    def _foresee(self, offset: int, part: _Part) -> None:
        """Note what has been answered, what will be asked for next, and who is to make that."""
        route = self._route
        alone = self._alone
        if not offset:
            route.entered(part.directory)
            alone = self._ahead.sent == self._sent
            self._sent = self._ahead.sent
        route.met(part.of_type(_DIRECTORY))
        wanted = [(number, 0, part.room) for number in route.ahead(_WAITING // 2)]
        if offset and part.entries:
            wanted.insert(0, (part.directory, part.following, part.room))
        with self._thread.lock:
            self._wanted = wanted
            self._alone = alone
            if wanted and not alone:
                self._thread.wake()

    def work_ahead(self) -> bool:
        """Do a little of what will be asked for next; tell whether there was something to do.

        For the lane's thread alone, when no request waits.
        """
        if self._under_way is not None:
            if not self._goes_on(self._under_way, _LITTLE):
                self._under_way = None
        elif self._alone and self._wanted:
            self._under_way = self._start(self._wanted.pop(0))
        else:
            return False
        return True

    def _take(self) -> _Wanted | None:
        return self._wanted.pop(0) if self._wanted and not self._alone else None

    def _make(self, wanted: _Wanted) -> bool:
        part = self._start(wanted)
        while part is not None and self._goes_on(part, _BATCH):
            pass
        return True

    def _start(self, wanted: _Wanted) -> _Part | None:
        directory, offset, room = wanted
        with self._lock, contextlib.suppress(OSError):  # whoever asks will be told
            if (directory, offset) in self._made or not self._engine.is_known(directory):
                return None
            part = self._begin(directory, offset, room, plus=True)
            self._made[directory, offset] = part
            while len(self._made) > _WAITING:
                self._drop(self._made.popitem(last=False)[1])
            return part
        return None

    def _goes_on(self, part: _Part, most: int) -> bool:
        """Go on unless somebody has taken it, or something has changed: then it is of no use."""
        place = part.directory, part.offset
        with self._lock:
            if self._made.get(place) is not part:
                return False
            with contextlib.suppress(OSError):  # whoever asks will be told
                if part.change == self._engine.changes:
                    return self._go_on(part, plus=True, most=most)
            self._drop(self._made.pop(place))
            return False
