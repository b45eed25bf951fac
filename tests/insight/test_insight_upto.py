"""`--upto LAYER`: what may name a layer, and what is said about a word that names none."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import Run
from support.insight import MakeImage, MakeLayers

from unionfs.errors import AmbiguousError, NotFoundError
from unionfs.insight.upto import upto
from unionfs.insight.where import Where, of_image, with_rw
from unionfs.store.graph import Graph


@pytest.fixture
def where(image: MakeImage, store_root: Path) -> Where:
    """Return three layers, of which the lower two are `demo/app:v1`."""
    image("d/ d/a ‖ d/ d/b", "demo/app:v1")
    image("d/ d/a ‖ d/ d/b ‖ d/ d/.wh.a", "demo/app:v2")
    image("d/ d/a ‖ d/ d/b ‖ d/ d/.wh.a", "demo/app:latest")
    with Graph(bytes(store_root), create=False) as graph:
        return of_image(graph, "demo/app:v2")


def test_every_spelling_of_a_layer(where: Where) -> None:
    for layer in where.branches:
        words = [str(layer.number), layer.layer_id, layer.layer_id[:8], f"sha256:{layer.layer_id}"]
        words += [layer.diff_id, layer.diff_id[:15], layer.diff_id.removeprefix("sha256:")[:6]]
        for word in (*words, *layer.names):
            assert upto(where, word).branches[0] is layer, word
        assert upto(where, words[0]).by_number(layer.number) is layer
    assert where.by_number(2).names == ("demo/app:v1",)
    assert upto(where, "demo/app").branches == where.branches


def test_a_word_that_names_no_layer(where: Where) -> None:
    for word in ("0", "4", "-1", "1\n", "", "abc", "sha256:", "demo/app:v3", "²", "/", "0001"):
        with pytest.raises(NotFoundError, match="no layer") as caught:
            upto(where, word)
        assert "the layers are 3 (" in str(caught.value)
        assert "demo/app:v1" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_beginning_of_two_layers(image: MakeImage, store_root: Path) -> None:
    """The same layer twice has two ids but one diff_id."""
    image("a ‖ x#same ‖ x#same", "demo/twice:1")
    with Graph(bytes(store_root), create=False) as graph:
        twice = of_image(graph, "demo/twice:1")
    assert twice.branches[0].diff_id == twice.branches[1].diff_id
    with pytest.raises(AmbiguousError, match=r"more than one layer: 3 \(.*, 2 \(.*its number"):
        upto(twice, twice.branches[0].diff_id)
    assert upto(twice, twice.branches[1].layer_id).branches == twice.branches[1:]


def test_directories_and_a_branch(layers: MakeLayers, tmp_path: Path) -> None:
    where = layers("a ‖ b")
    (tmp_path / "rw").mkdir()
    full = with_rw(where, bytes(tmp_path / "rw"))
    assert upto(full, "2").branches == where.branches
    assert upto(full, str(tmp_path / "layer1")).branches == where.branches[1:]
    for word in ("3", "rw"):
        with pytest.raises(NotFoundError, match="the layers are 2"):
            upto(full, word)


def test_commands_take_it(where: Where, run: Run) -> None:
    assert "visible, from layer 1" in run("explain", where.title, "/d/a", "--upto", "1").out
    assert "hidden" in run("explain", where.title, "/d/a").out
    events = run("history-of", where.title, "/d/a", "--upto", "demo/app:v1", "--json").json()
    assert [event["event"] for event in events] == ["added"]
    assert run("whiteouts", where.title, "--upto", "2", "--json").json()["markers"] == []
    assert len(run("report", where.title, "--upto", "2", "--json").json()["layers"]) == 2
    said = run("explain", where.title, "/d/a", "--upto", "9")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "not both" in run("explain", where.title, "/d/a", "--upto", "1", "--rw", "x").err
