"""`unionfs stats`: what a live mount has been asked, how long it took, and who answered.

JSON: an object of `target`, `backend`, `lane`, `since` (seconds since 1970), `seconds` (of life),
`buckets` (upper bounds of the times, seconds; null: no bound), `requests` (by kind: `count`,
`errors`, `seconds`, `bytes`, `buckets`), `lookups`, `cache_hits`, `entries_read`,
`directories_read`, `copy_ups`, `copy_up_bytes`, `journaled`, `live_nodes`, `open_files`,
`branches` (top first: `branch`, `path`, `entries_read`), `watchers`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.live import client_at
from unionfs.errors import show

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["command", "percentile", "span"]

_HEADING: Final = ("REQUEST", "COUNT", "ERRORS", "MEAN", "P50", "P99", "BYTES")
_MICRO: Final = 1e-6
_MILLI: Final = 1e-3


@click.command("stats")
@click.argument("mountpoint", metavar="MOUNT", type=DIRECTORY)
@click.option("-w", "--watch", is_flag=True, help="Show it live until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True,
    help="Seconds between two looks with --watch.",
)  # fmt: skip
@click.option("--prometheus", is_flag=True, help="Print the text format of Prometheus.")
@output.json_option
@root_option
@verbose_option
def command(
    *, mountpoint: str, watch: bool, interval: float, prometheus: bool, as_json: bool
) -> None:
    """Show what a live mount is asked, and how long it takes.

    P50 and P99 are upper bounds: times are counted in powers of two. What the kernel answers
    from its own caches never reaches the mount and is not counted.
    """
    if watch + prometheus + as_json > 1:
        raise click.UsageError(
            "--watch, --prometheus and --json exclude each other", click.get_current_context()
        )
    from unionfs.control.protocol import Request  # noqa: PLC0415  # help stays fast

    with client_at(mountpoint) as client:
        found = client.ask(Request("stats"))
        if watch:
            _watch(client, found, interval)
            return
    if prometheus:
        from unionfs.control.prometheus import text  # noqa: PLC0415  # only when asked for

        output.result(text(found).rstrip("\n"))
    elif as_json:
        output.write_json(found)
    else:
        output.table(_HEADING, rows(found))
        for line in _summary(found):
            output.result(line)


def percentile(buckets: Sequence[int], bounds: Sequence[float | None], share: float) -> float:
    """Return a bound in seconds that `share` of the times do not exceed; inf above the last."""
    wanted = share * sum(buckets)
    seen = 0
    for count, bound in zip(buckets, bounds, strict=True):
        seen += count
        if seen >= wanted and seen:
            return float("inf") if bound is None else bound
    return 0.0


def span(seconds: float) -> str:
    """Return a time as people read it."""
    if seconds == float("inf"):
        return "long"
    if seconds < _MILLI:
        return f"{seconds / _MICRO:.3g}us"
    return f"{seconds / _MILLI:.3g}ms" if seconds < 1 else f"{seconds:.3g}s"


def rows(stats: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a line of cells for each kind of request, the most frequent first."""
    bounds = stats["buckets"]
    items = sorted(stats["requests"].items(), key=lambda pair: (-pair[1]["count"], pair[0]))
    return [
        (
            op,
            str(item["count"]),
            str(item["errors"]),
            span(item["seconds"] / item["count"]),
            span(percentile(item["buckets"], bounds, 0.5)),
            span(percentile(item["buckets"], bounds, 0.99)),
            output.size(item["bytes"]) if item["bytes"] else "-",
        )
        for op, item in items
    ]


def _summary(stats: dict[str, Any]) -> list[str]:
    lookups = stats["lookups"]
    share = f" ({100 * stats['cache_hits'] / lookups:.0f}%)" if lookups else ""
    lookup = (
        f"lookups {lookups}, of known names {stats['cache_hits']}{share};"
        f" {stats['directories_read']} directories and {stats['entries_read']} entries read"
    )
    copied = (
        f"copied up {stats['copy_ups']}, {output.size(stats['copy_up_bytes'])};"
        f" {stats['live_nodes']} inodes and {stats['open_files']} files in use"
    )
    return [
        lookup,
        copied,
        *(
            f"{branch['branch']:<9} {branch['entries_read']:>8} entries  {show(branch['path'])}"
            for branch in stats["branches"]
        ),
    ]


def _watch(client: Any, first: dict[str, Any], interval: float) -> None:
    from rich.console import Console  # noqa: PLC0415  # only when something is drawn
    from rich.live import Live  # noqa: PLC0415  # only when something is drawn

    from unionfs.control.protocol import Request  # noqa: PLC0415  # help stays fast

    found, before = first, first
    console = Console()
    while not console.is_terminal:  # one picture below the other, until nobody reads
        console.print(_picture(found, before))
        sys.stdout.flush()
        time.sleep(interval)
        before, found = found, client.ask(Request("stats"))
    with Live(_picture(found, before), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            before, found = found, client.ask(Request("stats"))
            live.update(_picture(found, before), refresh=True)


def _picture(stats: dict[str, Any], before: dict[str, Any]) -> Group:
    """Return the table with rates, as rich draws it."""
    from rich.console import Group  # noqa: PLC0415  # only when something is drawn
    from rich.table import Table  # noqa: PLC0415  # only when something is drawn
    from rich.text import Text  # noqa: PLC0415  # only when something is drawn

    table = Table(box=None, pad_edge=False)
    table.add_column(_HEADING[0])
    for title in (*_HEADING[1:], "PER SECOND"):
        table.add_column(title, justify="right")
    passed = stats["seconds"] - before["seconds"]
    for row in rows(stats):
        old = before["requests"].get(row[0], {"count": 0})["count"]
        rate = f"{(int(row[1]) - old) / passed:.0f}" if passed > 0 else "-"
        table.add_row(*row, rate)
    return Group(table, *(Text(line) for line in _summary(stats)))
