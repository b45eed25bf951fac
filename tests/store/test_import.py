"""Import: ids, configurations, tags, root filesystems on a parent, crashes, listings."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.crash import fork, run_child, run_killed_at
from support.layers import Member, diff_id, image_of, layer_of, layer_tar
from support.storefiles import make_id, tmp_names, write_entry
from support.storetree import stack_tree

from unionfs.archive.image import SourceImage
from unionfs.archive.source import open_source
from unionfs.branch import Stack
from unionfs.errors import BusyError, ConflictError, HostileArchiveError
from unionfs.store.config import read_config
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId, chain_id
from unionfs.store.images import image_tree, inspect, list_images
from unionfs.store.ingest import Assembly, import_image
from unionfs.store.store import Store

TARS = [
    layer_tar([Member(b"a", data=b"a" * 2000), Member(b"b", data=b"b")]),
    layer_tar([Member(b".wh.a"), Member(b"c", data=b"c" * 2000)]),
]


def document(graph: Graph, image_id: ImageId) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_config(graph.get_exact(image_id)) or b"")
    return found


def rootfs_image(*members: Member) -> SourceImage:
    return SourceImage((), None, (layer_of(layer_tar(members), promise=False),), None)


def test_ids_are_those_of_docker(graph: Graph) -> None:
    image = image_of(TARS)
    image_id, _ = import_image(graph, image, transport="test")
    assert image.config is not None
    assert image_id == hashlib.sha256(image.config).hexdigest()
    first = diff_id(TARS[0])
    second = chain_id(chain_id(None, first), diff_id(TARS[1]))  # type: ignore[arg-type]
    assert [entry.id for entry in graph.history(image_id)] == [
        image_id,
        second.removeprefix("sha256:"),
        first.removeprefix("sha256:"),
    ]
    assert read_config(graph.get_exact(image_id)) == image.config


def test_records_are_those_of_early_docker(graph: Graph) -> None:
    history = [
        {"created_by": "one", "created": "2020-01-01T00:00:00Z", "author": "me"},
        {"created_by": "env", "empty_layer": True},
        {"created_by": "two", "created": "2020-01-02T00:00:00Z", "comment": "second"},
    ]
    image = image_of(TARS, history=history, config={"Cmd": ["sh"]}, author="them")
    image_id, _ = import_image(graph, image, transport="test")
    top, second, first = [entry.record for entry in graph.history(image_id)]
    assert (first.created, first.author) == ("2020-01-01T00:00:00Z", "me")
    assert (second.created, second.comment) == ("2020-01-02T00:00:00Z", "second")
    assert (top.author, top.architecture) == ("them", "amd64")
    assert top.config is not None
    assert top.config["Cmd"] == ["sh"]
    assert first.size == 2001


def test_import_twice_is_the_same(graph: Graph) -> None:
    first = import_image(graph, image_of(TARS), transport="test")
    before = {name: os.stat(os.path.join(graph.path, name.encode())).st_ino for name in graph.ids()}
    assert import_image(graph, image_of(TARS), transport="test") == first
    after = {name: os.stat(os.path.join(graph.path, name.encode())).st_ino for name in graph.ids()}
    assert before == after


def test_damaged_layer_is_replaced_by_importing_again(graph: Graph) -> None:
    image_id, _ = import_image(graph, image_of(TARS), transport="test")
    base = graph.history(image_id)[-1]
    os.unlink(base.path + b"/json")
    assert not graph.exists(base.id)
    import_image(graph, image_of(TARS), transport="test")
    with Stack.open(graph.layer_dirs(image_id)) as stack:
        assert set(stack_tree(stack)) == {b"b", b"c"}


def test_root_filesystem_gives_the_same_id_every_time(graph: Graph, tmp_path: Path) -> None:
    source = rootfs_image(Member(b"f", mtime=1000.5), Member(b"g", mtime=10))
    first, _ = import_image(graph, source, transport="rootfs")
    with Graph(os.fsencode(tmp_path / "other")) as other:
        assert import_image(other, source, transport="rootfs")[0] == first
    found = document(graph, first)
    assert found["created"] == "1970-01-01T00:16:40Z"
    assert found["rootfs"]["diff_ids"] == [
        diff_id(layer_tar([Member(b"f", mtime=1000.5), Member(b"g", mtime=10)]))
    ]


def test_root_filesystem_on_a_parent(graph: Graph) -> None:
    parent, _ = import_image(graph, image_of(TARS, config={"Cmd": ["x"]}), transport="test")
    source = rootfs_image(Member(b".wh.b"), Member(b"d"))
    image_id, _ = import_image(graph, source, transport="rootfs", parent=parent)
    with Stack.open(graph.layer_dirs(image_id)) as stack:
        assert set(stack_tree(stack)) == {b"c", b"d"}
    found = document(graph, image_id)
    assert found["config"] == {"Cmd": ["x"]}
    assert len(found["rootfs"]["diff_ids"]) == len(found["history"]) == 3
    with pytest.raises(HostileArchiveError, match="--parent is for root"):
        import_image(graph, image_of(TARS), transport="test", parent=parent)


def test_v1_layout(graph: Graph, tmp_path: Path) -> None:
    """What Docker up to 1.9 saved: no manifest, no configuration."""
    path = tmp_path / "v1.tar"
    ids = [make_id(1), make_id(2)]
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for number, name in enumerate(ids):
            record = {
                "id": name,
                "created": f"2014-01-0{number + 1}T00:00:00Z",
                "container_config": {"Cmd": ["/bin/sh", "-c", f"step {number}"]},
                "config": {"Cmd": ["sh"]},
                "architecture": "amd64",
                "os": "linux",
            }
            if number:
                record["parent"] = ids[number - 1]
            add(f"{name}/VERSION", b"1.0")
            add(f"{name}/json", json.dumps(record).encode())
            add(f"{name}/layer.tar", TARS[number])
        add("repositories", json.dumps({"old/app": {"1": ids[1]}}).encode())
    with open_source(f"docker-archive:{path}") as source, Store(graph) as store:
        (image,) = source.images
        added = store.import_image(image, transport=source.transport)
        assert store.resolve("old/app:1") == added.id
        found = document(graph, added.id)
        assert found["created"] == "2014-01-02T00:00:00Z"
        assert [item["created_by"] for item in found["history"]] == [
            "/bin/sh -c step 0",
            "/bin/sh -c step 1",
        ]
        assert found["config"]["Cmd"] == ["sh"]
        with Stack.open(graph.layer_dirs(added.id)) as stack:
            assert set(stack_tree(stack)) == {b"b", b"c"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rootfs": {"type": "tarballs", "diff_ids": []}}, "rootfs.type"),
        ({"rootfs": {"type": "layers", "diff_ids": [1]}}, "diff_ids"),
        ({"rootfs": None}, "rootfs.type"),
    ],
)
def test_bad_configuration(graph: Graph, change: dict[str, Any], message: str) -> None:
    image = image_of([])
    config = json.dumps(json.loads(image.config or b"") | change).encode()
    with pytest.raises(HostileArchiveError, match=message):
        import_image(graph, attrs.evolve(image, config=config), transport="test")
    assert graph.ids() == []


def test_odd_but_harmless_configuration(graph: Graph) -> None:
    """Fields of wrong types, a bad time and a wrong history do not stop an import."""
    image = image_of(TARS, created="yesterday", author=3, config=None, history=[{"x": 1}])
    image_id, _ = import_image(graph, image, transport="test")
    assert graph.get_exact(image_id).record.created.startswith("0001-01-01")
    assert inspect(graph, image_id)["created"] == "yesterday"


def test_tags(root: Path) -> None:
    with Store.open(os.fsencode(root)) as store:
        image = image_of(TARS, ["demo/app:v1", "v2", "Bad//Name:x"])
        added = store.import_image(image, transport="oci")
        assert [str(item) for item in added.references] == ["demo/app:v1"]
        assert store.import_image(image, transport="oci").id == added.id, "same image, same tag"
        other = image_of(TARS, ["demo/app:v1"], comment="other")
        before = store.graph.ids()
        with pytest.raises(ConflictError, match="--force"):
            store.import_image(other, transport="oci")
        assert store.graph.ids() == before
        moved = store.import_image(other, transport="oci", force=True)
        assert store.resolve("demo/app:v1") == moved.id
        named = store.import_image(image, transport="oci", references=["mine"])
        assert store.tags.by_id()[named.id] == ["mine:latest"]


def test_nobody_collects_an_image_before_it_is_tagged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Assembly.__exit__

    def collect_at_once(assembly: Assembly, *error: Any) -> None:
        original(assembly, *error)
        with Store.open(os.fsencode(root)) as other:
            other.graph.gc(all_images=True)

    monkeypatch.setattr(Assembly, "__exit__", collect_at_once)
    (tmp_path / "rw").mkdir()
    with Store.open(os.fsencode(root)) as store:
        added = store.import_image(image_of(TARS), transport="test", references=["a:1"])
        again = store.import_image(image_of(TARS), transport="test", references=["a:2"])
        made = store.commit(added.id, os.fsencode(tmp_path / "rw"), references=["b:1"])
        assert again.id == added.id
        assert store.resolve("a:1") == store.resolve("a:2") == added.id
        assert store.resolve("b:1") == made.id
        assert store.graph.in_use() == frozenset()


def test_base_is_held_while_something_is_built_on_it(graph: Graph) -> None:
    parent, _ = import_image(graph, image_of(TARS), transport="test")
    layer = layer_of(layer_tar([Member(b"x")]), promise=False)
    refused: list[str] = []

    def delete_meanwhile() -> Any:
        try:
            graph.delete(parent, force=True)
        except BusyError as error:
            refused.append(str(error))
        return layer.open()

    source = SourceImage((), None, (attrs.evolve(layer, open=delete_meanwhile),), None)
    import_image(graph, source, transport="rootfs", parent=parent)
    assert refused


def test_two_processes_import_the_same_image(root: Path) -> None:
    start, go = os.pipe()

    def child() -> None:
        os.close(go)
        with Graph(os.fsencode(root)) as graph:
            os.read(start, 1)  # the end of the pipe, when both are there
            import_image(graph, image_of(TARS), transport="test")

    with Graph(os.fsencode(root)):
        pids = [fork(child) for _ in range(2)]
        os.close(go)
        os.close(start)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert statuses == [0, 0]
    with Graph(os.fsencode(root)) as graph:
        assert len(graph.ids()) == 3
        assert graph.problems() == []


def test_killed_anywhere(tmp_path: Path) -> None:
    """SIGKILL before each step: nothing or complete layers, and no id is blocked."""
    step, finished = 1, False
    while not finished:
        root = tmp_path / f"store-{step}"

        def action(root: Path = root) -> None:
            with Graph(os.fsencode(root)) as graph:
                import_image(graph, image_of(TARS), transport="test")

        finished = run_killed_at(step, action)
        with Graph(os.fsencode(root)) as graph:
            assert tmp_names(root) == []
            assert graph.problems() == []
            for name in graph.ids():
                with Stack.open(graph.layer_dirs(name)) as stack:
                    assert set(stack_tree(stack)) in ({b"a", b"b"}, {b"b", b"c"})
            image_id, _ = import_image(graph, image_of(TARS), transport="test")
            assert len(graph.layer_dirs(image_id)) == 2
            assert graph.gc() == []
        step += 1
    assert step > 30


def test_full_disk_leaves_nothing(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    import_image(graph, image_of([b""]), transport="test")
    before = graph.ids()
    real = os.pwrite
    calls = [0]

    def full(fd: int, data: bytes, offset: int) -> int:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        import_image(graph, image_of(TARS), transport="test")
    assert graph.ids() == before
    assert os.listdir(graph.path + b"/:tmp:") == []


def test_listing_and_details(root: Path) -> None:
    with Store.open(os.fsencode(root)) as store:
        one = store.import_image(image_of(TARS, ["app:1"]), transport="oci")
        two = store.import_image(
            image_of(TARS[:1], created="2024-01-01T00:00:00Z"), transport="docker-archive"
        )
        old = make_id(7)
        entry = write_entry(root, old, created="2013-04-01T00:00:00Z", comment="old")
        (entry / "layer/f").write_text("x")
        found = list_images(store.graph)
        assert [item.id for item in found] == [two.id, one.id, old]
        first = found[1]
        assert (first.references, first.layers, first.size) == (("app:1",), 2, 4001)
        assert len(list_images(store.graph, all_entries=True)) == 5
        roots = image_tree(store.graph)
        assert [node.summary.id for node in roots][-1] == old
        (base,) = [node for node in roots if node.children]
        assert {child.summary.is_image for child in base.children} == {True, False}
        details = inspect(store.graph, one.id)
        assert details["tags"] == ["app:1"]
        assert [layer["diff_id"] for layer in details["layers"]] == [diff_id(tar) for tar in TARS]
        json.dumps(details)
        assert inspect(store.graph, ImageId(old))["comment"] == "old"


@pytest.mark.usefixtures("as_root")
def test_plain_user_exports_what_root_would(open_tmp: Path) -> None:
    def child() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with Store.open(os.fsencode(open_tmp / "store")) as store:
            added = store.import_image(image_of(TARS, ["app:1"]), transport="oci")
            store.export(added.id, f"docker-archive:{open_tmp}/out.tar")

    assert run_child(child) == 0
    with open_source(f"docker-archive:{open_tmp}/out.tar") as source:
        (image,) = source.images
        assert image.references == ("app:1",)
        assert [layer.diff_id for layer in image.layers] == [diff_id(tar) for tar in TARS]
