"""Opening: what is refused, what a crash left, who may use a branch."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.crash import run_child
from support.engine_fs import EngineFs, build, fingerprint, snapshot
from support.union_case import LOWER, Union, UnionMaker, raises_errno, start

from unionfs.errors import BusyError, NotFoundError, StoreError, UnsupportedError, UsageError
from unionfs.union import Caller, Engine, EngineOptions

NOBODY = 65534


def test_a_branch_belongs_to_one_engine(union: Union) -> None:
    with pytest.raises(BusyError, match="in use by another mount"):
        start(union.layers, union.rw, union.options)
    union.engine.close()
    start(union.layers, union.rw, union.options).close()


@pytest.mark.parametrize(
    ("layers", "rw", "message"),
    [
        (["a", "a"], None, "given twice"),
        (["a"], "a", "given twice"),
        (["a"], "a/inner", "rw branch lies inside the layer"),
        (["a/inner"], "a", "layer lies inside the rw branch"),
    ],
)
def test_overlapping_branches(
    tmp_path: Path, layers: list[str], rw: str | None, message: str
) -> None:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    paths = [bytes(tmp_path / layer) for layer in layers]
    with pytest.raises(UsageError, match=message):
        Engine.start(paths, None if rw is None else bytes(tmp_path / rw))
    assert os.listdir(tmp_path / "a") == ["inner"]


def test_missing_and_wrong_branches(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="no such directory"):
        Engine.start([bytes(tmp_path / "none")], None)
    with pytest.raises(UsageError, match="not a directory"):
        Engine.start([bytes(tmp_path / "file")], None)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotFoundError):
        Engine.start([bytes(tmp_path)], bytes(tmp_path / "none"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_leftovers_are_swept(union: Union) -> None:
    union.engine.close()
    work = union.rw / ".wh..wh.unionfs"
    build(work, {"t1": "half a copy", "t2/x/y": "half a tree"})
    union.reopen_closed()
    assert [name for name in os.listdir(work) if name != "whiteout"] == []
    assert union.close() == {}


@pytest.mark.parametrize(
    "intent",
    [
        "remove//..//victim",
        "remove//d/../..//victim",
        "remove//.//../victim",
        "move//.//x//..//victim",
    ],
)
def test_a_journal_reaches_nothing_outside_of_its_branch(union: Union, intent: str) -> None:
    victim = union.rw.parent / "victim"
    victim.write_text("precious")
    (union.rw / "d").mkdir()
    union.engine.close()
    work = union.rw / ".wh..wh.unionfs"
    work.mkdir()
    os.symlink(intent, work / "journal")
    with pytest.raises(StoreError, match="unreadable journal step"):
        union.reopen_closed()
    assert victim.read_text() == "precious"
    (work / "journal").unlink()
    union.reopen_closed()


def test_an_unreadable_journal_is_an_error_that_changes_nothing(union: Union) -> None:
    union.fs.write("f", b"UPPER")
    union.engine.close()
    work = union.rw / ".wh..wh.unionfs"
    work.mkdir()
    os.symlink("remove//.//f///dance//.//x", work / "journal")
    with pytest.raises(StoreError, match="unreadable journal step"):
        union.reopen_closed()
    assert os.readlink(work / "journal") == "remove//.//f///dance//.//x"
    assert (union.rw / "f").read_text() == "UPPER f"
    (work / "journal").unlink()
    union.reopen_closed()


def test_long_intents_are_files(make_union: UnionMaker) -> None:
    deep = "/".join("directory" * 20 for _ in range(10))
    union = make_union({f"{deep}/a": "a", f"{deep}/b": "b"})
    union.fs.write(f"{deep}/a", b"A")
    union.fs.unlink(f"{deep}/a")
    union.fs.create(f"{deep}/a", b"again")
    union.fs.rename(f"{deep}/b", f"{deep}/c")
    assert union.fs.names(deep) == ["a", "c"]
    assert union.engine.stats.journaled == 3


def _changes(fs: EngineFs) -> list[Callable[[], object]]:
    return [
        lambda: fs.unlink("f"),
        lambda: fs.create("n"),
        lambda: fs.write("f", b"x"),
        lambda: fs.chmod("f", 0o600),
        lambda: fs.setxattr("f", "user.x", b""),
        lambda: fs.rename("f", "g"),
    ]


def test_read_only_engines_change_nothing(union: Union) -> None:
    union.fs.write("f", b"UPPER")
    union.close()
    before = fingerprint(union.rw)
    for rw, options in ((None, EngineOptions()), (union.rw, EngineOptions(read_only=True))):
        with start(union.layers, rw, options) as engine:
            fs = EngineFs(engine)
            assert engine.read_only
            for change in _changes(fs):
                with raises_errno(errno.EROFS):
                    change()
            assert fs.read("f").startswith(b"UPPER" if rw is not None else b"lower")
    assert fingerprint(union.rw) == before


def test_a_plain_user_has_a_whole_image(open_tmp: Path) -> None:
    """All types and owners, in a branch of a user without any rights, over root's layer."""
    if os.geteuid() != 0:
        pytest.skip("needs uid 0 to make the layer and to drop rights")
    layer, rw = open_tmp / "layer", open_tmp / "rw"
    build(layer, LOWER)
    os.chown(layer / "f", 5, 6)
    (layer / "f").chmod(0o4755)
    os.mknod(layer / "dev", stat.S_IFCHR | 0o620, os.makedev(4, 5))
    rw.mkdir()
    os.chown(rw, NOBODY, NOBODY)
    before = fingerprint(layer)

    def change() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with start([layer], rw, EngineOptions()) as engine:
            fs = EngineFs(engine)
            assert not engine.native
            fs.write("f", b"UPPER")
            assert fs.attr("f").uid == 5
            assert stat.S_IMODE(fs.attr("f").mode) == 0o4755
            fs.rename("dev", "dev2")
            fs.mknod("block", stat.S_IFBLK | 0o660, os.makedev(8, 1))
            fs.mknod("fifo", stat.S_IFIFO | 0o600)
            fs.setattr("fifo", uid=3)
            fs.symlink("link", "target")
            fs.setattr("link", uid=3, gid=4)
            fs.create("own", b"x", 0o600, Caller(7, 8))
            fs.mkdir("dir", 0o1777, Caller(7, 8))
            fs.chmod("d", 0)
            fs.setxattr("own", "security.capability", b"\1\0\0\2" + b"\0" * 16)
            fs.rename("d", "e")
            seen = snapshot(fs)
        with start([layer], rw, EngineOptions()) as engine:
            assert snapshot(EngineFs(engine)) == seen

    assert run_child(change) == 0
    with start([layer], rw, EngineOptions(read_only=True)) as engine:
        fs = EngineFs(engine)
        assert (fs.attr("dev2").rdev, fs.attr("block").rdev) == (
            os.makedev(4, 5),
            os.makedev(8, 1),
        )
        assert (fs.attr("link").uid, fs.attr("link").gid) == (3, 4)
        assert fs.readlink("link") == "target"
        assert stat.S_ISFIFO(fs.attr("fifo").mode)
        assert fs.attr("fifo").uid == 3
        assert (fs.attr("own").uid, fs.attr("dir").mode) == (7, stat.S_IFDIR | 0o1777)
        assert fs.attr("e").mode == stat.S_IFDIR
        assert fs.names("e") == ["a", "b"]
    assert fingerprint(layer) == before


def test_a_branch_that_cannot_be_written(open_tmp: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs uid 0 to drop rights")
    build(open_tmp / "layer", LOWER)
    (open_tmp / "rw").mkdir(mode=0o755)

    def attempt() -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with pytest.raises(UnsupportedError, match="cannot write"):
            start([open_tmp / "layer"], open_tmp / "rw", EngineOptions())

    assert run_child(attempt) == 0
