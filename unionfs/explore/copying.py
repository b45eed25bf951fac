"""Extraction in the app: where to, how far, and what is in the way.

Invariant: a copy that is going on covers the screen, so there is one at a time, and a key stops it.
"""

from __future__ import annotations

import os

from textual import work
from textual.worker import Worker

from unionfs.cli.output import size
from unionfs.errors import ConflictError, UnionfsError, show
from unionfs.explore.base import BaseApp, Severity, error_words, ticker
from unionfs.explore.extract import Extracted, extract
from unionfs.explore.model import Cancelled, Explorer
from unionfs.explore.rows import Row
from unionfs.explore.screens import Busy, Choice, Prompt
from unionfs.explore.visit import unshow
from unionfs.explore.words import counted

__all__ = ["CopyingApp"]


class CopyingApp(BaseApp):
    """An app that copies what is under its cursor out of the layers."""

    explorer: Explorer

    def current_row(self) -> Row | None:
        """Return the row under the cursor."""
        raise NotImplementedError

    def action_extract(self) -> None:
        """Ask where to copy what is under the cursor."""
        row = self.current_row()
        if row is None:
            return
        number = self.explorer.source(row.folder, row.name)
        path = row.path

        def chosen(answer: tuple[str, bool] | None) -> None:
            if answer is not None and answer[0]:
                directory = os.path.abspath(os.path.expanduser(unshow(answer[0])))
                self._start(number, path, directory, replace=False)

        name = show(b"/" + path)
        self.push_screen(Prompt(f"Extract {name} into the directory", show(os.getcwdb())), chosen)

    def _start(self, number: int, path: bytes, directory: bytes, *, replace: bool) -> None:
        done = Extracted()
        worker: Worker[None] = self._extract(number, path, directory, done, replace=replace)
        self.push_screen(
            Busy(
                f"Extracting {show(b'/' + path)}",
                lambda: f"{counted(done.entries, 'entry')}, {size(done.size)}",
                worker.cancel,
            )
        )

    @work(thread=True, group="extract")
    def _extract(
        self, number: int, path: bytes, directory: bytes, done: Extracted, *, replace: bool
    ) -> None:
        branches = self.explorer.branches(number)
        try:
            extract(branches, path, directory, replace=replace, tick=ticker(), done=done)
        except Cancelled:
            self.later(self._ended_extract, "given up; nothing was left behind", "information")
        except ConflictError as exc:
            self.later(self._ask_to_replace, number, path, directory, f"{exc}. Replace it?")
        except (OSError, UnionfsError) as exc:
            self.later(self._ended_extract, error_words(exc), "error")
        else:
            text = f"{counted(done.entries, 'entry')}, {size(done.size)} in {show(done.path)}"
            if done.notes:
                self.later(self._ended_extract, f"{text}; {done.notes}", "warning")
            else:
                self.later(self._ended_extract, text, "information")

    def _ended_extract(self, text: str, severity: Severity) -> None:
        if isinstance(self.screen, Busy):
            self.screen.dismiss()
        self.say(text, severity)

    def _ask_to_replace(self, number: int, path: bytes, directory: bytes, question: str) -> None:
        if isinstance(self.screen, Busy):
            self.screen.dismiss()

        def answered(answer: str | None) -> None:
            if answer is not None:
                self._start(number, path, directory, replace=True)

        self.push_screen(Choice(question, [("r", "replace")]), answered)
