"""What the report says: versions and causes by table, sums as those of `whiteouts`, packing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from support.commands import CHECKOUT, Run
from support.insight import MakeImage, MakeLayers
from support.literal import lay_out_all
from support.rows import ROWS, Row

from unionfs.insight.compare import compare
from unionfs.insight.lint import lint
from unionfs.insight.waste import report
from unionfs.insight.where import Where, of_directories
from unionfs.report.pack import columns, packed
from unionfs.report.page import SCRIPTS, render
from unionfs.report.picture import Picture, collect

VALID = [row for row in ROWS if not row.error and row.number != 62]


def told(picture: Picture) -> dict[str, list[str]]:
    """Return the versions of every path but the root as words."""
    found: dict[str, list[str]] = {}
    for path, versions in picture.paths.items():
        lines = []
        for version in versions:
            line = f"{version.layer}"
            if version.cause is not None:
                cause = version.cause
                line += f" {cause.kind} {cause.layer} {os.fsdecode(cause.marker)}"
            lines.append(line + (" wasted" if version.wasted else ""))
        if path:
            found[os.fsdecode(path)] = lines
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f", {"f": ["1"]}),
        ("f ‖ f#22", {"f": ["1 entry 2 f wasted", "2"]}),
        ("f ‖ .wh.f", {"f": ["1 whiteout 2 .wh.f wasted"]}),
        ("f ‖ .wh.f ‖ f", {"f": ["1 whiteout 2 .wh.f wasted", "3"]}),
        ("f ‖ .wh.f f", {"f": ["1 whiteout 2 .wh.f wasted", "2"]}),
        ("d/ d/f ‖ d/", {"d": ["1", "2"], "d/f": ["1"]}),
        (
            "d/ d/f ‖ d/ d/.wh..wh..opq d/g",
            {"d": ["1", "2"], "d/f": ["1 opaque 2 d/.wh..wh..opq wasted"], "d/g": ["2"]},
        ),
        (
            "d/ d/f ‖ d/ ‖ .wh.d",
            {
                "d": ["1 whiteout 3 .wh.d", "2 whiteout 3 .wh.d"],
                "d/f": ["1 whiteout 3 .wh.d wasted"],
            },
        ),
        ("d/ d/f ‖ d", {"d": ["1 entry 2 d", "2"], "d/f": ["1 entry 2 d wasted"]}),
        ("f ‖ f/ f/g", {"f": ["1 entry 2 f wasted", "2"], "f/g": ["2"]}),
        # Bytes of a file with two names are seen while one of them is.
        ("a#123 b&a ‖ .wh.a", {"a": ["1 whiteout 2 .wh.a"], "b": ["1"]}),
        ("a#123 b&a ‖ .wh.a .wh.b", {
            "a": ["1 whiteout 2 .wh.a wasted"],
            "b": ["1 whiteout 2 .wh.b wasted"],
        }),
        ("f ‖ .wh.nope", {"f": ["1"]}),
    ],
)  # fmt: skip
def test_versions_and_causes(layers: MakeLayers, text: str, expected: dict[str, list[str]]) -> None:
    assert told(collect(layers(text))) == expected


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("d/ d/f ‖ d/ d/g", [(2, 0, 0), (1, 0, 0)]),
        ("d/ d/f ‖ d/@700", [(2, 0, 0), (0, 1, 0)]),
        ("d/ d/f ‖ d/ d/f#22", [(2, 0, 0), (0, 1, 0)]),
        ("d/ d/f d/g ‖ .wh.d", [(3, 0, 0), (0, 0, 3)]),
        ("d/ d/f d/g ‖ d", [(3, 0, 0), (0, 1, 2)]),
        ("d/ d/f d/g ‖ d/ d/.wh..wh..opq d/f", [(3, 0, 0), (0, 1, 1)]),
        ("f ‖ .wh.f ‖ f", [(1, 0, 0), (0, 0, 1), (1, 0, 0)]),
        ("f ‖ .wh.nope", [(1, 0, 0), (0, 0, 0)]),
    ],
)
def test_counts_of_a_layer(
    layers: MakeLayers, text: str, counts: list[tuple[int, int, int]]
) -> None:
    found = collect(layers(text))
    assert [(line.added, line.changed, line.deleted) for line in found.layers] == counts


@pytest.mark.parametrize("row", VALID, ids=lambda row: row.id)
@pytest.mark.usefixtures("as_root")
def test_every_case_agrees_with_the_other_commands(row: Row, tmp_path: Path) -> None:
    where = of_directories(lay_out_all(row.layers, tmp_path))
    picture = collect(where)
    visible = {
        path
        for path, versions in picture.paths.items()
        if path and any(version.cause is None for version in versions)
    }
    with where.stack() as stack:
        assert visible == {path for path, _, _ in stack.walk()}
    assert picture.waste == report(where)
    assert list(picture.findings) == lint(where)
    every = [version for versions in picture.paths.values() for version in versions]
    files = [version for version in every if version.item.fmt != stat.S_IFDIR]
    assert sum(version.item.size for version in files) == picture.waste.size
    assert sum(v.item.size for v in files if v.wasted) == picture.waste.wasted
    # A layer's counts are those of a comparison with the layers below it.
    if len(where.branches) > 1:
        below = Where("below", where.branches[1:])
        kinds = [change.kind for change in compare(below, where) if change.kind == "A"]
        assert picture.layers[-1].added == len(kinds)


def unpack(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Return columns as the list of paths they came from, as a reader of the format would."""
    names = tree["names"].split("/")
    assert len(names) == len(tree["kids"]) == len(tree["counts"])
    paths: list[dict[str, Any]] = []
    open_dirs: list[list[Any]] = []
    version = 0
    for at, name in enumerate(names):
        while open_dirs and open_dirs[-1][1] == 0:
            open_dirs.pop()
        above = open_dirs[-1][0] if open_dirs else ""
        if open_dirs:
            open_dirs[-1][1] -= 1
        path = f"{above}/{name}" if at else ""
        open_dirs.append([path, tree["kids"][at]])
        versions = []
        for _ in range(tree["counts"][at]):
            layer, kind, mode, uid, gid, wasted, cause = tree["kind"][tree["kinds"][version]]
            hidden = None
            if cause:
                by, how, marker = tree["cause"][cause - 1]
                hidden = {"layer": by, "kind": how, "marker": marker or path}
            versions.append(
                {
                    "layer": layer,
                    "type": kind,
                    "mode": mode,
                    "uid": uid,
                    "gid": gid,
                    "size": tree["sizes"][version],
                    "wasted": bool(wasted),
                    "hidden_by": hidden,
                }
            )
            version += 1
        is_visible = any(one["hidden_by"] is None for one in versions)
        paths.append({"path": path or "/", "visible": is_visible, "versions": versions})
    return paths


@pytest.mark.parametrize("row", VALID, ids=lambda row: row.id)
@pytest.mark.usefixtures("as_root")
def test_packing_loses_nothing(row: Row, tmp_path: Path) -> None:
    picture = collect(of_directories(lay_out_all(row.layers, tmp_path)))
    plain = json.loads(json.dumps(picture.document(), default=os.fsdecode))
    found = json.loads(zlib.decompress(base64.b64decode(packed(columns(picture)))))
    assert unpack(found) == plain["paths"]


def test_page_holds_the_data_and_its_policy_fits(layers: MakeLayers) -> None:
    picture = collect(layers("a#1 <b>&'</ ‖ .wh.a"))
    page = render(picture).decode()
    assert page == render(picture).decode()
    block = re.search(r'<script type="application/octet-stream" id="data">(.*?)</script>', page)
    assert block
    data = json.loads(zlib.decompress(base64.b64decode(block[1], validate=True)))
    assert unpack(data["tree"]) == json.loads(
        json.dumps(picture.document()["paths"], default=os.fsdecode)
    )
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = dict(part.split(" ", 1) for part in policy[1].split("; "))
    assert rules["default-src"] == "'none'"
    for rule, text in (
        ("style-src", re.search(r"<style>(.*?)</style>", page, re.DOTALL)),
        ("script-src", re.search(r"<script>(.*?)</script>", page, re.DOTALL)),
    ):
        assert text
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def test_title_is_text(layers: MakeLayers) -> None:
    where = Where("</title><script>\u202e\udcff\n", layers("a").branches)
    page = render(collect(where)).decode()
    assert "<title>&lt;/title&gt;&lt;script&gt;\\u202e\\xff\\n" in page


def test_parts_of_the_page_are_package_data() -> None:
    place = resources.files("unionfs.report") / "page"
    here = {item.name for item in place.iterdir()}
    assert here == {"page.html", "style.css", *SCRIPTS}
    for name in SCRIPTS:
        text = (place / name).read_text("utf-8")
        assert "</script" not in text
        assert "<!--" not in text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def stack_of(layers: MakeLayers) -> list[object]:
    where = layers("d/ d/f#123 ‖ d/ d/.wh.f ‖ g")
    return [word for named in where.branches for word in ("--layer", os.fsdecode(named.path))]


def test_command_writes_the_page(layers: MakeLayers, tmp_path: Path, run: Run) -> None:
    words = stack_of(layers)
    target = tmp_path / "out.html"
    done = run("report", *words, "-o", target)
    assert (done.status, done.out) == (0, f"{target}\n"), done
    assert done.err.splitlines() == [f"reading layer {number} of 3" for number in (1, 2, 3)]
    first = target.read_bytes()
    assert first.startswith(b"<!doctype html>")
    again = run("report", *words, "-o", target)
    assert again.status == 1
    assert "exists already" in again.err
    assert target.read_bytes() == first
    assert run("report", *words, "-o", target, "--force").status == 0
    assert run("report", *words, "-o", "-").out.encode() == first
    assert sorted(os.listdir(tmp_path)) == ["layer1", "layer2", "layer3", "out.html"]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ((), 2, "-o FILE"),
        (("-o", "page", "--json"), 2, "not both"),
        (("-o", "."), 2, "directory"),
        (("-o", "nowhere/page"), 1, "nowhere"),
        (("-o", "/dev/null", "--force"), 1, "/dev/null"),
        (("extra", "words", "-o", "page"), 2, "exactly"),
    ],
)
def test_what_makes_no_sense(
    layers: MakeLayers, tmp_path: Path, run: Run, words: tuple[str, ...], status: int, says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stack = stack_of(layers)
    monkeypatch.chdir(tmp_path)
    done = run("report", *stack, *words)
    assert (done.status, done.out) == (status, ""), done
    assert says in done.err
    assert sorted(os.listdir(tmp_path)) == ["layer1", "layer2", "layer3"]


def test_image_and_json(image: MakeImage, run: Run) -> None:
    image("f#1234 ‖ .wh.f f#1 ‖ ./@755 g")
    document = run("report", "demo/app:v1", "--json").json()
    assert document["title"] == "demo/app:v1"
    assert [layer["command"] for layer in document["layers"]] == ["layer 0", "layer 1", "layer 2"]
    assert document["totals"] == {
        "size": 6,
        "visible": 2,
        "wasted": 4,
        "inefficient": 5,
        "score": (1 + 1) / 6,
    }
    # Findings are about the archive, before the store repaired it.
    assert [finding["rule"] for finding in document["findings"]] == ["whiteout-beside-entry"]
    assert document["rules"]["whiteout-beside-entry"]["severity"] == "error"
    assert [path["path"] for path in document["paths"]] == ["/", "/f", "/g"]


def test_json_keys_are_documented(image: MakeImage, run: Run) -> None:
    image("f#1234 k ‖ .wh.f f#1 .wh.k")
    pages = (CHECKOUT / "docs" / "json.rst").read_text()
    part = re.search(r"^``report``\n((?:    .*\n|\n)+)", pages, re.MULTILINE)
    assert part
    known = set(re.findall(r"``(\w+)``", part[1]))
    document = run("report", "demo/app:v1", "--json").json()
    assert set(document) <= known
    for key in ("layers", "markers", "findings", "paths"):
        assert set(document[key][-1]) <= known
    assert set(document["totals"]) <= known
    assert set(document["paths"][-1]["versions"][0]) <= known
    for rule in document["rules"].values():
        assert set(rule) <= known


def test_a_rw_branch_and_odd_bytes(tmp_path: Path, run: Run) -> None:
    base, branch = tmp_path / "base", tmp_path / "rw"
    base.mkdir()
    branch.mkdir()
    odd = os.fsencode(base) + b"/\xff\n"
    Path(os.fsdecode(odd)).write_bytes(b"123")
    Path(os.fsdecode(os.fsencode(branch) + b"/.wh.\xff\n")).write_bytes(b"")
    document = run("report", "--layer", base, "--rw", branch, "--json").json()
    assert [layer["rw"] for layer in document["layers"]] == [False, True]
    assert document["paths"][1] == {
        "path": "/\udcff\n",
        "visible": False,
        "versions": [
            {
                "layer": 1,
                "type": "file",
                "mode": 0o644,
                "uid": 0,
                "gid": 0,
                "size": 3,
                "wasted": True,
                "hidden_by": {"layer": 2, "kind": "whiteout", "marker": "/.wh.\udcff\n"},
            }
        ],
    }
