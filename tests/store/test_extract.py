"""Extraction: attributes, types, hard links, duplicates, sparse files, and what stays recorded."""

from __future__ import annotations

import os
import resource
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import attrs
import pytest
from support.crash import run_child
from support.layers import Member, image_of, layer_of, layer_tar
from support.storetree import stack_tree

from unionfs.archive.limits import DEFAULT
from unionfs.branch import Branch, Stack, Status
from unionfs.errors import HostileArchiveError
from unionfs.store.graph import Graph
from unionfs.store.hardlinks import load_hardlinks, scan_hardlinks
from unionfs.store.ids import ImageId
from unionfs.store.ingest import import_image
from unionfs.store.names import clean, locate

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def store(graph: Graph, *layers: Sequence[Member]) -> tuple[ImageId, list[str]]:
    return import_image(graph, image_of([layer_tar(layer) for layer in layers]), transport="test")


def status(graph: Graph, image_id: ImageId, path: bytes) -> Status:
    with Stack.open(graph.layer_dirs(image_id)) as stack:
        found = stack.status(path)
    assert found is not None
    return found


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return a POSIX ACL attribute (acl(5), version 2) of (tag, rights, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_NO_ID = 0xFFFFFFFF
ACL = acl((1, 6, _NO_ID), (2, 4, 1000), (4, 4, _NO_ID), (16, 4, _NO_ID), (32, 0, _NO_ID))


def check_attributes(graph: Graph) -> None:
    members = [
        Member(b"./", "dir", mode=0o711, uid=5, gid=6, mtime=100),
        Member(b"d", "dir", mode=0o2775, uid=1, gid=2, mtime=1.25),
        Member(b"d/suid", data=b"x" * 1000, mode=0o6711, uid=1000, gid=1001, mtime=7),
        Member(b"d/none", mode=0o000, uid=3, gid=4),
        Member(b"cap", data=b"x", mode=0o755, xattrs=(("security.capability", CAPABILITY),)),
        Member(b"acl", data=b"x", mode=0o640, xattrs=(("system.posix_acl_access", ACL),)),
        Member(b"note", data=b"x", xattrs=(("user.note", b"\0\xff"),)),
        Member(b"dev", "char", mode=0o666, uid=1, rdev=(1, 3)),
        Member(b"disk", "block", mode=0o660, gid=6, rdev=(8, 0)),
        Member(b"zero", "char", mode=0o600),
        Member(b"pipe", "fifo", mode=0o640, uid=9, gid=9),
        Member(b"link", "symlink", target=b"d/none", uid=11, gid=12, mtime=3),
        Member(b"old", mtime=-5),
        Member(b"last", "dir", mode=0o500),
        Member(b"last/inside", data=b"i"),
    ]
    image_id, warnings = store(graph, members)
    assert warnings == []

    def facts(path: bytes) -> tuple[int, int, int]:
        st = status(graph, image_id, path)
        return st.mode, st.uid, st.gid

    assert facts(b"") == (stat.S_IFDIR | 0o711, 5, 6)
    assert facts(b"d") == (stat.S_IFDIR | 0o2775, 1, 2)
    assert facts(b"d/suid") == (stat.S_IFREG | 0o6711, 1000, 1001)
    assert facts(b"d/none") == (stat.S_IFREG, 3, 4)
    assert facts(b"dev") == (stat.S_IFCHR | 0o666, 1, 0)
    assert facts(b"disk") == (stat.S_IFBLK | 0o660, 0, 6)
    assert facts(b"zero") == (stat.S_IFCHR | 0o600, 0, 0)
    assert facts(b"pipe") == (stat.S_IFIFO | 0o640, 9, 9)
    assert facts(b"link") == (stat.S_IFLNK | 0o777, 11, 12)
    assert facts(b"last") == (stat.S_IFDIR | 0o500, 0, 0)
    assert status(graph, image_id, b"dev").rdev == os.makedev(1, 3)
    assert status(graph, image_id, b"disk").rdev == os.makedev(8, 0)
    assert status(graph, image_id, b"zero").rdev == 0
    assert [status(graph, image_id, path).mtime_ns for path in (b"", b"d", b"old", b"link")] == [
        100 * 10**9,
        1_250_000_000,
        -5 * 10**9,
        3 * 10**9,
    ]
    with Stack.open(graph.layer_dirs(image_id)) as stack:
        branch = stack.branches[0]
        assert branch.get_xattr(branch.fd, b"cap", "security.capability") == CAPABILITY
        assert branch.get_xattr(branch.fd, b"acl", "system.posix_acl_access") == ACL
        assert branch.get_xattr(branch.fd, b"note", "user.note") == b"\0\xff"
        assert branch.readlink(branch.fd, b"link") == b"d/none"


@pytest.mark.usefixtures("as_root")
def test_attributes_as_root(graph: Graph) -> None:
    check_attributes(graph)
    layers = {image.facts.dialect for image in graph.all() if image.facts and image.facts.diff_id}
    assert layers == {"override"}, "a device 0:0 must not be a real one"


@pytest.mark.usefixtures("as_root")
def test_attributes_are_real_where_they_can_be(graph: Graph) -> None:
    image_id, _ = store(graph, [Member(b"f", data=b"x", mode=0o4755, uid=7, gid=8)])
    st = os.stat(graph.layer_dirs(image_id)[0] + b"/f")
    assert (st.st_mode, st.st_uid, st.st_gid) == (stat.S_IFREG | 0o4755, 7, 8)


@pytest.mark.usefixtures("as_root")
def test_attributes_as_plain_user(open_tmp: Path) -> None:
    def child() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with Graph(os.fsencode(open_tmp / "store")) as graph:
            check_attributes(graph)
            for folder, _, files in os.walk(graph.path):
                for name in files:
                    st = os.lstat(os.path.join(folder, os.fsencode(name)))
                    assert not st.st_mode & (stat.S_ISUID | stat.S_ISGID), "no real setuid files"

    assert run_child(child) == 0


@pytest.mark.usefixtures("as_root")
def test_default_acl_is_not_inherited_while_extracting(graph: Graph) -> None:
    members = [
        Member(b"d", "dir", mode=0o755, xattrs=(("system.posix_acl_default", ACL),)),
        Member(b"d/f", data=b"x", mode=0o644),
        Member(b"d/sub", "dir", mode=0o755),
    ]
    image_id, warnings = store(graph, members)
    assert warnings == []
    layer = graph.layer_dirs(image_id)[0]
    assert os.listxattr(layer + b"/d") == ["system.posix_acl_default"]
    assert os.listxattr(layer + b"/d/f") == []
    assert os.listxattr(layer + b"/d/sub") == []
    assert stat.S_IMODE(os.stat(layer + b"/d/f").st_mode) == 0o644


@pytest.mark.usefixtures("as_root")
def test_attributes_that_the_file_system_refuses_are_told(graph: Graph) -> None:
    members = [
        Member(b"a", xattrs=(("nonamespace", b"v"),)),
        Member(b"b", xattrs=(("user.big", b"v" * 70_000),)),
        Member(b"c", xattrs=(("security.capability", b"\1"),)),
        Member(b"d", "symlink", target=b"a", xattrs=(("user.on-link", b"v"),)),
    ]
    _, warnings = store(graph, members)
    assert len(warnings) == 4
    assert all("cannot be kept here" in text for text in warnings)


def test_directory_over_directory_takes_the_new_attributes(graph: Graph) -> None:
    members = [
        Member(b"d", "dir", mode=0o755, mtime=5, xattrs=(("user.old", b"1"),)),
        Member(b"d/f", data=b"kept"),
        Member(b"d", "dir", mode=0o700, mtime=9, xattrs=(("user.new", b"2"),)),
    ]
    image_id, _ = store(graph, members)
    with Stack.open(graph.layer_dirs(image_id)) as stack:
        assert stack_tree(stack) == {b"d": ("d", b"700"), b"d/f": ("f", b"kept")}
        branch = stack.branches[0]
        assert branch.all_xattrs(branch.fd, b"d") == {"user.new": b"2"}
    assert status(graph, image_id, b"d").mtime_ns == 9 * 10**9


def test_implied_directory_takes_the_attributes_below(graph: Graph) -> None:
    lower = [
        Member(b"./", "dir", mode=0o711),
        Member(b"d", "dir", mode=0o750, mtime=5, xattrs=(("user.x", b"1"),)),
        Member(b"d/e", "dir", mode=0o700),
    ]
    image_id, _ = store(graph, lower, [Member(b"d/e/f"), Member(b"n/f", mtime=8)])
    assert [status(graph, image_id, path).mode & 0o7777 for path in (b"", b"d", b"d/e", b"n")] == [
        0o711,
        0o750,
        0o700,
        0o755,
    ]
    assert status(graph, image_id, b"d").mtime_ns == 5 * 10**9
    assert status(graph, image_id, b"n").mtime_ns == 8 * 10**9
    top = graph.layer_dirs(image_id)[0]
    assert os.getxattr(top + b"/d", "user.x") == b"1"


def test_hard_links(graph: Graph) -> None:
    lower = [Member(b"low", data=b"low", mode=0o600, xattrs=(("user.x", b"1"),))]
    upper = [
        Member(b"d/a", data=b"a" * 600),
        Member(b"b", "hardlink", target=b"./d//a"),
        Member(b"c", "hardlink", target=b"/b"),
        Member(b"sym", "symlink", target=b"nowhere"),
        Member(b"sym2", "hardlink", target=b"sym"),
        Member(b"one", "hardlink", target=b"low"),
        Member(b"two", "hardlink", target=b"low"),
        Member(b"n\xff", data=b"n"),
        Member(b"n2", "hardlink", target=b"n\xff"),
        Member(b"gone", "hardlink", target=b"b"),
        Member(b"gone", data=b"other"),
    ]
    image_id, warnings = store(graph, lower, upper)
    assert warnings == ["one: a hard link to low of a layer below was made a copy"]
    image = graph.history(image_id)[1]
    with Branch.open(image.layer_path) as layer:
        table = load_hardlinks(image.path, layer)
        groups = {(b"b", b"c", b"d/a"), (b"sym", b"sym2"), (b"one", b"two"), (b"n2", b"n\xff")}
        assert set(table.values()) == groups
        for ino, names in table.items():
            for name in names:
                assert os.lstat(os.path.join(image.layer_path, name)).st_ino == ino
        assert scan_hardlinks(layer) == table
        os.unlink(image.path + b"/hardlinks.json")
        assert load_hardlinks(image.path, layer) == table, "an old layer is scanned"
    copy = os.path.join(image.layer_path, b"one")
    assert os.getxattr(copy, "user.x") == b"1"
    assert stat.S_IMODE(os.stat(copy).st_mode) == 0o600


def test_empty_stream_is_an_empty_layer(graph: Graph) -> None:
    """docker#18170: zero bytes are a layer."""
    image_id, warnings = import_image(graph, image_of([b""]), transport="test")
    assert os.listdir(graph.layer_dirs(image_id)[0]) == []
    assert warnings == []


def test_compressed_layer(graph: Graph) -> None:
    tar = layer_tar([Member(b"f", data=b"x" * 5000)])
    plain = image_of([tar])
    packed = attrs.evolve(plain, layers=(layer_of(tar, compress=True),))
    calls: list[tuple[str, int, int | None]] = []
    with_progress = import_image(
        graph, packed, transport="test", progress=lambda *call: calls.append(call)
    )
    assert calls
    assert calls[-1][1] == calls[-1][2] == packed.layers[0].size
    assert import_image(graph, plain, transport="test") == with_progress


def test_known_layers_are_not_read_again(graph: Graph) -> None:
    def never() -> BinaryIO:
        raise AssertionError("read")

    tars = [layer_tar([Member(b"a")]), layer_tar([Member(b"b")])]
    first, _ = import_image(graph, image_of(tars), transport="test")
    image = image_of(tars, comment="another image of the same layers")
    unread = tuple(attrs.evolve(layer, open=never) for layer in image.layers)
    second, _ = import_image(graph, attrs.evolve(image, layers=unread), transport="test")
    assert first != second
    assert graph.layer_dirs(first) == graph.layer_dirs(second)


def test_many_small_directories_need_few_descriptors(graph: Graph) -> None:
    deep = [Member(b"/".join([b"d%d" % number] * 150) + b"/f") for number in range(5)]
    wide = [Member(b"w%d/f" % number) for number in range(600)]

    def child() -> None:  # the limit cannot be raised again
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
        image_id, _ = store(graph, deep + wide, [Member(item.name) for item in wide])
        with Stack.open(graph.layer_dirs(image_id)) as stack:
            assert len(stack_tree(stack)) == 5 * 151 + 1200

    assert run_child(child) == 0


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"/abs", b"abs"),
        (b"./rel", b"rel"),
        (b"./", b""),
        (b"/", b""),
        (b"x//y/", b"x/y"),
        (b"a/./b", b"a/b"),
        (b"a/../b", b"b"),
        (b"a/..", b""),
        (b"...", b"..."),
    ],
)
def test_clean_names(name: bytes, path: bytes) -> None:
    assert clean(name, DEFAULT) == path
    locate(path)


@pytest.mark.parametrize("name", [b"..", b"../a", b"/..", b"a/../../b", b"a\0b"])
def test_names_that_are_refused(name: bytes) -> None:
    with pytest.raises(HostileArchiveError):
        clean(name, DEFAULT)
