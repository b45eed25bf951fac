"""The union on a kernel that has AUFS; skipped, with the kernel's answer, everywhere else."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.engine_fs import EngineFs, build, disk_form, disk_state, snapshot
from support.kernelways import in_way, request_for, require_way

from unionfs import _sys
from unionfs.branch import whiteout
from unionfs.errors import BusyError, UnsupportedError
from unionfs.kernel import aufs, plinks
from unionfs.kernel.aufs_union import AufsMount, mount_aufs
from unionfs.kernel.choose import mount_fastest
from unionfs.kernel.mounted import settle_branch
from unionfs.kernel.probe import probe_aufs
from unionfs.union import Engine

LOWER = {"f": "lower", "d/a": "aaa", "d/b": "bbb", "s": "->f", "p": "pair", "q": "=p", "e/r": "=p"}


@pytest.fixture(autouse=True)
def _kernel_with_aufs(open_tmp: Path) -> None:
    require_way("root")
    try:
        aufs.probe_features(os.fsencode(open_tmp))
    except UnsupportedError as exc:
        pytest.skip(str(exc))


def as_root(action: Callable[[], object]) -> None:
    in_way("root", action)


def engine(place: Path, *layers: str) -> EngineFs:
    paths = [os.fsencode(place / name) for name in layers]
    return EngineFs(Engine.start(paths, os.fsencode(place / "rw")))


@pytest.mark.parametrize("count", [1, 42, 43, 126])
def test_layers_up_to_the_limit(open_tmp: Path, count: int) -> None:
    def action() -> None:
        home = open_tmp / ("deep-" * 12)
        home.mkdir()
        layers = []
        for number in range(count):
            build(home / str(number), {f"f{number}": str(number), "same": str(number)})
            layers.append(home / str(number))
        mounted = mount_aufs(request_for(open_tmp, *layers))
        target = open_tmp / "target"
        assert len(os.listdir(target)) == count + 1
        assert (target / "same").read_text() == "0"
        (target / f"f{count - 1}").unlink()
        mounted.unmount()
        assert disk_state(open_tmp / "rw") == {f".wh.f{count - 1}": ""}
        for number in range(count, 127):
            (home / f"more{number}").mkdir()
            layers.append(home / f"more{number}")
        try:
            mounted = mount_aufs(request_for(open_tmp, *layers))
        except UnsupportedError as error:
            assert "128 branches, and this kernel" in str(error)  # noqa: PT017  # it may take more
            assert open_tmp.name not in Path("/proc/self/mountinfo").read_text()
        else:
            mounted.unmount()

    as_root(action)


def test_auto_takes_it_and_the_probe_says_so(open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", LOWER)
        choice = mount_fastest(request_for(open_tmp, open_tmp / "base"))
        assert isinstance(choice.mount, AufsMount)
        assert choice.reasons == ()
        choice.mount.unmount()
        assert probe_aufs(os.fsencode(open_tmp)).usable

    as_root(action)


def test_paths_with_special_characters(open_tmp: Path) -> None:
    def action() -> None:
        for number, odd in enumerate((b"a:b", b"a,b", b"a=b", b"a\\b", b"a b", b"\xff", b"a\nb")):
            home = Path(os.fsdecode(os.fsencode(open_tmp) + b"/%d/" % number + odd))
            home.mkdir(parents=True)
            build(home / "base", LOWER)
            request = request_for(home, home / "base")
            request = type(request)(
                request.layers, request.target, os.fsencode(open_tmp), request.rw
            )
            mounted = mount_aufs(request)
            (home / "target" / "f").unlink()
            mounted.unmount()
            assert disk_state(home / "rw") == {".wh.f": ""}
        assert not [name for name in os.listdir(open_tmp) if name.startswith("aufs-")]

    as_root(action)


def test_a_failure_half_way_leaves_no_mount(
    open_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _sys.mount

    def failing(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
        if flags & _sys.MS_REMOUNT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target, fstype, flags, data)

    monkeypatch.setattr(_sys, "mount", failing)

    def action() -> None:
        layers = []
        for number in range(100):
            build(open_tmp / f"layer{number}", {"f": "f"})
            layers.append(open_tmp / f"layer{number}")
        with pytest.raises(UnsupportedError, match="101 branches, and this kernel"):
            mount_aufs(request_for(open_tmp, *layers))
        assert open_tmp.name not in Path("/proc/self/mountinfo").read_text()
        settle_branch(os.fsencode(open_tmp / "rw"))
        assert disk_state(open_tmp / "rw") == {}

    as_root(action)


def test_hard_links_survive_the_unmount(open_tmp: Path) -> None:
    """The job of auplink(8): names that were never used are linked before the mount goes."""

    def action() -> None:
        build(open_tmp / "base", LOWER)
        mounted = mount_aufs(request_for(open_tmp, open_tmp / "base"))
        target = open_tmp / "target"
        with (target / "p").open("r+") as file:
            file.write("PAIR")
        os.link(target / "f", target / "g")
        assert plinks.pseudo_links(os.fsencode(open_tmp / "rw"))
        mounted.unmount()
        rw = open_tmp / "rw"
        assert len({(rw / name).stat().st_ino for name in ("p", "q", "e/r")}) == 1
        assert (rw / "p").stat().st_nlink == 3
        assert (rw / "f").samefile(rw / "g")
        assert disk_state(rw) == {
            **dict.fromkeys(("p", "q", "e/r"), "PAIR"),
            **dict.fromkeys(("f", "g"), "lower"),
            "e/": "",
        }
        fs = engine(open_tmp, "base")
        assert [fs.read(name) for name in ("p", "q", "e/r")] == [b"PAIR"] * 3
        fs.engine.close()

    as_root(action)


def test_a_branch_carried_between_fuse_and_aufs(open_tmp: Path) -> None:
    def action() -> None:
        for place in ("carried", "steady"):
            (open_tmp / place).mkdir()
            (open_tmp / place / "rw").mkdir()
            build(open_tmp / place / "base", LOWER)
            fs = engine(open_tmp / place, "base")
            fs.unlink("f")
            fs.mkdir("new")
            fs.create("new/x", b"x")
            fs.write("d/a", b"AAA")
            before = snapshot(fs)
            fs.engine.close()
        home = open_tmp / "carried"
        mounted = mount_aufs(request_for(home, home / "base"))
        target = home / "target"
        assert {str(path.relative_to(target)) for path in target.rglob("*")} == {
            path for path in before if path
        }
        assert (target / "d" / "a").read_text() == "AAA"
        (target / "new" / "x").rename(target / "new" / "y")
        (target / "f").write_text("again")
        (target / "d" / "b").unlink()
        mounted.unmount()
        fs = engine(open_tmp / "steady", "base")
        fs.rename("new/x", "new/y")
        fs.create("f", b"again")
        fs.unlink("d/b")
        fs.engine.close()
        states = [disk_form(open_tmp / place / "rw") for place in ("carried", "steady")]
        assert states[0] == states[1]
        trees = []
        for place in ("carried", "steady"):
            fs = engine(open_tmp / place, "base")
            trees.append(snapshot(fs))
            fs.engine.close()
        assert trees[0] == trees[1]

    as_root(action)


def test_reserved_names_are_refused_by_aufs_itself(open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", LOWER)
        mounted = mount_aufs(request_for(open_tmp, open_tmp / "base"))
        marker = os.fsdecode(whiteout.marker_for(b"f")[0])
        with pytest.raises(PermissionError):
            (open_tmp / "target" / marker).touch()
        mounted.unmount()
        assert disk_state(open_tmp / "rw") == {}

    as_root(action)


def test_a_mounted_branch_is_busy_for_everybody(open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", LOWER)
        mounted = mount_aufs(request_for(open_tmp, open_tmp / "base"))
        with pytest.raises(BusyError, match="in use"):
            settle_branch(os.fsencode(open_tmp / "rw"))
        mounted.release()  # as if the keeper had been killed
        with pytest.raises(BusyError, match="mounted with AUFS"):
            settle_branch(os.fsencode(open_tmp / "rw"))
        _sys.umount(os.fsencode(open_tmp / "target"))
        settle_branch(os.fsencode(open_tmp / "rw"))
        assert disk_state(open_tmp / "rw") == {}

    as_root(action)


def test_read_only_and_opaque_root(open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", LOWER)
        build(open_tmp / "top", {os.fsdecode(whiteout.OPAQUE): "", "only": "1"})
        request = request_for(open_tmp, open_tmp / "top", open_tmp / "base", rw=False)
        mounted = mount_aufs(request)
        assert os.listdir(open_tmp / "target") == ["only"]
        with pytest.raises(OSError, match="Read-only"):
            (open_tmp / "target" / "n").touch()
        mounted.unmount()
        assert stat.S_ISDIR((open_tmp / "target").stat().st_mode)

    as_root(action)


def test_layers_that_aufs_would_show_wrongly(open_tmp: Path) -> None:
    def action() -> None:
        build(open_tmp / "base", LOWER)
        build(open_tmp / "pair", {".wh.f": "", "f": "f"})
        build(open_tmp / "odd", {".wh.f/": ""})
        build(open_tmp / "long", {"n" * 243: "n"})
        for name, reason in (
            ("pair", "entry and a whiteout in one layer"),
            ("odd", "not regular files"),
            ("long", "longer than the 242 bytes"),
        ):
            with pytest.raises(UnsupportedError, match=reason):
                mount_aufs(request_for(open_tmp, open_tmp / name, open_tmp / "base"))

    as_root(action)
