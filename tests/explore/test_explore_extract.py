"""Copies out of the layers: whole or not there, never over something, never through a link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.looking import Look, nothing
from support.rootless import NOBODY, run_as_nobody, runtime

from unionfs import _sys
from unionfs.errors import ConflictError, NotFoundError
from unionfs.explore import extract as module
from unionfs.explore.extract import Extracted, extract
from unionfs.explore.model import Cancelled, Explorer

_TREE = "d/ d/f#hello d/l>/etc/passwd d/h&d/f d/s/ d/s/x k"


def copy(
    explorer: Explorer, path: bytes, into: Path, number: int | None = None, *, replace: bool = False
) -> Extracted:
    branches = explorer.branches(explorer.top if number is None else number)
    return extract(branches, path, os.fsencode(into), replace=replace, tick=nothing)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def test_a_file(look: Look, out: Path, tmp_path: Path) -> None:
    explorer = look("d/f#hello")
    os.utime(tmp_path / "layer1/d/f", ns=(5, 1_000_000_007))
    done = copy(explorer, b"d/f", out)
    assert (done.path, done.entries, done.size, done.notes) == (os.fsencode(out / "f"), 1, 5, "")
    assert (out / "f").read_text() == "hello"
    assert (out / "f").stat().st_mtime_ns == 1_000_000_007
    assert os.listdir(out) == ["f"]


def test_a_tree_as_the_layers_show_it(look: Look, out: Path) -> None:
    explorer = look(f"{_TREE} ‖ d/f#new d/.wh.l d/s/y")
    done = copy(explorer, b"d", out)
    assert done.entries == 6
    assert sorted(os.listdir(out / "d")) == ["f", "h", "s"]
    assert (out / "d/f").read_text() == "new"
    assert (out / "d/h").read_text() == "hello"
    assert sorted(os.listdir(out / "d/s")) == ["x", "y"]


def test_links_are_copied_not_followed(look: Look, out: Path) -> None:
    explorer = look(_TREE)
    copy(explorer, b"d", out)
    assert os.readlink(out / "d/l") == "/etc/passwd"
    assert (out / "d/f").stat().st_ino == (out / "d/h").stat().st_ino
    assert (out / "d/f").stat().st_nlink == 2


def test_the_whole_image(look: Look, out: Path) -> None:
    explorer = look(_TREE)
    assert copy(explorer, b"", out).path == os.fsencode(out / "root")
    assert sorted(os.listdir(out / "root")) == ["d", "k"]


def test_what_was_deleted_comes_back_as_it_was_last(look: Look, out: Path) -> None:
    explorer = look("d/x#1 ‖ d/x#2 d/y ‖ .wh.d ‖ k")
    for top, source in ((3, 2), (4, 2)):
        folder = explorer.root(explorer.lens(top, aggregated=False))
        number = explorer.source(folder, b"d")
        assert number == source
        copy(explorer, b"d", out, number, replace=True)
        assert (out / "d/x").read_text() == "2"
        assert (out / "d/y").exists()


@pytest.mark.parametrize("there", ["file", "directory", "link"])
def test_what_has_the_name_stays_unless_it_shall_be_replaced(
    look: Look, out: Path, there: str
) -> None:
    explorer = look("d/x")
    victim = out.parent / "victim"
    victim.write_text("safe")
    make: dict[str, Callable[[], object]] = {
        "file": lambda: (out / "d").write_text("mine"),
        "directory": lambda: (out / "d" / "mine").mkdir(parents=True),
        "link": lambda: (out / "d").symlink_to(victim),
    }
    make[there]()
    before = (out / "d").lstat()
    with pytest.raises(ConflictError, match="is there already"):
        copy(explorer, b"d", out)
    assert os.path.samestat((out / "d").lstat(), before)
    copy(explorer, b"d", out, replace=True)
    assert os.listdir(out / "d") == ["x"]
    assert not (out / "d").is_symlink()
    assert victim.read_text() == "safe"
    assert os.listdir(out) == ["d"]


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("path", [b"d", b"k"])
def test_what_appears_meanwhile_stays(
    look: Look, out: Path, monkeypatch: pytest.MonkeyPatch, path: bytes, *, flags: bool
) -> None:
    """With and without a filesystem that can rename without replacing."""
    explorer = look("d/x k")
    if not flags:

        def renameat2(*_: object) -> None:
            raise OSError(errno.EINVAL, "no such flag")

        monkeypatch.setattr(_sys, "renameat2", renameat2)
        copy(explorer, path, out)
        assert (out / os.fsdecode(path)).exists()
        copy(explorer, path, out, replace=True)
    else:
        (out / os.fsdecode(path)).mkdir()
    monkeypatch.setattr(module, "_exists", lambda *_: False)
    before = (out / os.fsdecode(path)).lstat()
    with pytest.raises(ConflictError, match="is there already"):
        copy(explorer, path, out)
    assert os.path.samestat((out / os.fsdecode(path)).lstat(), before)
    assert os.listdir(out) == [os.fsdecode(path)]


def test_what_is_given_up_leaves_nothing(look: Look, out: Path) -> None:
    explorer = look(_TREE)
    left = 4

    def tick() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Cancelled

    with pytest.raises(Cancelled):
        extract(explorer.branches(1), b"d", os.fsencode(out), replace=False, tick=tick)
    assert os.listdir(out) == []


def test_what_fails_leaves_nothing(look: Look, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = look(_TREE)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="no space"):
        copy(explorer, b"d", out)
    assert os.listdir(out) == []
    with pytest.raises(NotFoundError, match="/nope is not there any more"):
        copy(explorer, b"nope", out)
    with pytest.raises(FileNotFoundError):
        copy(explorer, b"d", out / "nope")


def test_a_link_in_the_place_of_a_directory_is_not_gone_through(
    look: Look, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody swaps a directory of the unfinished copy for a link."""
    explorer = look("d/a d/b")
    outside = out.parent / "outside"
    outside.mkdir()
    real = os.mkdir

    def mkdir(name: bytes, mode: int, *, dir_fd: int) -> None:
        del mode
        os.symlink(outside, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        copy(explorer, b"d", out)
    monkeypatch.setattr(os, "mkdir", real)
    assert os.listdir(outside) == []
    assert os.listdir(out) == []


def test_into_a_directory_of_a_branch(look: Look, tmp_path: Path) -> None:
    """The copy does not meet itself."""
    rw = tmp_path / "rw"
    (rw / "in").mkdir(parents=True)
    explorer = look("a b", rw)
    copy(explorer, b"", rw / "in")
    assert sorted(os.listdir(rw / "in" / "root")) == ["a", "b", "in"]
    assert os.listdir(rw / "in" / "root" / "in") == []


def test_holes_stay_holes(look: Look, out: Path, tmp_path: Path) -> None:
    explorer = look("f")
    with open(tmp_path / "layer1/f", "wb") as file:
        file.truncate(64 << 20)
        file.seek(8 << 20)
        file.write(b"data")
    copy(explorer, b"f", out)
    with open(out / "f", "rb") as file:
        assert os.fstat(file.fileno()).st_size == 64 << 20
        assert os.fstat(file.fileno()).st_blocks * 512 < 4 << 20
        file.seek(8 << 20)
        assert file.read(5) == b"data\0"


def test_any_byte_in_names(look: Look, out: Path) -> None:
    explorer = look(r"d\xff\n/x\x1b[31m")
    copy(explorer, b"d\xff\n", out)
    assert os.listdir(os.fsencode(out)) == [b"d\xff\n"]
    assert os.listdir(os.fsencode(out) + b"/d\xff\n") == [b"x\x1b[31m"]


@pytest.mark.usefixtures("as_root")
def test_root_gets_everything_as_it_is(look: Look, out: Path, tmp_path: Path) -> None:
    explorer = look("d/ d/f d/c! d/l>x")
    layer = tmp_path / "layer1" / "d"
    os.mknod(layer / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(layer / "pipe")
    os.setxattr(layer / "f", "user.note", b"kept")
    os.chown(layer / "f", 11, 12)
    os.chown(layer / "l", 13, 14, follow_symlinks=False)
    (layer / "f").chmod(0o4750)
    layer.chmod(0o2705)
    done = copy(explorer, b"d", out)
    assert done.notes == ""
    got = (out / "d/f").stat()
    assert (got.st_uid, got.st_gid, stat.S_IMODE(got.st_mode)) == (11, 12, 0o4750)
    assert os.getxattr(out / "d/f", "user.note") == b"kept"
    link = (out / "d/l").lstat()
    assert (link.st_uid, link.st_gid) == (13, 14)
    device = (out / "d/null").stat()
    assert (stat.S_IFMT(device.st_mode), device.st_rdev) == (stat.S_IFCHR, os.makedev(1, 3))
    assert stat.S_ISFIFO((out / "d/pipe").stat().st_mode)
    assert stat.S_IMODE((out / "d").stat().st_mode) == 0o2705


_AS_USER = """
import os, sys
from unionfs.insight.where import of_directories
from unionfs.explore.model import Explorer
from unionfs.explore.extract import extract
os.umask(0o027)
with Explorer(of_directories([os.fsencode(sys.argv[1])])) as explorer:
    into = os.fsencode(sys.argv[2])
    done = extract(explorer.branches(1), b"d", into, replace=False, tick=lambda: None)
    print(done.notes)
"""


@pytest.mark.usefixtures("as_root")
def test_a_user_gets_files_of_their_own(open_tmp: Path) -> None:
    layer, out = open_tmp / "layer", open_tmp / "out"
    (layer / "d").mkdir(parents=True)
    (layer / "d" / "f").write_text("x")
    (layer / "d" / "f").chmod(0o4755)
    os.mknod(layer / "d" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    out.mkdir()
    out.chmod(0o777)
    argv = [*runtime().argv, "-c", _AS_USER, str(layer), str(out)]
    done = run_as_nobody(argv, timeout=60)
    notes = done.stdout.decode().strip()
    assert notes == "1 setuid or setgid bits left out, 1 devices left out", done.stderr.decode()
    got = (out / "d/f").stat()
    assert (got.st_uid, stat.S_IMODE(got.st_mode)) == (NOBODY, 0o750)
    assert stat.S_IMODE((out / "d").stat().st_mode) == 0o750
    assert os.listdir(out / "d") == ["f"]
