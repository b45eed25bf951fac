"""The counters of a mount in the text format of Prometheus (exposition format 0.0.4).

Invariant: metrics keep their names and labels; counters only grow while the mount lives, and
histograms have cumulative buckets that end with `+Inf`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from unionfs.errors import show

__all__ = ["text"]

_PLAIN: Final = (
    ("lookups", "counter", "Names looked up in directories."),
    ("cache_hits", "counter", "Lookups of names that were known already."),
    ("entries_read", "counter", "Entries whose attributes were read from a branch."),
    ("directories_read", "counter", "Directories listed in a branch."),
    ("copy_ups", "counter", "Entries copied up into the rw branch."),
    ("copy_up_bytes", "counter", "Bytes copied up into the rw branch."),
    ("journaled", "counter", "Changes of several steps that were written down first."),
    ("live_nodes", "gauge", "Inodes the kernel or an open file refers to."),
    ("open_files", "gauge", "Files open in a branch."),
    ("watchers", "gauge", "Clients that trace requests."),
)


def text(stats: Mapping[str, Any]) -> str:
    """Return the answer to `stats` as a page of metrics."""
    return "\n".join(_lines(stats)) + "\n"


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _lines(stats: Mapping[str, Any]) -> Iterator[str]:
    mount = f'mount="{_label(show(stats["target"] or ""))}"'
    yield "# HELP unionfs_start_time_seconds When the mount began, since 1970."
    yield "# TYPE unionfs_start_time_seconds gauge"
    yield f"unionfs_start_time_seconds{{{mount}}} {stats['since']!r}"
    for name, kind, words in _PLAIN:
        metric = f"unionfs_{name}" + ("_total" if kind == "counter" else "")
        yield f"# HELP {metric} {words}"
        yield f"# TYPE {metric} {kind}"
        yield f"{metric}{{{mount}}} {stats[name]}"
    yield "# HELP unionfs_branch_entries_read_total Entries read from each branch."
    yield "# TYPE unionfs_branch_entries_read_total counter"
    for branch in stats["branches"]:
        labels = (
            f'{mount},branch="{_label(branch["branch"])}",path="{_label(show(branch["path"]))}"'
        )
        yield f"unionfs_branch_entries_read_total{{{labels}}} {branch['entries_read']}"
    for name, words in (
        ("errors", "Requests that ended with an error."),
        ("bytes", "Bytes read and written by requests."),
    ):
        yield f"# HELP unionfs_request_{name}_total {words}"
        yield f"# TYPE unionfs_request_{name}_total counter"
        for op, item in stats["requests"].items():
            yield f'unionfs_request_{name}_total{{{mount},op="{op}"}} {item[name]}'
    yield "# HELP unionfs_request_duration_seconds How long requests took."
    yield "# TYPE unionfs_request_duration_seconds histogram"
    for op, item in stats["requests"].items():
        yield from _histogram(f'{mount},op="{op}"', stats["buckets"], item)


def _histogram(labels: str, bounds: list[float | None], item: Mapping[str, Any]) -> Iterator[str]:
    metric, seen = "unionfs_request_duration_seconds", 0
    for bound, count in zip(bounds, item["buckets"], strict=True):
        seen += count
        limit = "+Inf" if bound is None else repr(bound)
        yield f'{metric}_bucket{{{labels},le="{limit}"}} {seen}'
    yield f"{metric}_sum{{{labels}}} {item['seconds']!r}"
    yield f"{metric}_count{{{labels}}} {item['count']}"
