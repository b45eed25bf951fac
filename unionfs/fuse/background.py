"""A thread for what is done in advance, beside those who answer requests.

Invariant: it runs only while there is something to do, ends when it fails, and a failure
costs nothing but its help.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Background"]

_log = logging.getLogger(__name__)
Job = TypeVar("Job")


class Background(Generic[Job]):
    """Does the jobs that `take` returns, called with `lock` held, until it returns None.

    `work` returns whether to go on ever. `take`'s data is to be changed with `lock` held.
    """

    def __init__(
        self, name: str, take: Callable[[], Job | None], work: Callable[[Job], bool]
    ) -> None:
        self.lock = threading.Condition()
        #: Whether a job is being done.
        self.busy = False
        self._name = name
        self._take = take
        self._work = work
        self._ended = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have it look for a job; needs the lock."""
        if self._ended:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self.lock.notify()

    def close(self) -> None:
        """Wait until the job at hand is done, and do no more."""
        with self.lock:
            self._ended = True
            self.lock.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._do_next():
                pass
        except Exception:  # noqa: BLE001  # logged; a mount lives without
            _log.exception("%s has failed and stays off", self._name)
        self.busy = False

    def _do_next(self) -> bool:
        with self.lock:
            while (job := self._take()) is None and not self._ended:
                self.busy = False
                self.lock.wait()
            if job is None or self._ended:
                return False
            self.busy = True
        return self._work(job)
