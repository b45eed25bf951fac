"""One lock around one engine, for two adapters in two threads.

The lock discipline of a mount with a direct lane (`unionfs.fuse.lane`), in full:

- There is one lock. Whoever calls the engine holds it: the lane's threads take it
  themselves, the pyfuse3 side gets a `Guarded` engine that takes it for each call.
- It is never held while `CopyPlan.copy` runs, while a cold file is read from disk,
  during fsync, or while anything is written to the device or the socket.
- A backing descriptor is used under the lock or duplicated under it, because a copy-up
  may replace it at any other time.
- Nobody waits for another request while holding it, so it is always free again soon and
  may be taken on the trio thread.

Without a lane there is one thread, no lock, and no `Guarded`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, cast

from unionfs.union import Engine

__all__ = ["guarded"]


class _Guarded:
    """Looks like the engine; every method call is made under the lock."""

    def __init__(self, engine: Engine, lock: threading.Lock) -> None:
        self._engine = engine
        self._lock = lock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._engine, name)
        if not callable(value):
            return value
        method = self._wrap(value)
        setattr(self, name, method)
        return method

    def _wrap(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return method(*args, **kwargs)

        return locked


def guarded(engine: Engine, lock: threading.Lock) -> Engine:
    """Return the engine with all its methods under `lock`."""
    return cast("Engine", _Guarded(engine, lock))
