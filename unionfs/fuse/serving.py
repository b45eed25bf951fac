"""Serving an open device with or without the direct lane.

Invariant: `run()` returns when the device's connection has ended or pyfuse3 was told to
terminate; the descriptor is closed then, and no thread touches the engine any more.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

from unionfs.fuse.guard import guarded
from unionfs.fuse.lane import Lane, reason_against
from unionfs.fuse.ops import Operations
from unionfs.fuse.options import MountOptions
from unionfs.union import Engine

__all__ = ["Serving"]


class Serving:
    """One engine and whoever answers for it. `options` must be settled.

    `on_ready` is called once, when the kernel has greeted the session.
    """

    def __init__(self, engine: Engine, options: MountOptions, on_ready: Callable[[], None]) -> None:
        self._engine = engine
        self._options = options
        self._lock = threading.Lock()
        self._wanted = reason_against(options) is None
        ids = options.id_maps(uid=os.geteuid(), gid=os.getegid())
        #: The engine for the pyfuse3 side.
        self.engine = guarded(engine, self._lock) if self._wanted else engine
        self.operations = Operations(self.engine, options, ids, on_ready)
        self._lane: Lane | None = None

    @property
    def has_lane(self) -> bool:
        """Whether a lane answers, which is sure from `on_ready` on."""
        return self._lane is not None and self._lane.active

    def settle(self) -> None:
        """Wait until the lane has answered what the kernel has sent so far."""
        if self._lane is not None:
            self._lane.settle()

    def run(self, fd: int, main: Callable[[], Awaitable[None]]) -> None:
        """Run `main`, which runs `pyfuse3.main`, over the device `fd`; takes `fd` over."""
        with contextlib.ExitStack() as stack:
            inner = fd
            if self._wanted:
                lane = self._lane = Lane(
                    fd, self._engine, self._lock, self._options, self.operations.policy
                )
                inner = lane.inner
                stack.callback(lane.close)
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(os.close, inner)
            # From here on the session owns the descriptor; close() closes it.
            pyfuse3.init(self.operations, f"/dev/fd/{inner}", set())
            undo.pop_all()
            undo.callback(pyfuse3.close, unmount=False)
            trio.run(self._main, main)

    async def _main(self, main: Callable[[], Awaitable[None]]) -> None:
        token = trio.lowlevel.current_trio_token()

        def end() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(pyfuse3.terminate)

        if self._lane is not None:
            self._lane.start(end)
        await main()
