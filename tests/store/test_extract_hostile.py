"""Archives that try to leave the layer: nothing outside is read, made, changed or linked.

The names are those of the suites they come from: containerd's TestBreakouts, Docker's
TestApplyLayerInvalid*, umoci's TestUnpackEntry*, and the CVEs. Each archive is a layer over a base
with an `etc` like containerd's; beside the store lies a victim that must stay as it is, and where
an archive is refused, the store must be as before, too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.crash import run_child
from support.layers import Member, image_of, layer_of, layer_tar
from support.rows import Node
from support.storetree import stack_tree

from unionfs.archive.image import SourceImage
from unionfs.branch import Stack
from unionfs.errors import HostileArchiveError, UnionfsError
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image

#: What the base layer holds.
BASE = (
    Member(b"etc", "dir"),
    Member(b"etc/passwd", data=b"inside"),
    Member(b"etc/unbroken", data=b"inside"),
    Member(b"lower", data=b"lower"),
)
#: Stands in names and targets for the absolute path of the victim's directory.
V = b"@VICTIM@"


def link(name: bytes, target: bytes) -> Member:
    return Member(name, "symlink", target=target)


def hard(name: bytes, target: bytes, mode: int = 0o644) -> Member:
    return Member(name, "hardlink", target=target, mode=mode)


def file(name: bytes, mode: int = 0o644) -> Member:
    return Member(name, data=b"evil", mode=mode)


def folder(name: bytes) -> Member:
    return Member(name, "dir")


#: name -> (members, what must be in the tree afterwards, or None where the layer is refused).
CASES: dict[str, tuple[list[Member], dict[bytes, Node] | None]] = {
    # containerd, TestBreakouts: links are taken literally, what lies below replaces them.
    "SymlinkAbsolute": ([link(b"local", V), file(b"local/f")], {b"local/f": ("f", b"evil")}),
    "SymlinkUpAndOut": (
        [link(b"local", b"../../../../../.." + V), file(b"local/f")],
        {b"local/f": ("f", b"evil")},
    ),
    "SymlinkMultipleAbsolute": (
        [link(b"a", b"/"), link(b"a/b", V), file(b"a/b/f")],
        {b"a/b/f": ("f", b"evil")},
    ),
    "SymlinkMultipleRelative": (
        [folder(b"d"), link(b"d/a", b"../.."), link(b"d/a/b", b"../.." + V), file(b"d/a/b/f")],
        {b"d/a/b/f": ("f", b"evil")},
    ),
    "SymlinkEmptyFile": ([link(b"l", V + b"/new"), file(b"l")], {b"l": ("f", b"evil")}),
    "SymlinkOverwrite": ([link(b"l", V + b"/file"), file(b"l")], {b"l": ("f", b"evil")}),
    "SymlinkParentDirectory": ([link(b"a/b", b".."), file(b"a/b/f")], {b"a/b/f": ("f", b"evil")}),
    "SymlinkParentRelative": (
        [link(b"a/b", b"../../../.." + V), file(b"a/b/c/f")],
        {b"a/b/c/f": ("f", b"evil")},
    ),
    "SymlinkSlashEnded": (
        [link(b"l", V + b"/"), folder(b"l/"), file(b"l/f")],
        {b"l/f": ("f", b"evil")},
    ),
    "SymlinkOverrideDirectory": (
        [folder(b"d"), file(b"d/x"), link(b"d", V), file(b"d/f")],
        {b"d/f": ("f", b"evil")},
    ),
    "SymlinkOverrideDirectoryRelative": (
        [folder(b"d"), link(b"d", b"../.." + V), file(b"d/f")],
        {b"d/f": ("f", b"evil")},
    ),
    "SymlinkOverridePath": (
        [folder(b"a"), folder(b"a/b"), link(b"a", V), folder(b"a/b"), file(b"a/b/f")],
        {b"a/b/f": ("f", b"evil")},
    ),
    "DirectoryOverrideSymlink": (
        [link(b"l", V), folder(b"l"), file(b"l/f")],
        {b"l/f": ("f", b"evil")},
    ),
    "DirectoryOverrideSymlinkAndHardlink": (
        [link(b"l", V), folder(b"l"), hard(b"l/h", b"etc/passwd")],
        {b"l/h": ("f", b"inside")},
    ),
    "HardlinkRelative": ([hard(b"h", b"etc/unbroken")], {b"h": ("f", b"inside")}),
    "HardlinkDownAndOut": ([hard(b"h", b"etc/../etc/passwd")], {b"h": ("f", b"inside")}),
    "HardlinkAbsolute": ([hard(b"h", b"/etc/passwd")], {b"h": ("f", b"inside")}),
    "HardlinkAbsoluteHost": ([hard(b"h", V + b"/file")], None),
    "HardlinkRelativeLong": ([hard(b"h", b"../../../../../../.." + V + b"/file")], None),
    "HardlinkRelativeUpAndOut": ([hard(b"h", b"etc/../../../etc/passwd")], None),
    "HardlinkDirectRelative": ([hard(b"d/h", b"../etc/passwd")], None),
    "HardlinkDirectAbsolute": ([hard(b"h", V)], None),
    "HardlinkSymlinkBeforeCreateTarget": ([hard(b"h", b"l/f"), link(b"l", V)], None),
    "HardlinkSymlinkRelative": ([link(b"l", b"../.." + V), hard(b"h", b"l/file")], None),
    "HardlinkSymlinkAbsolute": ([link(b"l", V), hard(b"h", b"l/file")], None),
    "HardlinkSymlinkChmod": (
        [link(b"l", V + b"/file"), hard(b"h", b"l", 0o4777)],
        {b"h": ("l", V + b"/file")},
    ),
    "HardlinkOverSymlinkThenWrite": (
        [link(b"l", V + b"/file"), hard(b"h", b"l"), file(b"h", 0o4777)],
        {b"h": ("f", b"evil"), b"l": ("l", V + b"/file")},
    ),
    "WhiteoutRootParent": ([file(b".wh...")], None),
    "WhiteoutParent": ([file(b"etc/.wh...")], None),
    "WhiteoutRoot": ([file(b".wh..")], None),
    "WhiteoutCurrentDirectory": ([file(b"etc/.wh..")], None),
    "WhiteoutEmpty": ([file(b"etc/.wh.")], None),
    "WhiteoutSymlink": ([link(b"l", V + b"/file"), file(b".wh.l")], {b"l": ("l", V + b"/file")}),
    "WhiteoutSymlinkPath": ([link(b"l", V), file(b"l/.wh.file")], {b"l": ("l", V)}),
    "OpaqueSymlinkPath": ([link(b"l", V), file(b"l/.wh..wh..opq")], {b"l": ("l", V)}),
    "WhiteoutDirectoryName": ([file(b".wh.etc/somefile")], None),
    "WhiteoutDeadSymlinkParent": (
        [link(b"l", b"dead"), file(b"l/.wh.file")],
        {b"l": ("l", b"dead")},
    ),
    "WhiteoutRelativePath": ([file(b"dne/../.wh.etc")], {}),
    # moby, TestApplyLayerInvalidFilenames, -Hardlink, -Symlink.
    "dotdot": ([file(b"../victim/dotdot")], None),
    "slash-dotdot": ([file(b"/../victim/slash-dotdot")], None),
    "dotdot-inside": ([file(b"a/../../victim/f")], None),
    "dotdot-folder": ([folder(b"..")], None),
    "dotdot-link": ([link(b"../l", V)], None),
    "loophole-victim-hardlink": (
        [hard(b"loophole-victim", b"../victim"), file(b"loophole-victim/file")],
        None,
    ),
    "loophole-victim-symlink": (
        [link(b"loophole-victim", b"../victim"), file(b"loophole-victim/file")],
        {b"loophole-victim/file": ("f", b"evil")},
    ),
    "symlink-chmod": ([link(b"l", V + b"/file"), folder(b"l")], {b"l": ("d", b"755")}),
    # umoci: CVE-2021-29136, the root itself as a link.
    "RootIsSymlink": ([link(b".", V)], None),
    "RootSlashDotIsSymlink": ([link(b"/.", V), file(b"f")], None),
    "RootIsFile": ([file(b"./")], None),
    "RootIsHardlink": ([hard(b".", b"etc/passwd")], None),
    "NonDirParent": ([file(b"etc/passwd/x")], {b"etc/passwd/x": ("f", b"evil")}),
    # Links that lead nowhere.
    "LinkLoop": ([link(b"a", b"b"), link(b"b", b"a"), file(b"a/x")], {b"a/x": ("f", b"evil")}),
    "LinkToItself": ([link(b"a", b"a"), file(b"a/x")], {b"a/x": ("f", b"evil")}),
    "HardlinkToDirectory": ([folder(b"d"), hard(b"h", b"d")], None),
    "HardlinkToLowerDirectory": ([hard(b"h", b"etc")], None),
    "HardlinkToRoot": ([hard(b"h", b".")], None),
    "HardlinkToItself": ([hard(b"h", b"h")], None),
    "HardlinkToItselfExisting": ([file(b"h"), hard(b"h", b"./h")], None),
    "HardlinkToLater": ([hard(b"h", b"later"), file(b"later")], None),
    "HardlinkToWhiteout": ([file(b".wh.lower"), hard(b"h", b".wh.lower")], None),
    "HardlinkToHousekeeping": ([file(b".wh..wh.aufs"), hard(b"h", b".wh..wh.aufs")], None),
    "HardlinkToMissingPseudoLink": ([hard(b"h", b".wh..wh.plnk/1.2")], None),
    "HardlinkToParent": ([file(b"a"), hard(b"a/b", b"a")], None),
    "HardlinkReplacesItsParent": ([file(b"d/x"), hard(b"d", b"d/x")], None),
    "FileOverTree": ([file(b"d/a/b/c"), file(b"d")], {b"d": ("f", b"evil")}),
    # Injection of what means something to a union.
    "LongWhiteoutInjected": (
        [Member(b".wh..wh.long." + b"0" * 32, data=b"etc")],
        {b"etc/passwd": ("f", b"inside")},
    ),
    "DeviceZero": ([Member(b"lower", "char")], {b"lower": ("c", b"0:0")}),
    "Fifo": ([Member(b"lower", "fifo")], {b"lower": ("c", b"0:0")}),
    "LinkInPlaceOfWhiteoutTarget": (
        [link(b".wh.lower", V + b"/file")],
        {},
    ),
}


def fill(member: Member, victim: bytes) -> Member:
    return attrs.evolve(
        member,
        name=member.name.replace(V, victim),
        target=member.target.replace(V, victim),
    )


def outside(top: Path, skip: Path) -> dict[str, tuple[Any, ...]]:
    """Return all that somebody could see of files outside of `skip`, directory times included."""
    found = {}
    for folder_path, folders, files in os.walk(top):
        folders[:] = [name for name in folders if Path(folder_path, name) != skip]
        for name in [".", *folders, *files]:
            path = Path(folder_path, name)
            st = path.lstat()
            data = path.read_bytes() if stat.S_ISREG(st.st_mode) else b""
            # Staging happens in `:tmp:`, so its own times may change; its content may not.
            timeless = path == top or ":tmp:" in (name, Path(folder_path).name)
            times = () if timeless else (st.st_mtime_ns, st.st_ctime_ns)
            found[str(path)] = (st.st_mode, st.st_nlink, st.st_uid, st.st_size, data, *times)
    return found


def attack(name: str, top: Path) -> None:
    members, expected = CASES[name]
    victim = top / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"host")
    (victim / "file").chmod(0o600)
    target = os.fsencode(victim)
    members = [fill(member, target) for member in members]
    store = top / "store"
    with Graph(os.fsencode(store)) as graph:
        base = layer_tar(BASE)
        import_image(graph, image_of([base]), transport="test")
        before = outside(top, store)
        whole = outside(store, top)
        image = image_of([base, layer_tar(members)])
        if expected is None:
            with pytest.raises(HostileArchiveError) as caught:
                import_image(graph, image, transport="test")
            assert "\n" not in str(caught.value)
            assert outside(store, top) == whole, "the store must be as before"
        else:
            image_id, _ = import_image(graph, image, transport="test")
            with Stack.open(graph.layer_dirs(image_id)) as stack:
                tree = stack_tree(stack)
            for path, (kind, value) in expected.items():
                assert tree.get(path) == (kind, value.replace(V, target)), path
        assert outside(top, store) == before, "something outside was touched"


@pytest.mark.parametrize("name", CASES)
def test_archive_cannot_leave_the_layer(name: str, tmp_path: Path) -> None:
    attack(name, tmp_path)


@pytest.mark.usefixtures("as_root")
def test_archives_cannot_leave_the_layer_of_a_plain_user(open_tmp: Path) -> None:
    def child() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        for name in CASES:
            top = open_tmp / name
            top.mkdir()
            try:
                attack(name, top)
            except Exception as error:
                raise AssertionError(name) from error

    assert run_child(child) == 0


#: Archives that are refused for what a member says of itself; bytes that tarfile cannot write.
MALFORMED = {
    "nul in a pax name": [Member(b"\xc3\xa4\0b")],
    "device number": [Member(b"x", "block", rdev=(2**12, 0))],
    "component of 256 bytes": [Member(b"n" * 256)],
    "path of 5000 bytes": [Member(b"/".join([b"n" * 200] * 25))],
    "depth of 1100": [Member(b"/".join([b"n"] * 1100))],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_impossible_member_is_refused(name: str, graph: Graph, root: Path) -> None:
    import_image(graph, image_of([b""]), transport="test")
    before = outside(root, root / "none")
    tar = layer_tar(MALFORMED[name])
    with pytest.raises(UnionfsError):
        import_image(graph, image_of([tar]), transport="test")
    assert outside(root, root / "none") == before


@pytest.mark.parametrize("name", ["HardlinkToItself", "HardlinkToItselfExisting"])
def test_link_to_itself_is_told_as_that(name: str, graph: Graph) -> None:
    with pytest.raises(HostileArchiveError, match="that is itself"):
        import_image(graph, image_of([layer_tar(CASES[name][0])]), transport="test")


def test_wrong_diff_id_is_refused(graph: Graph, root: Path) -> None:
    good, other = layer_tar([Member(b"a")]), layer_tar([Member(b"b")])
    import_image(graph, image_of([b""]), transport="test")
    before = outside(root, root / "none")
    image = image_of([good])
    swapped = SourceImage(image.references, image.config, (layer_of(other, promise=False),), None)
    with pytest.raises(HostileArchiveError, match="not those of the layers"):
        import_image(graph, swapped, transport="test")
    lying = attrs.evolve(layer_of(other), diff_id=layer_of(good).diff_id)
    with pytest.raises(HostileArchiveError, match="the image is damaged"):
        import_image(graph, attrs.evolve(image, layers=(lying,)), transport="test")
    assert outside(root, root / "none") == before
    import_image(graph, image, transport="test")


def test_a_bad_top_layer_takes_the_good_ones_with_it(graph: Graph, root: Path) -> None:
    import_image(graph, image_of([b""]), transport="test")
    before = outside(root, root / "none")
    tars = [layer_tar([Member(b"a", data=b"x" * 5000)]), layer_tar([Member(b"../x")])]
    with pytest.raises(HostileArchiveError):
        import_image(graph, image_of(tars), transport="test")
    assert outside(root, root / "none") == before


def test_attributes_of_unions_do_not_pass(graph: Graph) -> None:
    """A layer cannot declare itself opaque, fake owners or inode numbers."""
    hidden = {
        "trusted.overlay.opaque": b"y",
        "user.overlay.whiteout": b"y",
        "user.containers.override_stat": b"0:0:4755:char-1-3",
        "user.unionfs.owner": b"0:0",
        "trusted.unionfs.ino": b"1",
        "user.fuseoverlayfs.origin": b"x",
    }
    members = [
        Member(b"./", "dir", xattrs=tuple(hidden.items())),
        Member(b"d", "dir", xattrs=tuple(hidden.items())),
        Member(b"f", xattrs=(*hidden.items(), ("user.kept", b"v"))),
    ]
    image_id, warnings = import_image(graph, image_of([layer_tar(members)]), transport="test")
    layer = graph.layer_dirs(image_id)[0]
    for name in (b".", b"d", b"f"):
        present = os.listxattr(os.path.join(layer, name))
        assert not [item for item in present if item in hidden]
    assert os.getxattr(os.path.join(layer, b"f"), "user.kept") == b"v"
    assert len([text for text in warnings if "bookkeeping" in text]) == 3 * len(hidden)


def test_warnings_are_bounded(graph: Graph) -> None:
    members = [Member(b".wh.n%d" % number) for number in range(500)]
    _, warnings = import_image(graph, image_of([layer_tar(members)]), transport="test")
    assert len(warnings) == 101
    assert warnings[-1] == "and 400 more warnings"
