"""Texts about what is under the cursor: its explanation, its content, its bytes, and the keys.

Invariant: what takes long is done in a thread, and a newer question ends an older one.
"""

from __future__ import annotations

from textual import work

from unionfs.cli.output import size
from unionfs.errors import UnionfsError, show
from unionfs.explore import words
from unionfs.explore.base import error_words, ticker
from unionfs.explore.copying import CopyingApp
from unionfs.explore.keys import key_table
from unionfs.explore.model import Cancelled
from unionfs.explore.rows import Row
from unionfs.explore.screens import Page
from unionfs.explore.visit import add_up, first_bytes, verdict

__all__ = ["PagesApp"]


class PagesApp(CopyingApp):
    """An app that tells what it knows about a path. `top` is the layer looked at."""

    top: int

    def redraw(self) -> None:
        """Draw the rows again, for more is known about them."""
        raise NotImplementedError

    def action_keys(self) -> None:
        """Show all keys."""
        lines = [(f"{key:<12}{text}", "") for key, text in key_table()]
        marks = [
            (f"{kind.value.strip() or 'none':<12}{word}", word)
            for kind, word in words.KIND_WORDS.items()
        ]
        self.push_screen(Page("Keys and marks", [*lines, ("", ""), *marks]))

    def action_explain(self) -> None:
        """Explain the path under the cursor."""
        row = self.current_row()
        if row is not None:
            self._explain(row.path)

    @work(thread=True, exclusive=True, group="page")
    def _explain(self, path: bytes) -> None:
        try:
            lines = verdict(self.explorer.where, self.top, path)
        except (OSError, UnionfsError) as exc:
            self.later(self.say, error_words(exc), "error")
            return
        self.later(self._open, Page(show(b"/" + path), lines))

    def _open(self, page: Page) -> None:
        """Show what a thread made, unless something else was opened meanwhile."""
        if len(self.screen_stack) == 1:
            self.push_screen(page)

    def action_add_up(self) -> None:
        """Add up the bytes in the directory under the cursor."""
        row = self.current_row()
        if row is not None and row.folder.entry(row.name).is_dir:
            self._add_up(row)

    @work(thread=True, exclusive=True, group="sum")
    def _add_up(self, row: Row) -> None:
        try:
            files, bytes_in = add_up(self.explorer, row.folder, row.name, ticker())
        except Cancelled:
            return
        except OSError as exc:
            self.later(self.say, error_words(exc), "error")
            return
        name = show(b"/" + row.path)
        self.later(self.say, f"{name}: {size(bytes_in)} in {words.counted(files, 'file')}")
        self.later(self.redraw)

    def action_view(self) -> None:
        """Show the beginning of a file."""
        row = self.current_row()
        if row is None:
            return
        try:
            data = first_bytes(self.explorer, row.folder, row.name)
        except (OSError, UnionfsError) as exc:
            self.say(error_words(exc), "warning")
            return
        lines = [(line, "") for line in words.content(data)]
        self.push_screen(Page(show(b"/" + row.path), lines))
