"""The story of docs/report.rst is what the program really says."""

from __future__ import annotations

from support.commands import CHECKOUT
from support.readme import steps
from support.stories import play
from support.workspace import workspace

STORY = CHECKOUT / "docs" / "report.rst"


def test_the_story_is_real() -> None:
    shown = list(steps(STORY.read_text()))
    assert len(shown) >= 7
    with workspace() as place:
        for step in shown:
            output = play(place, step)
            assert output == list(step.expected), f"{STORY} line {step.first + 1}: `{step.command}`"
