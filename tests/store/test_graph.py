"""The graph: what the original's tests showed, and what it got wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.crash import fork, run_child
from support.storefiles import chain, make_id, tmp_names, write_entry

import unionfs
from unionfs import _sys
from unionfs.errors import (
    AmbiguousError,
    BusyError,
    ConflictError,
    InvalidNameError,
    MissingParentError,
    NotFoundError,
    ParentCycleError,
    StoreError,
    TooDeepError,
    UnsupportedError,
)
from unionfs.store.facts import Facts
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId
from unionfs.store.image import ImageRecord
from unionfs.store.references import parse_reference

NOBODY = 65534


def as_nobody(action: Callable[[], object]) -> int:
    """Run `action` in a child without root's rights; return its exit status."""

    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        action()

    return run_child(child)


def record(number: int, parent: int | None = None) -> ImageRecord:
    below = None if parent is None else ImageId(make_id(parent))
    return ImageRecord(id=ImageId(make_id(number)), parent=below)


def make_files(layer_fd: int) -> None:
    os.mkdir("etc", dir_fd=layer_fd)
    fd = os.open("etc/passwd", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=layer_fd)
    os.write(fd, b"Hello world!\n")
    os.close(fd)


def _replace_by_link(path: Path) -> None:
    kept = path.with_name("real")
    path.rename(kept)
    path.symlink_to(kept)


def _replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_outside(path: Path) -> None:
    elsewhere = path.parents[1] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _replace_by_file(path: Path) -> None:
    path.rename(path.parents[2] / "elsewhere")
    path.touch()


# The original's graph_test.go


def test_init_makes_an_empty_private_store(root: Path, graph: Graph) -> None:
    assert graph.all() == []
    assert graph.problems() == []
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "graph").stat().st_mode) == 0o700


def test_create(graph: Graph) -> None:
    image = graph.create(make_files, comment="Testing")
    assert image.record.comment == "Testing"
    assert image.record.docker_version == unionfs.__version__
    assert len(image.id) == 64
    assert graph.all() == [image]
    assert graph.map() == {image.id: image}


def test_register_and_get(root: Path, graph: Graph) -> None:
    made = graph.register(record(1), make_files, layer_mode=0o711)
    assert graph.get(made.id) == made == graph.get(made.id[:12]) == graph.get("sha256:" + made.id)
    assert graph.get_exact(made.id) == made
    entry = root / "graph" / made.id
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700
    assert stat.S_IMODE((entry / "json").stat().st_mode) == 0o600
    assert stat.S_IMODE((entry / "layer").stat().st_mode) == 0o711
    assert (entry / "layer/etc/passwd").read_text() == "Hello world!\n"
    assert made.layer_path == os.fsencode(entry / "layer")
    assert graph.exists(made.id)
    assert not graph.exists(made.id[:12])
    assert not graph.exists(make_id(2))
    assert not graph.exists("../graph")


def test_delete_by_prefix(graph: Graph) -> None:
    first = graph.create(make_files)
    assert graph.delete(first.id[:12]).id == first.id
    assert graph.all() == []
    first, second = graph.create(make_files), graph.create()
    graph.delete(first.id)
    assert graph.all() == [second]
    with pytest.raises(NotFoundError):
        graph.delete(first.id)
    for name in ("", "nope", "../graph", ":tmp:"):
        with pytest.raises(InvalidNameError):
            graph.delete(name)
    again = graph.register(first.record, make_files)
    assert again.id == first.id
    assert len(graph.all()) == 2


def test_register_twice_is_refused_or_shared(graph: Graph, root: Path) -> None:
    graph.register(record(1), make_files)
    with pytest.raises(ConflictError, match="already exists"):
        graph.register(record(1))
    assert graph.register(record(1), exists_ok=True).id == make_id(1)
    assert (root / "graph" / make_id(1) / "layer/etc").exists()
    assert tmp_names(root) == []


def test_interrupted_register_blocks_nothing(graph: Graph, root: Path) -> None:
    def fail(layer_fd: int) -> None:
        make_files(layer_fd)
        raise ValueError("the archive ends here")

    with pytest.raises(ValueError, match="ends here"):
        graph.register(record(1), fail)
    assert tmp_names(root) == []
    assert graph.register(record(1), make_files).id == make_id(1)


def test_a_full_disk_leaves_nothing(
    graph: Graph, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_sys, "syncfs", full)
    with pytest.raises(OSError, match="No space"):
        graph.register(record(1), make_files)
    assert graph.ids() == []
    assert tmp_names(root) == []


def test_hundreds_of_staging_areas_at_once(graph: Graph, root: Path) -> None:
    """An image of 500 layers is staged whole before the first layer is committed."""
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(graph.stage("many"))
        assert len(os.listdir("/proc/self/fd")) == before + 100
    assert len(os.listdir("/proc/self/fd")) == before
    assert tmp_names(root) == []


# Parents


def test_by_parent_and_heads(graph: Graph, root: Path) -> None:
    for number, parent in [(1, None), (2, 1), (3, 1), (4, 2)]:
        graph.register(record(number, parent))
    write_entry(root, make_id(5), parent=make_id(99))
    children = {key: [image.id for image in value] for key, value in graph.by_parent().items()}
    assert children == {
        make_id(1): [make_id(2), make_id(3)],
        make_id(2): [make_id(4)],
    }
    assert sorted(graph.heads()) == [make_id(3), make_id(4), make_id(5)]


@pytest.mark.parametrize("length", [500, 1000])
def test_deep_history(root: Path, graph: Graph, length: int) -> None:
    ids = chain(root, length)
    assert [image.id for image in graph.history(ids[0])] == ids
    dirs = graph.layer_dirs(ids[0])
    assert dirs == [os.fsencode(root / "graph" / name / "layer") for name in ids]


def test_bad_parents_are_three_different_errors(root: Path, graph: Graph) -> None:
    a, b, c, lone, prefix = (make_id(number) for number in (10, 11, 12, 13, 14))
    write_entry(root, a, parent=b)
    write_entry(root, b, parent=a)
    write_entry(root, c, parent=c)
    write_entry(root, lone, parent=make_id(99))
    write_entry(root, prefix, parent=lone[:12])
    for name in (a, b, c):
        with pytest.raises(ParentCycleError):
            graph.history(name)
    for name in (lone, prefix):
        with pytest.raises(MissingParentError):
            graph.layer_dirs(name)
    with pytest.raises(NotFoundError):
        graph.history(make_id(99))
    top = chain(root / "deep", 5)[0]
    with Graph(os.fsencode(root / "deep")) as deep:
        assert len(deep.history(top, max_depth=5)) == 5
        with pytest.raises(TooDeepError):
            deep.history(top, max_depth=4)
    found = {problem.name for problem in graph.problems()}
    assert found == {a, b, c, lone, prefix}


def test_register_needs_its_parent(graph: Graph, root: Path) -> None:
    for parent in (2, 1):
        with pytest.raises(MissingParentError):
            graph.register(record(1, parent))
    assert tmp_names(root) == []
    assert graph.all() == []


def test_layer_dirs_skip_entries_without_files(graph: Graph) -> None:
    base = graph.register(record(1))
    top = graph.register(record(2, 1), facts=Facts(metadata_only=True))
    assert top.metadata_only
    assert graph.layer_dirs(top.id) == [base.layer_path]
    scratch = graph.register(record(3), facts=Facts(metadata_only=True))
    assert graph.layer_dirs(scratch.id) == [scratch.layer_path]


# Opening


def test_a_store_of_early_docker_opens_as_it_is(root: Path) -> None:
    old = "8dbd9e392a964056"
    (root / "graph" / ":tmp:" / old / "layer").mkdir(parents=True)
    (root / "graph" / ":garbage:").mkdir()
    (root / "graph" / "checksums").write_text("{}")
    write_entry(root, old, comment="old")
    write_entry(root, make_id(1), parent=old)
    (root / "repositories").write_text(f'{{"Repositories":{{"base":{{"latest":"{old}"}}}}}}')
    (root / "graph").chmod(0o700)
    before = (root / "graph" / old / "json").read_bytes()
    with Graph(os.fsencode(root), create=False) as graph:
        assert [image.id for image in graph.history(make_id(1))] == [make_id(1), old]
        assert graph.tags.resolve(graph, "base") == old
        assert graph.get("8dbd").facts is None
        assert graph.problems() == []
    assert tmp_names(root) == []
    assert (root / "graph" / old / "json").read_bytes() == before


def test_opening_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no image store"):
        Graph(os.fsencode(tmp_path / "none"), create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").touch()
    with pytest.raises(StoreError, match="holds other files"):
        Graph(os.fsencode(tmp_path / "home"))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="not a directory"):
        Graph(os.fsencode(tmp_path / "file"))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/graph").symlink_to(tmp_path / "home")
    with pytest.raises(StoreError, match="not a directory"):
        Graph(os.fsencode(tmp_path / "linked"))
    assert sorted(os.listdir(tmp_path / "home")) == ["letter"]


def test_a_store_of_somebody_else(open_tmp: Path) -> None:
    root = open_tmp / "store"
    with Graph(os.fsencode(root)) as graph:
        image = graph.create(make_files)
        graph.tags.set(parse_reference("a"), image.id)

    def closed() -> None:
        with pytest.raises(UnsupportedError, match="another user"):
            Graph(os.fsencode(root))

    def readable() -> None:
        with Graph(os.fsencode(root)) as graph:
            assert not graph.writable
            assert graph.tags.resolve(graph, "a") == image.id
            assert graph.gc(dry_run=True) == []
            assert graph.in_use() == frozenset()
            os.close(graph.hold(image.id))
            for change in (graph.stage, graph.gc, lambda: graph.delete(image.id)):
                with pytest.raises(UnsupportedError, match="cannot be written"):
                    change()

    if os.geteuid() != 0:
        pytest.skip("needs another user's store: uid 0")
    assert as_nobody(closed) == 0
    for path in (root, root / "graph", root / "graph" / image.id):
        path.chmod(0o755)
    for path in (root / "repositories", root / "graph" / image.id / "json"):
        path.chmod(0o644)
    assert as_nobody(readable) == 0
    (root / "graph/.lock").unlink()
    assert as_nobody(readable) == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda entry: (entry / "json").unlink(), "no `json`"),
        (lambda entry: (entry / "json").write_text("{"), "not valid JSON"),
        (lambda entry: (entry / "json").write_text('{"id":"deadbeef"}'), "wrong id"),
        (lambda entry: (entry / "json").write_text('{"id":"../x"}'), "not an image id"),
        (lambda entry: (entry / "layer").rmdir(), "no filesystem layer"),
        (lambda entry: _replace_by_link(entry / "layer"), "not a directory"),
        (lambda entry: _replace_by_link(entry / "json"), "not a regular file"),
        (lambda entry: _replace_by_fifo(entry / "json"), "not a regular file"),
        (lambda entry: (entry / "unionfs.json").write_text("{"), "is damaged"),
        (lambda entry: os.truncate(entry / "json", 200 << 20), "larger than"),
        (_replace_by_file, "not a directory"),
        (_replace_by_outside, "not a directory"),
    ],
)
def test_damaged_entries_are_reported_and_heal(
    root: Path, graph: Graph, damage: Callable[[Path], object], message: str
) -> None:
    sound = graph.register(record(1))
    entry = write_entry(root, make_id(2))
    damage(entry)
    with pytest.raises(StoreError, match=message):
        graph.get(make_id(2)[:12])
    with pytest.raises(StoreError, match=message):
        graph.hold(make_id(2))
    assert not graph.exists(make_id(2))
    assert graph.all() == [sound]
    (problem,) = graph.problems()
    assert problem.name == make_id(2)
    assert problem.message.isprintable()
    with pytest.raises(StoreError, match="damaged entries"):
        graph.gc()
    with pytest.raises(ConflictError, match="damaged"):
        graph.delete(make_id(2))
    assert graph.register(record(2), make_files, exists_ok=True).id == make_id(2)
    assert graph.problems() == []
    damage_again = graph.path + b"/" + make_id(2).encode() + b"/json"
    os.unlink(damage_again)
    graph.delete(make_id(2), force=True)
    assert graph.ids() == [sound.id]


def test_strangers_in_the_graph_are_reported(root: Path, graph: Graph) -> None:
    for name in ("README", "DEADBEEF", "a b", "\x1b[31m"):
        (root / "graph" / name).mkdir()
    (root / "graph").chmod(0o755)
    messages = [problem.message for problem in graph.problems()]
    assert len(messages) == 5
    assert all(message.isprintable() for message in messages)
    assert graph.all() == []
    chain(root, 2)
    with pytest.raises(AmbiguousError):
        graph.get("0000000")


# Staging


def test_an_incomplete_entry_cannot_be_committed(graph: Graph, root: Path) -> None:
    with graph.stage("x") as staging:
        with pytest.raises(StoreError, match="no `json`"):
            staging.commit(ImageId(make_id(1)))
        staging.put_record(record(2))
        with pytest.raises(StoreError, match="wrong id"):
            staging.commit(ImageId(make_id(1)))
        with pytest.raises(StoreError, match="no filesystem layer"):
            staging.commit(ImageId(make_id(2)))
        with pytest.raises(InvalidNameError):
            staging.commit(ImageId("../x"))
        assert os.listdir(staging.path) == [b"json"]
    assert tmp_names(root) == []
    with pytest.raises(InvalidNameError):
        graph.stage("../x")


def test_staging_of_the_living_is_not_swept(graph: Graph, root: Path) -> None:
    (root / "graph/:tmp:").mkdir()
    (root / "graph/:tmp:/dead-1/layer").mkdir(parents=True)
    (root / "graph/:tmp:/dead-2").touch()
    (root / "graph/:tmp:/dead-3").symlink_to("/etc")
    with graph.stage("mine") as staging:
        assert run_child(lambda: Graph(os.fsencode(root)).close()) == 0
        Graph(os.fsencode(root)).close()
        assert tmp_names(root) == [os.path.basename(staging.path).decode()]
        os.close(staging.make_layer())
        staging.put_record(record(1))
        assert staging.commit(ImageId(make_id(1)))
        assert staging.path == graph.get(make_id(1)).path
    assert tmp_names(root) == []
    assert os.path.exists("/etc/passwd")


def test_sweep_of_many_leftovers(root: Path) -> None:
    for number in range(150):
        (root / f"graph/:tmp:/old-{number}/layer").mkdir(parents=True)
    Graph(os.fsencode(root)).close()
    assert tmp_names(root) == []


def test_a_committed_entry_is_held_until_the_block_ends(graph: Graph, root: Path) -> None:
    facts = Facts(diff_id="sha256:" + "0" * 64)
    for expected in (True, False):
        with graph.stage() as staging:
            os.close(staging.make_layer())
            staging.put_facts(facts)
            staging.put_record(record(1))
            assert staging.commit(ImageId(make_id(1)), exists_ok=True) is expected
            assert len(tmp_names(root)) == 0
            assert graph.in_use() == {make_id(1)}
            assert graph.gc() == []
            with pytest.raises(BusyError):
                graph.delete(make_id(1), force=True)
        assert graph.in_use() == frozenset()
    assert [image.id for image in graph.gc()] == [make_id(1)]


def test_processes_registering_one_id(graph: Graph, root: Path) -> None:
    """Exactly one of several processes wins each id; nothing is left over."""

    def child() -> None:
        won = 0
        with Graph(os.fsencode(root)) as own:
            for number in range(15):
                try:
                    own.register(record(number), make_files)
                    won += 1
                except ConflictError:
                    assert own.exists(make_id(number))
        os.write(write_end, f"{won}\n".encode())

    read_end, write_end = os.pipe()
    children = [fork(child) for _ in range(3)]
    os.close(write_end)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    with open(read_end) as file:
        won = [int(line) for line in file]
    assert statuses == [0, 0, 0]
    assert sum(won) == 15
    assert len(graph.all()) == 15
    assert graph.problems() == []
    assert tmp_names(root) == []


# Deleting


def test_delete_refuses_what_others_need(graph: Graph) -> None:
    graph.register(record(1))
    graph.register(record(2, 1))
    graph.tags.set(parse_reference("demo/app:v1"), ImageId(make_id(2)))
    with pytest.raises(ConflictError, match=r"base of 00000002aaaa .*--force leaves"):
        graph.delete(make_id(1))
    with pytest.raises(ConflictError, match=r"tagged demo/app:v1 .*--force removes"):
        graph.delete(make_id(2))
    assert len(graph.all()) == 2
    removal = graph.delete(make_id(1), force=True)
    assert removal.orphans == (make_id(2),)
    removal = graph.delete(make_id(2), force=True)
    assert removal.tags == ("demo/app:v1",)
    assert graph.tags.all() == {}
    assert graph.all() == []


def test_a_held_image_and_its_base_stay_even_with_force(graph: Graph) -> None:
    graph.register(record(1))
    graph.register(record(2, 1))
    held = graph.hold(make_id(2))
    assert not os.get_inheritable(held)
    for name in (make_id(1), make_id(2)):
        with pytest.raises(BusyError, match="unmount"):
            graph.delete(name, force=True)

    def other_process() -> None:
        os.close(held)  # of the child; the parent's stays
        with Graph(graph.root) as own, pytest.raises(BusyError):
            own.delete(make_id(2), force=True)

    # A forked descriptor shares the lock: only the last close gives it back.
    assert run_child(other_process) == 0
    assert graph.in_use() == {make_id(2)}
    os.close(held)
    graph.delete(make_id(2))
    with pytest.raises(NotFoundError):
        graph.hold(make_id(2))


@pytest.mark.parametrize("layer_mode", [0o555, 0])
def test_removal_follows_nothing_and_needs_no_rights(open_tmp: Path, layer_mode: int) -> None:
    """Layers of a plain user may hold directories of any mode, however deep."""
    root = open_tmp / "store"
    outside = open_tmp / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    outside.chmod(0o777)

    def hostile(layer_fd: int) -> None:
        os.symlink(outside, "out", dir_fd=layer_fd)
        for name in ("sealed", "sealed/inner", "readonly", "readonly/inner"):
            os.mkdir(name, dir_fd=layer_fd)
            os.symlink(outside, name + "/link", dir_fd=layer_fd)
        fd = os.dup(layer_fd)
        for _ in range(3000):
            os.mkdir("d", dir_fd=fd)
            deeper = os.open("d", os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        os.close(fd)
        for name, mode in (
            ("readonly/inner", 0o500),
            ("readonly", 0o500),
            ("sealed/inner", 0),
            ("sealed", 0),
        ):
            os.chmod(name, mode, dir_fd=layer_fd)

    def child() -> None:
        with Graph(os.fsencode(root)) as graph:
            image = graph.register(record(1), hostile, layer_mode=layer_mode)
            graph.delete(image.id)
            assert graph.all() == []
        assert tmp_names(root) == []

    assert as_nobody(child) == 0
    assert (outside / "precious").exists()


# Collecting


def layer(number: int, parent: int | None, graph: Graph) -> None:
    graph.register(record(number, parent), facts=Facts(diff_id="sha256:" + "0" * 64))


def test_gc_keeps_what_tags_images_and_mounts_need(graph: Graph, root: Path) -> None:
    layer(1, None, graph)
    layer(2, 1, graph)
    layer(3, 1, graph)
    layer(4, 3, graph)
    graph.register(record(5, 2), facts=Facts(metadata_only=True))
    graph.register(record(6, 1), facts=Facts(metadata_only=True))
    graph.register(record(7))  # as early Docker left it: an image
    graph.tags.set(parse_reference("keep"), ImageId(make_id(6)))
    held = graph.hold(make_id(3))
    would = [image.id for image in graph.gc(dry_run=True)]
    assert would == [make_id(4)]
    assert len(graph.all()) == 7
    assert [image.id for image in graph.gc()] == would
    os.close(held)
    assert [image.id for image in graph.gc()] == [make_id(3)]
    gone = [image.id for image in graph.gc(all_images=True)]
    assert gone == [make_id(5), make_id(2), make_id(7)]  # children before parents
    assert graph.ids() == [make_id(1), make_id(6)]
    assert tmp_names(root) == []


def test_gc_keeps_the_target_of_a_tag_with_a_bad_name(graph: Graph, root: Path) -> None:
    layer(1, None, graph)
    (root / "repositories").write_text(f'{{"Repositories":{{"../x":{{"a":"{make_id(1)}"}}}}}}')
    assert graph.gc(all_images=True) == []


def test_gc_of_many_layers(graph: Graph, root: Path) -> None:
    ids = chain(root, 200)
    for name in ids:
        (root / "graph" / name / "unionfs.json").write_bytes(Facts().encode())
    assert [image.id for image in graph.gc()] == ids
    assert graph.all() == []


def test_gc_of_a_cycle(graph: Graph, root: Path) -> None:
    a, b = make_id(1), make_id(2)
    for name, parent in ((a, b), (b, a)):
        entry = write_entry(root, name, parent=parent)
        (entry / "unionfs.json").write_bytes(Facts().encode())
    assert {image.id for image in graph.gc()} == {a, b}
