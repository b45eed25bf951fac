"""Drawing the tables of a benchmark: with rich, in full width where it is no terminal.

Invariant: results asked for go to standard output; those of a run that prints its path there go
to standard error.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TextIO

from unionfs.bench.stats import rounds_needed
from unionfs.bench.tables import Table, goals_table, tables
from unionfs.bench.verdicts import Verdict, verdicts_table
from unionfs.errors import show

if TYPE_CHECKING:
    from rich.console import Console

    from unionfs.bench.result import Result

__all__ = ["draw", "draw_table", "draw_verdicts"]

_WIDE: Final = 250
_COLUMN: Final = 42


def _console(file: TextIO) -> Console:
    from rich.console import Console  # noqa: PLC0415  # rich costs a tenth of a second

    width = shutil.get_terminal_size().columns if file.isatty() else _WIDE
    return Console(file=file, width=width, highlight=False, markup=False)


def draw_table(table: Table, file: TextIO | None = None) -> None:
    """Draw one table."""
    from rich import box  # noqa: PLC0415  # rich costs a tenth of a second
    from rich.table import Table as Grid  # noqa: PLC0415  # rich costs a tenth of a second
    from rich.text import Text  # noqa: PLC0415  # rich costs a tenth of a second

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(table.heading):
        grid.add_column(Text(heading), justify="right" if place else "left", max_width=_COLUMN)
    for row in table.rows:
        grid.add_row(*(Text(show(cell)) for cell in row))
    console = _console(file or sys.stdout)
    console.print(Text(table.title))
    console.print(grid)


def draw(result: Result, *, goals: bool, file: TextIO | None = None, errors: bool = False) -> None:
    """Draw everything that a result says, and how it came to be."""
    target = file or (sys.stderr if errors else sys.stdout)
    for table in tables(result):
        draw_table(table, target)
    if goals:
        draw_table(goals_table(result), target)
    for line in _words(result):
        target.write(show(line) + "\n")


def _words(result: Result) -> list[str]:
    facts = result.facts
    lines = ["Measured:"]
    for subject in result.measured():
        version = f" {subject.version}" if subject.version else ""
        lines.append(f"  {subject.title}{version}: {subject.options}")
    left_out = [subject for subject in result.subjects if subject.left_out is not None]
    if left_out:
        lines.append("Left out:")
        lines += [f"  {subject.title}: {subject.left_out}" for subject in left_out]
    who = "root" if facts["root"] else "a plain user"
    load = " ".join(f"{value:.1f}" for value in facts["load"])
    lines += [
        (
            f"{result.rounds} rounds, size {result.shape}, as {who}, {facts['time']}: Linux"
            f" {facts['kernel']} {facts['machine']}, {facts['cpu']}, {facts['cores']} cores,"
            f" {facts['memory'] / 2**30:.0f} GiB, {facts['filesystem']}, Python {facts['python']},"
            f" load {load} at the start"
        ),
        *(f"  {line}" for line in result.conditions),
        *(f"note: {note}" for note in result.notes),
        *(f"failed: {f.subject}: {f.workload}: {f.message}" for f in result.failures),
    ]
    return lines


def draw_verdicts(found: Sequence[Verdict], confidence: float, *, everything: bool) -> None:
    """Draw the verdicts, those with a difference unless `everything`; say what chance does."""
    different = [v for v in found if v.comparison.verdict in ("faster", "slower")]
    draw_table(verdicts_table(found if everything else different, confidence))
    few = sum(v.comparison.low is None for v in found)
    lines = [
        (
            f"{len(different)} of {len(found)} rows differ; chance alone would make about"
            f" {(1 - confidence) * (len(found) - few):.1f} differ"
        ),
    ]
    if few:
        lines.append(
            f"{few} rows have too few rounds for {confidence:.0%}: measure both with --rounds"
            f" {rounds_needed(confidence)} or more"
        )
    for line in lines:
        sys.stdout.write(line + "\n")
