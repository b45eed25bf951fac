"""The statistics: against enumeration, against their own symmetries, on known differences."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.bench.stats import _arrangements, compare, rounds_needed

times = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)


@given(st.integers(1, 5), st.integers(1, 5))
def test_arrangements_are_those_of_mann_and_whitney(first: int, second: int) -> None:
    counted = [0] * (first * second + 1)
    for mine in itertools.combinations(range(first + second), first):
        others = set(range(first + second)) - set(mine)
        counted[sum(a > b for a in mine for b in others)] += 1
    assert list(_arrangements(first, second)) == counted
    assert sum(counted) == math.comb(first + second, first)


@given(times, times, st.sampled_from([0.8, 0.95, 0.99]))
def test_exchanging_the_sides_turns_everything_round(
    first: list[float], second: list[float], confidence: float
) -> None:
    there, back = compare(first, second, confidence), compare(second, first, confidence)
    assert there.ratio * back.ratio == pytest.approx(1)
    turned = {"slower": "faster", "faster": "slower"}
    assert back.verdict == turned.get(there.verdict, there.verdict)
    if there.low is not None and there.high is not None:
        assert back.low is not None
        assert back.low * there.high == pytest.approx(1)
        assert there.low <= there.ratio <= there.high


@given(times, times, st.floats(0.01, 100))
def test_units_do_not_matter(first: list[float], second: list[float], unit: float) -> None:
    one = compare(first, second)
    other = compare([unit * v for v in first], [unit * v for v in second])
    assert other.ratio == pytest.approx(one.ratio)


@given(times)
def test_nothing_differs_from_itself(sample: list[float]) -> None:
    assert compare(sample, sample).verdict in ("no difference shown", "too few rounds")


@given(st.integers(2, 6), st.integers(2, 6), st.sampled_from([0.8, 0.95, 0.99]))
def test_an_interval_needs_enough_rounds(first: int, second: int, confidence: float) -> None:
    apart = compare([1.0 + n / 100 for n in range(first)], [9.0] * second, confidence)
    possible = 2 / math.comb(first + second, first) <= 1 - confidence + 1e-12
    assert (apart.verdict == "slower") == possible
    assert (apart.low is None) != possible


def test_how_many_rounds_are_needed() -> None:
    assert rounds_needed(0.95) == 4
    assert rounds_needed(0.99) == 5
    for confidence in (0.9, 0.95, 0.99, 0.999):
        rounds = rounds_needed(confidence)
        assert compare([1.0] * rounds, [2.0] * rounds, confidence).verdict == "slower"
        fewer = [1.0] * (rounds - 1)
        assert compare(fewer, [2.0] * (rounds - 1), confidence).verdict == "too few rounds"


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.6])
def test_the_interval_holds_what_it_promises(shift: float) -> None:
    """In many drawn experiments the true ratio lies inside about as often as stated."""
    chance = random.Random(7)  # noqa: S311  # drawn numbers, no secrets
    inside = false = 0
    experiments = 600
    for _ in range(experiments):
        first = [chance.lognormvariate(0, 0.3) for _ in range(6)]
        second = [shift * chance.lognormvariate(0, 0.3) for _ in range(6)]
        found = compare(first, second, 0.95)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= shift <= found.high
        false += shift == 1.0 and found.verdict != "no difference shown"
    assert inside / experiments > 0.93
    assert false / experiments < 0.07


def test_a_known_difference_is_found() -> None:
    chance = random.Random(3)  # noqa: S311  # drawn numbers, no secrets
    first = [chance.lognormvariate(0, 0.05) for _ in range(7)]
    second = [1.5 * chance.lognormvariate(0, 0.05) for _ in range(7)]
    found = compare(first, second)
    assert found.verdict == "slower"
    assert found.ratio == pytest.approx(1.5, rel=0.1)
    assert compare(second, first).verdict == "faster"
    outlier = [*first[:-1], 100.0]
    assert compare(outlier, second).ratio == pytest.approx(1.5, rel=0.2)
    assert statistics.mean(outlier) > 10
