"""AUFS's leftovers in a rw branch, on directories made to look as AUFS leaves them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.engine_fs import build, disk_state

from unionfs import mountinfo
from unionfs.errors import BusyError
from unionfs.kernel import plinks
from unionfs.kernel.mounted import settle_branch
from unionfs.kernel.plinks import flush_pseudo_links, pseudo_links, touch_names


@pytest.fixture
def rw(tmp_path: Path) -> Path:
    """Make a branch with a copied-up file of two names, one of them never used, and a whiteout."""
    branch = tmp_path / "rw"
    build(
        branch,
        {
            ".wh..wh.aufs": "",
            ".wh.gone": "=.wh..wh.aufs",
            ".wh..wh.orph/": "",
            ".wh..wh.plnk/": "",
            "p": "PAIR",
            "d/": "",
        },
    )
    os.link(branch / "p", branch / ".wh..wh.plnk" / f"11.{(branch / 'p').stat().st_ino}")
    return branch


def test_missing_names_are_linked_and_nothing_of_aufs_stays(rw: Path) -> None:
    path = os.fsencode(rw)
    times = {place: place.stat().st_mtime_ns for place in (rw, rw / "d")}
    links = pseudo_links(path)
    assert links == {11: b"11.%d" % (rw / "p").stat().st_ino}
    names = [b"p", b"d/q", b"not/there/r", b"p/below/a/file"]
    flush_pseudo_links(path, {links[11]: names})
    assert (rw / "d" / "q").samefile(rw / "p")
    assert (rw / "p").stat().st_nlink == 2
    assert disk_state(rw) == {".wh.gone": "", "p": "PAIR", "d/": "", "d/q": "PAIR"}
    assert {place: place.stat().st_mtime_ns for place in times} == times
    assert pseudo_links(path) == {}


def test_what_has_the_name_meanwhile_is_kept(rw: Path) -> None:
    (rw / "d" / "q").write_text("other")
    copy = pseudo_links(os.fsencode(rw))[11]
    flush_pseudo_links(os.fsencode(rw), {copy: [b"d/q"], b"99.99": [b"d/r"]})
    assert (rw / "d" / "q").read_text() == "other"
    assert not (rw / "d" / "r").exists()


def test_a_branch_left_by_a_crash_is_settled(rw: Path) -> None:
    settle_branch(os.fsencode(rw))
    assert disk_state(rw) == {".wh.gone": "", "p": "PAIR", "d/": ""}


def test_names_are_used_without_changing_them(tmp_path: Path) -> None:
    """Any directory does for the walk: names of the inode are found and their times kept."""
    build(tmp_path / "union", {"p": "x", "a/q": "=p", "other": "o"})
    inode = (tmp_path / "union" / "p").stat().st_ino
    before = (tmp_path / "union" / "p").stat()
    tick = tmp_path / "tick"  # a kernel's file times move in steps of its clock
    while not tick.exists() or tick.stat().st_ctime_ns <= before.st_ctime_ns:
        tick.write_bytes(b"")
    found = touch_names(os.fsencode(tmp_path / "union"), {inode: b"copy"})
    assert {copy: sorted(names) for copy, names in found.items()} == {b"copy": [b"a/q", b"p"]}
    after = (tmp_path / "union" / "p").stat()
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert touch_names(os.fsencode(tmp_path / "nowhere"), {}) == {}


def test_a_name_that_may_not_be_touched_is_linked_afterwards(
    rw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An immutable file, or a mount that was made read-only."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    build(tmp_path / "union", {"p": "x", "d/q": "=p"})
    inode = (tmp_path / "union" / "p").stat().st_ino
    copy = pseudo_links(os.fsencode(rw))[11]
    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", refuse)
        names = touch_names(os.fsencode(tmp_path / "union"), {inode: copy})
    flush_pseudo_links(os.fsencode(rw), names)
    assert (rw / "d" / "q").samefile(rw / "p")


@pytest.mark.parametrize("odd", [b"rw", b"r w", b"r\\w", b"r\nw"])
def test_a_branch_that_sysfs_lists_is_busy(
    rw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bytes
) -> None:
    named = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + odd))
    rw.rename(named)
    sysfs = tmp_path / "sysfs"
    (sysfs / "si_1").mkdir(parents=True)
    (sysfs / "file").touch()
    monkeypatch.setattr(plinks, "_SYSFS", os.fsencode(sysfs))
    settle_only = os.fsencode(named)
    shown = os.fsencode(named)
    for char in (b"\\", b" ", b"\n"):
        shown = shown.replace(char, b"\\%03o" % ord(char))
    (sysfs / "si_1" / "br0").write_bytes(shown + b"=rw\n")
    (sysfs / "si_1" / "xi_path").write_bytes(settle_only)
    before = disk_state(named)
    with pytest.raises(BusyError, match="mounted with AUFS"):
        settle_branch(settle_only)
    assert disk_state(named) == before
    (sysfs / "si_1" / "br0").write_bytes(b"/elsewhere=rw\n")
    settle_branch(settle_only)
    assert disk_state(named) != before


def test_a_branch_that_only_the_mount_table_lists_is_busy(
    rw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the module's parameter `brs=0` the branches are among the options of the mount."""
    monkeypatch.setattr(plinks, "_SYSFS", os.fsencode(tmp_path / "absent"))
    options = b"rw,si=2a09,br:%b=rw:/l=ro+wh,dirperm1" % os.fsencode(rw)
    unions = [mountinfo.KernelUnion("0:50", "aufs", options)]
    monkeypatch.setattr(mountinfo, "kernel_unions", lambda: iter(unions))
    with pytest.raises(BusyError, match="mounted with AUFS"):
        settle_branch(os.fsencode(rw))
    unions[0] = unions[0]._replace(options=b"rw,br:/elsewhere=rw")
    settle_branch(os.fsencode(rw))
    assert disk_state(rw) == {".wh.gone": "", "p": "PAIR", "d/": ""}
