"""Telling a difference from noise, for a handful of rounds of unknown distribution.

The shift between two samples is estimated as Hodges and Lehmann do (the median of all
pairwise differences), on logarithms, so it is a ratio; the interval around it inverts the
exact Mann-Whitney test and needs no assumption but that both samples have the same shape.

Invariant: a verdict other than "no difference shown" holds at the stated confidence, and with
too few rounds for that there is none.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Final

import attrs

__all__ = ["CONFIDENCE", "Comparison", "compare", "rounds_needed"]

CONFIDENCE: Final = 0.99
_MOST_ROUNDS: Final = 1000


@attrs.frozen
class Comparison:
    """How much longer the second takes: `ratio`, between `low` and `high`; `verdict` in words.

    Without an interval (None) there are too few rounds.
    """

    ratio: float
    low: float | None
    high: float | None
    verdict: str


@functools.cache
def _arrangements(first: int, second: int) -> tuple[int, ...]:
    """Return in how many orders of both samples U is 0, 1, 2, ... (Gaussian binomial)."""
    counts = [1]
    for size in range(1, second + 1):
        # Multiply by (1 - q^(first + size)), then divide by (1 - q^size).
        grown = counts + [0] * (first + size)
        for place in range(len(grown) - 1, first + size - 1, -1):
            grown[place] -= grown[place - first - size]
        for place in range(size, len(grown)):
            grown[place] += grown[place - size]
        counts = grown[: first * size + 1]
    return tuple(counts)


def _cut(first: int, second: int, confidence: float) -> int:
    """Return how many pairwise differences lie outside of the interval at each end, plus 1.

    0 means that even all of them are not enough.
    """
    counts = _arrangements(first, second)
    total, below = sum(counts), 0
    for cut, count in enumerate(counts):
        below += count
        if 2 * below > (1 - confidence) * total * (1 + 1e-12):
            return cut
    raise AssertionError("half of all orders is more than any error allowed")


def rounds_needed(confidence: float = CONFIDENCE) -> int:
    """Return how many rounds both sides need before anything can be shown."""
    for rounds in range(2, _MOST_ROUNDS):
        if 2 / math.comb(2 * rounds, rounds) <= (1 - confidence) * (1 + 1e-12):
            return rounds
    return _MOST_ROUNDS


def compare(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Comparison:
    """Compare positive numbers of which less is better; both need at least one."""
    differences = sorted(math.log(b) - math.log(a) for a in first for b in second)
    ratio = math.exp(statistics.median(differences))
    cut = _cut(len(first), len(second), confidence)
    if not cut:
        return Comparison(ratio, None, None, "too few rounds")
    low, high = differences[cut - 1], differences[-cut]
    verdict = "slower" if low > 0 else "faster" if high < 0 else "no difference shown"
    return Comparison(ratio, math.exp(low), math.exp(high), verdict)
