r"""Everything that is printed: results, words, tables and JSON.

Invariant: standard output carries data only. A table has a heading and aligned columns on
a terminal and is tab-separated lines without heading elsewhere, so pipes need no option.
JSON is one document; names that are not UTF-8 keep their odd bytes as the surrogates
U+DC80 to U+DCFF (Python's surrogateescape), written as `\udcXX`.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import click

from unionfs.errors import show

__all__ = ["age", "json_option", "note", "result", "size", "table", "write_json"]

_F = TypeVar("_F", bound="Callable[..., Any] | click.Command")

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_STEPS: Final = (
    (60, "second"),
    (60, "minute"),
    (24, "hour"),
    (7, "day"),
    (4.35, "week"),
    (12, "month"),
    (float("inf"), "year"),
)
_SMALLEST_AGE: Final = 2
_MIN_LAST_COLUMN: Final = 20


def json_option(function: _F) -> _F:
    """Add `--json` to a command; it arrives as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


def result(text: str | bytes) -> None:
    """Print a line of data: an id, a path as it is, a change."""
    data = os.fsencode(text) if isinstance(text, str) else text
    sys.stdout.flush()
    sys.stdout.buffer.write(data + b"\n")


def note(text: str) -> None:
    """Say something to the person, not to the pipe, after the data printed so far."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # this module is where printing happens


def write_json(document: Any) -> None:
    """Print one JSON document."""
    import json  # noqa: PLC0415  # only for those who ask

    result(json.dumps(document, indent=2, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return os.fsdecode(value)
    raise TypeError(f"{type(value).__name__} in a JSON document")


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows; the last column is cut to the width of a terminal."""
    cells = [[show(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            result("\t".join(row))
        return
    cells.insert(0, list(heading))
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]
    room = shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * (len(widths) - 1)
    room = max(room, _MIN_LAST_COLUMN)
    for row in cells:
        last = row[-1] if len(row[-1]) <= room else row[-1][: room - 3] + "..."
        pads = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        result("  ".join([*pads, last]).rstrip())


def size(count: int) -> str:
    """Return bytes as people read them, in decimal units as docker and podman do."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < 1000:  # noqa: PLR2004  # decimal units
            return f"{value:.3g}{unit}" if unit != "B" else f"{count}B"
        value /= 1000
    return f"{value:.3g}{_UNITS[-1]}"


def age(created_ns: int, now_ns: int | None = None) -> str:
    """Return how long ago something was made; `never` for the zero time of Go."""
    if created_ns < 0:
        return "never"
    value = ((now_ns if now_ns is not None else time.time_ns()) - created_ns) / 1e9
    if value < _SMALLEST_AGE:
        return "just now"
    for step, name in _STEPS:
        if value < 2 * step:
            count = int(value)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
        value /= step
    return ""
