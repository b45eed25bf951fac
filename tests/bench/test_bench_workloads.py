"""Each workload does what its name says, and notices when the tree is not what it should be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from unionfs.bench.shape import BLOCK, NEEDLE, TINY, Shape, needed
from unionfs.bench.watch import Sample, sample
from unionfs.bench.workloads import (
    IMAGE_WORKLOADS,
    LAYER_WORKLOADS,
    TREE_WORKLOADS,
    WORKLOADS,
    WrongError,
    choose,
    titles,
)
from unionfs.errors import UsageError

EVERY = (*WORKLOADS, *LAYER_WORKLOADS, *TREE_WORKLOADS, *IMAGE_WORKLOADS)
BY_KEY = {workload.key: workload for workload in EVERY}


def do(key: str, target: Path) -> int:
    return BY_KEY[key].run(str(target), TINY)


def names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def test_layers_share_every_directory_and_no_file(layers: list[Path]) -> None:
    top, base = layers
    for tree in ("walk", "tar", "clients", "grep", "delete", "append", "rename", "chmod"):
        above = {p.relative_to(top) for p in (top / tree).rglob("*") if p.is_file()}
        below = {p.relative_to(base) for p in (base / tree).rglob("*") if p.is_file()}
        assert above, tree
        assert below, tree
        assert not above & below
        assert {p.parent for p in above} == {p.parent for p in below}
    assert (base / "sparse").stat().st_size == (base / "big").stat().st_size == TINY.big
    assert (base / "sparse").stat().st_blocks == 0
    assert (base / "big").stat().st_blocks * 512 >= TINY.big


@pytest.mark.parametrize(
    ("key", "amount"),
    [
        ("walk", TINY.many),
        ("clients", TINY.many),
        ("python", TINY.modules),
        ("git", TINY.tracked),
        ("grep", 1),
        ("big", TINY.big),
        ("random", TINY.randoms),
        ("mmap", TINY.big // 4096),
    ],
)
def test_readers_tell_how_much_they_read_and_change_nothing(
    merged: Path, key: str, amount: int
) -> None:
    before = {p: p.lstat().st_mtime_ns for p in merged.rglob("*")}
    assert do(key, merged) == amount
    assert do(key, merged) == amount
    assert {p: p.lstat().st_mtime_ns for p in merged.rglob("*")} == before


def test_tar_gives_the_archive_that_tar_gives(merged: Path) -> None:
    argv = ["tar", "-C", str(merged), "-cf", "-", "tar"]
    assert do("tar", merged) == len(subprocess.run(argv, capture_output=True, check=True).stdout)


def drop(name: str) -> Callable[[Path], None]:
    return lambda tree: (tree / name).unlink()


def shorten(name: str) -> Callable[[Path], None]:
    return lambda tree: os.truncate(tree / name, 100)


@pytest.mark.parametrize(
    ("key", "damage"),
    [
        ("walk", drop("walk/d1/f3")),
        ("tar", drop("tar/d0/f0")),
        ("clients", shorten("clients/d0/f0")),
        ("clients", drop("clients/d3/f3")),
        ("python", drop("modules/many/m3.py")),
        ("git", drop("repo/d0/f5")),
        ("grep", drop("grep/d0/f0")),
        ("big", shorten("big")),
        ("random", shorten("full")),
        ("mmap", shorten("full")),
        ("delete", drop("delete/d0/f1")),
        ("rename", drop("rename/d0/f1")),
        ("chmod", drop("chmod/d0/f1")),
        ("append", shorten("append/d0/f1")),
        ("sparse", shorten("sparse")),
        ("full", shorten("full")),
    ],
)
def test_a_wrong_tree_is_an_error_and_no_record(
    merged: Path, key: str, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    damage(merged)
    if key == "python":
        shutil.rmtree(merged / "modules" / "many" / "__pycache__")
    with pytest.raises(WrongError):
        do(key, merged)
    capfd.readouterr()  # python and the clients say what is wrong


def test_grep_finds_the_needle_where_it_is(merged: Path) -> None:
    found = [p for p in (merged / "grep").rglob("*") if p.is_file() and NEEDLE in p.read_text()]
    assert found == [merged / "grep" / "d0" / "f0"]


def test_git_sees_a_change(merged: Path) -> None:
    with (merged / "repo" / "d0" / "f1").open("ab") as file:
        file.write(b"changed")
    with pytest.raises(WrongError):
        do("git", merged)


def test_writers_do_it(merged: Path, layers: list[Path]) -> None:
    old = names(merged / "rename" / "d0")
    amounts = {w.key: do(w.key, merged) for w in WORKLOADS if w.writes}
    assert amounts == {
        "create": TINY.created,
        "untar": TINY.created,
        "delete": TINY.deleted,
        "rename": TINY.touched,
        "chmod": TINY.touched,
        "append": TINY.touched,
        "sparse": 1,
        "full": 1,
        "delete-big": 1,
    }
    assert len(names(merged / "new")) == TINY.created
    with tarfile.open(layers[0].parent / "archive.tar") as tar:
        for member in tar.getmembers():
            assert (merged / "extracted" / member.name).stat().st_size == member.size
    assert names(merged / "delete" / "d0") == set()
    assert names(merged / "rename" / "d0") == {f"{name}.new" for name in old}
    assert {p.stat().st_mode & 0o777 for p in (merged / "chmod" / "d0").iterdir()} == {0o640}
    assert {p.stat().st_size for p in (merged / "append" / "d0").iterdir()} == {TINY.small + 1}
    assert (merged / "sparse").stat().st_size == (merged / "full").stat().st_size == TINY.big + 1
    assert not (merged / "doomed").exists()


def test_growth_workloads(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for number in range(TINY.listed):
        (tmp_path / "d" / f"f{number}").write_bytes(b"x")
    for key in ("list", "absent", "open"):
        assert do(key, tmp_path) == TINY.listed
    assert do("tree", tmp_path) == TINY.listed
    (tmp_path / "d" / "absent1").touch()
    for key in ("list", "absent"):
        with pytest.raises(WrongError):
            do(key, tmp_path)
    (tmp_path / "d" / "f1").write_bytes(b"")
    with pytest.raises(WrongError):
        do("open", tmp_path)


def test_every_pass_has_a_name_of_its_own() -> None:
    keys = [key for workload in BY_KEY.values() for key in workload.keys]
    assert len(set(keys)) == len(keys) == len(titles())
    assert len(set(titles().values())) == len(keys) - 1  # the walk of trees is a walk as well
    assert titles()["walk.cold"] == "tree walk with stat, cold"


def test_work_is_chosen_by_name() -> None:
    assert choose([]) == (list(WORKLOADS), frozenset(("layers", "files")))
    chosen, growth = choose(["tar", "files", "walk"])
    assert [workload.key for workload in chosen] == ["walk", "tar"]
    assert growth == {"files"}
    assert choose(["layers"]) == ([], frozenset(("layers",)))
    assert choose(["tar"])[1] == frozenset()
    with pytest.raises(UsageError, match=r"no workload nonsense; there are walk, tar"):
        choose(["nonsense"])


def test_the_space_needed_covers_what_is_made(layers: list[Path]) -> None:
    used = sum(p.lstat().st_blocks * 512 for layer in layers for p in layer.rglob("*"))
    assert needed(TINY, plain=False) > used + 3 * TINY.big
    big = Shape("x", 1, 1, 1, 1, 10_000 * BLOCK, 1, 1, 1, 1)
    assert needed(big, plain=True) - needed(big, plain=False) >= 3 * big.big


def test_the_worker_answers_and_names_what_is_wrong(merged: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "unionfs.bench.worker", "tiny", str(merged)],
        input='["walk"]\n["delete"]\n["delete"]\n',
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    ready, walk, first, second = child.stdout.splitlines()
    assert ready.startswith('{"ready"')
    assert f'"count": {TINY.many}' in walk
    assert f'"count": {TINY.deleted}' in first
    assert "WrongError: 0 files deleted instead of" in second


def test_what_the_children_of_a_server_use_is_counted() -> None:
    burn = "import time\nwhile time.process_time() < .2: pass\nprint('done', flush=True)\ninput()"
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {burn!r}])
child.wait()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"done\n"
        used = sample(server.pid)
    assert used.cpu_since(Sample()) > 0.2
    assert used.peak > 2 * 2**20
