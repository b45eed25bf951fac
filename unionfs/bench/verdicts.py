"""What changed between two results.

Invariant: a row is compared by its ratio to the baseline of its own run wherever both runs
have the same baseline, so a faster or busier machine is no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from unionfs.bench.result import Result
from unionfs.bench.stats import CONFIDENCE, Comparison, compare
from unionfs.bench.tables import Table, number
from unionfs.bench.workloads import titles

__all__ = ["Verdict", "verdicts", "verdicts_table"]


@attrs.frozen
class Verdict:
    """How a subject's workload changed from the first result to the second."""

    workload: str
    subject: str
    relative: bool
    comparison: Comparison


def _sample(
    rounds: dict[str, list[float | None]], subject: str, baseline: str | None
) -> list[float]:
    mine = rounds.get(subject, [])
    if baseline is None:
        return [value for value in mine if value]
    pairs = zip(mine, rounds.get(baseline, []), strict=False)
    return [a / b for a, b in pairs if a and b]


def verdicts(first: Result, second: Result, confidence: float = CONFIDENCE) -> Iterator[Verdict]:
    """Compare every workload that both results have, the subjects in the second's order.

    The baseline itself is compared by its times: that is what the machine did.
    """
    baseline = first.baseline if first.baseline == second.baseline else None
    for workload, rounds in second.seconds.items():
        for about in second.measured():
            own = None if about.key == baseline else baseline
            before = _sample(first.seconds.get(workload, {}), about.key, own)
            after = _sample(rounds, about.key, own)
            if before and after:
                comparison = compare(before, after, confidence)
                yield Verdict(workload, about.key, own is not None, comparison)


def verdicts_table(found: Sequence[Verdict], confidence: float) -> Table:
    """Return the verdicts as rows."""
    known = titles()
    rows = []
    for verdict in found:
        it = verdict.comparison
        interval = (
            "" if it.low is None or it.high is None else f"{number(it.low)}-{number(it.high)}"
        )
        rows.append(
            (
                known.get(verdict.workload, verdict.workload),
                verdict.subject,
                "ratio" if verdict.relative else "time",
                number(it.ratio),
                interval,
                it.verdict,
            )
        )
    heading = ("work", "subject", "of its", "second / first", f"{confidence:.0%} interval", "")
    return Table("What changed from the first result to the second", heading, tuple(rows))
