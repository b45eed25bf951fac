"""Open files: following copy-ups, living on after their last unlink, listing directories."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from support.engine_fs import disk_state
from support.union_case import Union, raises_errno

from unionfs.union import Caller, SetAttr


def _names_on_disk(rw: Path) -> set[str]:
    return {path for path in disk_state(rw) if not path.startswith(".wh..wh.unionfs")}


@pytest.mark.parametrize("upper", [False, True], ids=["lower", "copied up"])
def test_unlinked_open_file_is_fully_usable(union: Union, upper: bool) -> None:  # noqa: FBT001  # a parameter
    engine, fs = union.engine, union.fs
    if upper:
        fs.write("f", b"LOWER")
    with fs.at("f") as ino:
        fh = engine.open(ino, os.O_RDWR)
        engine.unlink(engine.root, b"f")
        assert engine.getattr(ino, fh).nlink == 0
        assert engine.read(fh, 0, 100).lower() == b"lower f"
        assert engine.write(fh, 0, b"after") == 5
        assert engine.read(fh, 0, 100) == b"after f"
        engine.setattr(ino, SetAttr(size=3), fh)
        engine.setattr(ino, SetAttr(mode=0o600, uid=7), fh)
        engine.setxattr(ino, "user.late", b"1")
        engine.fsync(fh)
        attr = engine.getattr(ino, fh)
        assert (attr.size, attr.nlink, attr.uid) == (3, 0, 7)
        assert stat.S_IMODE(attr.mode) == 0o600
        assert engine.read(fh, 0, 100) == b"aft"
        assert _names_on_disk(union.rw) == {".wh.f"}
        assert not fs.exists("f")
        engine.release(fh)
    assert len(engine._tree.inodes.by_ino) == 1
    assert union.close() == {".wh.f": ""}


def test_a_new_file_of_the_same_name_is_another_file(union: Union) -> None:
    fh = union.fs.open("f", os.O_RDWR)
    union.fs.unlink("f")
    union.fs.create("f", b"new")
    union.engine.write(fh, 0, b"old one")
    assert union.fs.read("f") == b"new"
    union.engine.release(fh)
    assert union.close() == {"f": "new"}


def test_open_file_replaced_by_rename_keeps_its_content(union: Union) -> None:
    union.fs.write("p", b"PAIR")
    fh = union.fs.open("p", os.O_RDWR)
    union.fs.rename("f", "p")
    assert union.engine.read(fh, 0, 10) == b"PAIR"
    union.engine.write(fh, 0, b"more")
    assert union.fs.read("p") == b"lower f"
    assert union.fs.read("q") == b"more"
    union.engine.release(fh)


def test_one_name_of_an_open_lower_pair_goes(union: Union) -> None:
    engine = union.engine
    with union.fs.at("p") as ino:
        fh = engine.open(ino, os.O_RDWR)
        engine.unlink(engine.root, b"p")
        engine.write(fh, 0, b"BOTH")
        assert union.fs.read("q") == b"BOTH"
        assert union.fs.attr("q").ino == ino
        assert engine.getattr(ino).nlink == 1
        engine.release(fh)
    assert union.close() == {".wh.p": "", "q": "BOTH"}


def test_one_name_of_an_open_upper_pair_goes(union: Union) -> None:
    engine = union.engine
    union.fs.create("x", b"data")
    union.fs.link("x", "y")
    with union.fs.at("x") as ino:
        fh = engine.open(ino, os.O_RDWR)
        engine.unlink(engine.root, b"x")
        assert engine.getattr(ino).nlink == 1
        assert engine.lookup(engine.root, b"y").ino == ino
        engine.write(fh, 0, b"DATA")
        assert union.fs.read("y") == b"DATA"
        engine.release(fh)
        engine.forget(ino, 1)
    assert union.close() == {"y": "DATA"}


@pytest.mark.parametrize("upper", [False, True], ids=["lower", "copied up"])
def test_a_known_second_name_is_enough(union: Union, upper: bool) -> None:  # noqa: FBT001  # a parameter
    engine = union.engine
    if upper:
        union.fs.write("p", b"PAIR")
    with union.fs.at("p") as ino, union.fs.at("q") as same:
        assert ino == same
        engine.unlink(engine.root, b"p")
        assert engine.getattr(ino).nlink == 1
        fh = engine.open(ino, os.O_RDONLY)
        assert engine.read(fh, 0, 10).lower() == b"pair"
        engine.release(fh)
        engine.setattr(ino, SetAttr(mode=0o600))
        assert stat.S_IMODE(union.fs.attr("q").mode) == 0o600


def test_handles_outlive_a_rename_of_their_directory(union: Union) -> None:
    fh = union.fs.open("d/a", os.O_RDWR)
    gone = union.fs.open("d/b")
    union.fs.unlink("d/b")
    union.fs.rename("d", "e")
    union.engine.write(fh, 0, b"LOWER")
    assert union.fs.read("e/a") == b"LOWER a"
    assert union.engine.read(gone, 0, 10) == b"lower b"
    union.engine.write(gone, 0, b"still")
    assert union.engine.read(gone, 0, 10) == b"still b"
    union.engine.release(fh)
    union.engine.release(gone)
    assert union.close() == {".wh.d": "", "e/": "", "e/a": "LOWER a"}


def test_append_goes_where_the_caller_says(union: Union) -> None:
    fh = union.fs.open("f", os.O_WRONLY | os.O_APPEND)
    union.engine.write(fh, union.fs.attr("f").size, b" and more")
    union.engine.release(fh)
    assert union.fs.read("f") == b"lower f and more"


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_files_live_until_they_are_forgotten(union: Union, how: str) -> None:
    """An open(2) that found the name may come after the unlink; so may fstat of an O_PATH fd."""
    engine = union.engine
    union.fs.write("p", b"PAIR")
    union.fs.unlink("q")
    for number, (name, body) in enumerate(((b"f", b"lower f"), (b"p", b"PAIR"), (b"s", b""))):
        ino = engine.lookup(engine.root, name).ino
        if how == "unlink":
            engine.unlink(engine.root, name)
        else:
            union.fs.create(f"new{number}")
            engine.rename(engine.root, b"new%d" % number, engine.root, name)
        assert engine.getattr(ino).nlink == 0
        if name == b"s":
            assert engine.readlink(ino) == b"f"
            engine.forget(ino, 1)
            continue
        fh = engine.open(ino, os.O_RDONLY)
        assert engine.read(fh, 0, 100) == body
        engine.release(fh)
        engine.forget(ino, 1)
        with raises_errno(errno.ESTALE):
            engine.getattr(ino)


def test_removed_directory_in_use(union: Union) -> None:
    engine = union.engine
    with union.fs.at("d") as ino:
        for name in (b"a", b"b"):
            engine.unlink(ino, name)
        fh = engine.opendir(ino)
        engine.rmdir(engine.root, b"d")
        assert engine.getattr(ino).nlink == 0
        assert list(engine.readdir(fh, 0)) == []
        for make in (
            lambda: engine.mkdir(ino, b"x", 0o755, Caller(0, 0)),
            lambda: engine.create(ino, b"x", 0o644, os.O_RDWR, Caller(0, 0)),
            lambda: engine.lookup(ino, b"a"),
            lambda: engine.rename(engine.root, b"f", ino, b"x", 0),
        ):
            with raises_errno(errno.ENOENT):
                make()
        engine.fsyncdir(fh)
        engine.releasedir(fh)
    assert union.close() == {".wh.d": ""}


def test_listing_shows_numbers_that_lookup_gives(union: Union) -> None:
    union.fs.write("d/a", b"LOWER")
    union.fs.create("d/new")
    for path in ("", "d"):
        for name, attr in union.fs.items(path).items():
            assert union.fs.attr(f"{path}/{os.fsdecode(name)}") == attr


def test_entries_that_nobody_takes_are_dropped(union: Union) -> None:
    engine = union.engine
    fh = engine.opendir(engine.root)
    kept = [item.attr.ino for item in engine.readdir(fh, 0) if item.name == b"f"]
    assert set(engine._tree.inodes.by_ino) == {engine.root}
    for item in engine.readdir(fh, 0):
        if item.name == b"f":
            engine.remember(item.attr.ino)
    assert set(engine._tree.inodes.by_ino) == {engine.root, *kept}
    engine.releasedir(fh)


@pytest.mark.parametrize(
    ("path", "flags", "code"),
    [("d", os.O_RDONLY, errno.EISDIR), ("s", os.O_RDONLY, errno.ENXIO)],
)
def test_opening_what_is_no_file(union: Union, path: str, flags: int, code: int) -> None:
    with raises_errno(code):
        union.fs.open(path, flags)


def test_unknown_handles_and_numbers(union: Union) -> None:
    for use in (
        lambda: union.engine.read(99, 0, 1),
        lambda: union.engine.release(99),
        lambda: union.engine.releasedir(99),
        lambda: list(union.engine.readdir(99, 0)),
    ):
        with raises_errno(errno.EBADF):
            use()
    with raises_errno(errno.ESTALE):
        union.engine.getattr(12345678901)
