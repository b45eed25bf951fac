"""Which back end is taken, why not the others, and that trying leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.crash import fork, run_child
from support.engine_fs import build, disk_state
from support.kernelways import NOBODY, WAYS, in_way, request_for, require_way
from support.layers import Member, image_of, layer_tar

from unionfs import _sys
from unionfs.errors import BusyError, UnsupportedError, UsageError
from unionfs.kernel import aufs, choose, shims
from unionfs.kernel.choose import mount_fastest
from unionfs.kernel.keeper import keep
from unionfs.kernel.mounted import Layer, settle_branch
from unionfs.kernel.overlay_union import mount_overlay
from unionfs.kernel.probe import probe_all
from unionfs.kernel.survey import Kind
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image

PAIR = {"a": "a", "b": "b"}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    require_way(request.param)
    return str(request.param)


def no_aufs(place: Path) -> None:
    try:
        aufs.probe_features(os.fsencode(place))
    except UnsupportedError:
        return
    pytest.skip("this kernel has AUFS")


def test_auto_takes_the_first_that_works(way: str, open_tmp: Path) -> None:
    no_aufs(open_tmp)

    def action() -> None:
        build(open_tmp / "base", PAIR)
        choice = mount_fastest(request_for(open_tmp, open_tmp / "base"))
        assert choice.backend == "overlay"
        assert len(choice.reasons) == 1
        assert choice.reasons[0].startswith("aufs: ")
        assert choice.mount is not None
        assert choice.mount.losses == ()
        choice.mount.unmount()

    in_way(way, action)


def as_nobody(action: Callable[[], object]) -> None:
    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        action()

    assert run_child(child) == 0


def test_without_rights_fuse_remains_and_says_why(open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", PAIR)
        request = request_for(open_tmp, open_tmp / "base")
        choice = mount_fastest(request)
        assert (choice.backend, choice.mount) == ("fuse", None)
        assert [reason.split(":")[0] for reason in choice.reasons] == ["aufs", "overlay"]
        assert "needs root or a user namespace" in choice.reasons[1]
        for name in ("aufs", "overlay"):
            with pytest.raises(UnsupportedError, match=f"^{name}: "):
                mount_fastest(request, name)
        assert disk_state(open_tmp / "rw") == {}
        assert list((open_tmp / "scratch").iterdir()) == []

    as_nobody(action)


def test_names_of_back_ends(open_tmp: Path) -> None:
    build(open_tmp / "base", PAIR)
    request = request_for(open_tmp, open_tmp / "base")
    assert mount_fastest(request, "fuse") == choose.Choice("fuse", None)
    with pytest.raises(UsageError, match=r"unknown back end zfs.*auto, aufs, overlay, fuse"):
        mount_fastest(request, "zfs")


def test_recorded_owners_are_for_fuse_unless_overlay_is_wanted(open_tmp: Path) -> None:
    require_way("userns")

    def action() -> None:
        members = [Member(b"x", data=b"x", uid=7, gid=8), Member(b"s", data=b"s", mode=0o4755)]
        with Graph(os.fsencode(open_tmp / "store")) as graph:
            image_id, _ = import_image(graph, image_of([layer_tar(members)]), transport="test")
            layers = [
                Layer(path, os.path.dirname(path) + b"/shims")
                for path in graph.layer_dirs(image_id)
            ]
        request = request_for(open_tmp, *layers)
        choice = mount_fastest(request)
        assert choice.backend == "fuse"
        assert "recorded owner" in choice.reasons[1]
        assert "e.g. x" in choice.reasons[1]
        choice = mount_fastest(request, "overlay")
        assert choice.mount is not None
        assert len(choice.mount.losses) == 2
        assert (open_tmp / "target" / "s").read_text() == "s"
        choice.mount.unmount()

    in_way("userns", action)


def test_layers_of_somebody_else_are_refused_in_a_user_namespace(open_tmp: Path) -> None:
    require_way("userns")
    if os.geteuid() != 0:
        pytest.skip("needs uid 0 to make such a layer")
    build(open_tmp / "base", PAIR)

    def action() -> None:
        with pytest.raises(UnsupportedError, match="owned by somebody else"):
            mount_overlay(request_for(open_tmp, open_tmp / "base"))
        assert disk_state(open_tmp / "rw") == {}

    in_way("userns", action)


def test_devices_that_would_delete_are_refused(open_tmp: Path) -> None:
    require_way("root")

    def action() -> None:
        build(open_tmp / "base", PAIR)
        os.mknod(open_tmp / "base" / "null", 0o020600, os.makedev(0, 0))
        with pytest.raises(UnsupportedError, match=r"0/0.*e\.g\. null"):
            mount_overlay(request_for(open_tmp, open_tmp / "base"))
        (open_tmp / "base" / "null").unlink()
        os.setxattr(open_tmp / "base", "trusted.overlay.opaque", b"y")
        with pytest.raises(UnsupportedError, match="overlayfs's own attributes"):
            mount_overlay(request_for(open_tmp, open_tmp / "base"))

    in_way("root", action)


def test_a_branch_where_overlayfs_cannot_write(way: str, open_tmp: Path) -> None:
    """A rw branch on an overlayfs: the reason is told and the branch is as before."""
    no_aufs(open_tmp)

    def action() -> None:
        build(open_tmp / "base", PAIR)
        (open_tmp / "outer").mkdir()
        outer = mount_overlay(request_for(open_tmp / "outer", open_tmp / "base"))
        place = open_tmp / "outer" / "target"
        (place / "rw").mkdir()
        (place / "rw" / "mine").write_text("mine")
        request = request_for(place, open_tmp / "base")
        choice = mount_fastest(request)
        assert choice.backend == "fuse"
        assert choice.reasons[1].startswith("overlay: ")
        assert disk_state(place / "rw") == {"mine": "mine"}
        outer.unmount()

    in_way(way, action)


def test_layers_stacked_too_deep(way: str, open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", PAIR)
        lower, mounts = open_tmp / "base", []
        for number in range(2):
            place = open_tmp / str(number)
            place.mkdir()
            mounts.append(mount_overlay(request_for(place, lower, rw=False)))
            lower = place / "target"
        with pytest.raises(UnsupportedError, match="overlay: "):
            mount_overlay(request_for(open_tmp, lower, rw=False))
        assert list((open_tmp / "scratch").iterdir()) == []
        for mounted in reversed(mounts):
            mounted.unmount()

    in_way(way, action)


def test_probing_leaves_nothing(way: str, open_tmp: Path) -> None:
    def action() -> None:
        found = {status.name: status for status in probe_all(os.fsencode(open_tmp))}
        assert list(found) == ["aufs", "overlay", "overlay-userns", "fuse"]
        assert found["overlay"].usable
        for status in found.values():
            assert status.reason
            assert status.usable or status.remedy
        assert list(open_tmp.iterdir()) == []
        assert open_tmp.name not in Path("/proc/self/mountinfo").read_text()

    in_way(way, action)


def test_an_interrupted_probe_is_told(open_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = {status.name: status for status in probe_all(os.fsencode(open_tmp))}
    assert not found["overlay-userns"].usable
    assert "the probe died" in found["overlay-userns"].reason


def test_two_builders_of_one_cache(way: str, open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "layer", {".wh.x": "", "d/.wh..wh..opq": ""})
        kind = choose_kind(way)
        pids = [
            fork(
                lambda: shims.prepare(
                    os.fsencode(open_tmp / "layer"), os.fsencode(open_tmp / "cache"), kind
                )
            )
            for _ in range(4)
        ]
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
        assert os.listdir(open_tmp / "cache") == [kind.value]
        (open_tmp / "cache" / kind.value / "facts.json").write_text("{damaged")
        with pytest.raises(UnsupportedError, match="damaged; remove"):
            shims.prepare(os.fsencode(open_tmp / "layer"), os.fsencode(open_tmp / "cache"), kind)

    in_way(way, action)


def choose_kind(way: str) -> Kind:
    return Kind.TRUSTED if way == "root" else Kind.USER


def start_keeper(place: Path) -> int:
    reading, writing = os.pipe()

    def child() -> None:
        mounted = mount_overlay(request_for(place, place / "base"))
        keep(mounted, lambda: os.write(writing, b"x"))

    pid = fork(child)
    os.close(writing)
    assert os.read(reading, 1) == b"x"
    return pid


def test_the_keeper_tidies_up_whoever_unmounts(way: str, open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", PAIR)
        target = open_tmp / "target"
        pid = start_keeper(open_tmp)
        (target / "a").unlink()
        with pytest.raises(BusyError):
            settle_branch(os.fsencode(open_tmp / "rw"))
        subprocess.run(["umount", target], check=True)
        assert os.waitpid(pid, 0)[1] == 0
        assert disk_state(open_tmp / "rw") == {".wh.a": ""}
        pid = start_keeper(open_tmp)
        (target / "b").unlink()
        held = os.open(target, os.O_RDONLY)
        os.kill(pid, signal.SIGTERM)
        while os.path.ismount(target):
            time.sleep(0.01)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.close(held)
        assert os.waitpid(pid, 0)[1] == 0
        assert disk_state(open_tmp / "rw") == {".wh.a": "", ".wh.b": ""}
        assert list((open_tmp / "scratch").iterdir()) == []
        pid = start_keeper(open_tmp)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with pytest.raises(BusyError, match="mounted with overlayfs"):
            settle_branch(os.fsencode(open_tmp / "rw"))
        _sys.umount(os.fsencode(target))
        settle_branch(os.fsencode(open_tmp / "rw"))
        assert disk_state(open_tmp / "rw") == {".wh.a": "", ".wh.b": ""}

    in_way(way, action)
