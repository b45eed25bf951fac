"""`history-of` and `diff`: what each layer did to a path; what differs in two trees, and why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.commands import Run
from support.insight import MakeImage, MakeLayers
from support.layers import image_of
from support.literal import lay_out_all
from support.rows import ROWS, Row

from unionfs.insight.compare import compare
from unionfs.insight.explain import explain
from unionfs.insight.explanation import Verdict
from unionfs.insight.life import EventKind, life
from unionfs.insight.where import of_directories, of_image
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image

VALID = [row for row in ROWS if not row.error]


def events(layers: MakeLayers, text: str, path: bytes) -> list[tuple[int, str, str]]:
    return [(e.branch.number, e.kind.value, e.what) for e in life(layers(text), path)]


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        (
            "etc/ etc/motd ‖ etc/ etc/motd#longer ‖ etc/ etc/.wh.motd ‖ k ‖ etc/ etc/motd",
            b"/etc/motd",
            [
                (1, "added", "file"),
                (2, "changed", "size (1 to 6), time"),
                (3, "deleted", "by /etc/.wh.motd"),
                (5, "added again", "file"),
            ],
        ),
        (
            "d/ d/s/ d/s/x ‖ .wh.d",
            b"/d/s/x",
            [(1, "added", "file"), (2, "deleted", "with its directory, by /.wh.d")],
        ),
        (
            "d/ d/x ‖ d/ d/.wh..wh..opq",
            b"/d/x",
            [(1, "added", "file"), (2, "deleted", "by /d/.wh..wh..opq")],
        ),
        ("d/ d/x ‖ d", b"/d/x", [(1, "added", "file"), (2, "deleted", "by the file /d")]),
        ("d/ ‖ d/@700", b"/d", [(1, "added", "directory"), (2, "changed", "mode (0755 to 0700)")]),
        ("d/ ‖ d/", b"/d", [(1, "added", "directory"), (2, "touched", "")]),
        ("l>a ‖ l>b", b"/l", [(1, "added", "symbolic link"), (2, "changed", "target, time")]),
        ("x ‖ x/", b"/x", [(1, "added", "file"), (2, "changed", "type (file to directory)")]),
        (
            "d/ d/x ‖ d/ d/.wh..wh..opq",
            b"/d",
            [(1, "added", "directory"), (2, "replaced", "its content below is hidden")],
        ),
        ("a ‖ .wh.b", b"/b", []),
    ],
)
def test_life_of_a_path(
    layers: MakeLayers, text: str, path: bytes, expected: list[tuple[int, str, str]]
) -> None:
    found = events(layers, text, path)
    trimmed = [(number, kind, what.replace(", time", "")) for number, kind, what in found]
    assert trimmed == [(n, kind, what.replace(", time", "")) for n, kind, what in expected]


def test_same_content_with_same_time_is_only_touched(layers: MakeLayers, tmp_path: Path) -> None:
    where = layers("x#same ‖ x#same ‖ x#diff")
    for number in (1, 2, 3):
        os.utime(tmp_path / f"layer{number}" / "x", (1, 1))
    assert [e.kind for e in life(where, b"x")] == [
        *(EventKind.ADDED, EventKind.TOUCHED, EventKind.CHANGED)
    ]
    assert life(where, b"x")[2].what == "content"


@pytest.mark.parametrize("row", VALID, ids=lambda row: row.id)
def test_last_event_agrees_with_explain(row: Row, tmp_path: Path) -> None:
    with Graph(os.fsencode(tmp_path / "store")) as graph:
        image_id, _ = import_image(graph, image_of(row.tars()), transport="test")
        where = of_image(graph, image_id)
        for path in {member.name for layer in row.layers for member in layer}:
            answer = explain(where, path)
            found = life(where, path)
            if answer.verdict is Verdict.VISIBLE:
                assert found[-1].kind is not EventKind.DELETED
            elif answer.verdict is Verdict.HIDDEN:
                assert found[-1].kind is EventKind.DELETED
            else:
                assert not found


def test_history_of_names_image_and_command(image: MakeImage, run: Run) -> None:
    image("etc/ etc/motd ‖ etc/ etc/.wh.motd")
    done = run("history-of", "demo/app:v1", "/etc/motd")
    assert done.out.splitlines() == [
        "layer 1    added        file, 1B  [layer 0]",
        "layer 2    deleted      by /etc/.wh.motd  [demo/app:v1; layer 1]",
    ]
    document = run("history-of", "demo/app:v1", "/etc/motd", "--json").json()
    assert [item["event"] for item in document] == ["added", "deleted"]
    assert document[1]["names"] == ["demo/app:v1"]
    missing = run("history-of", "demo/app:v1", "/etc/mottd")
    assert missing.status == 1
    assert "no layer of demo/app:v1 ever had /etc/mottd" in missing.err


# -- diff --------------------------------------------------------------------------


def summary(first: object, second: object, **options: bool) -> list[tuple[str, bytes]]:
    from unionfs.insight.where import Where

    assert isinstance(first, Where)
    assert isinstance(second, Where)
    return [(item.kind, item.path) for item in compare(first, second, **options)]


@pytest.mark.parametrize(
    "row", [row for row in VALID if len(row.layers) > 1], ids=lambda row: row.id
)
def test_diff_against_the_layers_below_is_changes(row: Row, tmp_path: Path) -> None:
    import attrs

    with Graph(os.fsencode(tmp_path / "store")) as graph:
        image_id, _ = import_image(graph, image_of(row.tars()), transport="test")
        where = of_image(graph, image_id)
        below = attrs.evolve(where, branches=where.branches[1:])
        found = [b"%s /%b" % (kind.encode(), path) for kind, path in summary(below, where)]
        assert found == list(row.changes)
        assert summary(where, where) == []


def test_cause_and_sizes(layers: MakeLayers, tmp_path: Path) -> None:
    import attrs

    where = layers("d/ d/a#12345 d/s/ d/s/b#12 x#1 ‖ .wh.x d/ d/.wh.s d/a#123456 d/new#1234")
    below = attrs.evolve(where, branches=where.branches[1:])
    found = {item.path: item for item in compare(below, where, semantic=True)}
    assert found.keys() == {b"d/a", b"d/new", b"d/s", b"x"}
    assert found[b"d/s"].cause == "whiteout /d/.wh.s"
    assert (found[b"d/s"].old_size, found[b"d/s"].branch.number) == (2, 2)
    assert (found[b"d/a"].what, found[b"d/a"].old_size, found[b"d/a"].new_size) == (
        ("size (5 to 6)",),
        5,
        6,
    )
    assert found[b"d/new"].new_size == 4
    del tmp_path


def test_images_without_common_layers(tmp_path: Path) -> None:
    from support.insight import parse

    one = of_directories(lay_out_all(parse("a#1 b#2 d/ d/x#3").layers, tmp_path / "one"))
    two = of_directories(lay_out_all(parse("a#1 ‖ d/ d/x#4").layers, tmp_path / "two"))
    for root in ("one/layer1/a", "two/layer1/a"):
        os.utime(tmp_path / root, (5, 5))
    found = compare(one, two, semantic=True)
    assert [(item.kind, item.path, item.cause) for item in found] == [
        ("D", b"b", "the layer is not part of the second"),
        ("C", b"d/x", "entry"),
    ]


def test_semantic_ignores_times(tmp_path: Path) -> None:
    from support.insight import parse

    paths = lay_out_all(parse("a#1").layers, tmp_path / "one")
    again = lay_out_all(parse("a#1").layers, tmp_path / "two")
    os.utime(tmp_path / "one" / "layer1" / "a", (1, 1))
    os.utime(tmp_path / "two" / "layer1" / "a", (2, 2))
    one, two = of_directories(paths), of_directories(again)
    assert summary(one, two) == [("C", b"a")]
    assert summary(one, two, semantic=True) == []


def test_diff_of_tags_and_of_a_rw_branch(image: MakeImage, run: Run, tmp_path: Path) -> None:
    image("a b ‖ c", "demo/app:v1")
    image("a b ‖ c ‖ .wh.a d", "demo/app:v2")
    done = run("diff", "demo/app:v1", "demo/app:v2", "--exit-code")
    assert done.status == 1
    assert done.out.splitlines() == [
        "D /a\t1B\twhiteout /.wh.a\tlayer 3",
        "A /d\t1B\tentry\tlayer 3",
    ]
    assert run("diff", "demo/app:v1", "demo/app:v1", "--exit-code").status == 0
    rw = tmp_path / "rw"
    rw.mkdir()
    (rw / ".wh.c").touch()
    document = run("diff", "demo/app:v1", "--rw", rw, "--json").json()
    assert [(item["kind"], item["path"], item["branch"]["rw"]) for item in document] == [
        ("D", "/c", True)
    ]
    assert run("diff", "demo/app:v1").status == 2


def test_shared_layers_are_not_read(layers: MakeLayers, monkeypatch: pytest.MonkeyPatch) -> None:
    import attrs

    where = layers("big/ big/x big/y ‖ top/ top/z")
    below = attrs.evolve(where, branches=where.branches[1:])
    seen: list[bytes] = []
    from unionfs.branch import Branch

    original = Branch.status

    def status(self: Branch, fd: int, name: bytes) -> object:
        seen.append(name)
        return original(self, fd, name)

    monkeypatch.setattr(Branch, "status", status)
    assert summary(below, where) == [("A", b"top"), ("A", b"top/z")]
    assert b"x" not in seen
