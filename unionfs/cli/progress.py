"""Showing how far something is: a bar on a terminal, plain lines elsewhere.

Invariant: everything goes to standard error, and nothing here can make the work fail.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from unionfs.errors import show

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["Report", "progress", "steps"]

#: Label of the part at work, bytes done, bytes in all (None: unknown).
Report = Callable[[str, int, int | None], None]


class _Lines:
    """One line for each part, when it begins."""

    def __init__(self) -> None:
        self._label = ""

    def __call__(self, label: str, done: int, total: int | None, /) -> None:
        del done, total
        if label != self._label:
            self._label = label
            with contextlib.suppress(OSError):
                print(show(label), file=sys.stderr, flush=True)  # noqa: T201  # progress is printing


@contextlib.contextmanager
def progress(verb: str) -> Iterator[Report]:
    """Give a function that shows progress until the context ends; `verb` says what goes on."""
    if not sys.stderr.isatty():
        lines = _Lines()
        yield lambda label, done, total: lines(f"{verb} {label}", done, total)
        return
    # rich costs a tenth of a second to import: more than most commands take.
    from rich.console import Console  # noqa: PLC0415  # see above
    from rich.progress import (  # noqa: PLC0415  # see above
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(label: str, done: int, total: int | None) -> None:
            if label not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[label] = bars.add_task(f"{verb} {show(label)}", total=total)
            bars.update(tasks[label], completed=done, total=total)

        yield report


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows what goes on, as step N of M, until the context ends."""
    if not sys.stderr.isatty():
        lines = _Lines()
        yield lines
        return
    # See above.
    from rich.console import Console  # noqa: PLC0415  # see above
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415  # see above

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("")

        def report(label: str, done: int, total: int) -> None:
            bars.update(task, description=show(label), completed=done, total=total)

        yield report
