"""What threads tell the app.

Invariant: a thread touches no widget; it posts one of these, which any thread may.
"""

from __future__ import annotations

from collections.abc import Callable

from textual.message import Message

from unionfs.explore.rows import Rows
from unionfs.insight.waste import Report

__all__ = ["Counted", "Later", "Made"]


class Made(Message):
    """The rows that were asked for, and where the cursor goes (None: stays)."""

    def __init__(self, rows: Rows, path: bytes | None) -> None:
        super().__init__()
        self.rows = rows
        self.path = path


class Counted(Message):
    """Entries read so far; the report when that was all; what went wrong, in words."""

    def __init__(self, entries: int, report: Report | None, problem: str = "") -> None:
        super().__init__()
        self.entries = entries
        self.report = report
        self.problem = problem


class Later(Message):
    """A call that a thread leaves to the app."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self.call = call
