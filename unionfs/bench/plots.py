"""A result as pictures, with matplotlib where it is installed.

Invariant: a plot shows ratios or counts of the result and nothing that its tables do not.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from unionfs.bench.result import About, Result, ratios
from unionfs.bench.workloads import titles
from unionfs.errors import UnsupportedError

__all__ = ["plot"]

_FORMATS: Final = ("svg", "png")


def plot(result: Result, directory: Path) -> list[Path]:
    """Write all plots of a result, each as SVG and PNG; `UnsupportedError` without matplotlib."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise UnsupportedError(
            "plots need matplotlib (pip install 'unionfs[plots]'); tables and JSON do not"
        ) from None
    made = []
    pages: tuple[tuple[str, Callable[[Any, Result], Any]], ...] = (
        ("times", _times),
        ("requests", _requests),
        ("layers", _layers),
        ("files", _trees),
    )
    # Text stays text, and two runs over the same result give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unionfs"}):
        for name, draw in pages:
            figure = draw(pyplot, result)
            if figure is None:
                continue
            for suffix in _FORMATS:
                path = directory / f"{name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(path, bbox_inches="tight", dpi=110, metadata=metadata)
                made.append(path)
            pyplot.close(figure)
    return made


def _colours(result: Result) -> dict[str, str]:
    """Return the same colour for a subject in every plot."""
    return {subject.key: f"C{place}" for place, subject in enumerate(result.subjects)}


#: A value with the ends of its spread.
_Point = tuple[float, float, float]


def _dots(
    pyplot: Any,
    result: Result,
    keys: Sequence[str],
    subjects: Sequence[About],
    point: Callable[[str, str], _Point | None],
) -> tuple[Any, Any]:
    """Draw one dot with its spread for each subject, in one group for each key, first on top."""
    colours, known = _colours(result), titles()
    height = 0.16 * len(keys) * (len(subjects) + 1) + 1
    figure, axes = pyplot.subplots(figsize=(9, height))
    step = 1 / (len(subjects) + 1)
    for place, subject in enumerate(subjects):
        rows = [(row + place * step, point(key, subject.key)) for row, key in enumerate(keys)]
        shown = [(at, found) for at, found in rows if found is not None and found[1] > 0]
        axes.errorbar(
            [value for _, (value, _, _) in shown],
            [at for at, _ in shown],
            xerr=[
                [max(0.0, value - low) for _, (value, low, _) in shown],
                [max(0.0, high - value) for _, (value, _, high) in shown],
            ],
            fmt="o",
            markersize=4,
            color=colours[subject.key],
            label=subject.title,
        )
    for row in range(0, len(keys), 2):
        axes.axhspan(row - step, row + 1 - step, color="black", alpha=0.05, linewidth=0)
    axes.set_yticks([row + 0.5 - step for row in range(len(keys))], [known.get(k, k) for k in keys])
    axes.set_ylim(len(keys) - step, -step)
    axes.set_xscale("log")
    axes.grid(axis="x", which="major", alpha=0.4)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure, axes


def _times(pyplot: Any, result: Result) -> Any:
    subjects = [s for s in result.measured() if s.key != result.baseline]
    keys = list(result.seconds)
    if not keys or not subjects:
        return None
    figure, axes = _dots(
        *(pyplot, result, keys, subjects),
        lambda key, subject: ratios(result.seconds[key], subject, result.baseline),
    )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel(f"time as a ratio to {result.baseline}, logarithmic; less is better")
    return figure


def _requests(pyplot: Any, result: Result) -> Any:
    keys = list(result.requests)
    if not keys:
        return None
    counted = {key for by in result.requests.values() for key in by}
    subjects = [s for s in result.measured() if s.key in counted]

    def total(key: str, subject: str) -> _Point | None:
        kinds = result.requests[key].get(subject)
        return None if kinds is None else (sum(kinds.values()),) * 3

    figure, axes = _dots(pyplot, result, keys, subjects, total)
    axes.set_xlabel("FUSE requests, logarithmic (none: no dot); less is better")
    return figure


def _lines(axes: Any, result: Result, by_count: dict[str, Any], key: str, *, ratio: bool) -> None:
    counts = sorted(map(int, by_count))
    colours = _colours(result)
    for subject in result.measured():
        points = []
        for count in counts:
            rounds = by_count[str(count)].get(key, {})
            base = result.baseline if ratio else subject.key
            found = ratios(rounds, subject.key, base)
            if found is None:
                continue
            values = [value for value in rounds[subject.key] if value is not None]
            points.append((count, found[0] if ratio else statistics.median(values) / (1 << 20)))
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker="o", color=colours[subject.key], label=subject.title)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(alpha=0.4)


def _layers(pyplot: Any, result: Result) -> Any:
    shown = (("mount", True), ("list.cold", True), ("absent.cold", True), ("base", False))
    return _curves(pyplot, result, result.layers, "layers", shown)


def _trees(pyplot: Any, result: Result) -> Any:
    shown = (("tree.cold", True), ("memory", False))
    return _curves(pyplot, result, result.trees, "files", shown)


def _curves(
    pyplot: Any,
    result: Result,
    by_count: dict[str, Any],
    unit: str,
    shown: Sequence[tuple[str, bool]],
) -> Any:
    if not by_count:
        return None
    known = {**titles(), "mount": "mount", "base": "memory after mounting", "memory": "memory"}
    figure, all_axes = pyplot.subplots(
        1, len(shown), figsize=(5 * len(shown), 4), layout="constrained"
    )
    for axes, (key, ratio) in zip(all_axes, shown, strict=True):
        _lines(axes, result, by_count, key, ratio=ratio)
        axes.set_title(known[key], fontsize=10)
        axes.set_xlabel(unit)
        axes.set_ylabel(f"ratio to {result.baseline}" if ratio else "MiB of the server")
    all_axes[0].figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure
