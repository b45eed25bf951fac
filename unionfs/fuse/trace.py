"""Telling whoever watches what each request was and who answered it.

Nothing of this runs, and nothing is made, unless somebody watches: adapters test one
attribute per request.

Invariant: a watcher can be as slow as it likes: its queue is bounded, what does not fit is
dropped and counted, and the count is told behind what was queued before.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import attrs

from unionfs.fuse.lane_request import Outcome, Request
from unionfs.fuse.protocol import Op
from unionfs.union import Engine
from unionfs.union.introspect import Facts

__all__ = ["Event", "Tracing", "Watcher"]

#: Events that wait for one watcher at most.
QUEUE: Final = 4096
#: Where the name is in the body of a request of the lane.
_NAME_AT: Final[dict[int, int]] = {
    **dict.fromkeys((Op.LOOKUP, Op.UNLINK, Op.RMDIR, Op.SYMLINK), 0),
    **dict.fromkeys((Op.MKDIR, Op.RENAME, Op.LINK), 8),
    **dict.fromkeys((Op.MKNOD, Op.CREATE, Op.RENAME2), 16),
}
#: Which argument is an inode, and which the name in it, for handlers of pyfuse3.
_INODE_FIRST: Final = frozenset(
    ("getattr", "setattr", "readlink", "open", "opendir", "access", "getxattr", "setxattr",
     "removexattr", "listxattr")
)  # fmt: skip
_NAME_SECOND: Final = frozenset(
    ("lookup", "unlink", "rmdir", "symlink", "mkdir", "mknod", "create", "rename")
)
_HANDLE_FIRST: Final = frozenset(
    ("read", "write", "release", "fsync", "flush", "readdir", "releasedir", "fsyncdir")
)


@attrs.define
class Event:
    """One request on its way. `ino` is 0 where none is known."""

    op: str
    pid: int | None
    ino: int
    name: bytes | None
    began: float
    clock: int
    path: bytes = b""


class Watcher:
    """One client: what it wants to see, and what waits for it."""

    def __init__(
        self, pid: int | None, op: str | None, path: bytes | None, wake: Callable[[], None]
    ) -> None:
        self.pid = pid
        self.op = op
        self.path = path.rstrip(b"/") if path is not None else None
        self.dropped = 0
        self._wake = wake
        self._queue: list[dict[str, Any]] = []
        self._guard = threading.Lock()  # the lane's threads and the event loop meet here

    def wants(self, event: Event) -> bool:
        """Tell whether a request is of the process and kind that the client asks for."""
        return self.pid in (None, event.pid) and self.op in (None, event.op)

    def offer(self, path: bytes, line: dict[str, Any]) -> None:
        """Queue an event, if it is at or below the path that the client asks for."""
        wanted = self.path
        if wanted and path != wanted and not path.startswith(wanted + b"/"):
            return
        with self._guard:
            if len(self._queue) >= QUEUE:
                self.dropped += 1
                return
            self._queue.append(line)
            if len(self._queue) > 1:
                return
        self._wake()

    def take(self) -> list[dict[str, Any]]:
        """Return what waits, in order, and then how much was dropped behind it."""
        with self._guard:
            lines = list(self._queue)
            self._queue.clear()
            if self.dropped:
                lines.append({"dropped": self.dropped})
                self.dropped = 0
        return lines


class Tracing:
    """Turns requests into lines for all watchers. `engine` must be safe for every thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.watchers: tuple[Watcher, ...] = ()

    # -- requests of the lane ----------------------------------------------------------

    def lane_event(self, op: str, request: Request) -> Event | None:
        """Return what is known before a request is answered; None when nobody wants it."""
        start = _NAME_AT.get(request.opcode)
        name = None
        if start is not None:
            name = bytes(request.body[start:]).split(b"\0", 1)[0]
        return self._begin(Event(op, request.pid, request.nodeid, name, *_now()))

    def lane_end(self, event: Event, outcome: Outcome, code: int) -> None:
        """Tell the watchers how it ended."""
        if not code and event.op == "lookup" and bytes(memoryview(_data(outcome))[:8]) == bytes(8):
            code = errno.ENOENT
        self._end(event, code)

    # -- requests of pyfuse3 -----------------------------------------------------------

    def event(self, op: str, args: tuple[Any, ...]) -> Event | None:
        """Return the same for a handler's arguments."""
        pid = next((arg.pid for arg in args if hasattr(arg, "pid")), None)
        ino, name = 0, None
        if op in _NAME_SECOND:
            ino, name = args[0], args[1]
        elif op in _INODE_FIRST:
            ino = args[0]
        elif op == "link":
            ino, name = args[1], args[2]
        elif op in _HANDLE_FIRST:
            try:
                ino = self._engine.inode_of(args[0])
            except OSError:
                ino = 0
        return self._begin(Event(op, pid, ino, name, *_now()))

    def end(self, event: Event, result: Any, code: int) -> None:
        """Tell the watchers how it ended; an absent name is an answer without an inode."""
        if not code and event.op == "lookup" and result is not None and not result.st_ino:
            code = errno.ENOENT
        self._end(event, code)

    # -- both ------------------------------------------------------------------------

    def _begin(self, event: Event) -> Event | None:
        if not any(watcher.wants(event) for watcher in self.watchers):
            return None
        if event.name is None and event.ino:
            event.path = self._engine.facts(event.ino).path
        return event

    def _end(self, event: Event, code: int) -> None:
        elapsed = time.perf_counter_ns() - event.clock
        found = Facts(b"", None, ())
        if event.ino:
            found = self._engine.facts(event.ino, event.name)
        path = event.path or found.path
        line: dict[str, Any] = {
            "time": event.began,
            "pid": event.pid,
            "op": event.op,
            "path": path,
            "errno": code,
            "result": errno.errorcode.get(code, str(code)) if code else "ok",
            "microseconds": elapsed // 1000,
            "branch": found.branch,
            "whiteouts": list(found.markers),
        }
        for watcher in self.watchers:
            if watcher.wants(event):
                watcher.offer(path, line)


def _now() -> tuple[float, int]:
    return time.time(), time.perf_counter_ns()


def _data(outcome: Outcome) -> bytes | memoryview:
    return b"\1" if isinstance(outcome, int) else outcome
