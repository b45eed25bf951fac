"""Serving a device that somebody else has mounted: the daemon of `unionfs run`.

Invariant: ends when the device's connection ends; the engine is closed then.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import Final

import pyfuse3

from unionfs.fuse.options import MountOptions
from unionfs.fuse.serving import Serving
from unionfs.fuse.session import engine_options
from unionfs.kernel.leftover import settle_if_needed
from unionfs.union import Engine

__all__ = ["serve_lent"]

_MIN_TASKS: Final = 8  # as in unionfs.fuse.session
_MAX_TASKS: Final = 99


def serve_lent(
    layers: tuple[bytes, ...],
    rw: bytes | None,
    options: MountOptions,
    receive: Callable[[], int | None],
) -> None:
    """Open the union, then serve the device that `receive` returns (None: nobody sent one).

    `options` must be settled and those the device was mounted with.
    """
    os.umask(0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    settle_if_needed(rw)
    with Engine.start(layers, rw, options=engine_options(layers, options)) as engine:
        fd = receive()
        if fd is None:
            return
        Serving(engine, options, lambda: None).run(fd, _serve)


async def _serve() -> None:
    await pyfuse3.main(min_tasks=_MIN_TASKS, max_tasks=_MAX_TASKS)
