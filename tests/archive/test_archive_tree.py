"""A directory as a source: everything that tar can hold arrives, and nothing from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.limits import Limits
from unionfs.archive.tarstream import TarStream
from unionfs.archive.tree import ChunkReader, tree_tar
from unionfs.errors import StoreError


def entries(root: Path) -> dict[bytes, Entry]:
    reader = ChunkReader(tree_tar(os.fsencode(root)))
    return {entry.name: entry for entry in TarStream(reader, Limits())}


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def test_sockets_are_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        (root / "file").touch()
        assert list(entries(root)) == [b"./", b"file"]


def test_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("key")
    (root / "folder").symlink_to(tmp_path / "secret")
    (root / "file").symlink_to(tmp_path / "secret" / "key")
    found = entries(root)
    assert {name: entry.kind for name, entry in found.items()} == {
        b"./": Kind.DIRECTORY,
        b"file": Kind.SYMLINK,
        b"folder": Kind.SYMLINK,
    }


def test_hard_links_of_every_kind(root: Path) -> None:
    (root / "b").write_text("x")
    (root / "a").hardlink_to(root / "b")
    os.mkfifo(root / "p")
    os.link(root / "p", root / "q")
    found = entries(root)
    assert (found[b"a"].kind, found[b"a"].size) == (Kind.FILE, 1)
    assert (found[b"b"].kind, found[b"b"].linkname) == (Kind.HARDLINK, b"a")
    assert (found[b"q"].kind, found[b"q"].linkname) == (Kind.HARDLINK, b"p")


@pytest.mark.usefixtures("as_root")
def test_devices_and_owners(root: Path) -> None:
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.chown(root / "null", 1234, 4321)
    found = entries(root)[b"null"]
    assert (found.kind, found.rdev, found.uid, found.gid) == (Kind.CHAR, (1, 3), 1234, 4321)


def test_deeper_than_the_call_stack(root: Path) -> None:
    depth = 600
    path = root
    for _ in range(depth):
        path /= "d"
    path.mkdir(parents=True)
    before = open_descriptors()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    try:
        assert len(entries(root)) == depth + 1
    finally:
        sys.setrecursionlimit(limit)
    assert open_descriptors() == before


def test_a_walk_that_is_given_up_closes_everything(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "c").write_bytes(bytes(1 << 20))
    before = open_descriptors()
    chunks = tree_tar(os.fsencode(root))
    for _ in range(5):
        next(chunks)
    assert open_descriptors() > before
    chunks.close()  # type: ignore[attr-defined]  # it is a generator
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: os.truncate(path, 1 << 19), "shorter"),
        (lambda path: (path.unlink(), path.write_bytes(b"")), "changed"),
    ],
)
def test_a_file_that_changes_is_an_error(
    change: Callable[[Path], object],
    words: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = root / "file"
    path.write_bytes(bytes(1 << 20))
    if words == "changed":
        real = os.open

        def racing(name: str | bytes, flags: int, *, dir_fd: int | None = None) -> int:
            if name == b"file":
                change(path)
            return real(name, flags, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", racing)
        with pytest.raises(StoreError, match=words):
            list(tree_tar(os.fsencode(root)))
        return
    chunks = tree_tar(os.fsencode(root))
    while len(next(chunks)) < 10_000:
        pass
    change(path)
    with pytest.raises(StoreError, match=words):
        list(chunks)


@pytest.mark.usefixtures("as_root")
def test_a_plain_user_stands_for_root(open_tmp: Path) -> None:
    root = open_tmp / "root"
    root.mkdir()
    (root / "mine").touch()
    (root / "other").touch()
    for path in (root, root / "mine"):
        os.chown(path, 65534, 65534)
    os.chown(root / "other", 1000, 1000)
    code = (
        "import sys; from unionfs.archive.tree import *; from unionfs.archive.tarstream import *\n"
        "from unionfs.archive.limits import Limits\n"
        "stream = TarStream(ChunkReader(tree_tar(sys.argv[1].encode())), Limits())\n"
        "print([(e.name, e.uid, e.gid) for e in stream])"
    )
    package = Path(__file__).parents[2]
    done = subprocess.run(
        [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *(sys.executable, "-c", code, root),
        ],
        env={**os.environ, "PYTHONPATH": str(package)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "[(b'./', 0, 0), (b'mine', 0, 0), (b'other', 1000, 1000)]\n"
