"""The merge rule, as a table over literal directories, and paths through a stack."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from unionfs.branch import Branch, Dialect, Stack, Writer
from unionfs.branch.override import STAT_XATTR
from unionfs.branch.whiteout import marker_for

OPQ = ".wh..wh..opq"


def build(root: Path, spec: str) -> Path:
    """Make a tree from words: `d/` directory, `l>t` symbolic link, anything else a file."""
    root.mkdir()
    for word in spec.split():
        path = root / word.rstrip("/").split(">")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        if word.endswith("/"):
            path.mkdir(exist_ok=True)
        elif ">" in word:
            path.symlink_to(word.split(">")[1])
        else:
            path.write_text(root.name)
    return root


def shown(stack: Stack) -> dict[str, str]:
    """Return path -> type letter, or the layer whose file is seen."""
    result = {}
    for path, view, name in stack.walk():
        status = view.status(name)
        assert status is not None
        if status.fmt == stat.S_IFREG:
            branch, fd = view.top(name)
            file = branch.open_file(fd, name, os.O_RDONLY)
            result[os.fsdecode(path)] = os.read(file, 10).decode()
            os.close(file)
        else:
            result[os.fsdecode(path)] = {stat.S_IFDIR: "d", stat.S_IFLNK: "l"}[status.fmt]
    return result


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["a", "b"], {"a": "0", "b": "1"}),
        (["d/x d/y", "d/.wh.x"], {"d": "d", "d/y": "0"}),
        (["d/x k", ".wh.d"], {"k": "0"}),
        (["d/x", f"d/{OPQ} d/y"], {"d": "d", "d/y": "1"}),
        (["d/x", "d", "d/y"], {"d": "d", "d/y": "2"}),
        (["d/x", ".wh.d", "d/y"], {"d": "d", "d/y": "2"}),
        (["d/x o/z", "d>o", "d/y"], {"d": "d", "d/y": "2", "o": "d", "o/z": "0"}),
        (["a d/x", f"{OPQ} b"], {"b": "1"}),
        (["x", ".wh.x x"], {"x": "1"}),
        (["d/old", ".wh.d d/new"], {"d": "d", "d/new": "1"}),
        (["d/s/a", f"d/s/{OPQ}", "d/s/b"], {"d": "d", "d/s": "d", "d/s/b": "2"}),
        (["x", ".wh.x/ "], {}),
        (["x", ".wh.x>q"], {}),
        (["a", ".wh. .wh..wh.foo"], {"a": "0"}),
        (["x", ".wh.x", "x"], {"x": "2"}),
    ],
)
def test_merge(tmp_path: Path, layers: list[str], expected: dict[str, str]) -> None:
    paths = [build(tmp_path / str(number), spec) for number, spec in enumerate(layers)]
    with Stack.open([os.fsencode(path) for path in reversed(paths)]) as stack:
        assert shown(stack) == expected


def test_a_lookup_never_follows_links(tmp_path: Path) -> None:
    outside = build(tmp_path / "outside", "secret")
    layer = build(tmp_path / "0", f"l>{outside} d/x")
    with Stack.open([os.fsencode(layer)]) as stack:
        status = stack.status(b"l")
        assert status is not None
        assert status.fmt == stat.S_IFLNK
        assert stack.status(b"l/secret") is None
        assert stack.view(b"l") is None
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            stack.branches[0].open_path(b"l")


def test_long_whiteout(tmp_path: Path) -> None:
    name = "n" * 253
    lower = build(tmp_path / "0", f"{name} k")
    upper = build(tmp_path / "1", "")
    file, content = marker_for(name.encode())
    (upper / file.decode()).write_bytes(content)
    with Stack.open([os.fsencode(upper), os.fsencode(lower)]) as stack:
        assert shown(stack) == {"k": "0"}
    # A file of that name that lies about its content hides nothing.
    (upper / file.decode()).write_bytes(b"k")
    with Stack.open([os.fsencode(upper), os.fsencode(lower)]) as stack:
        assert set(shown(stack)) == {"k", name}


@pytest.mark.usefixtures("as_root")
def test_overlay_dialect(tmp_path: Path) -> None:
    lower = build(tmp_path / "0", "d/x d/y x .wh.z")
    upper = build(tmp_path / "1", "d/y")
    os.mknod(upper / "x", stat.S_IFCHR, 0)
    os.setxattr(upper / "d", "trusted.overlay.opaque", b"y")
    branches = [Branch.open(os.fsencode(upper), Dialect.OVERLAY), Branch.open(os.fsencode(lower))]
    with Stack(branches) as stack:
        assert shown(stack) == {"d": "d", "d/y": "1"}


@pytest.fixture(params=["native", "override"])
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Writer]:
    if request.param == "native" and os.geteuid() != 0:
        pytest.skip("native ownership needs uid 0 (run `sudo make test`)")
    (tmp_path / "b").mkdir()
    with Branch.open(os.fsencode(tmp_path / "b")) as branch:
        made = Writer(branch, native=request.param == "native")
        if not made.native:
            made.mark()
        yield made


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "rdev", "target"),
    [
        (stat.S_IFREG | 0o4755, 33, 34, 0, b""),
        (stat.S_IFREG | 0o000, 0, 0, 0, b""),
        (stat.S_IFDIR | 0o1777, 5, 6, 0, b""),
        (stat.S_IFDIR | 0o000, 0, 0, 0, b""),
        (stat.S_IFLNK | 0o777, 0, 0, 0, b"../to"),
        (stat.S_IFLNK | 0o777, 33, 0, 0, b"../to"),
        (stat.S_IFIFO | 0o640, 0, 0, 0, b""),
        (stat.S_IFIFO | 0o640, 1, 2, 0, b""),
        (stat.S_IFSOCK | 0o640, 1, 2, 0, b""),
        (stat.S_IFCHR | 0o666, 0, 0, os.makedev(1, 3), b""),
        (stat.S_IFCHR | 0o666, 0, 5, 0, b""),
        (stat.S_IFBLK | 0o660, 0, 6, os.makedev(8, 1), b""),
    ],
)
def test_created_entries_present_what_was_asked(
    writer: Writer, mode: int, uid: int, gid: int, rdev: int, target: bytes
) -> None:
    branch = writer.branch
    writer.create(branch.fd, b"e", mode, uid, gid, rdev=rdev, target=target)
    status = branch.status(branch.fd, b"e")
    assert (status.mode, status.uid, status.gid, status.rdev) == (mode, uid, gid, rdev)
    if target:
        assert branch.readlink(branch.fd, b"e") == target
        assert status.size == len(target)
    assert not branch.list_xattrs(branch.fd, b"e")
    writer.set_owner(branch.fd, b"e", 0, 0)
    writer.set_mode(branch.fd, b"e", 0o751)
    again = branch.status(branch.fd, b"e")
    wanted = mode if stat.S_ISLNK(mode) else stat.S_IFMT(mode) | 0o751
    assert (again.mode, again.uid, again.gid, again.rdev) == (wanted, 0, 0, rdev)


def test_xattrs_are_presented_alike(writer: Writer) -> None:
    branch = writer.branch
    writer.create(branch.fd, b"f", stat.S_IFREG | 0o644, 0, 0)
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    wanted = {"user.note": b"n", "security.capability": capability, "trusted.t": b"\0\xff"}
    assert writer.set_xattrs(branch.fd, b"f", wanted) == []
    assert branch.all_xattrs(branch.fd, b"f") == wanted
    writer.remove_xattr(branch.fd, b"f", "trusted.t")
    assert branch.list_xattrs(branch.fd, b"f") == ["security.capability", "user.note"]


@pytest.mark.parametrize(
    "name", [STAT_XATTR, "trusted.overlay.opaque", "user.overlay.whiteout", "user.unionfs.ino"]
)
def test_bookkeeping_is_out_of_reach(writer: Writer, name: str) -> None:
    branch = writer.branch
    writer.create(branch.fd, b"f", stat.S_IFREG | 0o644, 0, 0)
    with pytest.raises(PermissionError):
        writer.set_xattr(branch.fd, b"f", name, b"y")
    with pytest.raises(OSError, match="No data"):
        branch.get_xattr(branch.fd, b"f", name)
    assert name not in branch.list_xattrs(branch.fd, b"f")


def test_chown_clears_setuid_as_the_kernel_does(writer: Writer) -> None:
    branch = writer.branch
    writer.create(branch.fd, b"f", stat.S_IFREG | 0o6755, 0, 0)
    writer.set_owner(branch.fd, b"f", 7, -1)
    status = branch.status(branch.fd, b"f")
    assert (status.mode, status.uid, status.gid) == (stat.S_IFREG | 0o755, 7, 0)


def test_nothing_setuid_is_real_without_root(tmp_path: Path) -> None:
    with Branch.open(os.fsencode(tmp_path)) as branch:
        writer = Writer(branch, native=False)
        writer.mark()
        writer.create(branch.fd, b"f", stat.S_IFREG | 0o6000, 0, 0)
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
