"""Serving an open device with or without the direct lane.

Invariant: `run()` returns when the device's connection has ended or pyfuse3 was told to
terminate; the descriptor is closed then, and no thread touches the engine any more.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Final

import pyfuse3
import trio

from unionfs.fuse.guard import guarded
from unionfs.fuse.lane import Lane, reason_against
from unionfs.fuse.meter import Meter
from unionfs.fuse.ops import Operations
from unionfs.fuse.options import MountOptions
from unionfs.fuse.scout import Place
from unionfs.union import Engine

__all__ = ["Serving"]

_log = logging.getLogger(__name__)
#: The collector looks for cycles each time so many objects have been made. A mount makes some
#: for every file that it is asked about, none of them in cycles for long: it would spend an
#: eighth of a tree walk on looking through them.
_COLLECT_AFTER: Final = 100_000


class _Negotiator(pyfuse3.Operations):
    """pyfuse3's side of a mount with a lane: agrees on INIT and declines all else.

    It has no engine, so that nothing can be done twice or without the lane's lock.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations
        self.enable_acl = operations.enable_acl

    def init(self) -> None:
        """Report that the mount works."""
        self._operations.init()


class Serving:
    """One engine and whoever answers for it. `options` must be settled.

    `on_ready` is called once, when the kernel has greeted the session.
    """

    def __init__(self, engine: Engine, options: MountOptions, on_ready: Callable[[], None]) -> None:
        self._engine = engine
        self._options = options
        self._lock = threading.Lock()
        #: Why there is no lane, or None.
        self.no_lane = reason_against(options)
        #: The engine for single calls of others than the adapters.
        self.engine = guarded(engine, self._lock) if self.no_lane is None else engine
        ids = options.id_maps(uid=os.geteuid(), gid=os.getegid())
        self._operations = Operations(engine, options, ids, on_ready)
        #: Counts of both sides.
        self.meter = Meter()
        self._operations.recorder = self.meter.trio
        #: What both sides know of files; single calls need no lock.
        self.policy = self._operations.policy
        #: The lane that answers, if there is one.
        self.lane: Lane | None = None

    @property
    def no_passthrough(self) -> str | None:
        """Why there is no passthrough though it was asked for, or None."""
        if self.lane is None:
            return self.no_lane if self._options.passthrough else None
        return self.lane.no_passthrough

    def settle(self) -> None:
        """Wait until the lane has answered what the kernel has sent so far."""
        if self.lane is not None:
            self.lane.settle()

    def run(self, fd: int, main: Callable[[], Awaitable[None]], place: Place | None = None) -> None:
        """Run `main`, which runs `pyfuse3.main`, over the device `fd`; takes `fd` over.

        `place` is where the device is mounted, if that can be reached from here.
        """
        gc.set_threshold(_COLLECT_AFTER)
        with contextlib.ExitStack() as stack:
            inner = fd
            operations: pyfuse3.Operations = self._operations
            if self.no_lane is None:
                self._try_lane(fd, place)
            if self.lane is not None:
                inner, operations = self.lane.inner, _Negotiator(self._operations)
                stack.callback(self.lane.close)
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(os.close, inner)
            # From here on the session owns the descriptor; close() closes it.
            pyfuse3.init(operations, f"/dev/fd/{inner}", set())
            undo.pop_all()
            undo.callback(pyfuse3.close, unmount=False)
            trio.run(self._main, main)

    def _try_lane(self, fd: int, place: Place | None) -> None:
        try:
            self.lane = Lane(
                fd,
                self._engine,
                self._lock,
                self._options,
                self.policy,
                self.meter,
                place,
            )
        except OSError as exc:
            self.no_lane = exc.strerror
            _log.warning("no direct lane: %s", exc.strerror)

    async def _main(self, main: Callable[[], Awaitable[None]]) -> None:
        token = trio.lowlevel.current_trio_token()

        def end() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(pyfuse3.terminate)

        if self.lane is not None:
            self.lane.start(end)
        await main()
