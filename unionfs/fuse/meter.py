"""Counting requests and how long they took, whichever adapter answered them.

Every request costs two looks at the clock and a few additions. Times fall into fixed
buckets, powers of two of about a microsecond, so that nothing is ever stored per request.

Invariant: a request is counted once, by the adapter that answered it; each recorder is used
by one thread (that of the lane's workers under a lock), so no count is lost.
"""

from __future__ import annotations

import errno
import functools
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from unionfs.fuse.lane_request import LATER, Outcome, Request
from unionfs.fuse.protocol import Op
from unionfs.fuse.trace import Event, Tracing

__all__ = ["BUCKETS", "Meter", "Recorder", "Timing", "bucket_bound"]

#: A time of N ns is in bucket (N >> 10).bit_length(); the last one holds all that are longer.
BUCKETS: Final = 26
_SHIFT: Final = 10
#: Other names for what is the same request.
_NAMES: Final = {"batch_forget": "forget", "readdirplus": "readdir", "rename2": "rename"}
#: What the lane may answer later.
_SLOW: Final = frozenset(
    (
        *(Op.READ, Op.WRITE, Op.FSYNC, Op.FSYNCDIR, Op.SETATTR, Op.SETXATTR, Op.REMOVEXATTR),
        *(Op.LINK, Op.RENAME, Op.RENAME2, Op.FALLOCATE, Op.COPY_FILE_RANGE),
    )
)
#: In the request, where the size of a WRITE is (fuse_write_in).
_OUT_HEADER: Final = 16


def bucket_bound(index: int) -> float | None:
    """Return the seconds that a bucket's times do not exceed; None for the last."""
    return None if index == BUCKETS - 1 else ((1 << index) << _SHIFT) / 1e9


class Timing:
    """Counts of one kind of request: times in ns, bytes of what was read or written."""

    __slots__ = ("buckets", "bytes", "errors", "total")

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        self.total = 0
        self.errors = 0
        self.bytes = 0

    def add(self, elapsed: int, code: int) -> None:
        """Count one request that took `elapsed` ns and ended with an errno or 0."""
        index = (elapsed >> _SHIFT).bit_length()
        self.buckets[index if index < BUCKETS else BUCKETS - 1] += 1
        self.total += elapsed
        if code:
            self.errors += 1


class Recorder:
    """Counts of one thread. `tracing` is None unless somebody watches."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.timings: dict[str, Timing] = {}
        self.tracing = tracing

    def timing(self, op: str) -> Timing:
        """Return the counts of a kind of request."""
        found = self.timings.get(op)
        if found is None:
            found = self.timings[op] = Timing()
        return found


class Meter:
    """All counts of one mount; `trio` is the recorder of the pyfuse3 side."""

    def __init__(self) -> None:
        self.started = time.time()
        self.trio = Recorder()
        self._lane = Recorder()
        self._work = Recorder()
        self._recorders = (self.trio, self._lane, self._work)
        self._waiting: dict[int, tuple[str, int, Event | None]] = {}
        self._guard = threading.Lock()

    @property
    def tracing(self) -> Tracing | None:
        """Who watches, or None."""
        return self.trio.tracing

    @tracing.setter
    def tracing(self, tracing: Tracing | None) -> None:
        for recorder in self._recorders:
            recorder.tracing = tracing

    # -- the lane ------------------------------------------------------------------

    def watched(
        self, table: dict[int, Callable[[Request], Outcome]]
    ) -> dict[int, Callable[[Request], Outcome]]:
        """Return the lane's handlers, each counted."""
        return {code: self._watch(code, handler) for code, handler in table.items()}

    def _watch(
        self, code: int, handler: Callable[[Request], Outcome]
    ) -> Callable[[Request], Outcome]:
        op = Op(code).name.lower()
        op = _NAMES.get(op, op)
        recorder = self._lane
        timing = recorder.timing(op)
        slow = code in _SLOW
        clock = time.perf_counter_ns

        @functools.wraps(handler)
        def watched(request: Request) -> Outcome:
            begin = clock()
            event = None
            if recorder.tracing is not None:
                event = recorder.tracing.lane_event(op, request)
            if slow:
                self._waiting[request.unique] = (op, begin, event)
            failure = 0
            outcome: Outcome = b""
            try:
                outcome = handler(request)
            except OSError as exc:
                failure = exc.errno or errno.EIO
                raise
            except BaseException:
                failure = errno.EIO
                raise
            finally:
                if outcome.__class__ is not int or outcome != LATER:
                    timing.add(clock() - begin, failure)
                    if slow:
                        self._waiting.pop(request.unique, None)
                        timing.bytes += _moved(op, request, outcome) if not failure else 0
                    if event is not None and recorder.tracing is not None:
                        recorder.tracing.lane_end(event, outcome, failure)
            return outcome

        return watched if slow else self._quick(watched, handler, timing)

    def _quick(
        self,
        watched: Callable[[Request], Outcome],
        handler: Callable[[Request], Outcome],
        timing: Timing,
    ) -> Callable[[Request], Outcome]:
        """Return the same without what only a watcher or a late answer needs."""
        recorder, buckets = self._lane, timing.buckets
        clock = time.perf_counter_ns

        @functools.wraps(handler)
        def quick(request: Request) -> Outcome:
            if recorder.tracing is not None:
                return watched(request)
            begin = clock()
            try:
                outcome = handler(request)
            except BaseException as exc:
                timing.add(clock() - begin, getattr(exc, "errno", None) or errno.EIO)
                raise
            elapsed = clock() - begin
            index = (elapsed >> _SHIFT).bit_length()
            buckets[index if index < BUCKETS else -1] += 1
            timing.total += elapsed
            return outcome

        return quick

    def replied(
        self, reply: Callable[[int, int, bytes], None]
    ) -> Callable[[int, int, bytes], None]:
        """Return the lane's `reply` for what it answers later, counted."""

        def counted(unique: int, code: int, payload: bytes) -> None:
            reply(unique, code, payload)
            waiting = self._waiting.pop(unique, None)
            if waiting is None:
                return
            op, begin, event = waiting
            with self._guard:
                timing = self._work.timing(op)
                timing.add(time.perf_counter_ns() - begin, code)
                if op == "read":
                    timing.bytes += len(payload)
                elif op == "write" and payload:
                    timing.bytes += int.from_bytes(payload[:4], "little")
            tracing = self._work.tracing
            if event is not None and tracing is not None:
                tracing.lane_end(event, payload, code)

        return counted

    # -- reading -------------------------------------------------------------------

    def requests(self) -> dict[str, dict[str, Any]]:
        """Return the counts by kind: times in seconds, buckets from the shortest on."""
        found: dict[str, dict[str, Any]] = {}
        for recorder in self._recorders:
            for op, timing in list(recorder.timings.items()):
                buckets = list(timing.buckets)
                if not any(buckets):
                    continue
                item = found.setdefault(
                    op, {"count": 0, "errors": 0, "seconds": 0.0, "bytes": 0, "buckets": []}
                )
                item["count"] += sum(buckets)
                item["errors"] += timing.errors
                item["seconds"] += timing.total / 1e9
                item["bytes"] += timing.bytes
                old = item["buckets"] or [0] * BUCKETS
                item["buckets"] = [one + other for one, other in zip(old, buckets, strict=True)]
        return dict(sorted(found.items()))


def _moved(op: str, request: Request, outcome: Outcome) -> int:
    """Return the bytes that a READ gave or a WRITE took."""
    if isinstance(outcome, int):
        return 0
    if op == "read":
        return len(outcome) - (_OUT_HEADER if isinstance(outcome, memoryview) else 0)
    del request
    return int.from_bytes(outcome[:4], "little") if op == "write" else 0
