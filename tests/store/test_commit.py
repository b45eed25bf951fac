"""Commit: a rw branch becomes an image, at one moment or not at all."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.crash import run_killed_at
from support.layers import Member, image_of, layer_tar
from support.storefiles import tmp_names, write_entry
from support.storetree import stack_tree

from unionfs.branch import Branch, Stack, whiteout
from unionfs.errors import BusyError, ConflictError, NotFoundError, UsageError
from unionfs.store import commit as commit_module
from unionfs.store.commit import commit
from unionfs.store.config import read_config
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId
from unionfs.store.ingest import import_image
from unionfs.store.layertar import layer_tar as branch_tar
from unionfs.store.store import Store


@pytest.fixture
def base(graph: Graph) -> ImageId:
    members = [
        Member(b"etc", "dir"),
        Member(b"etc/a", data=b"a" * 1000),
        Member(b"etc/b", data=b"b"),
        Member(b"gone", data=b"x"),
    ]
    fields: dict[str, Any] = {
        "author": "maker",
        "x-unknown": {"kept": [1]},
        "config": {"Env": ["A=1"], "Cmd": ["x"]},
    }
    return import_image(graph, image_of([layer_tar(members)], **fields), transport="test")[0]


@pytest.fixture
def rw(tmp_path: Path) -> Path:
    branch = tmp_path / "rw"
    branch.mkdir()
    branch.chmod(0o755)
    return branch


def document(graph: Graph, image_id: str) -> dict[str, Any]:
    raw = read_config(graph.get_exact(image_id))
    assert raw is not None
    found: dict[str, Any] = json.loads(raw)
    return found


def tree(graph: Graph, image_id: str) -> dict[bytes, tuple[str, bytes]]:
    with Stack.open(graph.layer_dirs(image_id)) as stack:
        return stack_tree(stack)


def test_branch_becomes_a_layer(graph: Graph, base: ImageId, rw: Path) -> None:
    (rw / "etc").mkdir()
    (rw / "etc/new").write_text("new")
    os.link(rw / "etc/new", rw / "linked")
    (rw / "etc/.wh.a").touch()
    (rw / ".wh.gone").touch()
    (rw / ".wh..wh.unionfs").mkdir()
    (rw / ".wh..wh.unionfs/leftover").write_text("temporary")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(rw / "socket"))
        os.link(rw / "socket", rw / "socket-too")
        image_id, warnings = commit(graph, base, os.fsencode(rw))
    assert warnings == []
    assert tree(graph, image_id) == {
        b"etc": ("d", b"755"),
        b"etc/b": ("f", b"b"),
        b"etc/new": ("f", b"new"),
        b"linked": ("f", b"new"),
    }
    layer = graph.layer_dirs(image_id)[0]
    assert os.stat(layer + b"/linked").st_ino == os.stat(layer + b"/etc/new").st_ino
    assert graph.history(image_id)[2].id == graph.history(base)[1].id, "layers are shared"


def test_markers_that_hide_nothing_do_not_change_the_layer(
    graph: Graph, base: ImageId, rw: Path, tmp_path: Path
) -> None:
    """AUFS and overlayfs leave some; the diff_id says what changed and not who wrote it."""
    other = tmp_path / "other"
    for branch in (rw, other):
        (branch / "etc").mkdir(parents=True, exist_ok=True)
        (branch / "etc/.wh..wh..opq").touch()
        (branch / "etc/new").mkdir()
        (branch / "etc/new/x").touch()
        (branch / ".wh.gone").touch()
    for needless in (".wh.nothing", "etc/.wh.a", "etc/new/.wh..wh..opq", "etc/new/.wh.b"):
        (other / needless).touch()
    for path in ("etc/new/x", "etc/new", "etc", "."):
        for branch in (rw, other):
            os.utime(branch / path, (10**9, 10**9))
    ids = [
        document(graph, commit(graph, base, os.fsencode(branch))[0])["rootfs"]["diff_ids"]
        for branch in (rw, other)
    ]
    assert ids[0] == ids[1]


def test_configuration_of_a_commit(graph: Graph, base: ImageId, rw: Path) -> None:
    changes = [
        'CMD=["sh", "-c", "echo"]',
        "ENTRYPOINT /bin/x y",
        "ENV=A=2 B=three",
        "WORKDIR=/w",
        "USER=nobody",
        'LABEL=k="v w"',
        "EXPOSE=80 53/udp",
        "VOLUME=/data",
        "STOPSIGNAL=SIGINT",
    ]
    image_id, _ = commit(graph, base, os.fsencode(rw), author="me", comment="why", changes=changes)
    old, new = document(graph, base), document(graph, image_id)
    assert new["config"] == {
        "Env": ["A=2", "B=three"],
        "Cmd": ["sh", "-c", "echo"],
        "Entrypoint": ["/bin/sh", "-c", "/bin/x y"],
        "WorkingDir": "/w",
        "User": "nobody",
        "Labels": {"k": "v w"},
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}},
        "StopSignal": "SIGINT",
    }
    assert new["author"] == "me"
    assert new["x-unknown"] == {"kept": [1]}
    assert new["rootfs"]["diff_ids"][:-1] == old["rootfs"]["diff_ids"]
    assert len(new["history"]) == len(old["history"]) + 1
    assert new["history"][-1]["comment"] == "why"
    assert graph.get_exact(image_id).record.author == "me"


@pytest.mark.parametrize("change", ["SHELL=x", "CMD", "ENV=A", 'CMD=["x"', "CMD=[1]", 'LABEL="'])
def test_bad_change_is_refused(graph: Graph, base: ImageId, rw: Path, change: str) -> None:
    before = graph.ids()
    with pytest.raises(UsageError, match="--change"):
        commit(graph, base, os.fsencode(rw), changes=[change])
    assert graph.ids() == before


def test_empty_branch_gives_a_new_image(graph: Graph, base: ImageId, rw: Path) -> None:
    image_id, _ = commit(graph, base, os.fsencode(rw))
    assert image_id != base
    assert tree(graph, image_id) == tree(graph, base)
    assert len(document(graph, image_id)["rootfs"]["diff_ids"]) == 2


def test_missing_branch(graph: Graph, base: ImageId, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such directory"):
        commit(graph, base, os.fsencode(tmp_path / "none"))


def test_attributes_of_the_root_survive(graph: Graph, base: ImageId, rw: Path) -> None:
    rw.chmod(0o1711)
    image_id, _ = commit(graph, base, os.fsencode(rw))
    assert stat.S_IMODE(os.stat(graph.layer_dirs(image_id)[0]).st_mode) == 0o1711


def test_reproducible(
    graph: Graph, base: ImageId, rw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same input and SOURCE_DATE_EPOCH: same image id, in another store and another directory."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1600000000")
    (rw / "b").write_text("b")
    (rw / "a").write_text("a")
    other = tmp_path / "other"
    other.mkdir(mode=0o755)
    other.chmod(0o755)
    (other / "a").write_text("a")
    (other / "b").write_text("b")
    for top in (rw, other):
        for name in ("a", "b"):
            os.utime(top / name, (5, 5))
    first, _ = commit(graph, base, os.fsencode(rw))
    second, _ = commit(graph, base, os.fsencode(other))
    assert first == second
    assert document(graph, first)["created"] == "2020-09-13T12:26:40Z"


def test_long_whiteout_leaves_in_the_archive_form(graph: Graph, rw: Path) -> None:
    name = b"n" * 255
    base, _ = import_image(
        graph, image_of([layer_tar([Member(name), Member(b"k")])]), transport="t"
    )
    marker, content = whiteout.marker_for(name)
    Path(os.fsdecode(os.path.join(os.fsencode(rw), marker))).write_bytes(content)
    with Branch.open(os.fsencode(rw)) as branch:
        assert b".wh." + name in b"".join(branch_tar(branch, root=False))
    image_id, _ = commit(graph, base, os.fsencode(rw))
    assert set(tree(graph, image_id)) == {b"k"}


def test_pending_journal_is_refused(
    graph: Graph, base: ImageId, rw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rw / ".wh..wh.unionfs").mkdir()
    (rw / ".wh..wh.unionfs/intent").symlink_to("rename a b")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    before = graph.ids()
    with pytest.raises(BusyError, match="not finished"):
        commit(graph, base, os.fsencode(rw))
    assert graph.ids() == before


def test_a_branch_that_does_not_hold_still_is_refused(
    graph: Graph, base: ImageId, rw: Path, root: Path
) -> None:
    (rw / "data").write_bytes(b"x" * 100_000)
    stop = threading.Event()

    def scribble() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with open(rw / "data", "ab") as file:
                file.write(b"y")
            (rw / f"n{number % 3}").write_text(str(number))
            time.sleep(0.001)

    writer = threading.Thread(target=scribble)
    writer.start()
    before = graph.ids()
    try:
        with pytest.raises(BusyError, match="changed while it was read"):
            commit(graph, base, os.fsencode(rw))
    finally:
        stop.set()
        writer.join()
    assert graph.ids() == before
    assert tmp_names(root) == []
    image_id, _ = commit(graph, base, os.fsencode(rw))
    assert tree(graph, image_id)[b"data"][1].startswith(b"xxx")


def test_a_change_that_stops_is_waited_for(
    graph: Graph, base: ImageId, rw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is made again when the first one was disturbed."""
    (rw / "f").write_text("first")
    tries: list[int] = []

    def disturbed(branch: Branch, **options: Any) -> Iterator[bytes]:
        tries.append(1)
        yield from branch_tar(branch, **options)
        if len(tries) == 1:
            (rw / "f").write_text("second")

    monkeypatch.setattr(commit_module, "layer_tar", disturbed)
    image_id, _ = commit(graph, base, os.fsencode(rw))
    assert len(tries) == 2
    assert tree(graph, image_id)[b"f"] == ("f", b"second")


def test_on_an_image_of_early_docker(graph: Graph, root: Path, rw: Path) -> None:
    parent = ImageId("ab" * 8)
    entry = write_entry(
        root, parent, created="2013-04-01T00:00:00Z", container_config={"Cmd": ["sh"]}
    )
    (entry / "layer/f").write_text("old")
    (entry / "layer/g").write_text("old")
    (rw / ".wh.f").touch()
    image_id, _ = commit(graph, parent, os.fsencode(rw))
    assert set(tree(graph, image_id)) == {b"g"}
    assert [image.id for image in graph.history(image_id)][2] == parent
    config = document(graph, image_id)
    assert len(config["rootfs"]["diff_ids"]) == len(config["history"]) == 2
    assert config["config"]["Cmd"] == ["sh"]


def test_tags(root: Path, base: ImageId, rw: Path) -> None:
    with Store.open(os.fsencode(root)) as store:
        first = store.commit(base, os.fsencode(rw), references=["demo/app:v2"])
        assert store.resolve("demo/app:v2") == first.id
        (rw / "more").touch()
        before = store.graph.ids()
        with pytest.raises(ConflictError, match="--force"):
            store.commit(base, os.fsencode(rw), references=["demo/app:v2"])
        assert store.graph.ids() == before, "a taken tag is found before the work"
        second = store.commit(base, os.fsencode(rw), references=["demo/app:v2"], force=True)
        assert store.resolve("demo/app:v2") == second.id != first.id


def test_killed_anywhere(tmp_path: Path, rw: Path) -> None:
    """SIGKILL before each step: the store stays sound and the next commit succeeds."""
    (rw / "d").mkdir()
    (rw / "d/f").write_bytes(b"f" * 2000)
    (rw / ".wh.gone").touch()
    tar = layer_tar([Member(b"gone"), Member(b"kept", data=b"k" * 2000)])
    step, finished = 1, False
    while not finished:
        root = tmp_path / f"store-{step}"

        def action(root: Path = root) -> None:
            with Graph(os.fsencode(root)) as graph:
                base, _ = import_image(graph, image_of([tar]), transport="test")
                commit(graph, base, os.fsencode(rw))

        finished = run_killed_at(step, action)
        with Graph(os.fsencode(root)) as graph:
            assert tmp_names(root) == [], "opening the store sweeps"
            assert graph.problems() == []
            for image in graph.all():
                assert image.facts is not None
                tree(graph, image.id)
            base, _ = import_image(graph, image_of([tar]), transport="test")
            image_id, _ = commit(graph, base, os.fsencode(rw))
            assert set(tree(graph, image_id)) == {b"d", b"d/f", b"kept"}
        step += 1 if step < 40 else 7
    assert step > 30, "the steps were not counted"
