"""The documentation promises nothing that is not so: its commands run, its keys exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.commands import CHECKOUT, Run
from support.readme import README, mask, run_step, session, steps

from unionfs import __version__
from unionfs.cli.group import VERBS

_DOCS = CHECKOUT / "docs"


@pytest.mark.fuse
@pytest.mark.timeout(600)
def test_every_session_in_the_readme_is_real() -> None:
    shown = list(steps(README.read_text()))
    assert len(shown) > 30
    with session() as place:
        for step in shown:
            output = run_step(place, step.command)
            assert mask(output) == mask(step.expected), (
                f"`{step.command}` says something else than the README (line {step.first + 1});"
                " `python -m support.readme` writes it anew"
            )


def test_a_wrong_session_would_be_noticed() -> None:
    text = ".. code-block:: console\n\n    $ echo one\n    one\n    two\n\n    $ id -u\n\nEnd\n"
    first, second = steps(text)
    assert (first.command, first.expected) == ("echo one", ("one", "two"))
    assert (second.command, second.expected) == ("id -u", ())
    assert mask(["a" * 64 + "  5 days ago  7kB"]) == ["<digest> <age> <size>"]
    assert mask(["/etc/motd"]) != mask(["/etc/motx"])


@pytest.mark.parametrize("name", VERBS)
def test_readme_mentions_every_command(name: str) -> None:
    assert re.search(rf"``(?:unionfs )?{name}\b|\$ unionfs {name}\b", README.read_text())


def test_readme_begins_with_the_two_commands() -> None:
    first_screen = "\n".join(README.read_text().splitlines()[:45])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_links_lead_somewhere() -> None:
    for path in (README, *_DOCS.glob("*.rst")):
        for target in re.findall(r"<([\w./-]+\.rst)>`_", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_changelog_has_a_place_for_this_version() -> None:
    text = (CHECKOUT / "CHANGELOG.rst").read_text()
    assert re.search(rf"^(?:Unreleased|{re.escape(__version__)}\b.*)\n-+$", text, re.MULTILINE)


def _documented(verb: str) -> set[str]:
    """Return the words in literal quotes in a verb's part of docs/json.rst."""
    text = (_DOCS / "json.rst").read_text()
    match = re.search(rf"^``{verb}``.*\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert match, f"docs/json.rst does not mention {verb}"
    return set(re.findall(r"``(\w+)``", match[1]))


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("images", ()),
        ("images", ("--tree",)),
        ("inspect", ("demo/app",)),
        ("history", ("demo/app",)),
        ("gc", ("--all", "--dry-run")),
        ("fsck", ()),
        ("changes", ("--image", "demo/app", "--rw")),
    ],
)
def test_json_keys_are_documented(
    run: Run, old_store: Path, tmp_path: Path, verb: str, arguments: tuple[str, ...]
) -> None:
    if verb == "changes":
        (tmp_path / "rw").mkdir()
        (tmp_path / "rw" / "new").write_text("x")
        arguments = (*arguments, str(tmp_path / "rw"))
    document = run("--root", old_store, verb, *arguments, "--json").json()
    objects = document if isinstance(document, list) else [document]
    assert objects
    keys = _documented(verb) | (_documented("inspect") if verb == "history" else set())
    for item in objects:
        assert set(item) <= keys
        for layer in item["layers"] if verb == "inspect" else []:
            assert set(layer) <= keys
