"""Taking back what a rw branch did: undelete, revert, reset, on a live engine and after a kill.

What an operation brings back is compared with the tree before it, in full; what it must not
touch is compared as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.crash import run_child
from support.engine_fs import EngineFs, build, disk_state, snapshot
from support.steps import run_killed_at_change
from support.union_case import Union, UnionMaker, start

from unionfs.errors import ConflictError, NotFoundError, UnionfsError, UsageError
from unionfs.union import EngineOptions, restore
from unionfs.union.restore import Restored
from unionfs.union.undo import Undo

LONG = "n" * 253
BASE = {
    "f": "lower f",
    "g": "lower g",
    "p": "pair",
    "deep/q": "=p",
    "d/a": "a",
    "d/b": "b",
    "d/sub/c": "c",
    "d/sub/e/x": "x",
    "d/sub/link": "->c",
    "e/only": "x",
    LONG: "long",
}
TOP = {"d/b": "b of the top", "d/new": "new in the top", "e/.wh.gone": "", "e/more": "more"}


@pytest.fixture
def union(make_union: UnionMaker) -> Union:
    return make_union(TOP, BASE)


def undo(union: Union, what: str, path: str) -> Restored:
    done = union.engine.restore(Undo(what), os.fsencode(path))
    done.discard()
    return done


def listed(done: Restored) -> list[tuple[str, str]]:
    return [(action.verb, os.fsdecode(action.path)) for action in done.plan.actions]


def same_after_reopening(union: Union) -> None:
    """Check that memory and disk say the same, and that no work is left."""
    live = snapshot(union.fs)
    union.reopen()
    assert snapshot(union.fs) == live
    union.close()
    left = [name for name in disk_state(union.rw) if ".wh..wh.unionfs" in name]
    assert not left
    for path in union.rw.rglob(".wh.*"):
        if not path.name.startswith(".wh..wh."):
            assert not os.path.lexists(path.with_name(path.name[4:])), path


# -- undelete ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["f", "d/a", "d/b", "d", "d/sub", "p", LONG])
def test_undelete_after_delete_is_as_before(union: Union, path: str) -> None:
    before = snapshot(union.fs)
    union.fs.rmtree(path)
    assert snapshot(union.fs) != before
    assert listed(undo(union, "undelete", path)) == [("undelete", "/" + path)]
    assert snapshot(union.fs) == before
    same_after_reopening(union)


def test_undelete_below_a_deleted_directory_brings_back_only_that(union: Union) -> None:
    before = snapshot(union.fs)
    inodes = union.fs.attr("d/sub").ino, union.fs.attr("d/sub/c").ino
    union.fs.rmtree("d")
    assert listed(undo(union, "undelete", "/d/sub/c")) == [("undelete", "/d/sub/c")]
    seen = snapshot(union.fs)
    assert {path for path in seen if path.startswith("d")} == {
        "d",
        "d/sub",
        "d/sub/c",
        "deep",
        "deep/q",
    }
    assert all(seen[path] == before[path] for path in seen)
    assert (union.fs.attr("d/sub").ino, union.fs.attr("d/sub/c").ino) == inodes
    undo(union, "undelete", "/d")
    assert snapshot(union.fs) == before
    same_after_reopening(union)


def test_undelete_below_a_directory_made_anew(union: Union) -> None:
    union.fs.rmtree("d")
    union.fs.mkdir("d")
    union.fs.mkdir("d/sub")
    union.fs.create("d/sub/mine", b"mine")
    union.fs.create("d/a", b"mine")
    mine = snapshot(union.fs)
    undo(union, "undelete", "d/sub/c")
    seen = snapshot(union.fs)
    assert set(seen) - set(mine) == {"d/sub/c"}
    assert {path: seen[path] for path in mine} == mine
    assert union.fs.read("d/sub/c") == b"c"
    undo(union, "undelete", "d")
    tree = union.fs.tree()
    assert tree["d/a"] == "mine"
    assert tree["d/b"] == "b of the top"
    assert tree["d/sub/e/x"] == "x"
    assert tree["d/sub/mine"] == "mine"
    same_after_reopening(union)


def test_undelete_where_the_directory_was_renamed(union: Union) -> None:
    before = union.fs.tree()
    union.fs.rename("d", "moved")
    undo(union, "undelete", "d")
    seen = union.fs.tree()
    assert {path: seen[path] for path in before} == before
    assert seen["moved/sub/c"] == "c"
    same_after_reopening(union)


def test_undelete_while_the_deleted_file_is_open(union: Union) -> None:
    fh = union.fs.open("f")
    ino = union.fs.attr("f").ino
    union.fs.unlink("f")
    undo(union, "undelete", "f")
    assert union.fs.attr("f").ino == ino
    assert union.fs.attr("f").nlink == 1
    assert union.engine.read(fh, 0, 100) == b"lower f"
    union.fs.write("f", b"UPPER")
    assert union.engine.read(fh, 0, 100) == b"UPPERf" or union.engine.read(fh, 0, 7) == b"UPPER f"
    union.engine.release(fh)
    same_after_reopening(union)


def test_nothing_to_undelete_is_said(union: Union) -> None:
    union.fs.create("new")
    union.fs.write("f", b"x")
    union.fs.unlink("g")
    union.fs.create("g")
    for path, words in {
        "d/a": "nothing there is deleted",
        "f": "not deleted but replaced",
        "new": "nothing was deleted",
        "nowhere": "neither",
        "g": "replaced",
    }.items():
        with pytest.raises(NotFoundError, match=words):
            undo(union, "undelete", path)
    with pytest.raises(UsageError, match="marker"):
        undo(union, "undelete", "d/.wh.a")
    with pytest.raises(UsageError, match=r"without `\.\.`"):
        undo(union, "undelete", "d/../f")


def test_a_file_in_the_way_of_an_undelete(union: Union) -> None:
    union.fs.rmtree("d")
    union.fs.create("d", b"in the way")
    with pytest.raises(ConflictError, match="no directory in the rw branch"):
        undo(union, "undelete", "d/a")
    assert union.fs.read("d") == b"in the way"


# -- revert --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["f", "d/b", "d/sub/c", LONG])
def test_revert_of_a_changed_file(union: Union, path: str) -> None:
    before = snapshot(union.fs)
    union.fs.write(path, b"CHANGED")
    assert listed(undo(union, "revert", path)) == [("revert", "/" + path)]
    assert snapshot(union.fs) == before
    same_after_reopening(union)


def test_an_open_handle_of_a_reverted_file_keeps_its_file(union: Union) -> None:
    fh = union.fs.open("d/a", os.O_RDWR)
    with union.fs.at("d/a") as ino:
        union.engine.write(fh, 0, b"CHANGED")
        undo(union, "revert", "d/a")
        assert union.engine.read(fh, 0, 100) == b"CHANGED"
        union.engine.write(fh, 7, b"!")
        assert union.engine.getattr(ino).size == 8
        assert union.engine.getattr(ino).nlink == 0
        assert union.fs.read("d/a") == b"a"
        assert union.fs.attr("d/a").ino != ino
        union.engine.release(fh)
    same_after_reopening(union)


def test_revert_takes_all_names_of_a_file(union: Union) -> None:
    before = snapshot(union.fs)
    union.fs.write("p", b"CHANGED")
    assert union.fs.read("deep/q") == b"CHANGED"
    done = undo(union, "revert", "deep/q")
    assert listed(done) == [("revert", "/deep/q"), ("revert", "/p")]
    assert "/p is the same file" in done.plan.notes[0]
    assert snapshot(union.fs) == before
    assert union.fs.attr("p").ino == union.fs.attr("deep/q").ino
    same_after_reopening(union)


def test_revert_of_one_name_that_became_another_file(union: Union) -> None:
    union.fs.unlink("p")
    union.fs.create("p", b"mine")
    assert listed(undo(union, "revert", "p")) == [("revert", "/p")]
    assert union.fs.read("p") == b"pair"
    same_after_reopening(union)


def test_revert_of_a_directory(union: Union) -> None:
    before = snapshot(union.fs)
    union.fs.chmod("d/sub", 0o700)
    union.fs.setxattr("d", "user.x", b"1")
    union.fs.write("d/sub/c", b"CHANGED")
    union.fs.create("d/sub/mine", b"mine")
    union.fs.unlink("d/a")
    done = undo(union, "revert", "d")
    assert listed(done) == [("revert", "/d"), ("revert", "/d/sub"), ("revert", "/d/sub/c")]
    seen = snapshot(union.fs)
    assert seen.pop("d/sub/mine")
    assert {**seen, "d/a": before["d/a"]} == before
    same_after_reopening(union)


def test_revert_in_a_directory_made_anew(union: Union) -> None:
    union.fs.rmtree("d")
    union.fs.mkdir("d")
    union.fs.create("d/a", b"mine")
    union.fs.create("d/mine", b"mine")
    undo(union, "revert", "d/a")
    tree = union.fs.tree()
    assert {path: body for path, body in tree.items() if path.startswith("d/")} == {
        "d/": "",
        "d/a": "a",
        "d/mine": "mine",
    }
    same_after_reopening(union)


def test_a_directory_over_a_file_loses_what_it_holds(union: Union) -> None:
    union.fs.unlink("f")
    union.fs.mkdir("f")
    union.fs.create("f/mine", b"12345")
    done = undo(union, "revert", "f")
    assert listed(done) == [("revert", "/f"), ("remove", "/f/mine")]
    assert done.plan.actions[1].size == 5
    assert union.fs.read("f") == b"lower f"
    same_after_reopening(union)


def test_nothing_to_revert_is_said(union: Union) -> None:
    union.fs.unlink("f")
    union.fs.create("new")
    for path, words in {"f": "undelete", "new": "reset", "g": "nothing", "no": "neither"}.items():
        with pytest.raises(NotFoundError, match=words):
            undo(union, "revert", path)


# -- reset ---------------------------------------------------------------------------


def _much(fs: EngineFs) -> None:
    fs.rename("d/sub", "moved")
    fs.write("moved/c", b"MOVED")
    fs.unlink("f")
    fs.write("g", b"CHANGED")
    fs.mkdir("f")
    fs.create("f/mine", b"mine")
    fs.rmtree("e")
    fs.mkdir("e", 0o700)
    fs.create("e/only", b"other")
    fs.write("p", b"PAIR")
    fs.chmod("", 0o711)
    fs.chmod("d", 0o711)
    fs.setxattr("", "user.x", b"1")
    fs.mknod("fifo", stat.S_IFIFO | 0o600)


def test_reset_of_everything_is_a_fresh_mount(union: Union) -> None:
    before, root = snapshot(union.fs), union.fs.attr("")
    times = {path: attr.mtime_ns for path, attr in union.fs.walk()}
    _much(union.fs)
    done = undo(union, "reset", "/")
    assert ("remove", "/moved/c") in listed(done)
    assert ("revert", "/g") in listed(done)
    assert ("undelete", "/d/sub") in listed(done)
    assert snapshot(union.fs) == before
    assert {path: attr.mtime_ns for path, attr in union.fs.walk()} == times
    assert union.fs.attr("")[:6] == root[:6]
    assert not union.fs.xattrs("")
    same_after_reopening(union)
    assert not disk_state(union.rw)


def test_reset_of_a_subtree_touches_nothing_else(union: Union) -> None:
    before = snapshot(union.fs)
    _much(union.fs)
    changed = snapshot(union.fs)
    done = undo(union, "reset", "d")
    assert ("undelete", "/d/sub") in listed(done)
    seen = snapshot(union.fs)
    for path in set(seen) | set(changed):
        wanted = before if path == "d" or path.startswith("d/") else changed
        assert seen.get(path) == wanted.get(path), path
    same_after_reopening(union)


def test_reset_says_which_names_stay(union: Union) -> None:
    union.fs.write("p", b"CHANGED")
    done = undo(union, "reset", "p")
    assert done.plan.notes == ["/deep/q was the same file as /p and stays as it is"]
    assert union.fs.read("deep/q") == b"CHANGED"
    assert union.fs.attr("deep/q").nlink == 1
    assert union.fs.read("p") == b"pair"
    same_after_reopening(union)


def test_reset_removes_what_is_new(union: Union) -> None:
    before = snapshot(union.fs)
    union.fs.mkdir("new")
    union.fs.mkdir("new/inner")
    union.fs.create("new/inner/x", b"x")
    undo(union, "reset", "new/inner")
    assert union.fs.exists("new")
    undo(union, "reset", "new")
    assert snapshot(union.fs) == before
    assert not undo(union, "reset", "new").plan.actions
    same_after_reopening(union)


def test_open_things_survive_a_reset(union: Union) -> None:
    union.fs.create("new", b"mine")
    union.fs.mkdir("dir")
    union.fs.create("d/x", b"x")
    file, gone, kept = union.fs.open("new"), union.fs.open("d/x"), None
    with union.fs.at("dir") as ino, union.fs.at("d") as d, union.fs.at("new") as new:
        listing, kept = union.engine.opendir(ino), union.engine.opendir(d)
        undo(union, "reset", "/")
        assert union.engine.read(file, 0, 10) == b"mine"
        assert union.engine.read(gone, 0, 10) == b"x"
        assert union.engine.getattr(new).nlink == 0
        assert list(union.engine.readdir(listing, 0)) == []
        assert union.engine.getattr(ino).nlink == 0
        names = {item.name for item in union.engine.readdir(kept, 0)}
        assert names == {b"a", b"b", b"sub", b"new"}
        assert union.engine.getattr(d).ino == d == union.fs.attr("d").ino
        for fh in (file, gone):
            union.engine.release(fh)
        for fh in (listing, kept):
            union.engine.releasedir(fh)
    same_after_reopening(union)


def test_very_deep_and_very_odd(union: Union) -> None:
    before = snapshot(union.fs)
    path = ""
    for _ in range(150):
        path = f"{path}/\udcff\n" if path else "\udcff\n"
        union.fs.mkdir(path)
    union.fs.create(f"{path}/f", b"x")
    undo(union, "reset", "\udcff\n")
    assert snapshot(union.fs) == before
    same_after_reopening(union)


def test_entries_beside_their_own_whiteouts(union: Union) -> None:
    """Somebody else's branch: by OCI the entry counts and hides what is below."""
    before = snapshot(union.fs)
    union.close()
    build(union.rw / "d", {"mine": "mine", ".wh.a": "", "a": "mine"})
    build(union.rw, {".wh.d": "", ".wh.f": "", "f": "mine"})
    union.reopen_closed()
    assert set(union.fs.tree()) - {path + "/" for path in before} >= {"d/mine", "d/a", "f"}
    assert not union.fs.exists("d/b")
    assert listed(undo(union, "revert", "f")) == [("revert", "/f")]
    assert union.fs.read("f") == b"lower f"
    undo(union, "undelete", "d")
    assert union.fs.read("d/sub/c") == b"c"
    assert union.fs.read("d/a") == b"mine"
    undo(union, "reset", "d")
    assert snapshot(union.fs) == before
    same_after_reopening(union)


def test_an_opaque_root(union: Union) -> None:
    before = snapshot(union.fs)
    union.close()
    build(union.rw, {".wh..wh..opq": "", "mine": "mine"})
    union.reopen_closed()
    assert set(union.fs.tree()) == {"mine"}
    undo(union, "undelete", "d/sub/c")
    assert set(union.fs.tree()) == {"mine", "d/", "d/sub/", "d/sub/c"}
    undo(union, "undelete", "/")
    assert set(snapshot(union.fs)) == {"mine", *before}
    undo(union, "reset", "/")
    assert snapshot(union.fs) == before
    same_after_reopening(union)


def test_many_layers(make_union: UnionMaker) -> None:
    union = make_union(*({f"d/f{index}": str(index), "d/same": str(index)} for index in range(80)))
    before = snapshot(union.fs)
    union.fs.rmtree("d")
    union.fs.mkdir("d")
    undo(union, "undelete", "d/f79")
    assert union.fs.tree() == {"d/": "", "d/f79": "79"}
    undo(union, "reset", "d")
    assert snapshot(union.fs) == before


def test_more_directories_than_one_run_takes(
    make_union: UnionMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "_BATCH", 4)
    union = make_union({f"d/s{index}/x/y": str(index) for index in range(20)})
    before = snapshot(union.fs)
    union.fs.rmtree("d")
    union.fs.mkdir("d")
    for index in range(20):
        union.fs.mkdir(f"d/s{index}")
        union.fs.mkdir(f"d/s{index}/x")
    done = undo(union, "undelete", "/")
    assert len(done.plan.actions) == 20
    assert snapshot(union.fs) == before
    same_after_reopening(union)


def test_a_read_only_engine_refuses(union: Union) -> None:
    union.close()
    union.options = attrs.evolve(union.options, read_only=True)
    union.reopen_closed()
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        undo(union, "reset", "/")


def test_without_the_layers(union: Union, tmp_path: Path) -> None:
    """A bare branch: what its own markers say can be taken back."""
    union.fs.unlink("f")
    union.fs.rmtree("d")
    union.fs.rmtree("e")
    union.fs.mkdir("e")
    before = union.fs.tree()
    union.close()
    empty = tmp_path / "empty"
    empty.mkdir()
    with start([empty], union.rw, union.options) as engine:
        with pytest.raises(UsageError, match="as a whole"):
            engine.restore(Undo.UNDELETE, b"d/a", blind=True)
        with pytest.raises(UsageError, match="layers"):
            engine.restore(Undo.REVERT, b"d/a", blind=True)
        with pytest.raises(NotFoundError, match="not even"):
            engine.restore(Undo.UNDELETE, b"g", blind=True)
        assert listed(engine.restore(Undo.UNDELETE, b"f", blind=True)) == [("undelete", "/f")]
        engine.restore(Undo.UNDELETE, b"e", blind=True)
    union.reopen_closed()
    assert union.fs.tree() == {
        **before, "f": "lower f", "e/only": "x", "e/more": "more"
    }  # fmt: skip


# -- crashes -------------------------------------------------------------------------


def _anew(fs: EngineFs) -> None:
    fs.rmtree("d")
    fs.mkdir("d")
    fs.mkdir("d/sub")
    fs.create("d/a", b"mine")


CRASHES: dict[str, tuple[Callable[[EngineFs], None], str, str]] = {
    "undelete a file": (lambda fs: fs.unlink("f"), "undelete", "f"),
    "undelete below a deleted directory": (lambda fs: fs.rmtree("d"), "undelete", "d/sub/c"),
    "undelete below one made anew": (_anew, "undelete", "d/sub/c"),
    "undelete in one made anew": (_anew, "undelete", "d"),
    "revert a pair": (lambda fs: fs.write("p", b"CHANGED"), "revert", "p"),
    "revert in a directory made anew": (_anew, "revert", "d/a"),
    "reset a subtree": (_much, "reset", "d"),
    "reset everything": (_much, "reset", "/"),
}


@pytest.mark.parametrize("case", CRASHES)
def test_killed_anywhere(make_union: UnionMaker, case: str) -> None:
    prepare, what, path = CRASHES[case]
    union = make_union(TOP, BASE)
    prepare(union.fs)
    old = snapshot(union.fs)
    union.close()
    saved = union.base / "saved"
    _copy(union.rw, saved)
    with start(union.layers, union.rw, union.options) as engine:
        engine.restore(Undo(what), os.fsencode(path)).discard()
        new = snapshot(EngineFs(engine))
    step = 0
    while True:
        step += 1
        _copy(saved, union.rw)

        def action() -> None:
            engine = start(union.layers, union.rw, union.options)
            engine.restore(Undo(what), os.fsencode(path)).discard()

        if run_killed_at_change(step, action):
            break
        with start(union.layers, union.rw, union.options) as engine:
            seen = snapshot(EngineFs(engine))
        assert set(seen) in (set(old), set(new)), step
        for name, facts in seen.items():
            assert _but_dirs(facts) in (_but_dirs(old.get(name)), _but_dirs(new.get(name))), name
    assert step > 1
    with start(union.layers, union.rw, union.options) as engine:
        assert snapshot(EngineFs(engine)) == new


def _but_dirs(facts: tuple[object, ...] | None) -> object:
    """Return the facts of an entry; those of a directory change one by one."""
    return "directory" if facts and stat.S_ISDIR(int(str(facts[0]))) else facts


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


# -- anything ------------------------------------------------------------------------

_names = st.sampled_from(["a", "b", "d"])
_paths = st.lists(_names, min_size=1, max_size=3).map("/".join)
_operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "create", "mkdir", "rmtree", "rename", "link", "chmod"]),
        _paths,
        _paths,
    ),
    max_size=12,
)
_LAYERS: tuple[dict[str, str], ...] = (
    {"a/b/d": "1", "a/.wh.a": "", "b/.wh..wh..opq": "", "b/d": "1"},
    {"a/a": "0", "a/b/a": "0", "a/d/d": "0", "b/a": "0", "d": "file", "a/d/a": "=d"},
)


def _perform(fs: EngineFs, operation: tuple[str, str, str]) -> None:
    verb, path, other = operation
    if verb == "write":
        fs.write(path, b"CHANGED")
    elif verb == "create":
        fs.create(path, b"mine")
    elif verb == "mkdir":
        fs.mkdir(path)
    elif verb == "rmtree":
        fs.rmtree(path)
    elif verb == "chmod":
        fs.chmod(path, 0o700)
    elif verb == "rename":
        fs.rename(path, other)
    else:
        fs.link(path, other)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=_operations, target=_paths, more=_operations)
def test_any_operations_then_undoing(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[str, str, str]],
    target: str,
    more: list[tuple[str, str, str]],
) -> None:
    base = tmp_path_factory.mktemp("any")
    layers = []
    for index, tree in enumerate(_LAYERS):
        layers.append(base / f"layer{index}")
        build(layers[-1], tree)
    (base / "rw").mkdir()
    options = EngineOptions(volatile=True)
    union = Union(base, layers, base / "rw", options, start(layers, base / "rw", options), None, {})  # type: ignore[arg-type]  # set below
    union.fs = EngineFs(union.engine)
    fresh = snapshot(union.fs)

    def perform(items: list[tuple[str, str, str]]) -> None:
        for item in items:
            try:
                _perform(union.fs, item)
            except OSError:
                continue

    perform(operations)
    changed = snapshot(union.fs)
    for what in ("undelete", "revert"):
        try:
            undo(union, what, target)
        except UnionfsError:
            assert snapshot(union.fs) == changed
            continue
        seen = snapshot(union.fs)
        union.reopen()
        assert snapshot(union.fs) == seen
        inside = {path for path in fresh if path == target or path.startswith(target + "/")}
        if what == "undelete":
            assert set(changed) <= set(seen)
            ways = {target[:end] for end, sign in enumerate(target) if sign == "/"}
            assert set(seen) - set(changed) <= inside | ways
        changed = seen
    with contextlib.suppress(ConflictError):
        undo(union, "reset", target)
    seen = snapshot(union.fs)
    if target in fresh or target not in seen:
        for path in set(seen) | set(fresh):
            if path == target or path.startswith(target + "/"):
                left, right = seen.get(path), fresh.get(path)
                assert left, path
                assert right, path
                assert left[:1] + left[2:] == right[:1] + right[2:], path
    perform(more)
    undo(union, "reset", "/")
    assert snapshot(union.fs) == fresh
    union.reopen()
    assert snapshot(union.fs) == fresh
    union.engine.close()
    assert not disk_state(union.rw)
    shutil.rmtree(base)


def test_the_child_of_a_crash_reports_errors() -> None:
    assert run_child(lambda: 1 / 0) == 1
