"""Reading the explorer's rows: as text, one line for each, so that a test can say all of them."""

from __future__ import annotations

from collections.abc import Callable

from unionfs.explore.model import ALL_KINDS, Explorer, Kind
from unionfs.explore.rows import Rows, build
from unionfs.explore.search import search
from unionfs.insight.probe import join

__all__ = ["Look", "everything", "nothing", "opened", "seen"]

#: Lays layers out as they are spelled and opens an explorer on them.
Look = Callable[..., Explorer]


def nothing() -> None:
    """Tick of work that nobody gives up."""


def opened(rows: Rows) -> list[str]:
    """Return `mark path number` of every row but the root's."""
    found = []
    for row in (rows[at] for at in range(1, len(rows))):
        entry = row.folder.entry(row.name)
        slash = "/" if entry.is_dir else ""
        found.append(f"{entry.kind.value}{row.path.decode()}{slash} {entry.number}")
    return found


def everything(
    explorer: Explorer,
    top: int,
    *,
    aggregated: bool = False,
    kinds: frozenset[Kind] = ALL_KINDS,
) -> Rows:
    """Return the rows of every name."""
    lens = explorer.lens(top, aggregated=aggregated)
    return search(explorer, lens, kinds, lambda _: True, nothing)


def seen(explorer: Explorer, top: int, *, aggregated: bool = False) -> list[str]:
    """Return the rows with all directories open that have anything, opened one by one."""
    lens = explorer.lens(top, aggregated=aggregated)
    paths: set[bytes] = set()
    rows = build(explorer, lens, ALL_KINDS, paths, None, nothing)
    at = 0
    while at < len(rows):
        row = rows[at]
        if row.folder.entry(row.name).opens and not row.is_open:
            paths.add(join(row.folder.path, row.name))
            rows = build(explorer, lens, ALL_KINDS, paths, rows, nothing)
        at += 1
    return opened(rows)
