"""Costs that must not grow: with layers, with deleted names, with open directories."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.engine_fs import EngineFs, build
from support.union_case import UnionMaker, start

from unionfs.union import EngineOptions, SetAttr

_READING = ("stat", "open", "scandir", "getxattr", "listxattr", "readlink", "fstat")


class _Count:
    """Counts calls into the operating system that look something up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        for name in _READING:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return call(*args, **kwargs)

        return counted


@pytest.mark.parametrize("layers", [1, 500])
def test_lookups_in_a_known_directory_cost_one_stat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    paths = []
    for number in range(layers):
        path = tmp_path / f"layer{number:03}"
        tree = {f"d/own{number}": ""}
        if number == layers - 1:
            tree |= {f"d/f{index}": "" for index in range(50)}
        elif number % 2:
            tree |= {f"d/.wh.gone{number}": ""}
        build(path, tree)
        paths.append(path)
    with start(paths, None, EngineOptions()) as engine:
        fs = EngineFs(engine)
        with fs.at("d") as ino:
            engine.opendir(ino)
            engine.forget(engine.lookup(ino, b"f0").ino, 1)
            count = _Count(monkeypatch)
            for index in range(50):
                engine.lookup(ino, b"f%d" % index)
            assert count.calls == 50
            for index in range(50):
                engine.lookup(ino, b"f%d" % index)
                with pytest.raises(FileNotFoundError):
                    engine.lookup(ino, b"none%d" % index)
            assert count.calls == 100  # names that are absent cost nothing


def test_500_layers_with_few_fds(tmp_path: Path) -> None:
    paths = []
    for number in range(500):
        path = tmp_path / f"layer{number:03}"
        build(path, {f"a/b/c/f{number}": f"{number}", f"a/only{number}/x": ""})
        paths.append(path)
    (tmp_path / "rw").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    options = EngineOptions(dir_fds=20, volatile=True)
    with start(paths, tmp_path / "rw", options) as engine:
        fs = EngineFs(engine)
        assert len(fs.names("a/b/c")) == 500
        assert fs.read("a/b/c/f499") == b"499"
        fs.write("a/b/c/f250", b"up")
        fs.rmtree("a/only7")
        fs.rename("a/b/c", "c")
        assert len(fs.names("c")) == 500
        assert len(os.listdir("/proc/self/fd")) <= before + 500 + 20 + 5
    assert len(os.listdir("/proc/self/fd")) == before


def test_deep_directories(tmp_path: Path) -> None:
    """Deeper than Python recurses and than the fd cache holds."""
    layer = tmp_path / "layer"
    layer.mkdir()
    fd = os.open(layer, os.O_PATH)
    depth = 1200
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    (tmp_path / "rw").mkdir()
    with start([layer], tmp_path / "rw", EngineOptions(dir_fds=16, volatile=True)) as engine:
        fs = EngineFs(engine)
        path = "/".join(["d"] * depth)
        fs.write(f"{path}/f", b"deep")
        assert fs.read(f"{path}/f") == b"deep"
        fs.rename("d", "e")
        assert fs.read("e" + f"{path}/f"[1:]) == b"deep"
        fs.rename("e" + path[1:], "up")
        assert fs.names("up") == ["f"]
        assert len(engine._tree.inodes.by_ino) == 1
    os.system(f"rm -rf {tmp_path}/layer {tmp_path}/rw")  # noqa: S605  # shutil recurses


def test_deleting_a_big_directory_leaves_one_whiteout(make_union: UnionMaker) -> None:
    union = make_union({f"big/f{number}": "" for number in range(1500)})
    union.fs.rmtree("big")
    assert union.engine.stats.copy_ups == 1
    assert union.close() == {".wh.big": ""}


def test_entries_of_two_branches_in_turn_are_found_with_few_open_directories(
    tmp_path: Path,
) -> None:
    """The directory's fd may leave the cache for those of its subdirectories."""
    layer, rw = tmp_path / "layer", tmp_path / "rw"
    build(layer, {f"sub/f{number}": "x" * number for number in range(3)})
    build(layer, {f"sub/d{number}/f2": "another" for number in range(40)})
    rw.mkdir()
    with start([layer], rw, EngineOptions(dir_fds=16)) as engine:
        sub = engine.lookup(engine.root, b"sub").ino
        dirs = [b"d%d" % number for number in range(40)]
        for name in dirs:
            engine.setattr(engine.lookup(sub, name).ino, SetAttr(mode=0o700))
        found = engine.lookup_all(sub, [b"f1", *dirs, b"f2"])
        assert [attr and attr.size for attr in (found[0], found[-1])] == [1, 2]


def test_tables_of_forgotten_files_become_small(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for number in range(3000):
        (tmp_path / f"d/f{number}").touch()
    with start([tmp_path], None, EngineOptions()) as engine:
        directory = engine.lookup(1, b"d").ino
        found = engine.lookup_all(directory, engine.names(directory))
        table = engine._tree.inodes
        assert engine.live == 3002
        for attr in found:
            assert attr is not None
            engine.forget(attr.ino)
        assert engine.live == 2
        large = sys.getsizeof(table.by_ino)
        engine.compact()
        assert sys.getsizeof(table.by_ino) < large / 100
        assert engine.lookup(directory, b"f7").size == 0
        engine.forget(engine.lookup(1, b"d").ino, 2)
