"""The stories and the rule list of the documentation are what the program really says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.commands import CHECKOUT, Run
from support.insight import MakeImage
from support.stories import PROVENANCE, RULE_PAGE, STORIES, rule_page, shown

from unionfs.insight.rules import RULES


@pytest.mark.fuse
@pytest.mark.parametrize("page", [STORIES, PROVENANCE], ids=lambda page: page.stem)
def test_every_story_is_real(page: Path) -> None:
    played = shown(page)
    assert len(played) > 15
    for step, output in played:
        assert output == list(step.expected), (
            f"`{step.command}` says something else than docs/{page.name} (line {step.first + 1});"
            " `python -m support.stories` writes it anew"
        )


def test_every_command_has_its_story() -> None:
    text = STORIES.read_text()
    for verb in ("explain", "history-of", "whiteouts", "compare", "lint", "diff", "convert"):
        assert re.search(rf"^.*: {verb}\n-+$", text, re.MULTILINE)


def test_the_rule_page_is_made_from_the_rules() -> None:
    text = RULE_PAGE.read_text()
    assert text == rule_page(), "`python -m support.stories` writes it anew"
    for rule in RULES.values():
        assert f"\n{rule.id}\n{'-' * len(rule.id)}\n" in text


def test_json_keys_are_documented(image: MakeImage, run: Run, tmp_path: Path) -> None:
    image("d/ d/x ‖ d/ d/.wh..wh..opq d/.wh.x", "demo/app:v1")
    image("d/ e", "demo/app:v2")
    layer = tmp_path / "layer"
    layer.mkdir()
    pages = (CHECKOUT / "docs" / "json.rst").read_text()
    out = tmp_path / "out"
    for words in (
        ("explain", "demo/app:v1", "/d"),
        ("history-of", "demo/app:v1", "/d/x"),
        ("diff", "demo/app:v1", "demo/app:v2"),
        ("lint", "demo/app:v1", "--fail-on", "never"),
        ("whiteouts", "demo/app:v1"),
        ("compare", "demo/app:v1", "--engines", "oci,unionfs"),
        ("convert", layer, out, "--from", "aufs", "--to", "overlay"),
    ):
        document = run(*words, "--json").json()
        part = re.search(rf"^``{words[0]}``\n((?:    .*\n|\n)+)", pages, re.MULTILINE)
        assert part
        known = set(re.findall(r"``(\w+)``", part[1]))
        for item in document if isinstance(document, list) else [document]:
            assert set(item) <= known, words[0]
        assert document
