"""The result of a run: what was measured, under what conditions, and every round's number.

Invariant: all lists of one run have one entry for each round, in the order of the rounds, with
None where a subject failed; so rounds can be compared pairwise.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec

from unionfs.errors import UsageError, show

__all__ = ["VERSION", "About", "Failure", "Result", "ratios", "read", "write"]

VERSION: Final = 1
#: workload -> subject -> one number for each round
Rounds = dict[str, dict[str, list[float | None]]]


@attrs.define
class About:
    """A subject of a run; `left_out` says why it was not measured."""

    key: str
    title: str
    options: str
    version: str = ""
    left_out: str | None = None


@attrs.define
class Failure:
    """What a subject did not do."""

    subject: str
    workload: str
    message: str


@attrs.define
class Result:
    """One run. Times are seconds, memory bytes; `baseline` is the subject others are divided by.

    `requests` (workload -> subject -> kind -> number) come from one more pass outside of the
    rounds. `layers` and `trees` hold, by number of layers or files, then by what was measured,
    what `seconds` holds by workload.
    """

    version: int
    facts: dict[str, Any]
    conditions: list[str]
    shape: str
    rounds: int
    baseline: str
    subjects: list[About]
    seconds: Rounds = attrs.field(factory=dict)
    server_cpu: Rounds = attrs.field(factory=dict)
    server_calls: Rounds = attrs.field(factory=dict)
    server_peak: dict[str, list[float | None]] = attrs.field(factory=dict)
    requests: dict[str, dict[str, dict[str, int]]] = attrs.field(factory=dict)
    layers: dict[str, Rounds] = attrs.field(factory=dict)
    trees: dict[str, Rounds] = attrs.field(factory=dict)
    failures: list[Failure] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)

    def measured(self) -> list[About]:
        """Return the subjects that ran."""
        return [subject for subject in self.subjects if subject.left_out is None]


def ratios(
    rounds: dict[str, list[float | None]], subject: str, baseline: str
) -> tuple[float, float, float] | None:
    """Return the ratio of medians, and the smallest and largest ratio within one round."""
    mine, theirs = rounds.get(subject, []), rounds.get(baseline, [])
    pairs = [
        (a, b) for a, b in zip(mine, theirs, strict=False) if a is not None and b is not None and b
    ]
    if not pairs:
        return None
    each = [a / b for a, b in pairs]
    median = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    return median, min(each), max(each)


def write(result: Result, path: Path) -> None:
    """Write aside, then rename: a result file is complete."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    staged.rename(path)


def read(path: Path) -> Result:
    """Read a result file, or that of a result directory; `UsageError` when it is none."""
    if path.is_dir():
        path /= "result.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Result)
    except msgspec.DecodeError as error:
        raise UsageError(f"{show(str(path))} is no result of `unionfs bench`: {error}") from None
    if found.version != VERSION:
        raise UsageError(
            f"{show(str(path))} has version {found.version} of the format, this program {VERSION}"
        )
    return found
