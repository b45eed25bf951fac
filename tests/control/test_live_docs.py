"""The stories of docs/live.rst are what the program really says."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
from support.asking import mounted, unionfs
from support.commands import CHECKOUT
from support.fuseplace import LAYER, place_for
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


def _documented(verb: str) -> set[str]:
    pages = (CHECKOUT / "docs" / "json.rst").read_text()
    match = re.search(rf"^``{verb}``.*\n((?:    .*\n|\n)+)", pages, re.MULTILINE)
    assert match, f"docs/json.rst does not mention {verb}"
    return set(re.findall(r"``([\w-]+)``", match[1]))


def _keys(document: Any) -> set[str]:
    if isinstance(document, list):
        return set().union(*map(_keys, document))
    return set(document) if isinstance(document, dict) else set()


def test_json_keys_are_documented() -> None:
    with place_for("user") as place:
        place.sh(LAYER)
        mounted(place, "lane")
        place.sh("cat mnt/f; rm mnt/f; echo x > mnt/p")
        stats = json.loads(unionfs(place, "stats", "mnt", "--json").stdout)
        known = _documented("stats")
        assert _keys(stats) <= known
        assert _keys(stats["branches"]) <= known
        assert _keys(list(stats["requests"].values())) <= known
        for words in (("undelete", "mnt", "/f"), ("revert", "mnt", "/p"), ("reset", "mnt", "-n")):
            document = json.loads(unionfs(place, *words, "--json").stdout)
            assert _keys(document) | _keys(document["actions"]) <= _documented("undelete")
        for request in ("ping", "invalidate", "log-level"):
            document = json.loads(unionfs(place, "control", "mnt", request, "--json").stdout)
            assert _keys(document) <= _documented("control")
        argv = [*place.python, "-m", "unionfs", "trace", "mnt", "--json", "--count", "1"]
        with place.start(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as trace:
            assert trace.stderr is not None
            trace.stderr.readline()
            place.sh("cat mnt/d/a")
            event = json.loads(trace.communicate(timeout=60)[0])
        assert _keys(event) <= _documented("trace")
        assert len(event) == 9
