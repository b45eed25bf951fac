"""The rw branch into overlay form and back: on disk, over crashes, and while it is mounted."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.crash import run_child
from support.engine_fs import EngineFs, build, disk_state, snapshot
from support.kernelways import NOBODY, WAYS, enter, in_way, request_for, require_way

from unionfs import _sys
from unionfs.branch import Dialect, Place, place_of, whiteout
from unionfs.errors import BusyError, ConflictError
from unionfs.kernel import convert, links, overlay
from unionfs.kernel.mounted import settle_branch
from unionfs.kernel.overlay_union import mount_overlay, prepare_overlay
from unionfs.kernel.survey import Kind
from unionfs.union import Engine

BASE = {
    "a": "a0",
    "b": "b0",
    "d/x": "x0",
    "d/y": "y0",
    "d/s/z": "z0",
    "e/q": "q0",
    "f/g/h": "h0",
    "p": "pair",
    "q": "=p",
    "n" * 253: "long",
    "l": "->a",
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    require_way(request.param)
    return str(request.param)


def union(place: Path) -> EngineFs:
    layers = [os.fsencode(place / "base")]
    return EngineFs(Engine.start(layers, os.fsencode(place / "rw")))


def change(fs: EngineFs) -> None:
    """Leave every kind of mark in the rw branch."""
    fs.unlink("a")
    fs.unlink("n" * 253)
    fs.unlink("d/x")
    fs.unlink("e/q")
    fs.rmdir("e")
    fs.mkdir("e")
    fs.create("e/new", b"new")
    fs.mkdir("own")
    fs.create("own/file", b"own", 0o400)
    fs.symlink("own/link", "../b")
    fs.write("b", b"B")
    fs.write("p", b"PAIR")
    fs.rename("f/g", "moved")


def make(place: Path) -> tuple[Path, dict[str, str], dict[str, tuple[object, ...]]]:
    """Make a changed branch; return it, its literal content, and what the union shows."""
    build(place / "base", BASE)
    (place / "rw").mkdir()
    fs = union(place)
    change(fs)
    shown = snapshot(fs)
    fs.engine.close()
    return place / "rw", disk_state(place / "rw"), shown


def view(place: Path) -> dict[str, tuple[object, ...]]:
    fs = union(place)
    try:
        return snapshot(fs)
    finally:
        fs.engine.close()


def kind_of(way: str) -> Kind:
    return Kind.TRUSTED if way == "root" else Kind.USER


def test_there_and_back(way: str, open_tmp: Path) -> None:
    """Form, tree and even directory times survive; overlayfs's form is what overlayfs means."""

    def action() -> None:
        rw, before, shown = make(open_tmp)
        times = {path: path.stat().st_mtime_ns for path in (rw, *rw.rglob("*")) if path.is_dir()}
        kind = kind_of(way)
        layers = [os.fsencode(open_tmp / "base")]
        upper_path, _ = convert.enter(os.fsencode(rw), layers, kind)
        upper = Path(os.fsdecode(upper_path))
        for gone in ("a", "d/x", "n" * 253):
            st = os.lstat(upper / gone)
            assert stat.S_ISCHR(st.st_mode)
            assert st.st_rdev == 0
        assert os.getxattr(upper / "e", f"{kind.value}.overlay.opaque") == b"y"
        assert not list(upper.rglob(".wh.*"))
        place = place_of(os.fsencode(rw))
        assert place.path == upper_path
        dialect = Dialect.OVERLAY if kind is Kind.TRUSTED else Dialect.OVERLAY_USER
        assert convert.detect_dialect(os.fsencode(rw)) is dialect
        assert [path.name for path in rw.iterdir()] == [os.fsdecode(whiteout.OVERLAY_DIR)]
        assert convert.settle(os.fsencode(rw))
        assert not convert.settle(os.fsencode(rw))
        assert place_of(os.fsencode(rw)) == Place(os.fsencode(rw), Dialect.AUFS)
        assert disk_state(rw) == before
        assert {path: path.stat().st_mtime_ns for path in times} == times
        assert view(open_tmp) == shown

    in_way(way, action)


#: Every call of `os` and `_sys` that changes something on disk.
CHANGING = (
    *("mkdir", "rename", "unlink", "rmdir", "link", "symlink", "mknod"),
    *("setxattr", "removexattr", "chmod", "fchmod", "chown", "utime"),
)


def kill_at(step: int, action: Callable[[], object]) -> bool:
    """Kill a child just before its `step`-th changing call; True if it got to the end."""

    def child() -> None:
        left = step

        def watched(call: Callable[..., Any]) -> Callable[..., Any]:
            def replacement(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return replacement

        for name in CHANGING:
            setattr(os, name, watched(getattr(os, name)))
        _sys.renameat2 = watched(_sys.renameat2)
        action()

    status = run_child(child)
    assert status in (0, -signal.SIGKILL)
    return status == 0


def copy_tree(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


@pytest.mark.parametrize("direction", ["enter", "settle"])
def test_killed_at_every_changing_call(way: str, open_tmp: Path, direction: str) -> None:
    """Whatever a crash leaves, the next use finds the way back to the same branch."""

    def action() -> None:
        rw, before, shown = make(open_tmp)
        path, kind = os.fsencode(rw), kind_of(way)
        layers = [os.fsencode(open_tmp / "base")]
        if direction == "settle":
            convert.enter(path, layers, kind)
        copy_tree(rw, open_tmp / "start")
        step, done = 1, False
        while not done:
            if direction == "enter":
                done = kill_at(step, lambda: convert.enter(path, layers, kind))
            else:
                done = kill_at(step, lambda: convert.settle(path))
            convert.settle(path)
            assert disk_state(rw) == before, f"killed before changing call {step}"
            if step % 10 == 1:
                assert view(open_tmp) == shown, f"killed before changing call {step}"
            subprocess.run(["rm", "-rf", rw], check=True)
            copy_tree(open_tmp / "start", rw)
            step += 1
        assert step > 40

    in_way(way, action)


def test_settling_can_be_killed_again_and_again(way: str, open_tmp: Path) -> None:
    def action() -> None:
        rw, before, shown = make(open_tmp)
        path = os.fsencode(rw)
        convert.enter(path, [os.fsencode(open_tmp / "base")], kind_of(way))
        for step in range(2, 400):
            if kill_at(step % 11 + 2, lambda: convert.settle(path)):
                break
        convert.settle(path)
        assert disk_state(rw) == before
        assert view(open_tmp) == shown

    in_way(way, action)


def test_a_mounted_branch_is_never_converted(way: str, open_tmp: Path) -> None:
    """Not even when its keeper is gone and its mount is in a namespace nobody can see."""

    def action() -> None:
        build(open_tmp / "base", BASE)
        mounted = mount_overlay(request_for(open_tmp, open_tmp / "base"))
        (open_tmp / "target" / "new").write_text("new")
        reading, writing = os.pipe()
        gone_reading, gone_writing = os.pipe()

        def hold() -> None:
            os.close(writing)
            mounted.release()  # the copy of the lock's descriptor
            _sys.unshare(_sys.CLONE_NEWNS)
            os.write(gone_writing, b"x")
            os.read(reading, 1)

        pid = os.fork()
        if pid == 0:
            hold()
            os._exit(0)
        os.close(reading)
        os.read(gone_reading, 1)
        _sys.umount(mounted.request.target)
        mounted.release()  # as if the keeper had been killed
        rw = mounted.request.rw or b""
        before = disk_state(open_tmp / "rw")
        with pytest.raises(BusyError, match="mounted with overlayfs"):
            settle_branch(rw)
        with pytest.raises(BusyError, match="mounted with overlayfs"):
            mount_overlay(mounted.request)
        assert disk_state(open_tmp / "rw") == before
        os.close(writing)
        os.waitpid(pid, 0)
        mounted.finish()
        assert disk_state(open_tmp / "rw") == {"new": "new"}

    in_way(way, action)


@pytest.mark.usefixtures("as_root")
def test_a_plain_user_outside_a_namespace_asks_the_kernel_too(open_tmp: Path) -> None:
    require_way("userns")
    reading, writing = os.pipe()
    ready_reading, ready_writing = os.pipe()

    def mounter() -> None:
        os.close(writing)
        enter("userns")
        build(open_tmp / "base", BASE)
        mounted = mount_overlay(request_for(open_tmp, open_tmp / "base"))
        (open_tmp / "target" / "new").write_text("new")
        mounted.release()
        os.write(ready_writing, b"x")
        os.read(reading, 1)  # the kernel unmounts at the end of the namespace

    def asker() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with pytest.raises(BusyError, match="mounted with overlayfs"):
            settle_branch(os.fsencode(open_tmp / "rw"))

    def settler() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        settle_branch(os.fsencode(open_tmp / "rw"))
        assert disk_state(open_tmp / "rw") == {"new": "new"}

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            mounter()
            status = 0
        finally:
            os._exit(status)
    os.close(reading)
    assert os.read(ready_reading, 1) == b"x"
    try:
        assert run_child(asker) == 0
    finally:
        os.close(writing)
        assert os.waitpid(pid, 0)[1] == 0
    assert run_child(settler) == 0


def test_a_locked_branch_is_busy(way: str, open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", BASE)
        request = request_for(open_tmp, open_tmp / "base")
        fd = os.open(open_tmp / "rw", os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="in use by another mount"):
            mount_overlay(request)
        os.close(fd)
        held = mount_overlay(request)
        with pytest.raises(BusyError, match="in use"):
            mount_overlay(request)
        held.unmount()

    in_way(way, action)


@pytest.mark.logs_warnings
def test_reserved_names_made_through_overlayfs_become_visible(way: str, open_tmp: Path) -> None:
    """Overlayfs lets anybody make them; kept, they would delete what they name."""

    def action() -> None:
        build(open_tmp / "base", BASE)
        mounted = mount_overlay(request_for(open_tmp, open_tmp / "base"))
        target = open_tmp / "target"
        (target / ".wh.b").write_text("injected")
        (target / "d" / ".wh..wh..opq").write_text("injected")
        (target / ".wh.sub").mkdir()
        (target / ".wh.sub" / ".wh.x").write_text("deep")
        (target / "wh.b").write_text("taken")
        mounted.unmount()
        fs = union(open_tmp)
        assert fs.read("b") == b"b0"
        assert fs.read("wh.b") == b"taken"
        assert fs.read("wh.b~") == b"injected"
        assert fs.read("d/wh..wh..opq") == b"injected"
        assert fs.names("d") == ["s", "wh..wh..opq", "x", "y"]
        assert fs.read("wh.sub/wh.x") == b"deep"
        fs.engine.close()

    in_way(way, action)


def test_what_appeared_behind_the_back_is_not_overwritten(way: str, open_tmp: Path) -> None:
    def action() -> None:
        rw, before, _ = make(open_tmp)
        path = os.fsencode(rw)
        convert.enter(path, [os.fsencode(open_tmp / "base")], kind_of(way))
        (rw / "b").write_text("foreign")
        with pytest.raises(ConflictError, match="behind the back"):
            convert.settle(path)
        assert (rw / "b").read_text() == "foreign"
        (rw / "b").unlink()
        assert convert.settle(path)
        assert disk_state(rw) == before

    in_way(way, action)


def test_layers_that_are_gone_lose_nothing(way: str, open_tmp: Path) -> None:
    """Without the layers every mark is kept, those that hide nothing too."""

    def action() -> None:
        rw, before, shown = make(open_tmp)
        path = os.fsencode(rw)
        convert.enter(path, [os.fsencode(open_tmp / "base")], kind_of(way))
        (open_tmp / "base").rename(open_tmp / "away")
        assert convert.settle(path)
        (open_tmp / "away").rename(open_tmp / "base")
        assert disk_state(rw) == before
        assert view(open_tmp) == shown

    in_way(way, action)


def test_a_failed_mount_leaves_nothing(
    way: str, open_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(12, "no memory")

    # Before Linux 6.5 it is mount(2) that is called.
    monkeypatch.setattr(_sys, "fsmount", refuse)
    monkeypatch.setattr(overlay, "_mount_by_page", refuse)

    def action() -> None:
        rw, before, shown = make(open_tmp)
        build(open_tmp / "top", {whiteout.marker_for(b"b")[0].decode(): ""})
        request = request_for(open_tmp, open_tmp / "top", open_tmp / "base")
        with pytest.raises(Exception, match="overlay: no memory"):
            mount_overlay(request)
        assert disk_state(rw) == before
        assert list((open_tmp / "scratch").iterdir()) == []
        assert open_tmp.name not in Path("/proc/self/mountinfo").read_text()
        assert view(open_tmp) == shown

    in_way(way, action)


def test_prepared_and_never_mounted(way: str, open_tmp: Path) -> None:
    def action() -> None:
        rw, before, _ = make(open_tmp)
        prepared = prepare_overlay(request_for(open_tmp, open_tmp / "base"), kind_of(way))
        assert not prepared.mounted
        prepared.finish()
        assert disk_state(rw) == before
        assert list((open_tmp / "scratch").iterdir()) == []

    in_way(way, action)


def test_recorded_modes_are_real_under_overlayfs_and_changes_are_recorded(open_tmp: Path) -> None:
    """A plain user's branch keeps modes in an xattr; programs in the mount must see them."""
    require_way("userns")

    def action() -> None:
        build(open_tmp / "base", BASE)
        (open_tmp / "rw").mkdir()
        fs = union(open_tmp)
        fs.create("closed", b"c", 0o400)
        fs.create("kept", b"k", 0o640)
        fs.mkdir("shut", 0o500)
        fs.create("bare", b"b", 0o644)
        fs.engine.close()
        mounted = mount_overlay(request_for(open_tmp, open_tmp / "base"))
        target = open_tmp / "target"
        assert stat.S_IMODE((target / "closed").stat().st_mode) == 0o400
        assert stat.S_IMODE((target / "kept").stat().st_mode) == 0o640
        assert stat.S_IMODE((target / "shut").stat().st_mode) == 0o500
        (target / "closed").chmod(0o444)
        (target / "bare").chmod(0)
        (target / "shut").chmod(0)
        (target / "d").chmod(0o2711)
        mounted.unmount()
        fs = union(open_tmp)
        modes = {name: stat.S_IMODE(fs.attr(name).mode) for name in ("closed", "kept", "shut", "d")}
        assert modes == {"closed": 0o444, "kept": 0o640, "shut": 0, "d": 0o2711}
        assert stat.S_IMODE(fs.attr("bare").mode) == 0
        assert fs.read("bare") == b"b"
        fs.engine.close()

    in_way("userns", action)


def test_hard_links_stay_whole_although_one_name_was_never_used(open_tmp: Path) -> None:
    """With index=on the kernel copies the file once; the other name is linked at the end."""
    require_way("root")

    def action() -> None:
        build(open_tmp / "base", {**BASE, "deep/er/r": "=p", "gone": "=p"})
        inode = (open_tmp / "base" / "p").stat().st_ino
        mounted = mount_overlay(request_for(open_tmp, open_tmp / "base"))
        target = open_tmp / "target"
        (target / "gone").unlink()
        (target / "p").write_text("NEW!")
        mounted.unmount()
        rw = open_tmp / "rw"
        copies = [rw / "p", rw / "q", rw / "deep" / "er" / "r"]
        assert len({path.stat().st_ino for path in copies}) == 1
        assert copies[0].stat().st_nlink == 3
        assert not (rw / "gone").exists()
        fs = union(open_tmp)
        for name in ("p", "q", "deep/er/r"):
            assert fs.read(name) == b"NEW!"
            assert fs.attr(name).ino == inode
        fs.engine.close()

    in_way("root", action)


def test_an_origin_that_is_none_is_ignored() -> None:
    for value in (b"", b"\0", b"\0\xfb\x1d\0\1" + bytes(16), bytes(29), b"\0\xfb\x1e" + bytes(26)):
        assert links.Origin.parse(value) is None
    value = b"\0\xfb\x1d\0\1" + bytes(16) + b"12345678"
    assert links.Origin.parse(value) == links.Origin(1, b"12345678")


def test_options_are_what_the_documentation_says() -> None:
    root = overlay.OverlaySpec((b"/l",), Kind.TRUSTED, b"/u", b"/w")
    user = overlay.OverlaySpec((b"/l",), Kind.USER, b"/u", b"/w")
    assert (b"index", b"on") in overlay.options(root)
    assert (b"userxattr", None) in overlay.options(user)
    for spec in (root, user):
        assert (b"redirect_dir", b"nofollow") in overlay.options(spec)
        assert (b"metacopy", b"off") in overlay.options(spec)
