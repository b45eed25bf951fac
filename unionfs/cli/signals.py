"""SIGTERM and SIGHUP (a closed terminal) end long work as Ctrl-C does: what is half made goes.

Invariant: outside of the context signals mean what they meant before, and one that is ignored
(nohup) stays so.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

__all__ = ["Terminated", "orderly_end"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """Raised in the main thread by the signal `number`; no error, so nothing should catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end(number: int, _frame: FrameType | None) -> None:
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise Terminated(number)


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Raise `Terminated` in the block when a signal asks the process to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    mine = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in mine:
            signal.signal(number, _end)
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
