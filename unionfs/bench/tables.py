"""A result as tables of text, to be drawn by whoever shows them.

Invariant: times appear as ratios only. A cell is empty where nothing was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from unionfs.bench.goals import check
from unionfs.bench.result import About, Result, ratios
from unionfs.bench.workloads import titles

__all__ = ["Table", "brief", "goals_table", "number", "tables"]

_MIB: Final = 1 << 20
_KINDS: Final = 3


@attrs.frozen
class Table:
    """A title, a heading and rows; the first column is text, the others are numbers."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(value: float) -> str:
    """Return a ratio with two or three digits that mean something."""
    if value >= 100:  # noqa: PLR2004  # no digits behind the point
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004  # three digits


def _ratio(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return ""
    value, low, high = map(number, found)
    return f"{value} ({low}-{high})"


def tables(result: Result) -> Iterator[Table]:
    """Return everything a result says, the times first."""
    subjects = result.measured()
    base = next(s.title for s in subjects if s.key == result.baseline)
    known = titles()
    if result.seconds:
        yield _grid(
            f"Time, as a ratio to {base}",
            subjects,
            [(known.get(k, k), k) for k in result.seconds],
            lambda key, subject: _ratio(ratios(result.seconds[key], subject, result.baseline)),
        )
    served = [s for s in subjects if s.key in result.server_peak]
    if served:
        yield _grid(
            f"CPU time of the server process, as a ratio to the time that {base} takes in all",
            served,
            [(known.get(k, k), k) for k in result.server_cpu],
            lambda key, subject: _cpu(result, key, subject),
        )
    if result.requests:
        yield _requests(result, known)
    yield from _calls(result, known)
    if served:
        rows = [(s.title, f"{max(_numbers(result.server_peak[s.key])) / _MIB:.0f}") for s in served]
        yield Table("Peak memory of the server in a round, MiB", ("", "MiB"), tuple(rows))
    yield from _layers(result, base, known)
    yield from _trees(result, base)


def brief(result: Result) -> Table:
    """Return the times without their spread, for a page that is not wide."""
    known = titles()
    subjects = [s for s in result.measured() if s.key != result.baseline]
    base = next(s.title for s in result.measured() if s.key == result.baseline)

    def cell(key: str, subject: str) -> str:
        found = ratios(result.seconds[key], subject, result.baseline)
        return "" if found is None else number(found[0])

    rows = [(known.get(key, key), key) for key in result.seconds]
    return _grid(f"Time, as a ratio to {base}", subjects, rows, cell)


def _grid(
    title: str,
    subjects: Sequence[About],
    rows: Sequence[tuple[str, str]],
    cell: Callable[[str, str], str],
) -> Table:
    return Table(
        title,
        ("", *(subject.title for subject in subjects)),
        tuple((name, *(cell(key, subject.key) for subject in subjects)) for name, key in rows),
    )


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _cpu(result: Result, key: str, subject: str) -> str:
    spent = _numbers(result.server_cpu[key].get(subject, []))
    base = _numbers(result.seconds[key].get(result.baseline, []))
    return number(statistics.mean(spent) / statistics.median(base)) if spent and base else ""


def _requests(result: Result, known: dict[str, str]) -> Table:
    counted = {key for by in result.requests.values() for key in by}
    subjects = [s for s in result.measured() if s.key in counted]

    def cell(key: str, subject: str) -> str:
        kinds = result.requests[key].get(subject)
        if kinds is None:
            return ""
        most = sorted(kinds.items(), key=lambda item: -item[1])
        words = ", ".join(f"{kind} {count:,}" for kind, count in most[:_KINDS])
        return f"{sum(kinds.values()):,}" + (
            f" ({words}{', ...' * (len(most) > _KINDS)})" * bool(words)
        )

    rows = [(known.get(key, key), key) for key in result.requests]
    return _grid("FUSE requests by kind (all but FORGET)", subjects, rows, cell)


def _calls(result: Result, known: dict[str, str]) -> Iterator[Table]:
    """Give what stands for others' requests where a plain user cannot count them by kind."""
    if result.facts["root"] or not result.server_calls:
        return
    counted = {key for by in result.server_calls.values() for key in by}
    subjects = [s for s in result.measured() if s.key in counted]

    def cell(key: str, subject: str) -> str:
        values = _numbers(result.server_calls[key].get(subject, []))
        return f"{statistics.median(values):,.0f}" if values else ""

    rows = [(known.get(key, key), key) for key in result.server_calls]
    yield _grid(
        "Read and write calls of the server, medians (splice is not among them)",
        subjects,
        rows,
        cell,
    )


def _layers(result: Result, base: str, known: dict[str, str]) -> Iterator[Table]:
    counts = sorted(map(int, result.layers))
    if not counts:
        return
    subjects = [s for s in result.measured() if s.key in result.layers[str(counts[0])]["mount"]]
    first = result.layers[str(counts[0])]
    for key in (k for k in first if k not in ("memory", "base")):

        def cell(count: str, subject: str, key: str = key) -> str:
            now = result.layers[count].get(key, {})
            against = ratios(now, subject, result.baseline)
            grown = ratios(
                {"now": now.get(subject, []), "then": first[key].get(subject, [])}, "now", "then"
            )
            if grown is None:
                return ""
            own = f"x{number(grown[0])}"
            return own if against is None else f"{number(against[0])}, {own}"

        title = "mount" if key == "mount" else known.get(key, key)
        yield _grid(
            f"{title}: ratio to {base} with as many layers, then growth since {counts[0]}",
            subjects,
            [(f"{count} layer" + "s" * (count > 1), str(count)) for count in counts],
            cell,
        )
    served = [s for s in subjects if s.key in first.get("base", {})]
    yield _grid(
        "Memory of the server after mounting, MiB",
        served,
        [(f"{count} layer" + "s" * (count > 1), str(count)) for count in counts],
        lambda count, subject: _median(result.layers[count].get("base", {}), subject, _MIB),
    )


def _median(rounds: dict[str, list[float | None]], subject: str, unit: float) -> str:
    values = _numbers(rounds.get(subject, []))
    return number(statistics.median(values) / unit) if values else ""


def _trees(result: Result, base: str) -> Iterator[Table]:
    counts = sorted(map(int, result.trees))
    if not counts:
        return
    subjects = [s for s in result.measured() if s.key in result.trees[str(counts[0])]["mount"]]
    rows = [(f"{count:,} files", str(count)) for count in counts]
    yield _grid(
        f"Tree walk with stat, cold, by number of files: ratio to {base}",
        subjects,
        rows,
        lambda count, subject: _ratio(
            ratios(result.trees[count].get("tree.cold", {}), subject, result.baseline)
        ),
    )
    for key, title in (
        ("memory", "Memory of the server for each file seen, bytes"),
        ("forgotten", "The same after the kernel has forgotten them"),
    ):
        shown = [row for row in rows if result.trees[row[1]].get(key)]
        if shown:
            served = [s for s in subjects if s.key in result.trees[shown[0][1]][key]]
            yield _grid(
                title,
                served,
                shown,
                lambda count, subject, key=key: _median(  # type: ignore[misc]  # mypy does not infer a default's type
                    result.trees[count][key], subject, int(count)
                ),
            )


def goals_table(result: Result) -> Table:
    """Return the goals and whether this result meets them."""
    rows = []
    for outcome in check(result):
        word = {True: "met", False: "NOT MET", None: "not measured"}[outcome.met]
        if outcome.met is not None and not outcome.clear:
            word += ", rounds disagree"
        value = "" if outcome.value is None else number(outcome.value)
        spread = ""
        if outcome.low is not None and outcome.high is not None:
            spread = f"{number(outcome.low)}-{number(outcome.high)}"
        rows.append((outcome.title, outcome.against, f"<= {outcome.limit:g}", value, spread, word))
    heading = ("work", "against", "goal", "ratio", "rounds", "")
    return Table(
        "Goals of the FUSE back end (subject `fuse`, for a plain user)", heading, tuple(rows)
    )
