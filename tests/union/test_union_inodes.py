"""Inode numbers: stable over copy-up, forget, rename and remount, and never shared."""

from __future__ import annotations

import os
import stat

from support.union_case import Union, UnionMaker

from unionfs.union import Caller, Engine


def _numbers(union: Union) -> dict[str, int]:
    return {path: attr.ino for path, attr in union.fs.walk()}


def test_numbers_survive_copy_up_forget_rename_and_remount(union: Union) -> None:
    before = _numbers(union)
    assert before["f"] == os.stat(union.layers[0] / "f").st_ino
    union.fs.write("f", b"UPPER")
    union.fs.chmod("d", 0o700)
    union.fs.chmod("q", 0o600)
    union.fs.write("d/a", b"UPPER")
    assert _numbers(union) == before
    union.reopen()
    assert _numbers(union) == before
    union.fs.rename("f", "g")
    union.fs.rename("d", "e")
    union.reopen()
    after = _numbers(union)
    assert after["g"] == before["f"]
    assert (after["e"], after["e/a"], after["e/b"]) == (before["d"], before["d/a"], before["d/b"])


def test_the_root_is_number_one(union: Union) -> None:
    assert union.engine.getattr(union.engine.root).ino == 1
    union.fs.chmod("", 0o711)
    assert union.engine.parent(1) == 1
    assert union.engine.getattr(1).ino == 1


def test_same_file_in_two_layers_is_two_files(make_union: UnionMaker) -> None:
    union = make_union({"x": "shared"}, {"keep": ""})
    os.link(union.layers[0] / "x", union.layers[1] / "y")
    union.engine.close()
    union.before.clear()
    engine = Engine.start([bytes(p) for p in union.layers], bytes(union.rw), options=union.options)
    with engine:
        x, y = engine.lookup(1, b"x"), engine.lookup(1, b"y")
        assert x.ino != y.ino


def test_a_recorded_number_that_is_taken_gives_way(union: Union) -> None:
    """A branch moved under other layers may bring a number that somebody else has now."""
    taken = union.fs.attr("f").ino
    union.fs.create("n", b"n")
    union.engine.close()
    name = union.engine._tree.ino_xattr
    os.setxattr(union.rw / "n", name, b"%d" % taken)
    union.reopen_closed()
    engine = union.engine
    first, second = engine.lookup(1, b"f"), engine.lookup(1, b"n")
    assert first.ino != second.ino
    assert union.fs.read("n") == b"n"
    assert union.fs.read("f") == b"lower f"


def test_a_reused_number_is_not_mixed_up_with_an_unlinked_file(union: Union) -> None:
    """ext4 gives a freed inode number at once to the next new file."""
    engine = union.engine
    seen: dict[int, bytes] = {}
    for number in range(20):
        name = b"n%d" % number
        fh, attr, _ = engine.create(1, name, 0o644, os.O_RDWR, Caller(0, 0))
        engine.write(fh, 0, name)
        engine.release(fh)
        assert attr.ino not in seen
        seen[attr.ino] = name
        if number % 2:
            engine.unlink(1, name)
    for ino, name in seen.items():
        if int(name[1:]) % 2 == 0:
            engine.forget(ino, 1)
            again = engine.lookup(1, name)
            assert again.ino == ino
            fh = engine.open(ino, os.O_RDONLY)
            assert engine.read(fh, 0, 10) == name
            engine.release(fh)


def test_link_counts_of_directories(make_union: UnionMaker) -> None:
    union = make_union({"both/x/": ""}, {"both/y/": "", "one/z/": ""})
    assert union.fs.attr("one").nlink == 3
    assert union.fs.attr("both").nlink == 1
    union.fs.mkdir("new")
    union.fs.mkdir("new/inner")
    assert union.fs.attr("new").nlink == 3
    assert stat.S_ISDIR(union.fs.attr("new/inner").mode)
