"""What the handlers of the direct lane share: the request, what may be answered, packing.

A handler gets a `Request` and returns the payload of the reply, `LATER` (a worker
answers) or `SILENT` (no answer is due); OSError is the errno.

Invariant: a handler holds `Context.lock` only for short calls of the engine and never
while it waits; what copies, syncs or reads a cold disk goes to `Context.work`.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from typing import Final

from unionfs.fuse import protocol
from unionfs.fuse.background import Background
from unionfs.fuse.lane_state import Files, Listings
from unionfs.fuse.lane_work import LaneWork
from unionfs.fuse.options import MountOptions
from unionfs.fuse.passthrough import Passthrough
from unionfs.fuse.policy import Policy
from unionfs.fuse.readahead import ReadAhead
from unionfs.fuse.scout import Scout
from unionfs.union import Attr, Caller, Engine

__all__ = [
    "COUNTS",
    "FOUR",
    "LATER",
    "PAIR",
    "SILENT",
    "Context",
    "Outcome",
    "Request",
    "no_system_call",
]

LATER: Final = -1
SILENT: Final = -2
#: A payload, or one of the two above. A memoryview has room for the header in front.
Outcome = bytes | memoryview | int

PAIR: Final = struct.Struct("=II")
FOUR: Final = struct.Struct("=IIII")
COUNTS: Final = struct.Struct("=QQ")
_HEADER: Final = protocol.IN_HEADER.size


class Request:
    """One request; `body` is valid until the next one is read."""

    __slots__ = ("body", "gid", "nodeid", "opcode", "pid", "uid", "unique")

    def __init__(self, message: memoryview) -> None:
        fields = protocol.IN_HEADER.unpack_from(message)
        _, self.opcode, self.unique, self.nodeid, self.uid, self.gid, self.pid, _ = fields
        self.body = message[_HEADER:]

    def name(self, start: int = 0) -> bytes:
        """Return the name that fills the body from `start` on."""
        return bytes(self.body[start:-1])

    def names(self, start: int = 0) -> tuple[bytes, bytes]:
        """Return the two strings that fill the body from `start` on."""
        first, _, second = bytes(self.body[start:-1]).partition(b"\0")
        return first, second


class Context:
    """One engine with its `lock` and all that answering for it needs.

    `thread` does what is done in advance by `ahead`, `scout` and others; `notify` sends the kernel
    a notification: its code and payload.
    """

    def __init__(
        self,
        engine: Engine,
        lock: threading.Lock,
        options: MountOptions,
        policy: Policy,
        ahead: ReadAhead,
        scout: Scout,
        thread: Background,
        passthrough: Passthrough,
        reply: Callable[[int, int, bytes], None],
        notify: Callable[[int, bytes], None],
    ) -> None:
        self.engine = engine
        self.lock = lock
        self.options = options
        self.policy = policy
        self.ahead = ahead
        self.scout = scout
        self.thread = thread
        self.passthrough = passthrough
        self.notify = notify
        self.work = LaneWork(engine, self.lock, reply)
        self.files = Files(engine)
        self.listings = Listings(engine)
        self._entry_timeout = protocol.timeout(options.entry_timeout)
        self._attr_timeout = protocol.timeout(options.attr_timeout)
        both = zip(self._entry_timeout, self._attr_timeout, strict=True)
        self._timeouts = *next(both), *next(both)

    def entry(self, attr: Attr) -> bytes:
        """Return the answer to LOOKUP and to whatever makes a name."""
        return protocol.pack_entry(
            attr,
            self.policy.users.shown(attr.uid),
            self.policy.groups.shown(attr.gid),
            self._entry_timeout,
            self._attr_timeout,
        )

    def listed(self, attr: Attr, offset: int, name: bytes) -> bytes:
        """Return an entry of a listing with attributes."""
        owner = self.policy.users.shown(attr.uid), self.policy.groups.shown(attr.gid)
        return protocol.pack_listed(attr, offset, name, owner, self._timeouts)

    def attr(self, attr: Attr) -> bytes:
        """Return the answer to GETATTR and SETATTR."""
        users, groups = self.policy.users, self.policy.groups
        return protocol.pack_attr(
            attr, users.shown(attr.uid), groups.shown(attr.gid), self._attr_timeout
        )

    def caller(self, request: Request) -> Caller:
        """Return who makes a new entry."""
        return self.policy.caller(request.uid, request.gid)

    def drop_setuid(self, inode: int) -> None:
        """Take setuid and setgid from a file whose content somebody without rights changes.

        The kernel leaves that to us (HANDLE_KILLPRIV_V2) and goes on with the mode it knows.
        """
        if self.policy.drop_setuid(self.engine, inode):
            self.attributes_changed(inode)

    def attributes_changed(self, inode: int) -> None:
        """Have the kernel ask for attributes again."""
        self.notify(protocol.NOTIFY_INVAL_INODE, protocol.INVAL_INODE.pack(inode, -1, 0))


def no_system_call() -> OSError:
    """Return the error after which the kernel does not ask again."""
    return OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
