"""`whiteouts`: what every marker hides, wasted bytes, gates; the model agrees with the merge."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.commands import Run
from support.insight import MakeImage, MakeLayers
from support.layers import image_of
from support.literal import lay_out_all
from support.rows import ROWS, Row

from unionfs.branch import Stack
from unionfs.insight.model import Tree
from unionfs.insight.shipped import read_archive_layer, read_branch
from unionfs.insight.waste import report
from unionfs.insight.where import of_directories, of_image
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image

VALID = [row for row in ROWS if not row.error]


def model_paths(tree: Tree) -> set[bytes]:
    return {path for path, _ in tree.walk()}


@pytest.mark.parametrize("row", VALID, ids=lambda row: row.id)
def test_model_of_stored_row_is_the_tree(row: Row, tmp_path: Path) -> None:
    with Graph(os.fsencode(tmp_path / "store")) as graph:
        image_id, _ = import_image(graph, image_of(row.tars()), transport="test")
        tree = Tree()
        for named in reversed(of_image(graph, image_id).branches):
            tree.apply(read_branch(named))
        assert model_paths(tree) == set(row.tree)


@pytest.mark.parametrize("row", [row for row in VALID if row.number != 62], ids=lambda row: row.id)
@pytest.mark.usefixtures("as_root")
def test_model_of_directories_is_their_merge(row: Row, tmp_path: Path) -> None:
    where = of_directories(lay_out_all(row.layers, tmp_path))
    tree = Tree()
    for named in reversed(where.branches):
        tree.apply(read_branch(named))
    with Stack.open([named.path for named in where.branches]) as stack:
        assert model_paths(tree) == {path for path, _, _ in stack.walk()}


@pytest.mark.parametrize("row", VALID, ids=lambda row: row.id)
def test_model_of_archives_is_the_tree(row: Row) -> None:
    from unionfs.insight.shipped import archive_branches

    image = image_of(row.tars())
    tree = Tree()
    named = archive_branches(image)
    for branch, layer in zip(reversed(named), image.layers, strict=True):
        with layer.open() as raw:
            tree.apply(read_archive_layer(branch, raw))
    assert model_paths(tree) == set(row.tree)


def test_markers_name_what_they_hide(layers: MakeLayers) -> None:
    where = layers(
        "d/ d/a#aaaa d/b#bb e/ e/x#xxx f#fffff"
        " ‖ d/ d/.wh.a e/ e/.wh..wh..opq .wh.nope ‖ .wh.f .wh.d"
    )
    found = report(where)
    assert [
        (m.branch.number, m.kind, m.path, [(h.path, h.size, h.layer) for h in m.hides])
        for m in found.markers
    ] == [
        (2, "whiteout", b"d/a", [(b"d/a", 4, 1)]),
        (2, "opaque", b"e", [(b"e/x", 3, 1)]),
        (2, "whiteout", b"nope", []),
        (3, "whiteout", b"d", [(b"d", 0, 2), (b"d/b", 2, 1)]),
        (3, "whiteout", b"f", [(b"f", 5, 1)]),
    ]
    assert found.markers[2].reason == "no layer of this image ever had such a name"
    assert [marker.foreign for marker in found.markers] == [False, False, True, False, False]
    assert found.wasted == found.size == 4 + 2 + 3 + 5
    assert [(layer.size, layer.wasted) for layer in found.layers] == [(14, 14), (0, 0), (0, 0)]


def test_why_a_marker_hides_nothing(layers: MakeLayers) -> None:
    found = report(layers("d/ d/x .wh.y ‖ d/ d/.wh..wh..opq d/.wh.x ‖ p/ p/.wh..wh..opq"))
    assert {(m.path, m.reason) for m in found.markers if not m.hides} == {
        (b"y", "there is no layer below"),
        (b"d/x", "the directory around it is hidden or opaque in the same layer"),
        (b"p", "no layer of this image ever had such a name"),
    }


def test_what_is_gone_already_is_not_foreign(layers: MakeLayers) -> None:
    found = report(layers("d/ x ‖ d/ d/.wh..wh..opq .wh.x ‖ .wh.x"))
    assert {(m.path, m.reason, m.foreign) for m in found.markers if not m.hides} == {
        (b"d", "the layers below have nothing in this directory", False),
        (b"x", "the layers below have no such name any more", False),
    }


def test_markers_that_the_store_left_out_are_told(image: MakeImage, run: Run) -> None:
    """Ingest drops whiteouts that hide nothing; who ships them should know."""
    image("a d/ d/x ‖ .wh.nope d/ d/.wh.x d/.wh..wh..opq p/.wh..wh..opq")
    document = run("whiteouts", "demo/app:v1", "--json").json()
    assert [(m["marker"], m["count"], m["foreign"]) for m in document["markers"]] == [
        ("/d/.wh..wh..opq", 1, False),
        ("/d/.wh.x", 0, False),
        ("/.wh.nope", 0, True),
        ("/p/.wh..wh..opq", 0, True),
    ]
    text = run("whiteouts", "demo/app:v1").out
    assert "layer 2: /.wh.nope hides nothing: no layer of this image ever had such a name" in text


@pytest.mark.parametrize(
    ("text", "wasted"), [("a#12345 b&a ‖ .wh.a", 0), ("a#12345 b&a ‖ .wh.a ‖ .wh.b", 5)]
)
def test_hard_links_count_once_and_only_when_all_are_gone(
    layers: MakeLayers, text: str, wasted: int
) -> None:
    found = report(layers(text))
    assert (found.size, found.wasted) == (5, wasted)


def test_score_is_that_of_dive(layers: MakeLayers) -> None:
    """dive: a path's smallest copy over all its copies; a removal is a copy of no bytes."""
    found = report(layers("a#1234567890 b#12345 ‖ a#12345 ‖ .wh.b"))
    assert found.score == (5 + 0) / (10 + 5 + 5 + 0)
    assert found.inefficient == 10 + 5 + 5 + 0
    assert found.wasted == 10 + 5


def test_json_has_the_keys_of_dive(image: MakeImage, run: Run) -> None:
    image("a#12345 k ‖ a#123 ‖ .wh.k")
    document = run("whiteouts", "demo/app:v1", "--json").json()
    assert [layer["index"] for layer in document["layer"]] == [0, 1, 2]
    assert {"id", "digestId", "sizeBytes", "command"} <= document["layer"][0].keys()
    assert document["layer"][0]["digestId"].startswith("sha256:")
    assert document["layer"][1]["command"] == "layer 1"
    assert document["image"]["sizeBytes"] == 9
    assert document["image"]["wastedBytes"] == 6
    assert {
        item["file"]: (item["count"], item["sizeBytes"])
        for item in document["image"]["fileReference"]
    } == {
        "/a": (2, 8),
        "/k": (2, 1),
    }
    assert document["gates"] == []


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--max-wasted", "10"), 0),
        (("--max-wasted", "9"), 1),
        (("--max-wasted", "1kB"), 0),
        (("--max-wasted", "50%"), 0),
        (("--max-wasted", "49%"), 1),
        (("--min-score", "0.5"), 0),
        (("--min-score", "0.51"), 1),
        (("--min-score", "2"), 2),
        (("--max-wasted", "much"), 2),
    ],
)
def test_gates(
    layers: MakeLayers, tmp_path: Path, run: Run, options: tuple[str, str], status: int
) -> None:
    layers("a#1234567890 ‖ a#0987654321")
    done = run(
        "whiteouts", "--layer", tmp_path / "layer2", "--layer", tmp_path / "layer1", *options
    )
    assert done.status == status, done
    assert ("wasted 10B of 20B, score 0.5000" in done.out) == (status < 2)


def test_text_names_the_wasted_paths(layers: MakeLayers, tmp_path: Path, run: Run) -> None:
    layers(r"d/ d/a\n#1234 ‖ d/ d/.wh.a\n")
    done = run("whiteouts", "--layer", tmp_path / "layer2", "--layer", tmp_path / "layer1")
    assert done.out.splitlines()[:2] == [
        r"layer 2: /d/.wh.a\n hides 1 entry, 4B",
        r"    /d/a\n  4B of layer 1",
    ]
    assert r"        4B  /d/a\n  (layer 1)" in done.out
