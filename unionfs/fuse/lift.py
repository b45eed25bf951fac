"""Work that takes long and does not hold up other requests: copy-ups above all.

Reads that have to wait for a disk, and fsync, go the same way.

Invariant: planning and finishing happen on the trio thread, where no other handler can
be in between; only the copying of bytes runs in a worker thread, at most `WORKERS` at a
time and one per file. Small files are left to the engine, which copies them inline.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import trio

from unionfs.union import Engine

__all__ = ["FEW", "INLINE_LIMIT", "WORKERS", "Lift"]

#: Bytes up to which a copy-up is quicker than handing it to a thread and back.
INLINE_LIMIT: Final = 1 << 20
WORKERS: Final = 2 * (os.cpu_count() or 1)
#: Files that are copied up without giving way to others in between.
FEW: Final = 16


class Lift:
    """Runs copy-ups for one engine. `limiter` bounds all worker threads of the mount."""

    def __init__(self, engine: Engine, *, inline_limit: int = INLINE_LIMIT) -> None:
        self.engine = engine
        self.inline_limit = inline_limit
        self.limiter = trio.CapacityLimiter(WORKERS)
        self._locks: dict[int, tuple[trio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def _alone(self, ino: int) -> AsyncIterator[None]:
        lock, users = self._locks.get(ino) or (trio.Lock(), 0)
        self._locks[ino] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(ino)
            if users > 1:
                self._locks[ino] = lock, users - 1

    async def up(self, ino: int) -> None:
        """Have the file `ino` in the writable branch if its copy is a long one.

        Returns at once, without giving way to other handlers, when there is nothing to do.
        """
        engine = self.engine
        if ino not in self._locks and engine.copy_up_size(ino) <= self.inline_limit:
            return
        async with self._alone(ino):
            plan = engine.plan_copy_up(ino) if engine.copy_up_size(ino) else None
            if plan is None:  # somebody else has done it, or the file is gone
                return
            try:
                await trio.to_thread.run_sync(plan.copy, limiter=self.limiter)
            except BaseException:
                plan.abandon()
                raise
            engine.finish_copy_up(plan)

    async def up_all(self, inodes: Iterable[int]) -> None:
        """Have many files in the writable branch, other handlers running in between.

        A few small ones are left to the operation that needs the copies: it may be refused
        and then nothing should have been copied. It also tries again, and reports, what fails.
        """
        inodes = list(inodes)
        few = len(inodes) <= FEW
        for ino in inodes:
            with contextlib.suppress(OSError):
                if self.engine.copy_up_size(ino) > self.inline_limit:
                    await self.up(ino)
                elif not few and (plan := self.engine.plan_copy_up(ino)) is not None:
                    try:
                        plan.copy()
                    except OSError:
                        plan.abandon()
                        raise
                    self.engine.finish_copy_up(plan)
            await trio.lowlevel.checkpoint()

    async def read(self, fh: int, offset: int, size: int) -> bytes | bytearray:
        """Read; what is not in the page cache is waited for in a thread."""
        fd = self.engine.fileno(fh)
        buffer = bytearray(size)
        try:
            done = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            done = 0
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            return self.engine.read(fh, offset, size)
        if done == size:
            return buffer
        del buffer[done:]
        if offset + done < os.fstat(fd).st_size:
            buffer += await self._aside(fd, os.pread, size - done, offset + done)
        return buffer

    async def fsync(self, fh: int, *, datasync: bool) -> None:
        """Bring a file to disk."""
        await self._aside(self.engine.fileno(fh), os.fdatasync if datasync else os.fsync)

    async def _aside(self, fd: int, call: Callable[..., Any], *args: int) -> Any:
        """Run a system call on an open file in a thread; a copy-up meanwhile may close `fd`."""
        own = os.dup(fd)
        try:
            return await trio.to_thread.run_sync(call, own, *args, limiter=self.limiter)
        finally:
            os.close(own)
