"""The stories of docs/live.rst are what the program really says."""

from __future__ import annotations

import re

import pytest
from support.commands import CHECKOUT
from support.fuseplace import place_for
from support.stories import LIVE, shown

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]


def test_every_story_is_real() -> None:
    with place_for("user"):  # skips where a plain user cannot mount
        pass
    played = shown(LIVE)
    assert len(played) > 25
    for step, output in played:
        assert output == list(step.expected), (
            f"`{step.command}` says something else than docs/live.rst (line {step.first + 1});"
            " `python -m support.stories` writes it anew"
        )


def test_every_command_has_its_story() -> None:
    text = LIVE.read_text()
    for verb in ("undelete", "revert", "reset", "stats", "trace", "control"):
        assert re.search(rf"^.*: {verb}\n-+$", text, re.MULTILINE), verb


def test_json_keys_are_documented() -> None:
    pages = (CHECKOUT / "docs" / "json.rst").read_text()
    for verb in ("undelete", "stats", "trace", "control"):
        assert f"``{verb}``" in pages, verb
