"""A thread for what is done in advance, beside those who answer requests.

One thread for all of it: Python runs one at a time, and where two have something to do each
system call of one wakes the other.

Invariant: it runs only while there is something to do, and a failure costs nothing but the
help of what failed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

__all__ = ["Background"]

_log = logging.getLogger(__name__)


_FAILED: Final = object()


class _Source(NamedTuple):
    what: str
    take: Callable[[], Any]
    work: Callable[[Any], bool]


class Background:
    """Does the jobs of its sources in turn, one of each."""

    def __init__(self, name: str) -> None:
        #: What the sources' data are changed with.
        self.lock: Final = threading.Condition()
        #: Whether a job is being done.
        self.busy = False
        self._name = name
        self._sources: list[_Source] = []
        self._ended = False
        self._thread: threading.Thread | None = None

    def add(self, what: str, take: Callable[[], Any], work: Callable[[Any], bool]) -> None:
        """Have the jobs that `take` returns, called with `lock` held, done by `work`.

        `take` returns None when there is none, `work` whether to go on ever.
        """
        with self.lock:
            self._sources.append(_Source(what, take, work))

    def wake(self) -> None:
        """Have it look for jobs; needs the lock."""
        if self._ended:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self.lock.notify_all()

    def close(self) -> None:
        """Wait until the job at hand is done, and do no more."""
        with self.lock:
            self._ended = True
            self.lock.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            source, job = found
            if self._safely(source, source.work, job) is not True:
                with self.lock:
                    self._sources.remove(source)

    @staticmethod
    def _safely(source: _Source, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception:  # noqa: BLE001  # logged; a mount lives without
            _log.exception("%s has failed and stays off", source.what)
            return _FAILED

    def _next(self) -> tuple[_Source, Any] | None:
        with self.lock:
            while not self._ended:
                for source in tuple(self._sources):
                    self._sources.remove(source)  # to the end: the others come first
                    job = self._safely(source, source.take)
                    if job is not _FAILED:
                        self._sources.append(source)
                        if job is not None:
                            self.busy = True
                            return source, job
                self.busy = False
                self.lock.wait()
            self.busy = False
        return None
