"""Everything around AUFS but AUFS: a bind mount of the rw branch stands in for the kernel.

It proves what we ask of the kernel and what we do before, beside and after a mount; what
AUFS itself does is tested where there is one (`test_aufs_live`, `test_conformance`).
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from support.engine_fs import build, disk_state
from support.kernelways import in_way, request_for, require_way

from unionfs import _sys
from unionfs.errors import BusyError, UnsupportedError
from unionfs.kernel import plinks
from unionfs.kernel.aufs_union import AufsMount, mount_aufs
from unionfs.kernel.choose import mount_fastest
from unionfs.kernel.mounted import Layer, settle_branch

MS_BIND = 0x1000
LINKED = {"base": "base", "d/x": "x"}


class Kernel:
    """A kernel with AUFS, as far as its calls go; `refuse` is the number of a remount to fail."""

    def __init__(self, place: Path, refuse: int = 0) -> None:
        self.sysfs = place / "sysfs"
        self.sysfs.mkdir()
        self.calls: list[bytes] = []
        self.remounts = 0
        self.refuse = refuse
        self._mount, self._umount = _sys.mount, _sys.umount
        self.live: dict[bytes, bytes] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch, fstype: bytes) -> None:
        monkeypatch.setattr(_sys, "mount", self.mount)
        monkeypatch.setattr(_sys, "umount", self.umount)
        monkeypatch.setattr(plinks, "_SYSFS", os.fsencode(self.sysfs))
        monkeypatch.setattr(AufsMount, "fstype", fstype)

    def mount(self, source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
        if fstype != b"aufs":
            self._mount(source, target, fstype, flags, data)
            return
        assert source == b"unionfs"
        self.calls.append(data)
        if flags & _sys.MS_REMOUNT:
            self.remounts += 1
            if self.remounts == self.refuse:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        branch, _, kind = data.removeprefix(b"br:").split(b",")[0].split(b":")[0].rpartition(b"=")
        self._mount(branch, target, b"", MS_BIND, b"")
        self.live[target] = os.path.realpath(branch)
        home = self.sysfs / f"si_{len(self.calls)}"
        home.mkdir()
        (home / "br0").write_bytes(os.path.realpath(branch).replace(b" ", b"\\040") + b"=rw\n")
        if kind == b"rw":
            for name in (b"/.wh..wh.plnk", b"/.wh..wh.orph"):
                os.makedirs(branch + name, exist_ok=True)
            with open(branch + b"/.wh..wh.aufs", "wb"):
                pass

    def umount(self, target: bytes, flags: int = 0) -> None:
        self._umount(target, flags)
        self.live.pop(target, None)
        for home in self.sysfs.iterdir():
            shutil.rmtree(home)


@pytest.fixture
def filesystem(open_tmp: Path) -> bytes:
    """Return the type of the filesystem that the tests' directories are on."""
    require_way("root")
    with open("/proc/self/mountinfo", "rb") as table:
        lines = [line.split(b" ") for line in table]
    device = os.stat(open_tmp).st_dev
    number = b"%d:%d" % (os.major(device), os.minor(device))
    return next(line[line.index(b"-") + 1] for line in lines if line[2] == number)


def test_a_mount_and_its_end(
    open_tmp: Path, filesystem: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(open_tmp)
    kernel.install(monkeypatch, filesystem)

    def action() -> None:
        layers = []
        for number in range(120):
            home = open_tmp / ("deep-" * 10)
            home.mkdir(exist_ok=True)
            build(home / f"{number:03}", {f"f{number}": "x"})
            layers.append(home / f"{number:03}")
        request = request_for(open_tmp, *layers)
        mounted = mount_aufs(request)
        states = [mounted.mounted]
        assert mounted.device
        first, *appends = kernel.calls[1:]  # the first call was the probe
        assert first.startswith(b"br:" + os.fsencode(open_tmp / "rw") + b"=rw:")
        assert b",dirperm1,xino=/dev/shm/" in first
        listed = b":".join((first.split(b",")[0], *b",".join(appends).split(b","))).split(b":")
        paths = [os.fsencode(layer) + b"=ro+wh" for layer in layers]
        assert [word for word in listed if word.endswith(b"=ro+wh")] == paths
        assert all(len(data) < 4095 for data in kernel.calls)

        with pytest.raises(BusyError, match="in use"):
            settle_branch(os.fsencode(open_tmp / "rw"))
        (open_tmp / "target" / "new").write_text("new")
        mounted.unmount()
        states.append(mounted.mounted)
        assert states == [True, False]
        assert disk_state(open_tmp / "rw") == {"new": "new"}
        assert list((open_tmp / "scratch").iterdir()) == []

    in_way("root", action)


def test_names_that_need_a_short_one(
    open_tmp: Path, filesystem: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(open_tmp)
    kernel.install(monkeypatch, filesystem)

    def action() -> None:
        home = open_tmp / "a:b,c"
        home.mkdir()
        build(home / "base", LINKED)
        request = request_for(home, home / "base")
        request = type(request)(
            request.layers, request.target, os.fsencode(open_tmp / "place"), request.rw
        )
        (open_tmp / "place").mkdir()
        mounted = mount_aufs(request)
        assert b"a:b" not in kernel.calls[-1]
        assert kernel.live[request.target] == request.rw
        assert list((open_tmp / "place").iterdir()) == []
        mounted.release()  # as if the keeper had been killed
        with pytest.raises(BusyError, match="mounted with AUFS"):
            settle_branch(request.rw or b"")
        _sys.umount(request.target)
        settle_branch(request.rw or b"")
        assert disk_state(home / "rw") == {}

    in_way("root", action)


def test_a_remount_that_fails_leaves_nothing(
    open_tmp: Path, filesystem: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(open_tmp, refuse=2)
    kernel.install(monkeypatch, filesystem)

    def action() -> None:
        layers = []
        for number in range(126):
            build(open_tmp / f"l{number}", {"f": "f"})
            layers.append(open_tmp / f"l{number}")
        with pytest.raises(UnsupportedError, match="127 branches, and this kernel"):
            mount_aufs(request_for(open_tmp, *layers))
        assert kernel.live == {}
        assert open_tmp.name not in Path("/proc/self/mountinfo").read_text()
        settle_branch(os.fsencode(open_tmp / "rw"))
        assert disk_state(open_tmp / "rw") == {}
        assert list((open_tmp / "scratch").iterdir()) == []

    in_way("root", action)


def test_auto_takes_it_and_facts_of_layers_are_kept(
    open_tmp: Path, filesystem: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(open_tmp)
    kernel.install(monkeypatch, filesystem)

    def action() -> None:
        build(open_tmp / "base", LINKED)
        shims = open_tmp / "shims"
        request = request_for(open_tmp, Layer(os.fsencode(open_tmp / "base"), os.fsencode(shims)))
        choice = mount_fastest(request)
        assert isinstance(choice.mount, AufsMount)
        assert (choice.backend, choice.reasons) == ("aufs", ())
        choice.mount.unmount()
        assert (shims / "trusted/facts.json").exists()

    in_way("root", action)


def test_the_root_of_an_old_store_needs_another_back_end(
    open_tmp: Path, filesystem: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(open_tmp)
    kernel.install(monkeypatch, filesystem)

    def action() -> None:
        build(open_tmp / "base", LINKED)
        (open_tmp / "base").chmod(0o700)
        request = request_for(open_tmp, open_tmp / "base", rw=False, root_mode=0o755)
        with pytest.raises(UnsupportedError, match="mode 0700 of an old store"):
            mount_aufs(request)
        writable = request_for(open_tmp, open_tmp / "base", root_mode=0o755)
        mount_aufs(writable).unmount()

    in_way("root", action)
