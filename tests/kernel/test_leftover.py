"""A real FUSE mount over a branch that a kernel union had, or still has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support.engine_fs import build, disk_state
from support.kernelways import in_way, request_for, require_way

from unionfs import mounts
from unionfs.branch import whiteout
from unionfs.errors import BusyError
from unionfs.kernel.leftover import settle_if_needed
from unionfs.kernel.overlay_union import mount_overlay
from unionfs.union import Engine


def fuse(place: Path) -> mounts.MountRequest:
    return mounts.MountRequest(
        target=os.fsencode(place / "fuse"),
        layers=(os.fsencode(place / "base"),),
        rw=os.fsencode(place / "rw"),
    )


def test_fuse_takes_over_what_overlayfs_left(
    open_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_way("root")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse")
    (open_tmp / "run").mkdir(mode=0o700)
    (open_tmp / "fuse").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(open_tmp / "run"))

    def action() -> None:
        build(open_tmp / "base", {"a": "a", "b": "b"})
        kernel = mount_overlay(request_for(open_tmp, open_tmp / "base"))
        (open_tmp / "target" / "a").unlink()
        kernel.release()  # the keeper is killed
        with pytest.raises(BusyError, match="mounted with overlayfs"):
            mounts.start_mount(fuse(open_tmp))
        with pytest.raises(BusyError, match="kernel overlayfs has the rw branch"):
            Engine.start([os.fsencode(open_tmp / "base")], os.fsencode(open_tmp / "rw"))
        assert (open_tmp / "target" / "b").read_text() == "b"
        kernel.detach()  # and somebody unmounts by hand
        mounts.start_mount(fuse(open_tmp))
        assert sorted(os.listdir(open_tmp / "fuse")) == ["b"]
        (open_tmp / "fuse" / "b").unlink()
        mounts.umount(os.fsencode(open_tmp / "fuse"))
        assert disk_state(open_tmp / "rw") == {".wh.a": "", ".wh.b": ""}

    in_way("root", action)


def test_an_untouched_branch_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setitem(sys.modules, "unionfs.kernel.mounted", None)
    settle_if_needed(os.fsencode(tmp_path))
    settle_if_needed(os.fsencode(tmp_path / "absent"))
    settle_if_needed(None)
    (tmp_path / os.fsdecode(whiteout.AUFS_LINKS)).mkdir()
    with pytest.raises(ImportError):
        settle_if_needed(os.fsencode(tmp_path))
