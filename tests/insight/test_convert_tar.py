"""`convert` of archives: every row of the merge table there and back, into directories and out."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Run
from support.insight import empty_markers, parse
from support.layers import Member, layer_tar
from support.literal import lay_out
from support.rootless import NOBODY, run_as_nobody, runtime
from support.rows import ROWS, Row

from unionfs.archive.limits import DEFAULT
from unionfs.archive.tarstream import TarStream
from unionfs.branch import Dialect
from unionfs.errors import ConflictError, UnionfsError
from unionfs.insight.convert_any import convert_any
from unionfs.insight.convert_tar import converted_chunks, verify_archives
from unionfs.insight.engines.reference import Reference
from unionfs.insight.engines.seen import View, link_groups, tree_digest

#: A whiteout below a name that nothing may have (refused); a link to AUFS's housekeeping, a data
#: device 0/0, and an opaque directory that has no member, which no overlayfs dialect can say.
REFUSED = {41, 42, 43, 54}
NO_OVERLAY = {31, 33, 37, 50, 71, 73}
DIALECTS = (Dialect.OVERLAY, Dialect.OVERLAY_USER)


def opener(tar: bytes) -> Callable[[], TarStream]:
    return lambda: TarStream(io.BytesIO(tar), DEFAULT, promised=True)


def converted(tar: bytes, origin: Dialect, target: Dialect) -> bytes:
    made = b"".join(converted_chunks(opener(tar), origin, target, []))
    verify_archives(opener(tar), origin, opener(made), target)
    return made


def shown(tars: list[bytes]) -> str:
    """Return a digest of what the layers show by the specification."""
    tree = Reference()
    for tar in tars:
        tree.apply(opener(tar)())
    items = list(tree.shown())
    links = link_groups((path, key) for path, _, key in items)
    return tree_digest({path: seen for path, seen, _ in items}, links, View())


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.value)
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.number not in REFUSED | NO_OVERLAY], ids=lambda row: row.id
)
def test_row_there_and_back(row: Row, dialect: Dialect) -> None:
    tars = empty_markers(row).tars()
    there = [converted(tar, Dialect.AUFS, dialect) for tar in tars]
    back = [converted(tar, dialect, Dialect.AUFS) for tar in there]
    assert shown(back) == shown(tars)
    for tar in there:
        assert b".wh.x" not in tar


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.number in REFUSED | NO_OVERLAY], ids=lambda row: row.id
)
def test_what_cannot_be_said_is_refused(row: Row) -> None:
    tar = empty_markers(row).tars()[-1]
    with pytest.raises(ConflictError):
        converted(tar, Dialect.AUFS, Dialect.OVERLAY)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.zst"])
def test_archive_to_directory_and_back(suffix: str, run: Run, tmp_path: Path) -> None:
    members = [
        Member(b"./", "dir", mode=0o711),
        Member(b"d/", "dir", mode=0o750, uid=7),
        Member(b"d/.wh..wh..opq"),
        Member(b"d/f", data=b"hello", mode=0o4755, uid=12, gid=34, mtime=1.5),
        Member(b"d/g", "hardlink", target=b"d/f"),
        Member(b"d/l", "symlink", target=b"t"),
        Member(b"d/null", "char", rdev=(1, 3)),
        Member(b".wh.a\n\xff"),
        Member(b"x" * 200 + b"/" + b"y" * 200, data=b"long", xattrs=(("user.n", b"\0v"),)),
    ]
    source = tmp_path / "layer.tar"
    source.write_bytes(gzip.compress(layer_tar(members)) if "gz" in suffix else layer_tar(members))
    upper, back = tmp_path / "upper", tmp_path / f"back{suffix}"
    made = run("convert", source, upper, "--from", "aufs", "--to", "overlay", "--json").json()
    assert made == {
        "path": str(upper),
        "entries": 7,
        "whiteouts": 1,
        "opaque": 1,
        "implied": 1,  # the long one
    }
    st = (upper / "d" / "f").stat()
    assert (st.st_mode, st.st_uid, st.st_nlink) == (stat.S_IFREG | 0o4755, 12, 2)
    assert stat.S_ISCHR((upper / os.fsdecode(b"a\n\xff")).lstat().st_mode)
    assert os.getxattr(upper / "d", "trusted.overlay.opaque") == b"y"
    assert run("convert", upper, back, "--from", "overlay", "--to", "aufs").status == 0
    magic = {".tar": b"", ".tar.gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".tar.zst": b"\x28\xb5"}
    assert back.read_bytes().startswith(magic[suffix])
    plain = tmp_path / "again.tar"
    assert run("convert", back, plain, "--from", "aufs", "--to", "aufs").status == 0
    members.insert(-1, Member(b"x" * 200 + b"/", "dir"))
    assert shown([plain.read_bytes()]) == shown([layer_tar(members)])
    with tarfile.open(plain, encoding="utf-8", errors="surrogateescape") as tar:
        names = {os.fsencode(name) for name in tar.getnames()}
    assert {b"d/.wh..wh..opq", b".wh.a\n\xff"} <= names
    assert {path.name for path in tmp_path.iterdir()} == {
        *("layer.tar", "upper", back.name, "again.tar")
    }


def test_a_plain_user_needs_no_rights_for_archives(open_tmp: Path) -> None:
    """Devices, owners, trusted attributes: nothing is made on disk."""
    os.chown(open_tmp, NOBODY, NOBODY)
    members = [
        Member(b"d/", "dir", uid=7, xattrs=(("trusted.overlay.opaque", b"y"),)),
        Member(b"d/null", "char", rdev=(1, 3)),
        Member(b"gone", "char"),
    ]
    (open_tmp / "diff.tar").write_bytes(layer_tar(members))

    def convert(output: str) -> tuple[int, bytes]:
        words = ["convert", "diff.tar", output, "--from", "overlay", "--to", "aufs"]
        argv = [*runtime().argv, "-m", "unionfs", *words]
        done = run_as_nobody(argv, {"HOME": str(open_tmp)}, cwd=open_tmp, timeout=60)
        return done.returncode, done.stderr

    assert convert("layer.tar")[0] == 0
    with tarfile.open(open_tmp / "layer.tar") as tar:
        assert tar.getnames() == ["d", "d/.wh..wh..opq", "d/null", ".wh.gone"]
        assert tar.getmember("d").uid == 7
        assert not any("overlay" in key for key in tar.getmember("d").pax_headers)
    status, said = convert("layer")
    assert status == 1
    assert b"convert into an archive" in said
    assert sorted(os.listdir(open_tmp)) == ["diff.tar", "layer.tar"]


@pytest.mark.usefixtures("as_root")
def test_existing_results_and_broken_archives(run: Run, tmp_path: Path) -> None:
    names = ("--from", "aufs", "--to", "overlay")
    layer = lay_out(parse("d/ .wh.x").layers[0], tmp_path / "layer")
    for taken in ("out.tar", "out"):
        (tmp_path / taken).touch()
        done = run("convert", layer, tmp_path / taken, *names)
        assert done.status == 1
        assert "exists" in done.err
    broken = tmp_path / "broken.tar"
    broken.write_bytes(layer_tar([Member(b"f", data=b"x" * 5000)])[:3000])
    for output in ("new.tar", "new"):
        assert run("convert", broken, tmp_path / output, *names).status == 1
    assert run("convert", broken, *names, "--in-place").status == 2
    assert run("convert", tmp_path / "nothing", tmp_path / "new", *names).status == 1
    assert {path.name for path in tmp_path.iterdir()} == {"layer", "out.tar", "out", "broken.tar"}


def test_verification_sees_differences() -> None:
    good = layer_tar([Member(b"d/", "dir"), Member(b"d/.wh..wh..opq"), Member(b"f", data=b"1")])
    for members in (
        [Member(b"d/", "dir"), Member(b"f", data=b"1")],
        [Member(b"d/", "dir"), Member(b"d/.wh..wh..opq"), Member(b"f", data=b"2")],
        [Member(b"d/", "dir"), Member(b"d/.wh..wh..opq"), Member(b"f", data=b"1", uid=1)],
        [
            Member(b"d/", "dir"),
            Member(b"d/.wh..wh..opq"),
            Member(b"f", data=b"1"),
            Member(b".wh.x"),
        ],
    ):
        with pytest.raises(UnionfsError, match=r"otherwise|differs"):
            verify_archives(opener(good), Dialect.AUFS, opener(layer_tar(members)), Dialect.AUFS)


def test_directory_of_any_dialect_into_an_archive(tmp_path: Path) -> None:
    layer = lay_out(parse("d/ d/.wh..wh..opq d/f#x .wh.gone").layers[0], tmp_path / "layer")
    out = os.fsencode(tmp_path / "o.tar")
    done = convert_any(os.fsencode(layer), Dialect.AUFS, Dialect.OVERLAY_USER, out)
    assert (done.entries, done.whiteouts, done.opaque) == (3, 1, 1)
    with tarfile.open(out) as tar:
        gone = tar.getmember("gone")
        assert (gone.type, gone.devmajor, gone.devminor) == (tarfile.CHRTYPE, 0, 0)
        assert tar.getmember("d").pax_headers["SCHILY.xattr.user.overlay.opaque"] == "y"
