"""Operations on the union: what the rw branch then literally holds, and what is seen.

The rows are those of the conformance table in docs/semantics.rst ("Operations"), by
number, in both ownership dialects, over the lower tree of conftest.LOWER.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

import pytest
from support.engine_fs import OLD, EngineFs, disk_state, fingerprint, snapshot
from support.union_case import LOWER, Union, UnionMaker, raises_errno, start

from unionfs import _sys
from unionfs.branch import whiteout
from unionfs.union import Caller, EngineOptions

SEEN = {
    "f": "lower f",
    "d/": "",
    "d/a": "lower a",
    "d/b": "lower b",
    "s": "->f",
    "p": "pair",
    "q": "pair",
}


def without(*gone: str) -> dict[str, str]:
    return {path: body for path, body in SEEN.items() if path not in gone}


def _o2(fs: EngineFs) -> None:
    fs.unlink("f")
    fs.create("f", b"new")


def _o3(fs: EngineFs) -> None:
    fs.create("n", b"x")
    fs.unlink("n")


def _o6(fs: EngineFs) -> None:
    fs.rmtree("d")
    fs.mkdir("d")


def _o7(fs: EngineFs) -> None:
    _o6(fs)
    fs.create("d/a", b"new a")


def _o8(fs: EngineFs) -> None:
    fs.unlink("d/a")
    fs.unlink("d/b")
    assert fs.names("d") == []
    fs.rmdir("d")


def _o9(fs: EngineFs) -> None:
    fs.rmtree("d")
    fs.create("d", b"file d")


def _o10_back(fs: EngineFs) -> None:
    fs.rename("f", "g")
    fs.rename("g", "f")


def _o13(fs: EngineFs) -> None:
    fs.mkdir("n")
    fs.rename("n", "m")


def _o13_hidden(fs: EngineFs) -> None:
    fs.rmtree("d")
    fs.mkdir("n")
    fs.create("n/x", b"x")
    fs.rename("n", "d")


def _rm_written(fs: EngineFs) -> None:
    fs.write("f", b"UPPER")
    fs.unlink("f")


def _rm_mkdir_rm(fs: EngineFs) -> None:
    _o6(fs)
    fs.rmdir("d")


def _temp_and_rename(fs: EngineFs) -> None:
    fs.create("d/.tmp", b"new")
    fs.rename("d/.tmp", "d/a")


def _rename_dir_twice(fs: EngineFs) -> None:
    fs.rename("d", "e")
    fs.rename("e", "d")


def _rename_dir_with_whiteout(fs: EngineFs) -> None:
    fs.unlink("d/a")
    fs.rename("d", "e")


def _dir_over_empty_lower(fs: EngineFs) -> None:
    fs.unlink("d/a")
    fs.unlink("d/b")
    fs.mkdir("n")
    fs.create("n/x", b"x")
    fs.rename("n", "d")


def _whiteouts_after_exchange(fs: EngineFs) -> None:
    fs.rename("f", "d", _sys.RENAME_EXCHANGE)
    fs.unlink("d")
    fs.rmtree("f")


Row = tuple[str, Callable[[EngineFs], None], dict[str, str], dict[str, str]]

ROWS: list[Row] = [
    ("O1", lambda fs: fs.unlink("f"), {".wh.f": ""}, without("f")),
    ("O2", _o2, {"f": "new"}, SEEN | {"f": "new"}),
    ("O3", _o3, {}, SEEN),
    ("O5", lambda fs: fs.rmtree("d"), {".wh.d": ""}, without("d/", "d/a", "d/b")),
    ("O6", _o6, {"d/": "", "d/.wh..wh..opq": ""}, without("d/a", "d/b")),
    (
        "O7",
        _o7,
        {"d/": "", "d/.wh..wh..opq": "", "d/a": "new a"},
        without("d/b") | {"d/a": "new a"},
    ),
    ("O8", _o8, {".wh.d": ""}, without("d/", "d/a", "d/b")),
    ("O9", _o9, {"d": "file d"}, without("d/", "d/a", "d/b") | {"d": "file d"}),
    (
        "O10",
        lambda fs: fs.rename("f", "g"),
        {"g": "lower f", ".wh.f": ""},
        without("f") | {"g": "lower f"},
    ),
    ("O10 and back", _o10_back, {"f": "lower f"}, SEEN),
    (
        "O11",
        lambda fs: fs.rename("f", "d/a"),
        {".wh.f": "", "d/": "", "d/a": "lower f"},
        without("f") | {"d/a": "lower f"},
    ),
    (
        "O12",
        lambda fs: fs.rename("d", "e"),
        {".wh.d": "", "e/": "", "e/a": "lower a", "e/b": "lower b"},
        without("d/", "d/a", "d/b") | {"e/": "", "e/a": "lower a", "e/b": "lower b"},
    ),
    (
        "O12 and back",
        _rename_dir_twice,
        {"d/": "", "d/.wh..wh..opq": "", "d/a": "lower a", "d/b": "lower b"},
        SEEN,
    ),
    (
        "O12 with a whiteout inside",
        _rename_dir_with_whiteout,
        {".wh.d": "", "e/": "", "e/b": "lower b"},
        without("d/", "d/a", "d/b") | {"e/": "", "e/b": "lower b"},
    ),
    ("O13", _o13, {"m/": ""}, SEEN | {"m/": ""}),
    (
        "O13 over a lower name",
        _o13_hidden,
        {"d/": "", "d/.wh..wh..opq": "", "d/x": "x"},
        without("d/a", "d/b") | {"d/x": "x"},
    ),
    (
        "O13 over a merged directory without entries",
        _dir_over_empty_lower,
        {"d/": "", "d/.wh..wh..opq": "", "d/x": "x"},
        without("d/a", "d/b") | {"d/x": "x"},
    ),
    (
        "O14 exchange of files",
        lambda fs: fs.rename("f", "p", _sys.RENAME_EXCHANGE),
        {"f": "pair", "q": "pair", "p": "lower f"},
        SEEN | {"f": "pair", "p": "lower f"},
    ),
    (
        "O14 exchange of file and directory",
        lambda fs: fs.rename("f", "d", _sys.RENAME_EXCHANGE),
        {"d": "lower f", "f/": "", "f/.wh..wh..opq": "", "f/a": "lower a", "f/b": "lower b"},
        without("f", "d/", "d/a", "d/b")
        | {"d": "lower f", "f/": "", "f/a": "lower a", "f/b": "lower b"},
    ),
    (
        "O14 both removed after an exchange",
        _whiteouts_after_exchange,
        {".wh.d": "", ".wh.f": ""},
        without("f", "d/", "d/a", "d/b"),
    ),
    (
        "O17",
        lambda fs: fs.write("f", b"", 0, os.O_WRONLY | os.O_TRUNC),
        {"f": ""},
        SEEN | {"f": ""},
    ),
    (
        "O19",
        lambda fs: fs.write("p", b"PAIR"),
        {"p": "PAIR", "q": "PAIR"},
        SEEN | {"p": "PAIR", "q": "PAIR"},
    ),
    (
        "O20",
        lambda fs: fs.link("f", "g"),
        {"f": "lower f", "g": "lower f"},
        SEEN | {"g": "lower f"},
    ),
    ("delete of a written lower file", _rm_written, {".wh.f": ""}, without("f")),
    ("rmdir of an opaque directory", _rm_mkdir_rm, {".wh.d": ""}, without("d/", "d/a", "d/b")),
    (
        "new file renamed over a lower one",
        _temp_and_rename,
        {"d/": "", "d/a": "new"},
        SEEN | {"d/a": "new"},
    ),
    (
        "whiteout of a lower link",
        lambda fs: fs.unlink("s"),
        {".wh.s": ""},
        without("s"),
    ),
]


@pytest.mark.parametrize(
    ("operation", "rw", "seen"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_operation(
    union: Union,
    operation: Callable[[EngineFs], None],
    rw: dict[str, str],
    seen: dict[str, str],
) -> None:
    operation(union.fs)
    assert union.fs.tree() == seen
    union.reopen()
    assert union.fs.tree() == seen
    assert union.close() == rw


def test_o2_new_file_is_another_one(union: Union) -> None:
    layer_ino = union.fs.attr("f").ino
    union.fs.unlink("f")
    union.fs.create("f", b"new", 0o600, Caller(3, 4))
    attr = union.fs.attr("f")
    assert attr.ino != layer_ino
    assert (stat.S_IMODE(attr.mode), attr.uid, attr.gid, attr.nlink) == (0o600, 3, 4, 1)
    assert union.fs.xattrs("f") == {}


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_o4_over_a_whiteout_of_a_middle_layer(make_union: UnionMaker, kind: str) -> None:
    union = make_union({".wh.x": ""}, {"x/inner": "hidden", "keep": "k"})
    assert union.fs.tree() == {"keep": "k"}
    if kind == "file":
        union.fs.create("x", b"new")
        assert union.close() == {"x": "new"}
    else:
        union.fs.mkdir("x")
        assert union.fs.names("x") == []
        union.reopen()
        assert union.fs.names("x") == []
        assert union.close() == {"x/": ""}


def test_o12_limits_give_exdev(union: Union, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unionfs.union.rename.MAX_ENTRIES", 1)
    with raises_errno(errno.EXDEV):
        union.fs.rename("d", "e")
    assert union.close() == {}


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (_sys.RENAME_NOREPLACE, errno.EEXIST),
        (4, errno.EINVAL),
        (3, errno.EINVAL),
        (8, errno.EINVAL),
    ],
)
def test_o14_flags(union: Union, flags: int, code: int) -> None:
    with raises_errno(code):
        union.fs.rename("f", "p", flags)
    if flags == _sys.RENAME_NOREPLACE:
        union.fs.rename("f", "new", flags)
        assert union.close() == {".wh.f": "", "new": "lower f"}


def _old(union: Union, path: str) -> bool:
    return union.fs.attr(path).mtime_ns == OLD


def test_o15_copy_up_keeps_everything(make_union: UnionMaker) -> None:
    union = make_union({"d/e/f": "data", "d/e/g": "other", "d/x": ""})
    layer = union.layers[0] / "d" / "e"
    os.setxattr(layer / "f", "user.note", b"kept")
    os.setxattr(layer / "f", "security.capability", _CAPABILITY)
    os.setxattr(layer, "user.dir", b"too")
    os.chown(layer, 5, 6)
    layer.chmod(0o2751)
    (layer / "f").chmod(0o4751)
    os.utime(layer / "f", ns=(OLD + 1, OLD + 123_456_789))
    os.utime(layer, ns=(OLD, OLD))
    union.before[union.layers[0]] = fingerprint(union.layers[0])
    union.reopen()
    before = union.fs.attr("d/e/f")
    with union.fs.at("d/e/f") as ino:
        union.engine.setxattr(ino, "user.more", b"1")
    after = union.fs.attr("d/e/f")
    assert after._replace(ctime_ns=0, blocks=0, atime_ns=0) == before._replace(
        ctime_ns=0, blocks=0, atime_ns=0
    )
    assert union.fs.xattrs("d/e/f") == {
        "user.note": b"kept",
        "user.more": b"1",
        "security.capability": _CAPABILITY,
    }
    parent = union.fs.attr("d/e")
    assert (parent.mode, parent.uid, parent.gid) == (stat.S_IFDIR | 0o2751, 5, 6)
    assert union.fs.xattrs("d/e") == {"user.dir": b"too"}
    assert _old(union, "d/e")
    assert _old(union, "d")
    assert _old(union, "")
    seen = snapshot(union.fs)
    union.reopen()
    assert snapshot(union.fs) == seen
    assert sorted(union.close()) == ["d/", "d/e/", "d/e/f"]


_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def test_o15_chown_clears_privileges_and_chmod_keeps_times(union: Union) -> None:
    union.fs.chmod("f", 0o6755)
    assert _old(union, "f")
    union.fs.setxattr("f", "security.capability", _CAPABILITY)
    union.fs.setattr("f", uid=9, gid=10)
    attr = union.fs.attr("f")
    assert (attr.mode, attr.uid, attr.gid) == (stat.S_IFREG | 0o755, 9, 10)
    assert "security.capability" not in union.fs.xattrs("f")
    union.fs.setattr("f", uid=1, mode=0o4755)
    assert union.fs.attr("f").mode == stat.S_IFREG | 0o4755


def test_o15_sparse_file_stays_sparse(make_union: UnionMaker) -> None:
    union = make_union({"hole": ""})
    with (union.layers[0] / "hole").open("r+b") as file:
        file.seek(64 << 20)
        file.write(b"end")
        file.truncate(128 << 20)
    union.before[union.layers[0]] = fingerprint(union.layers[0])
    union.reopen()
    union.fs.write("hole", b"start")
    attr = union.fs.attr("hole")
    assert attr.size == 128 << 20
    assert attr.blocks * 512 < 1 << 20
    fh = union.fs.open("hole")
    assert union.engine.read(fh, (64 << 20) - 1, 5) == b"\0end\0"
    union.engine.release(fh)


def test_o16_opening_for_writing_copies_nothing(union: Union) -> None:
    union.engine.release(union.fs.open("f", os.O_RDWR))
    assert union.close() == {}


def test_o17_truncating_a_big_file_copies_no_data(make_union: UnionMaker) -> None:
    union = make_union({"big": "x" * 5_000_000})
    fh = union.fs.open("big", os.O_WRONLY | os.O_TRUNC)
    assert union.engine.stats.copy_up_bytes == 0
    union.engine.release(fh)
    union.fs.setattr("big", size=10)
    assert union.fs.read("big") == b"\0" * 10


def test_truncating_to_a_part_copies_that_part_only(make_union: UnionMaker) -> None:
    union = make_union({"big": "x" * 5_000_000})
    union.fs.setattr("big", size=10)
    assert union.engine.stats.copy_up_bytes == 10
    assert union.fs.read("big") == b"x" * 10


def test_o18_open_files_follow_a_copy_up(union: Union) -> None:
    reader = union.fs.open("f")
    ino = union.fs.attr("f").ino
    assert union.engine.read(reader, 0, 100) == b"lower f"
    union.fs.write("f", b"UPPER and longer")
    assert union.engine.read(reader, 0, 100) == b"UPPER and longer"
    assert union.engine.getattr(ino, reader).size == 16
    assert union.engine.getattr(ino, reader).ino == ino
    union.engine.release(reader)


def test_o19_link_counts_are_right(union: Union) -> None:
    assert union.fs.attr("p").ino == union.fs.attr("q").ino
    assert union.fs.attr("p").nlink == 2
    union.fs.chmod("q", 0o600)
    assert union.fs.attr("p") == union.fs.attr("q")
    assert union.fs.attr("p").nlink == 2
    union.fs.unlink("q")
    assert union.fs.attr("p").nlink == 1
    union.reopen()
    assert union.fs.attr("p").nlink == 1


RESERVED = [".wh.x", ".wh..wh.y", ".wh.", ".wh..wh..opq", ".wh..wh.unionfs", ".wh.f"]


@pytest.mark.parametrize("name", RESERVED)
def test_o21_reserved_names(union: Union, name: str) -> None:
    fs = union.fs
    makers: list[Callable[[], object]] = [
        lambda: fs.create(name),
        lambda: fs.mkdir(name),
        lambda: fs.symlink(name, "f"),
        lambda: fs.mknod(name, stat.S_IFIFO | 0o600),
        lambda: fs.link("f", name),
        lambda: fs.rename("f", name),
        lambda: fs.rename("d", name),
    ]
    for maker in makers:
        with pytest.raises(PermissionError):
            maker()
    with union.fs.at("") as root:
        for using in (
            lambda: union.engine.lookup(root, name.encode()),
            lambda: union.engine.unlink(root, name.encode()),
            lambda: union.engine.rmdir(root, name.encode()),
            lambda: union.engine.rename(root, name.encode(), root, b"z", 0),
        ):
            with pytest.raises(FileNotFoundError):
                using()
    assert not any(item.startswith(".wh") for item in fs.names())
    assert union.close() == {}


@pytest.mark.parametrize("name", [".wh", ".whx", "a.wh.b"])
def test_o21_names_that_only_look_reserved(union: Union, name: str) -> None:
    union.fs.create(name, b"x")
    union.fs.symlink("link", ".wh.f")
    assert union.close() == {name: "x", "link": "->.wh.f"}


@pytest.mark.parametrize("upper", [False, True], ids=["lower", "copied up"])
def test_truncating_what_is_opened_for_reading(union: Union, upper: bool) -> None:  # noqa: FBT001  # a parameter
    if upper:
        union.fs.write("f", b"LOWER")
    fh = union.fs.open("f", os.O_RDONLY | os.O_TRUNC)
    assert union.engine.read(fh, 0, 100) == b""
    union.engine.release(fh)
    assert union.engine.stats.copy_up_bytes == (7 if upper else 0)
    assert union.close() == {"f": ""}


def test_o22_longest_name(union: Union) -> None:
    union.fs.create("n" * 251, b"x")
    for maker in (union.fs.create, union.fs.mkdir):
        with raises_errno(errno.ENAMETOOLONG):
            maker("n" * 252)
    assert union.engine.statfs().f_namemax == 251


@pytest.mark.parametrize(("length", "code"), [(251, errno.ENOENT), (252, errno.ENAMETOOLONG)])
def test_a_long_name_that_nobody_has(union: Union, length: int, code: int) -> None:
    engine, name = union.engine, b"n" * length
    for using in (
        lambda: engine.lookup(engine.root, name),
        lambda: engine.unlink(engine.root, name),
        lambda: engine.rmdir(engine.root, name),
        lambda: engine.rename(engine.root, name, engine.root, b"z", 0),
    ):
        with raises_errno(code):
            using()


@pytest.mark.parametrize("length", [251, 252, 255])
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_o23_deleting_long_names(make_union: UnionMaker, length: int, kind: str) -> None:
    name = "n" * length
    union = make_union({name if kind == "file" else name + "/x": "lower", "keep": ""})
    assert union.fs.exists(name)
    union.fs.rmtree(name)
    assert union.fs.names() == ["keep"]
    union.reopen()
    assert union.fs.names() == ["keep"]
    marker, content = whiteout.marker_for(name.encode())
    assert union.close() == {marker.decode(): content.decode()}


def test_a_long_lower_name_can_be_renamed_and_written(make_union: UnionMaker) -> None:
    name = "n" * 255
    union = make_union({name: "lower", "other" + "n" * 249: "o"})
    union.fs.write(name, b"UPPER")
    union.fs.rename(name, "short")
    assert union.fs.names() == ["other" + "n" * 249, "short"]
    union.reopen()
    assert union.fs.names() == ["other" + "n" * 249, "short"]
    with raises_errno(errno.ENAMETOOLONG):
        union.fs.rename("short", name)


def test_o24_listing_while_deleting(make_union: UnionMaker) -> None:
    union = make_union({f"d/{number:05}": "" for number in range(3000)})
    with union.fs.at("d") as ino:
        fh = union.engine.opendir(ino)
        seen: list[bytes] = []
        offset = 0
        while True:
            batch = []
            for item in union.engine.readdir(fh, offset):
                batch.append(item.name)
                offset = item.next_offset
                if len(batch) == 100:
                    break
            if not batch:
                break
            seen += batch
            for name in batch[::2]:
                union.engine.unlink(ino, name)
        assert len(seen) == len(set(seen)) == 3000
        assert len(union.fs.names("d")) == 1500
        rewound = [item.name for item in union.engine.readdir(fh, 0)]
        assert len(rewound) == 1500
        union.engine.releasedir(fh)


def test_o25_rmdir_of_a_directory_with_lower_entries(union: Union) -> None:
    union.fs.unlink("d/a")
    with raises_errno(errno.ENOTEMPTY):
        union.fs.rmdir("d")
    assert union.close() == {"d/": "", "d/.wh.a": ""}


def test_o27_mode_of_the_root(union: Union) -> None:
    union.fs.chmod("", 0o700)
    assert stat.S_IMODE(union.fs.attr("").mode) == 0o700
    union.reopen()
    assert stat.S_IMODE(union.fs.attr("").mode) == 0o700


def test_o27_a_fresh_branch_takes_the_roots_attributes(make_union: UnionMaker) -> None:
    union = make_union({"f": ""})
    assert _old(union, "")
    union.engine.close()
    (union.layers[0]).chmod(0o700)
    rw = union.base / "rw2"
    rw.mkdir()
    options = EngineOptions(native=union.options.native, root_mode_fallback=0o755)
    for where in (rw, None):
        with start(union.layers, where, options) as engine:
            assert stat.S_IMODE(engine.getattr(engine.root).mode) == 0o755


def test_o28_two_unions_share_layers(union: Union) -> None:
    rw = union.base / "rw2"
    rw.mkdir()
    with start(union.layers, rw, union.options) as other:
        union.fs.write("f", b"UPPER")
        union.fs.rmtree("d")
        assert EngineFs(other).tree() == SEEN
    assert disk_state(rw) == {}
    assert sorted(union.close()) == [".wh.d", "f"]


def test_o30_the_branch_as_a_layer_shows_the_same(union: Union) -> None:
    _o7(union.fs)
    union.fs.write("p", b"PAIR")
    union.fs.rename("f", "g")
    union.fs.symlink("link", "g")
    seen = snapshot(union.fs)
    union.close()
    rw = union.base / "rw2"
    rw.mkdir()
    with start([union.rw, *union.layers], rw, union.options) as child:
        assert snapshot(EngineFs(child)) == seen


def test_lower_tree_is_what_the_rows_assume(union: Union) -> None:
    assert union.fs.tree() == SEEN
    assert set(LOWER) <= {path.rstrip("/") for path in SEEN}
