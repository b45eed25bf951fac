"""SIGKILL before every step of every change: old state or new, and nothing blocked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.crash import run_killed_at
from support.storefiles import make_id, tmp_names

from unionfs import _sys
from unionfs.store.facts import Facts
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId
from unionfs.store.image import ImageRecord
from unionfs.store.references import parse_reference

ID = ImageId(make_id(1))
OLD = ImageId(make_id(2))
REF = parse_reference("demo:v1")
FILES = {"a": b"x" * 1000, "b": b"y" * 2000}


def fill(layer_fd: int) -> None:
    for name, data in FILES.items():
        fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=layer_fd)
        os.write(fd, data)
        os.close(fd)
    os.mkdir("dir", dir_fd=layer_fd)
    os.mkdir("dir/sub", dir_fd=layer_fd)


def add(graph: Graph, *, exists_ok: bool = False) -> None:
    graph.register(ImageRecord(id=ID), fill, facts=Facts(size=3000), exists_ok=exists_ok)


def check_whole(graph: Graph) -> None:
    image = graph.get_exact(ID)
    assert image.facts == Facts(size=3000)
    for name, data in FILES.items():
        with open(os.path.join(image.layer_path, name.encode()), "rb") as file:
            assert file.read() == data


def every_step(
    tmp_path: Path,
    prepare: Callable[[Graph], object],
    action: Callable[[Graph], object],
    check: Callable[[Graph], str],
) -> list[str]:
    """Kill `action` at each of its steps in a fresh store; return the states `check` named.

    The store is opened anew after each crash; whatever the state, no staging is left then.
    """
    states = []
    for step in range(1, 500):
        root = tmp_path / f"store{step}"
        with Graph(os.fsencode(root)) as graph:
            prepare(graph)
        with Graph(os.fsencode(root)) as graph:
            finished = run_killed_at(step, lambda graph=graph: action(graph))  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
        with Graph(os.fsencode(root)) as graph:
            assert tmp_names(root) == []
            states.append(check(graph))
            assert graph.problems() == []
        if finished:
            return states
    raise AssertionError("the action never finished")


def assert_one_switch(states: list[str], old: str, new: str) -> None:
    """Old state for some steps, then the new one, nothing between or after."""
    assert states[0] == old
    assert states[-1] == new
    assert states == [old] * states.count(old) + [new] * states.count(new)
    assert len(states) > 3


def test_register(tmp_path: Path) -> None:
    def check(graph: Graph) -> str:
        state = "new" if graph.ids() else "old"
        if state == "old":
            add(graph)  # the id is not blocked
        check_whole(graph)
        return state

    assert_one_switch(every_step(tmp_path, lambda _: None, add, check), "old", "new")


def test_order_of_what_reaches_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content is on disk before the name is, and the name before the call returns."""
    calls: list[str] = []

    def noting(module: object, name: str) -> None:
        call = getattr(module, name)

        def note(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            calls.append(name)
            return result

        monkeypatch.setattr(module, name, note)

    with Graph(os.fsencode(root)) as graph:
        noting(_sys, "syncfs")
        noting(os, "rename")
        noting(os, "fsync")
        add(graph)
        assert calls == ["syncfs", "rename", "fsync"]
        calls.clear()
        graph.tags.set(REF, ID)
        assert calls == ["fsync", "rename", "fsync"]
        calls.clear()
        graph.delete(ID, force=True)
        assert calls[:5] == ["fsync", "rename", "fsync", "rename", "fsync"]


def test_register_over_a_damaged_entry(tmp_path: Path) -> None:
    def prepare(graph: Graph) -> None:
        os.makedirs(graph.path + b"/" + ID.encode() + b"/layer/rest")

    def check(graph: Graph) -> str:
        whole = graph.exists(ID)
        state = "new" if whole else "old"
        if not whole:
            add(graph, exists_ok=True)
        check_whole(graph)
        return state

    states = every_step(tmp_path, prepare, lambda graph: add(graph, exists_ok=True), check)
    assert_one_switch(states, "old", "new")


def test_delete(tmp_path: Path) -> None:
    def check(graph: Graph) -> str:
        state = "old" if graph.ids() else "new"
        if state == "old":
            check_whole(graph)
            graph.delete(ID)
        add(graph)
        check_whole(graph)
        return state

    states = every_step(tmp_path, add, lambda graph: graph.delete(ID), check)
    assert_one_switch(states, "old", "new")


def test_forced_delete_of_a_tagged_image(tmp_path: Path) -> None:
    """The tag goes first: there is no moment with a tag that names nothing."""

    def prepare(graph: Graph) -> None:
        add(graph)
        graph.tags.set(REF, ID)

    def check(graph: Graph) -> str:
        return f"{len(graph.ids())} image, {len(graph.tags.all())} tag"

    states = every_step(tmp_path, prepare, lambda graph: graph.delete(ID, force=True), check)
    assert list(dict.fromkeys(states)) == ["1 image, 1 tag", "1 image, 0 tag", "0 image, 0 tag"]


@pytest.mark.parametrize("first", [True, False])
def test_tagging(tmp_path: Path, first: bool) -> None:  # noqa: FBT001  # a parameter of the test
    def prepare(graph: Graph) -> None:
        add(graph)
        graph.register(ImageRecord(id=OLD))
        if not first:
            graph.tags.set(REF, OLD)

    def check(graph: Graph) -> str:
        target = graph.tags.get(REF)
        graph.tags.set(REF, ID, force=True)
        assert graph.tags.get(REF) == ID
        return str(target)

    states = every_step(tmp_path, prepare, lambda graph: graph.tags.set(REF, ID, force=True), check)
    assert_one_switch(states, "None" if first else OLD, ID)


def test_collecting(tmp_path: Path) -> None:
    """Children go before their parents, so no entry is ever without its parent."""
    layers = [ImageId(make_id(number)) for number in range(3)]

    def prepare(graph: Graph) -> None:
        for number, name in enumerate(layers):
            parent = layers[number - 1] if number else None
            graph.register(ImageRecord(id=name, parent=parent), fill, facts=Facts())

    def check(graph: Graph) -> str:
        left = graph.ids()
        assert left == layers[: len(left)]
        return str(len(left))

    states = every_step(tmp_path, prepare, lambda graph: graph.gc(), check)
    assert list(dict.fromkeys(states)) == ["3", "2", "1", "0"]


def test_sweeping(tmp_path: Path) -> None:
    """A crash while cleaning up after a crash is no different."""

    def prepare(graph: Graph) -> None:
        add(graph)
        for number in range(3):
            os.makedirs(graph.path + b"/:tmp:/left-%d/layer/a/b" % number)

    def check(graph: Graph) -> str:
        check_whole(graph)
        return "whole"

    every_step(tmp_path, prepare, lambda graph: Graph(graph.root).close(), check)
