"""The report of a plain user's live mount: what the mount shows is what the page calls visible."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.chromium import Browser
from support.workspace import workspace

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]

SETUP = (
    "mkdir -p base/etc base/doc top/etc && echo one > base/etc/one && echo two > base/doc/two",
    "touch top/etc/.wh.one && echo three > top/three",
    "unionfs mount --layer top --layer base mnt --rw rw",
    "rm -r mnt/doc && echo changed > mnt/three && mkdir mnt/new",
)


def test_page_of_a_mount(chromium: Browser) -> None:
    with workspace() as place:
        for line in (*SETUP, "unionfs report mnt -o page.html"):
            done = place.sh(line)
            assert done.returncode == 0, done.stderr
        assert done.stdout == b"page.html\n"
        document: Any = json.loads(place.sh("unionfs report mnt --json").stdout)
        shown = {item["path"] for item in document["paths"] if item["visible"]}
        found = place.sh("cd mnt && find . -mindepth 1").stdout.decode().split()
        assert shown == {"/", *(name.removeprefix(".") for name in found)}
        hidden = {
            item["path"]: item["versions"][0]["hidden_by"]
            for item in document["paths"]
            if not item["visible"]
        }
        assert hidden["/etc/one"] == {"layer": 2, "kind": "whiteout", "marker": "/etc/.wh.one"}
        assert hidden["/doc/two"] == {"layer": 3, "kind": "whiteout", "marker": "/.wh.doc"}
        tab = chromium.tab(place.path / "page.html")
        assert tab.js("document.querySelector('#layer-table .badge').textContent") == "rw"
        assert tab.js("document.title") == f"{place.path}/mnt \u2013 layers"
        assert tab.complaints() == []
