"""What the lane must not wait for: cold reads, fsync, long copy-ups, renames that copy.

Invariant: every job that was accepted ends with exactly one answer to its request; the
engine's lock is held only for the quick parts, and at most `WORKERS` jobs run at a time,
one rename among them. A file is copied up once, and what waits for it is done in the
order it came.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from unionfs.fuse.lift import FEW, INLINE_LIMIT, WORKERS
from unionfs.union import Engine

__all__ = ["LaneWork"]

_log = logging.getLogger(__name__)
#: Answers a request: its number, an errno or 0, the payload.
Reply = Callable[[int, int, bytes], None]
_Job = tuple[int, Callable[[], bytes]]


class LaneWork:
    """Worker threads of one lane; `reply` may be called from any of them.

    Jobs are given by the lane's thread alone.
    """

    def __init__(self, engine: Engine, lock: threading.Lock, reply: Reply) -> None:
        self._engine = engine
        self._lock = lock
        self._reply = reply
        self._pool = ThreadPoolExecutor(WORKERS, "unionfs-work")
        self._renames = ThreadPoolExecutor(1, "unionfs-rename")
        self._lifting: dict[int, list[_Job]] = {}
        self._guard = threading.Lock()
        self._accepted = 0
        self._answered = 0
        self._renaming = 0

    def close(self) -> None:
        """Wait for what runs and drop what has not begun: nobody waits for it any more."""
        self._renames.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted has been answered."""
        return self._accepted == self._answered

    def _answer(self, unique: int, job: Callable[[], bytes]) -> None:
        try:
            payload, code = job(), 0
        except OSError as exc:
            payload, code = b"", exc.errno or errno.EIO
        except Exception:  # noqa: BLE001  # this is the boundary
            _log.exception("work of the lane failed; the caller got EIO")
            payload, code = b"", errno.EIO
        self._reply(unique, code, payload)
        with self._guard:
            self._answered += 1

    def run(self, unique: int, job: Callable[[], bytes]) -> None:
        """Do `job` without the lock and answer with what it returns."""
        self._accepted += 1
        self._pool.submit(self._answer, unique, job)

    # -- open files; these own `fd` and close it ---------------------------------------

    def read(self, unique: int, fd: int, offset: int, size: int) -> None:
        """Read `size` bytes, fewer only at the end of the file."""

        def job() -> bytes:
            try:
                return os.pread(fd, size, offset)
            finally:
                os.close(fd)

        self.run(unique, job)

    def fsync(self, unique: int, fd: int, *, datasync: bool) -> None:
        """Bring a file or a directory to disk."""

        def job() -> bytes:
            try:
                (os.fdatasync if datasync else os.fsync)(fd)
            finally:
                os.close(fd)
            return b""

        self.run(unique, job)

    # -- copy-up -----------------------------------------------------------------------

    def is_lifting(self, inode: int) -> bool:
        """Tell whether a file is being copied up here: what changes it must queue up."""
        return inode in self._lifting

    def lift(self, unique: int, inode: int, then: Callable[[], bytes]) -> None:
        """Copy a file up, then do `then` and answer with what it returns."""
        self._accepted += 1
        with self._guard:
            waiting = self._lifting.get(inode)
            if waiting is not None:
                waiting.append((unique, then))
                return
            self._lifting[inode] = [(unique, then)]
        self._pool.submit(self._lift, inode)

    def _lift(self, inode: int) -> None:
        failure: Exception | None = None
        try:
            self._copy(inode)
        except Exception as exc:  # noqa: BLE001  # given to everybody who waits
            failure = exc

        while True:
            with self._guard:
                jobs = self._lifting[inode]
                if not jobs:
                    del self._lifting[inode]
                    return
                self._lifting[inode] = []
            for unique, then in jobs:
                self._answer(unique, then if failure is None else _failing(failure))

    def _copy(self, inode: int) -> None:
        with self._lock:
            plan = self._engine.plan_copy_up(inode)
        if plan is None:
            return
        try:
            plan.copy()
        except BaseException:
            plan.abandon()
            raise
        with self._lock:
            self._engine.finish_copy_up(plan)

    # -- renaming ----------------------------------------------------------------------

    @property
    def is_renaming(self) -> bool:
        """Whether a rename is under way here: the engine plans one at a time."""
        return self._renaming > 0

    def rename(
        self, unique: int, places: Sequence[tuple[int, bytes]], then: Callable[[], bytes]
    ) -> None:
        """Copy up what moves, then do `then` under the lock and answer."""
        self._accepted += 1
        with self._guard:
            self._renaming += 1
        self._renames.submit(self._rename, unique, places, then)

    def _rename(
        self, unique: int, places: Sequence[tuple[int, bytes]], then: Callable[[], bytes]
    ) -> None:
        def job() -> bytes:
            for parent, name in places:
                with self._lock:
                    inodes = self._engine.plan_rename_copies(parent, name)
                # A few small ones are left to the rename: it may be refused.
                limit = INLINE_LIMIT if len(inodes) <= FEW else -1
                for inode in inodes:
                    with self._lock:
                        wanted = self._engine.copy_up_size(inode) > limit
                    # The rename itself tries again, and reports, what fails here.
                    with contextlib.suppress(OSError):
                        if wanted:
                            self._copy(inode)
            with self._lock:
                return then()

        self._answer(unique, job)
        with self._guard:
            self._renaming -= 1


def _failing(failure: Exception) -> Callable[[], bytes]:
    def fail() -> bytes:
        raise failure

    return fail
