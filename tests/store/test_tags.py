"""The `repositories` file and the meaning of names."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from support.crash import fork
from support.storefiles import make_id, write_entry

from unionfs.errors import (
    AmbiguousError,
    ConflictError,
    InvalidNameError,
    NotFoundError,
    StoreError,
)
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId
from unionfs.store.references import parse_reference

ONE, TWO = ImageId(make_id(1)), ImageId(make_id(2))
REF = parse_reference("demo/app:v1")


@pytest.fixture
def graph(graph: Graph, root: Path) -> Graph:
    write_entry(root, ONE)
    write_entry(root, TWO)
    return graph


def content(root: Path) -> object:
    return json.loads((root / "repositories").read_bytes())


def test_set_get_remove(graph: Graph, root: Path) -> None:
    tags = graph.tags
    assert tags.get(REF) is None
    assert tags.all() == {}
    assert not (root / "repositories").exists()
    assert tags.set(REF, ONE) is None
    assert tags.set(REF, ONE) == ONE
    tags.set(parse_reference("host:5000/x"), ONE)
    assert tags.get(REF) == ONE
    assert tags.by_id() == {ONE: ["demo/app:v1", "host:5000/x:latest"]}
    assert tags.image_name(ONE) == "demo/app:v1"
    assert tags.image_name(TWO) == TWO[:12]
    assert content(root) == {
        "Repositories": {"demo/app": {"v1": ONE}, "host:5000/x": {"latest": ONE}}
    }
    assert stat.S_IMODE((root / "repositories").stat().st_mode) == 0o600
    assert tags.remove(REF) == ONE
    assert content(root) == {"Repositories": {"host:5000/x": {"latest": ONE}}}
    with pytest.raises(NotFoundError):
        tags.remove(REF)


def test_moving_a_tag_needs_force(graph: Graph) -> None:
    graph.tags.set(REF, ONE)
    with pytest.raises(ConflictError, match=f"already set to {ONE[:12]}.*--force"):
        graph.tags.set(REF, TWO)
    assert graph.tags.get(REF) == ONE
    assert graph.tags.set(REF, TWO, force=True) == ONE
    assert graph.tags.get(REF) == TWO


def test_only_images_of_the_graph_can_be_tagged(graph: Graph) -> None:
    with pytest.raises(NotFoundError):
        graph.tags.set(REF, ImageId(make_id(3)))
    with pytest.raises(InvalidNameError):
        graph.tags.set(REF, ImageId("../../x"))
    assert graph.tags.all() == {}


def test_what_we_do_not_understand_is_kept(graph: Graph, root: Path) -> None:
    odd = {
        "Version": 7,
        "Repositories": {
            "../../x": {"latest": ONE},
            "Upper": {"latest": TWO},
            "ok": {
                "tag\0": ONE,
                "a/b": ONE,
                "bad": "xyz",
                "num": 5,
                "up": "../../etc",
                "good": ONE,
            },
            "list": [1],
            "none": None,
        },
    }
    (root / "repositories").write_text(json.dumps(odd))
    assert {str(key): value for key, value in graph.tags.all().items()} == {"ok:good": ONE}
    assert graph.tags.referenced() == {ONE, TWO}
    problems = graph.tags.problems()
    assert len(problems) == 8
    assert all(line.isprintable() for line in problems)
    assert [problem.name for problem in graph.problems()] == ["repositories"] * 8
    graph.tags.set(REF, TWO)
    odd["Repositories"]["demo/app"] = {"v1": TWO}  # type: ignore[index]  # a dict as written above
    assert content(root) == odd
    assert graph.tags.remove_id(ONE) == ["../../x:latest", "ok:a/b", "ok:good", "ok:tag\0"]


def test_keys_in_any_case(graph: Graph, root: Path) -> None:
    (root / "repositories").write_text(f'{{"repositories":{{"a":{{"b":"{ONE}"}}}}}}')
    assert graph.tags.get(parse_reference("a:b")) == ONE
    graph.tags.set(REF, ONE)
    assert list(content(root)) == ["repositories"]  # type: ignore[call-overload]  # a dict


def test_an_empty_file_is_an_empty_table(graph: Graph, root: Path) -> None:
    (root / "repositories").touch()
    assert graph.tags.all() == {}
    graph.tags.set(REF, ONE)
    assert graph.tags.get(REF) == ONE


@pytest.mark.parametrize("text", ["{", "[]", '{"Repositories":[]}', "\ufeff{}", "[" * 5000])
def test_a_damaged_file_is_neither_used_nor_overwritten(
    graph: Graph, root: Path, text: str
) -> None:
    (root / "repositories").write_text(text)
    for action in (graph.tags.all, lambda: graph.tags.set(REF, ONE), lambda: graph.gc()):  # noqa: PLW0108  # gc has keyword arguments only
        with pytest.raises(StoreError):
            action()
    assert (root / "repositories").read_text() == text
    assert [problem.name for problem in graph.problems()] == ["repositories"]


def test_a_linked_file_is_not_followed(graph: Graph, root: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("{}")
    (root / "repositories").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="not a regular file"):
        graph.tags.set(REF, ONE)
    assert (tmp_path / "victim").read_text() == "{}"


def test_dangling_tags_are_reported(graph: Graph, root: Path) -> None:
    graph.tags.set(REF, ONE)
    (root / "graph" / ONE / "layer").rmdir()
    (root / "graph" / ONE / "json").unlink()
    (root / "graph" / ONE).rmdir()
    assert [problem.name for problem in graph.problems()] == ["demo/app:v1"]
    with pytest.raises(StoreError, match="not in the store"):
        graph.tags.resolve(graph, "demo/app:v1")


def test_order_of_lookup(graph: Graph, root: Path) -> None:
    """Full id, then tag, then beginning of an id: nobody can squat a name with an id."""
    resolve = graph.tags.resolve
    legacy = ImageId("ba12ba12")
    write_entry(root, legacy)
    assert resolve(graph, "ba") == legacy
    graph.tags.set(parse_reference("ba"), ONE)
    graph.tags.set(parse_reference("ba12ba12"), TWO)
    assert resolve(graph, "ba") == ONE
    assert resolve(graph, "ba:latest") == ONE
    assert resolve(graph, "ba12ba12") == legacy
    assert resolve(graph, "ba12ba12:latest") == TWO
    assert resolve(graph, "ba12b") == legacy
    assert resolve(graph, "sha256:ba12") == legacy
    assert resolve(graph, ONE) == resolve(graph, "sha256:" + ONE) == ONE
    assert resolve(graph, ONE[:8]) == ONE
    graph.tags.set(parse_reference("host:5000/repo"), TWO)
    assert resolve(graph, "host:5000/repo") == TWO


def test_names_that_mean_nothing(graph: Graph) -> None:
    resolve = graph.tags.resolve
    for name in ("nope", "demo/app:v9", "abcdef", make_id(9), "host:5000/x"):
        with pytest.raises(NotFoundError):
            resolve(graph, name)
    with pytest.raises(AmbiguousError) as caught:
        resolve(graph, "0000000")
    assert caught.value.candidates == (ONE, TWO)
    for name in ("", "../../x", "a b", "A", "x@sha256:" + "0" * 64, "a\nb"):
        with pytest.raises(InvalidNameError) as refused:
            resolve(graph, name)
        assert str(refused.value).isprintable()


def test_processes_setting_tags_lose_none(graph: Graph, root: Path) -> None:
    def child(number: int) -> None:
        with Graph(os.fsencode(root)) as own:
            for count in range(10):
                own.tags.set(parse_reference(f"p{number}:t{count}"), ONE)

    children = [fork(lambda number=number: child(number)) for number in range(3)]  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert len(graph.tags.all()) == 30


def test_a_full_disk_changes_nothing(
    graph: Graph, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph.tags.set(REF, ONE)
    before = sorted(os.listdir(root))

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            graph.tags.set(REF, TWO, force=True)
    assert graph.tags.get(REF) == ONE
    assert sorted(os.listdir(root)) == before
