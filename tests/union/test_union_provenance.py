"""Virtual attributes, whiteouts that show, and a view of a branch that somebody else changes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support.engine_fs import EngineFs, build, disk_state, snapshot
from support.union_case import Union, UnionMaker, raises_errno, start

from unionfs.branch import whiteout
from unionfs.union import EngineOptions

#: Top first.
_LAYERS = (
    {"f": "top", "d/new": "n", "d/.wh.gone": "", "o/.wh..wh..opq": "", "o/kept": "k"},
    {"d/gone": "middle", "d/same": "m", ".wh.never": ""},
    {"f": "base", "d/gone": "base", "d/same": "b", "o/x": "x", "o/y": "y", "s": "->f"},
)


def get(fs: EngineFs, path: str, name: str, prefix: str = "user.unionfs.") -> list[str]:
    """Return a virtual attribute split at its NULs, union directory cut off."""
    with fs.at(path) as ino:
        value = fs.engine.getxattr(ino, prefix + name)
    return [os.fsdecode(item) for item in value.split(b"\0")] if value else []


@pytest.fixture
def three(make_union: UnionMaker) -> Union:
    return make_union(*_LAYERS, labels={})


def test_values(three: Union) -> None:
    fs, base = three.fs, three.base

    def at(*names: str) -> list[str]:
        return [f"{base}/{name}" for name in names]

    assert get(fs, "f", "branch") == at("layer0")
    assert get(fs, "f", "path") == at("layer0/f")
    assert get(fs, "f", "layer") == ["3"]
    assert get(fs, "f", "allpaths") == at("layer0/f", "layer2/f")
    assert get(fs, "f", "hides") == at("layer2/f")
    assert get(fs, "f", "whiteouts") == []
    assert get(fs, "d/same", "layer") == ["2"]
    assert get(fs, "d", "allpaths") == at("layer0/d", "layer1/d", "layer2/d")
    assert get(fs, "d", "hides") == at("layer1/d/gone", "layer2/d/gone")
    assert get(fs, "d", "whiteouts") == at("layer0/d/.wh.gone")
    assert get(fs, "o", "allpaths") == at("layer0/o", "layer2/o")
    assert get(fs, "o", "hides") == at("layer2/o", "layer2/o/x", "layer2/o/y")
    assert get(fs, "o/kept", "whiteouts") == at("layer0/o/.wh..wh..opq")
    assert get(fs, "", "branch") == at("rw")
    assert get(fs, "", "layer") == ["rw"]
    assert get(fs, "", "allpaths") == at("rw/", "layer0/", "layer1/", "layer2/")
    assert get(fs, "", "whiteouts") == at("layer1/.wh.never")


def test_values_follow_changes(three: Union) -> None:
    fs, base = three.fs, three.base
    fs.write("d/same", b"changed")
    assert get(fs, "d/same", "layer") == ["rw"]
    assert get(fs, "d/same", "path") == [f"{base}/rw/d/same"]
    assert get(fs, "d/same", "hides") == [f"{base}/layer1/d/same", f"{base}/layer2/d/same"]
    fs.unlink("d/new")
    assert f"{base}/rw/d/.wh.new" in get(fs, "d", "whiteouts")
    assert f"{base}/layer0/d/new" in get(fs, "d", "hides")
    fs.rename("d", "e")
    assert get(fs, "e/same", "path") == [f"{base}/rw/e/same"]
    assert get(fs, "e/same", "hides") == []


def test_labels(make_union: UnionMaker, tmp_path: Path) -> None:
    label = {os.fsencode(tmp_path / "union0/layer1"): b"0123 demo/app:v1"}
    union = make_union(*_LAYERS, labels=label)
    assert get(union.fs, "d/same", "layer") == ["2 0123 demo/app:v1"]
    assert get(union.fs, "f", "layer") == ["3"]


def test_links_and_others_answer_by_their_own_prefix(three: Union) -> None:
    fs = three.fs
    assert get(fs, "s", "path", "system.unionfs.") == [f"{three.base}/layer2/s"]
    for path, name in (("s", "user.unionfs.path"), ("f", "system.unionfs.path")):
        with fs.at(path) as ino, raises_errno(errno.ENODATA):
            fs.engine.getxattr(ino, name)


def test_they_are_listed_only_when_asked_for(make_union: UnionMaker) -> None:
    assert make_union(*_LAYERS).fs.xattrs("f") == {}
    shown = make_union(*_LAYERS, show_xattrs=True).fs.xattrs
    names = ["allpaths", "branch", "hides", "layer", "path", "whiteouts"]
    assert sorted(shown("f")) == [f"user.unionfs.{name}" for name in names]
    assert sorted(shown("s")) == [f"system.unionfs.{name}" for name in names]


@pytest.mark.parametrize("name", ["user.unionfs.path", "system.unionfs.path", "user.unionfs.x"])
def test_they_cannot_be_set_and_nothing_is_copied_up(three: Union, name: str) -> None:
    with three.fs.at("f") as ino:
        with raises_errno(errno.EPERM):
            three.engine.setxattr(ino, name, b"forged")
        with raises_errno(errno.EPERM):
            three.engine.removexattr(ino, name)
    assert "f" not in three.close()


@pytest.mark.parametrize("name", ["user.unionfs.ino", "user.unionfs.path", "user.unionfs.odd"])
def test_attributes_of_that_name_in_a_layer_are_never_seen(
    make_union: UnionMaker, tmp_path: Path, name: str
) -> None:
    union = make_union(*_LAYERS, show_xattrs=True)
    os.setxattr(tmp_path / "union0/layer0/f", name, b"forged")
    with union.fs.at("f") as ino:
        if name == "user.unionfs.path":
            assert union.engine.getxattr(ino, name) == os.fsencode(union.base / "layer0/f")
        else:
            with raises_errno(errno.ENODATA):
                union.engine.getxattr(ino, name)
    union.fs.write("f", b"!")
    assert b"forged" not in [
        os.getxattr(union.rw / "f", item) for item in os.listxattr(union.rw / "f")
    ]
    os.removexattr(tmp_path / "union0/layer0/f", name)


def test_odd_names_and_a_list_that_is_too_long(make_union: UnionMaker) -> None:
    odd = "d/.wh.x\n=\udcff"
    base = {f"d/{'n' * 200}{number}": "" for number in range(400)}
    union = make_union({odd: "", "d/.wh..wh..opq": ""}, {"d/x\n=\udcff": "1"} | base)
    assert f"{union.base}/layer0/{odd}" in get(union.fs, "d", "whiteouts")
    hidden = get(union.fs, "d", "hides")
    kept = [item for item in hidden if item.startswith("/")]
    assert len("\0".join(hidden)) <= 65536
    assert hidden[-1] == f"... {402 - len(kept)} more"
    assert len(kept) > 200


def test_a_file_without_a_name_has_none(three: Union) -> None:
    with three.fs.at("f") as ino:
        handle = three.engine.open(ino, os.O_RDONLY)
        three.fs.unlink("f")
        with raises_errno(errno.ENODATA):
            three.engine.getxattr(ino, "user.unionfs.path")
        three.engine.release(handle)


# -- whiteouts that show -----------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Callable[..., EngineFs]]:
    """Open a read-only union of trees, top first, that shows its markers."""
    opened = []

    def make(*trees: dict[str, str], rw: Path | None = None) -> EngineFs:
        layers = [tmp_path / f"bare{number}" for number in range(len(trees))]
        for layer, tree in zip(layers, trees, strict=True):
            build(layer, tree)
        opened.append(start(layers, rw, EngineOptions(show_markers=True, follow=True)))
        return EngineFs(opened[-1])

    yield make
    for engine in opened:
        engine.close()


def test_markers_show_and_still_hide(bare: Callable[..., EngineFs]) -> None:
    fs = bare(*_LAYERS)
    assert fs.names() == [".wh.never", "d", "f", "o", "s"]
    assert fs.names("d") == [".wh.gone", "new", "same"]
    assert fs.names("o") == [".wh..wh..opq", "kept"]
    assert fs.read("d/.wh.gone") == b""
    assert not fs.exists("d/gone")
    assert get(fs, "d/.wh.gone", "layer") == ["3"]
    assert [Path(item).name for item in get(fs, "d/.wh.gone", "hides")] == ["gone", "gone"]
    assert get(fs, ".wh.never", "hides") == []


def test_the_topmost_of_equal_markers_shows_and_none_below_an_opaque_one(
    bare: Callable[..., EngineFs],
) -> None:
    fs = bare(
        {"d/.wh.x": "upper", "o/.wh..wh..opq": ""},
        {"d/.wh.x": "lower", "d/.wh.y": "", "o/.wh.z": "", "e/.wh..wh..opq": ""},
        {"d/x": "", "d/y": "", "o/z": "", "e/z": ""},
    )
    assert fs.names("d") == [".wh.x", ".wh.y"]
    assert fs.read("d/.wh.x") == b"upper"
    assert fs.names("o") == [".wh..wh..opq"]
    assert fs.names("e") == [".wh..wh..opq"]


def test_housekeeping_does_not_show_and_long_whiteouts_do(bare: Callable[..., EngineFs]) -> None:
    long = "l" * 253
    marker, content = whiteout.marker_for(long.encode())
    fs = bare(
        {
            os.fsdecode(marker): content.decode(),
            ".wh..wh.aufs": "",
            ".wh.p": "=.wh..wh.aufs",
            ".wh..wh.plnk/1.2": "",
            ".wh.": "",
        },
        {long: "hidden", "p": ""},
    )
    assert fs.names() == [os.fsdecode(marker), ".wh.p"]
    assert fs.read(os.fsdecode(marker)) == long.encode()
    assert fs.attr(".wh.p").nlink >= 1


def test_a_whiteout_that_is_a_directory_shows_as_one(bare: Callable[..., EngineFs]) -> None:
    fs = bare({".wh.x/": "", ".wh.x/inner": "i"}, {"x": "hidden"})
    assert sorted(fs.tree()) == [".wh.x/", ".wh.x/inner"]


def test_markers_are_read_only(three: Union) -> None:
    three.engine.close()
    with start(three.layers, three.rw, EngineOptions(show_markers=True)) as engine:
        assert engine.read_only
        with raises_errno(errno.EROFS):
            EngineFs(engine).create("x")


# -- a view of a branch that somebody else changes --------------------------------------


def test_a_view_follows_the_branch_step_by_step(three: Union) -> None:
    options = EngineOptions(follow=True)
    before = disk_state(three.rw)
    with start(three.layers, three.rw, options) as view_engine:
        view, live = EngineFs(view_engine), three.fs
        assert disk_state(three.rw) == before
        held = view_engine.lookup(view_engine.root, b"f").ino
        steps: list[Callable[[], object]] = [
            lambda: live.write("f", b"changed"),
            lambda: live.unlink("f"),
            lambda: live.create("f", b"new"),
            lambda: live.rmtree("o"),
            lambda: live.mkdir("o"),
            lambda: live.create("o/x", b"x"),
            lambda: live.rename("d", "e"),
            lambda: live.symlink("d", "e"),
            lambda: live.unlink("d"),
            lambda: live.mkdir("d"),
            lambda: live.chmod("e", 0o700),
            lambda: live.rmtree("e"),
            lambda: live.link("s", "t"),
        ]
        for number, step in enumerate(steps):
            step()
            assert view.tree() == live.tree(), number
            assert view.attr("").mode == live.attr("").mode
        view_engine.forget(held, 1)


def test_files_in_use_stay_what_they_are_when_a_view_loses_their_directory(three: Union) -> None:
    """It is copied up, or removed, by the live mount."""
    with start(three.layers, three.rw, EngineOptions(follow=True)) as engine:
        live = three.fs
        directory = engine.lookup(engine.root, b"d").ino
        files = (name for name in engine.names(directory) if name != b"new")
        name = next(name for name in files if stat.S_ISREG(live.attr(f"d/{name.decode()}").mode))
        before = engine.lookup(directory, name)
        handle = engine.open(before.ino, os.O_RDONLY)
        content = engine.read(handle, 0, 100)
        live.create("d/another", b"")
        again = engine.lookup(engine.lookup(engine.root, b"d").ino, name)
        assert again == before
        live.rmtree("d")
        with raises_errno(errno.ENOENT):
            engine.lookup(engine.root, b"d")
        assert engine.getattr(before.ino).size == before.size
        assert engine.read(handle, 0, 100) == content
        engine.release(handle)


@pytest.mark.parametrize("seed", range(3))
def test_a_view_follows_any_changes(three: Union, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # to be repeated
    names = ["f", "d", "o", "s", "x", "gone"]
    options = EngineOptions(follow=True)
    with start(three.layers, three.rw, options) as view_engine:
        view, live = EngineFs(view_engine), three.fs
        kept: list[int] = []
        for _ in range(40):
            path = "/".join(chance.choices(names, k=chance.randint(1, 2)))
            other = "/".join(chance.choices(names, k=chance.randint(1, 2)))
            actions: list[Callable[[], object]] = [
                partial(live.create, path, path.encode()),
                partial(live.write, path, b"w"),
                partial(live.rmtree, path),
                partial(live.mkdir, path),
                partial(live.rename, path, other),
                partial(live.link, path, other),
                partial(live.chmod, path, 0o700),
                partial(live.symlink, path, "f"),
            ]
            try:
                chance.choice(actions)()
            except OSError:
                continue
            if chance.random() < 0.3:  # as the kernel does, which forgets late
                with contextlib.suppress(OSError):
                    kept.append(
                        view_engine.lookup(view_engine.root, path.split("/")[0].encode()).ino
                    )
            assert _plain(view) == _plain(live)
        for ino in kept:
            view_engine.forget(ino, 1)


def _plain(fs: EngineFs) -> dict[str, tuple[object, ...]]:
    """Return what shows, link counts left out: a view does not know the live mount's groups."""
    return {path: (*found[:1], *found[2:]) for path, found in snapshot(fs).items()}
