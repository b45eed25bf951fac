"""`convert`: every row of the merge table survives the way to overlayfs's form and back."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from support.commands import Run
from support.insight import MakeLayers, empty_markers, parse
from support.literal import lay_out, lay_out_all
from support.rows import ROWS, Row, read_tree, show_tree
from support.storetree import stack_tree

from unionfs.branch import Branch, Dialect, Stack
from unionfs.errors import ConflictError, UnionfsError, UnsupportedError
from unionfs.insight.convert import convert, verify

pytestmark = pytest.mark.usefixtures("as_root")

VALID = [row for row in ROWS if not row.error and row.number not in {62, 71}]
DIALECTS = (Dialect.OVERLAY, Dialect.OVERLAY_USER)


def merged(paths: list[bytes], dialect: Dialect) -> list[str]:
    branches = [Branch.open(path, dialect) for path in paths]
    with Stack(branches) as stack:
        return show_tree(stack_tree(stack))


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.value)
@pytest.mark.parametrize("row", VALID, ids=lambda row: row.id)
def test_row_there_and_back(row: Row, dialect: Dialect, tmp_path: Path) -> None:
    layers = lay_out_all(empty_markers(row).layers, tmp_path)
    there = [convert(path, Dialect.AUFS, dialect, path + b".o").path for path in layers]
    back = [convert(path, dialect, Dialect.AUFS, path + b".a").path for path in there]
    expected = merged(layers, Dialect.AUFS)
    assert merged(there, dialect) == expected
    assert merged(back, Dialect.AUFS) == expected


#: The kernel does not look for an opaque attribute on the root (33, 73), and lists a whiteout
#: that is in no merged directory as a device that cannot be opened (20, 24).
KERNEL_DIFFERS = {20, 24, 33, 73}


@pytest.mark.parametrize(
    "row", [row for row in VALID if row.number not in KERNEL_DIFFERS], ids=lambda row: row.id
)
def test_kernel_overlayfs_shows_the_same(row: Row, tmp_path: Path) -> None:
    layers = lay_out_all(empty_markers(row).layers, tmp_path / "made")
    expected = merged(layers, Dialect.AUFS)
    lower = [convert(path, Dialect.AUFS, Dialect.OVERLAY, path + b".o").path for path in layers]
    empty = tmp_path / "empty"
    empty.mkdir()
    target = tmp_path / "mnt"
    target.mkdir()
    option = "lowerdir=" + ":".join(map(os.fsdecode, [os.fsencode(empty), *lower]))
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", option, target],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no overlay mounts here: {done.stderr.decode()}")
    try:
        assert show_tree(read_tree(target)) == expected
    finally:
        subprocess.run(["umount", target], check=True)


def test_everything_of_an_entry_is_kept(tmp_path: Path) -> None:
    root = lay_out(parse("d/ d/f#hello d/g&d/f d/l>t .wh.x").layers[0], tmp_path / "layer")
    file = root / "d" / "f"
    file.chmod(0o4751)
    os.chown(file, 12, 34)
    file.chmod(0o4751)
    os.setxattr(file, "user.note", b"value")
    os.mkfifo(root / "d" / "p", 0o620)
    os.utime(file, ns=(1, 2))
    os.utime(root / "d", ns=(3, 4))
    out = tmp_path / "out"
    convert(os.fsencode(root), Dialect.AUFS, Dialect.OVERLAY, os.fsencode(out))
    st = (out / "d" / "f").stat()
    assert (st.st_mode, st.st_uid, st.st_gid) == (stat.S_IFREG | 0o4751, 12, 34)
    assert (st.st_mtime_ns, st.st_nlink) == (2, 2)
    assert (out / "d").stat().st_mtime_ns == 4
    assert (out / "d" / "g").stat().st_ino == st.st_ino
    assert os.getxattr(out / "d" / "f", "user.note") == b"value"
    assert (out / "d" / "l").readlink() == Path("t")
    assert stat.S_ISFIFO((out / "d" / "p").stat().st_mode)
    assert stat.S_ISCHR((out / "x").lstat().st_mode)


def test_in_place_only_when_asked(tmp_path: Path, run: Run) -> None:
    root = lay_out(parse("d/ d/.wh..wh..opq .wh.x").layers[0], tmp_path / "layer")
    names = ("--from", "aufs", "--to", "overlay-userxattr")
    assert run("convert", root, *names).status == 2
    assert (root / ".wh.x").exists()
    done = run("convert", root, *names, "--in-place")
    assert done.out.splitlines() == [str(root)]
    assert done.err.splitlines() == ["1 entries, 1 whiteouts, 1 opaque directories"]
    assert stat.S_ISCHR((root / "x").lstat().st_mode)
    assert os.getxattr(root / "d", "user.overlay.opaque") == b"y"
    assert os.listdir(tmp_path) == ["layer"]


def test_what_cannot_be_said_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    device = lay_out(parse("x!").layers[0], tmp_path / "device")
    with pytest.raises(ConflictError, match="device 0/0"):
        convert(os.fsencode(device), Dialect.AUFS, Dialect.OVERLAY, os.fsencode(tmp_path / "o"))
    reserved = lay_out(parse(".wh.x").layers[0], tmp_path / "reserved")
    with pytest.raises(ConflictError, match="is a marker in AUFS form"):
        convert(os.fsencode(reserved), Dialect.OVERLAY, Dialect.AUFS, os.fsencode(tmp_path / "o"))
    spread = lay_out(parse("d/").layers[0], tmp_path / "spread")
    os.setxattr(spread / "d", "trusted.overlay.redirect", b"/e")
    with pytest.raises(UnsupportedError, match="redirect"):
        convert(os.fsencode(spread), Dialect.OVERLAY, Dialect.AUFS, os.fsencode(tmp_path / "o"))
    assert sorted(os.listdir(tmp_path)) == ["device", "reserved", "spread"]
    with pytest.raises(ConflictError, match="exists"):
        convert(os.fsencode(spread), Dialect.AUFS, Dialect.OVERLAY, os.fsencode(device))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("d/ d/.wh.x", "d/"),
        ("d/ d/.wh..wh..opq", "d/"),
        ("d/", "d/ d/x"),
        ("x#1", "x#2"),
        ("d/@700", "d/"),
        (".wh.x", ".wh.y"),
    ],
)
def test_verification_sees_a_difference(one: str, two: str, tmp_path: Path) -> None:
    left = os.fsencode(lay_out(parse(one).layers[0], tmp_path / "one"))
    right = os.fsencode(lay_out(parse(two).layers[0], tmp_path / "two"))
    for root, _, files in os.walk(tmp_path):
        for name in files:
            os.utime(os.path.join(root, name), (1, 1))
    verify(left, Dialect.AUFS, left, Dialect.AUFS)
    with pytest.raises(UnionfsError):
        verify(left, Dialect.AUFS, right, Dialect.AUFS)


def test_long_names_are_deleted_in_every_dialect(layers: MakeLayers, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    os.mknod(overlay / ("n" * 255), stat.S_IFCHR, 0)
    below = layers("n*255").branches[0].path
    path = convert(
        os.fsencode(overlay), Dialect.OVERLAY, Dialect.AUFS, os.fsencode(tmp_path / "a")
    ).path
    assert merged([path, below], Dialect.AUFS) == []
