"""What any app of ours needs: an orderly end, threads that report, notices without markup.

Invariant: an app that ends, by a key, a signal or a defect, leaves the terminal as it was, and
whoever ran it learns why; no thread waits for the app, so none can keep it from ending.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Literal

from textual.app import App
from textual.worker import get_current_worker

from unionfs.cli.boundary import describe
from unionfs.errors import UnionfsError
from unionfs.explore.messages import Later
from unionfs.explore.model import Cancelled, Tick
from unionfs.explore.words import clean

__all__ = ["BaseApp", "Severity", "error_words", "ticker"]

Severity = Literal["information", "warning", "error"]


class BaseApp(App[int]):
    """An app whose result is the exit status."""

    def catch_signals(self) -> None:
        """Leave the terminal as it was when a signal ends the program."""
        if self.is_headless:
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._ended, number)

    def _ended(self, number: int) -> None:
        self.workers.cancel_all()
        self.exit(128 + number)

    async def action_quit(self) -> None:
        """Stop all work and leave."""
        self.workers.cancel_all()
        self.exit(0)

    def _fatal_error(self) -> None:
        """Leave without textual's traceback: whoever runs the app sees `failure`."""
        self._close_messages_no_wait()

    @property
    def failure(self) -> Exception | None:
        """The defect that ended the app."""
        return self._exception

    def say(self, text: str, severity: Severity = "information") -> None:
        """Show a notice."""
        self.notify(clean(text), severity=severity, markup=False)

    def later(self, function: Callable[..., object], *arguments: object) -> None:
        """Have the app call a function; for threads."""
        self.post_message(Later(lambda: function(*arguments)))

    def on_later(self, message: Later) -> None:
        """Do what a thread wants done."""
        message.call()


def ticker() -> Tick:
    """Return what a thread calls to learn that nobody waits for it any more."""
    worker = get_current_worker()

    def tick() -> None:
        if worker.is_cancelled:
            raise Cancelled

    return tick


def error_words(error: OSError | UnionfsError) -> str:
    """Return what an error says to people."""
    return describe(error) if isinstance(error, OSError) else str(error)
