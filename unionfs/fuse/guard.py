"""The engine for those who are no adapter: every call under the lane's lock.

The lock discipline is written down in `unionfs.fuse.lane`. Without a lane there is one
thread, no lock, and no `Guarded`.

Invariant: only what a call returns leaves the lock, so a method that gives a generator
(`readdir`) must not be used through this.
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
