"""The recorded results are what the documentation shows, and can still be read."""

from __future__ import annotations

import pytest
from support import benchpage
from support.commands import CHECKOUT

from unionfs.bench.goals import check
from unionfs.bench.result import read

RESULTS = sorted((CHECKOUT / "bench" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_recorded_results_can_be_read(path: object) -> None:
    result = read(CHECKOUT / "bench" / "results" / str(path))
    assert {"kernel", "cpu", "cores", "load", "root", "time"} <= result.facts.keys()
    assert any(outcome.met is not None for outcome in check(result))


def test_the_page_shows_the_recorded_results() -> None:
    shown = benchpage.shown()
    assert len(shown) > 2
    for command, expected, output in shown:
        assert expected == output, f"{command}: `python -m support.benchpage` writes it anew"


def test_the_readme_shows_the_recorded_times() -> None:
    assert benchpage.in_readme() == benchpage.play(benchpage.SHORT)
