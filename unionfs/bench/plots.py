"""A result as pictures, with matplotlib where it is installed.

Invariant: a plot shows ratios or counts of the result and nothing that its tables do not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from unionfs.bench.result import Result, ratios
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


def _bars(
    axes: Any, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]]
) -> None:
    """Draw one group of horizontal bars for each row, the first on top."""
    height = 0.8 / max(1, len(columns))
    for place, (column, series) in enumerate(zip(columns, values, strict=True)):
        at = [row + place * height for row, value in enumerate(series) if value]
        axes.barh(at, [value for value in series if value], height, label=column)
    axes.set_yticks([row + 0.4 for row in range(len(rows))], rows)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.grid(axis="x", which="major", alpha=0.4)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _times(pyplot: Any, result: Result) -> Any:
    subjects = [s for s in result.measured() if s.key != result.baseline]
    keys = list(result.seconds)
    if not keys or not subjects:
        return None
    known = titles()
    figure, axes = pyplot.subplots(figsize=(9, 0.2 * len(keys) * (len(subjects) + 1) + 1))
    values = []
    for subject in subjects:
        found = [ratios(result.seconds[key], subject.key, result.baseline) for key in keys]
        values.append([None if ratio is None else ratio[0] for ratio in found])
    _bars(axes, [known.get(k, k) for k in keys], [s.title for s in subjects], values)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel(f"time as a ratio to {result.baseline}, logarithmic; less is better")
    return figure


def _requests(pyplot: Any, result: Result) -> Any:
    keys = list(result.requests)
    if not keys:
        return None
    known = titles()
    counted = {key for by in result.requests.values() for key in by}
    subjects = [s for s in result.measured() if s.key in counted]
    figure, axes = pyplot.subplots(figsize=(9, 0.2 * len(keys) * (len(subjects) + 1) + 1))
    values = [
        [sum(result.requests[key].get(s.key, {}).values()) or None for key in keys]
        for s in subjects
    ]
    _bars(axes, [known.get(k, k) for k in keys], [s.title for s in subjects], values)
    axes.set_xlabel("FUSE requests, logarithmic; less is better")
    return figure


def _lines(axes: Any, result: Result, by_count: dict[str, Any], key: str, *, ratio: bool) -> None:
    counts = sorted(map(int, by_count))
    for subject in result.measured():
        points = []
        for count in counts:
            rounds = by_count[str(count)].get(key, {})
            base = result.baseline if ratio else subject.key
            found = ratios(rounds, subject.key, base)
            if found is None:
                continue
            values = sorted(value for value in rounds[subject.key] if value is not None)
            each = found[0] if ratio else values[len(values) // 2] / (1 << 20)
            points.append((count, each))
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=subject.title)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(alpha=0.4)


def _layers(pyplot: Any, result: Result) -> Any:
    return _curves(
        pyplot,
        result,
        result.layers,
        "layers",
        (("mount", True), ("list.cold", True), ("absent.cold", True), ("base", False)),
    )


def _trees(pyplot: Any, result: Result) -> Any:
    return _curves(pyplot, result, result.trees, "files", (("tree.cold", True), ("memory", False)))


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
    figure, all_axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 4))
    for axes, (key, ratio) in zip(all_axes, shown, strict=True):
        _lines(axes, result, by_count, key, ratio=ratio)
        axes.set_title(known[key], fontsize=10)
        axes.set_xlabel(unit)
        axes.set_ylabel(f"ratio to {result.baseline}" if ratio else "MiB of the server")
    all_axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
