"""Operations on an overlayfs mount beyond the tables, and what they leave in the rw branch."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.engine_fs import EngineFs, build, disk_form, disk_state, fingerprint, snapshot
from support.kernelways import WAYS, in_way, request_for, require_way

from unionfs.branch import whiteout
from unionfs.kernel.mounted import Layer
from unionfs.kernel.overlay_union import mount_overlay
from unionfs.store.changes import changes
from unionfs.union import Engine

LOWER = {"f": "lower", "d/a": "aaa", "d/b": "bbb", "s": "->f", "p": "pair", "q": "=p"}
OPAQUE = os.fsdecode(whiteout.OPAQUE)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    require_way(request.param)
    return str(request.param)


def refused(code: int, action: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=re.escape(f"[Errno {code}]")):
        action()


def rewrite(path: Path, text: str = "new") -> None:
    path.unlink()
    path.write_text(text)


def new_directory(target: Path) -> None:
    shutil.rmtree(target / "d")
    (target / "d").mkdir()


def test_metadata_and_copy_up(way: str, open_tmp: Path) -> None:
    """O15: everything comes along, parents with their attributes and times."""

    def action() -> None:
        build(open_tmp / "base", LOWER)
        lower = open_tmp / "base" / "d" / "a"
        os.setxattr(lower, "user.note", b"kept")
        os.utime(lower, ns=(123456789, 987654321))
        (open_tmp / "base" / "d").chmod(0o2750)
        os.utime(open_tmp / "base" / "d", ns=(5, 7))
        mounted = mount_overlay(request_for(open_tmp, open_tmp / "base"))
        (open_tmp / "target" / "d" / "a").chmod(0o600)
        os.setxattr(open_tmp / "target" / "f", "user.new", b"1")
        mounted.unmount()
        copy = open_tmp / "rw" / "d" / "a"
        assert os.getxattr(copy, "user.note") == b"kept"
        assert copy.stat().st_mtime_ns == 987654321
        fs = EngineFs(Engine.start([os.fsencode(open_tmp / "base")], os.fsencode(open_tmp / "rw")))
        assert stat.S_IMODE(fs.attr("d/a").mode) == 0o600
        assert stat.S_IMODE(fs.attr("d").mode) == 0o2750
        assert fs.attr("d").mtime_ns == 7
        assert fs.xattrs("f") == {"user.new": b"1"}
        fs.engine.close()
        assert disk_state(open_tmp / "rw") == {"d/": "", "d/a": "aaa", "f": "lower"}

    in_way(way, action)


def test_root_mode_and_two_mounts_over_one_layer(way: str, open_tmp: Path) -> None:
    """O27 and O28; a read-only mount shows the layer's root, an old store's as it should be."""

    def action() -> None:
        build(open_tmp / "base", LOWER)
        (open_tmp / "base").chmod(0o700)
        before = fingerprint(open_tmp / "base")
        mounts = []
        for name in ("one", "two"):
            (open_tmp / name).mkdir()
            request = request_for(open_tmp / name, open_tmp / "base", root_mode=0o755)
            mounts.append(mount_overlay(request))
            assert stat.S_IMODE((open_tmp / name / "target").stat().st_mode) == 0o755
        (open_tmp / "one" / "target").chmod(0o711)
        (open_tmp / "one" / "target" / "f").unlink()
        assert (open_tmp / "two" / "target" / "f").read_text() == "lower"
        for mounted in mounts:
            mounted.unmount()
        (open_tmp / "ro").mkdir()
        request = request_for(open_tmp / "ro", open_tmp / "base", rw=False, root_mode=0o755)
        mounted = mount_overlay(request)
        target = open_tmp / "ro" / "target"
        assert stat.S_IMODE(target.stat().st_mode) == 0o755
        refused(errno.EROFS, (target / "f").unlink)
        mounted.unmount()
        assert fingerprint(open_tmp / "base") == before
        layers = [os.fsencode(open_tmp / "base")]
        fs = EngineFs(Engine.start(layers, os.fsencode(open_tmp / "one" / "rw")))
        assert stat.S_IMODE(fs.attr("").mode) == 0o711
        fs.engine.close()

    in_way(way, action)


def test_an_opaque_root_hides_everything_below(way: str, open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", LOWER)
        build(open_tmp / "top", {OPAQUE: "", "only": "1"})
        mounted = mount_overlay(request_for(open_tmp, open_tmp / "top", open_tmp / "base"))
        assert os.listdir(open_tmp / "target") == ["only"]
        mounted.unmount()
        (open_tmp / "rw" / OPAQUE).touch()
        (open_tmp / "rw" / "mine").touch()
        mounted = mount_overlay(request_for(open_tmp, open_tmp / "top", open_tmp / "base"))
        assert os.listdir(open_tmp / "target") == ["mine"]
        (open_tmp / "target" / "more").touch()
        mounted.unmount()
        assert disk_state(open_tmp / "rw") == {OPAQUE: "", "mine": "", "more": ""}

    in_way(way, action)


def test_a_branch_carried_between_fuse_and_overlayfs(way: str, open_tmp: Path) -> None:
    """The same tree whoever shows it, and the same form on disk as if one had done it all."""

    def operate(step: int, base: EngineFs | None, target: Path) -> None:
        """Do a step, through the engine or through a mounted directory."""
        if base is not None:
            if step == 0:
                base.unlink("f")
                base.mkdir("new")
                base.create("new/x", b"x")
                base.write("d/a", b"AAA")
            else:
                base.rename("new/x", "new/y")
                base.create("f", b"again")
                base.unlink("d/b")
        elif step == 1:
            (target / "new" / "x").rename(target / "new" / "y")
            (target / "f").write_text("again")
            (target / "d" / "b").unlink()

    def action() -> None:
        build(open_tmp / "base", LOWER)
        build(open_tmp / "top", {"t": "t", "d/.wh.b": "", "d/c": "c"})
        build(open_tmp / "over", {"d/b": "back"})
        layers = [open_tmp / "over", open_tmp / "top", open_tmp / "base"]
        paths = [os.fsencode(path) for path in layers]
        (open_tmp / "carried").mkdir()
        (open_tmp / "steady").mkdir()
        (open_tmp / "carried" / "rw").mkdir()
        (open_tmp / "steady" / "rw").mkdir()

        def session(place: str, work: Callable[[EngineFs], object]) -> object:
            fs = EngineFs(Engine.start(paths, os.fsencode(open_tmp / place / "rw")))
            try:
                return work(fs)
            finally:
                fs.engine.close()

        for place in ("carried", "steady"):
            session(place, lambda fs: operate(0, fs, open_tmp))
        before = session("carried", snapshot)
        request = request_for(open_tmp / "carried", *map(Layer, paths))
        mounted = mount_overlay(request)
        target = open_tmp / "carried" / "target"
        listed = {str(path.relative_to(target)) for path in target.rglob("*")}
        assert isinstance(before, dict)
        assert listed == {path for path in before if path}
        operate(1, None, target)
        mounted.unmount()
        session("steady", lambda fs: operate(1, fs, open_tmp))
        carried, steady = session("carried", snapshot), session("steady", snapshot)
        assert carried == steady
        assert disk_form(open_tmp / "carried" / "rw") == disk_form(open_tmp / "steady" / "rw")

    in_way(way, action)


def test_changes_are_read_in_both_forms(way: str, open_tmp: Path) -> None:
    """While overlayfs writes the branch and after it: the same answer."""

    def action() -> None:
        build(open_tmp / "base", {**LOWER, "n" * 255: "long"})
        layers = [os.fsencode(open_tmp / "base")]
        mounted = mount_overlay(request_for(open_tmp, open_tmp / "base"))
        target = open_tmp / "target"
        (target / "f").unlink()
        (target / ("n" * 255)).unlink()
        new_directory(target)
        (target / "d" / "a").write_text("new")
        (target / "new").mkdir()
        rewrite(target / "s")
        live = [str(item) for item in changes(layers, os.fsencode(open_tmp / "rw"))]
        mounted.unmount()
        settled = [str(item) for item in changes(layers, os.fsencode(open_tmp / "rw"))]
        assert live == settled
        expected = ["D /f", "D /d/b", "C /d/a", "A /new", "C /s", "D /" + "n" * 255]
        assert set(expected) <= set(settled)
        assert set(settled) <= {*expected, "C /d"}

    in_way(way, action)
