"""What the process beside a mount does whichever union it is: lock, log, pick the back end.

Invariant: nothing here imports a back end before one is asked for.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from unionfs.errors import BusyError, NotFoundError, show
from unionfs.fuse.plan import Plan
from unionfs.fuse.registry import MountRecord

__all__ = ["LEGACY_ROOT_MODE", "configure_logging", "held", "serve"]

#: What a layer directory of mode 0700 stands for: old stores locked theirs so.
LEGACY_ROOT_MODE: Final = 0o755


def serve(plan: Plan, on_ready: Callable[[MountRecord], None]) -> None:
    """Mount as the plan's back end says, and stay until unmounted.

    `on_ready` is called when the mount works. Raises `UnionfsError` or `OSError` when it
    cannot be mounted, after undoing everything.
    """
    if plan.request.backend != "fuse":
        from unionfs.kernel import session as kernel  # noqa: PLC0415  # only where asked for

        reasons = kernel.serve(plan, on_ready)
        if reasons is None:
            return
        plan = attrs.evolve(plan, reasons=reasons)
    from unionfs.fuse import session  # noqa: PLC0415  # pyfuse3 and trio: not beside kernel mounts

    session.serve(plan, on_ready)


@contextlib.contextmanager
def held(path: bytes) -> Iterator[None]:
    """Keep a shared lock on an image directory; whoever deletes it needs an exclusive one."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"image {show(os.path.basename(path))} is being removed") from None
        if not os.path.isdir(path):
            raise NotFoundError(f"image {show(os.path.basename(path))} has been removed")
        yield
    finally:
        os.close(fd)


def configure_logging() -> None:
    """Log to standard error (the log file in the background); SIGUSR1 dumps all stacks there."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
