"""What a shell is offered: every verb, its options, and the images that it could be about."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from unionfs.cli.group import VERBS, cli
from unionfs.cli.where import WHERE


def offered(words: list[str], incomplete: str) -> set[str]:
    shell = BashComplete(cli, {}, "unionfs", "_UNIONFS_COMPLETE")
    return {item.value for item in shell.get_completions(words, incomplete)}


def about_an_image() -> list[str]:
    context = click.Context(cli)
    found = []
    for verb in VERBS:
        command = cli.get_command(context, verb)
        assert command is not None
        if any(parameter.type is WHERE for parameter in command.params):
            found.append(verb)
    return found


def test_every_verb_is_offered() -> None:
    assert set(VERBS) <= offered([], "")
    assert offered([], "repo") == {"report"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_offers_its_options(verb: str) -> None:
    assert "--help" in offered([verb], "--h")


def test_what_is_about_images_offers_them(old_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIONFS_ROOT", str(old_store))
    verbs = about_an_image()
    assert {"explain", "lint", "report", "whiteouts"} <= set(verbs)
    for verb in verbs:
        assert {"demo/app:latest", "demo/app:old"} <= offered([verb], "demo"), verb
