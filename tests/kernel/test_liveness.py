"""Asking the kernel whether an upper directory is in use, and when it cannot be asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.engine_fs import build, disk_state
from support.kernelways import in_way, require_way

from unionfs import _sys
from unionfs.errors import BusyError, StoreError
from unionfs.kernel import convert, liveness
from unionfs.kernel.liveness import Use
from unionfs.kernel.survey import Kind


def test_a_directory_of_another_mount_namespace_is_not_called_free(open_tmp: Path) -> None:
    """The kernel refuses it with the same error that otherwise means free."""
    require_way("root")

    def action() -> None:
        fd = os.open(open_tmp, os.O_PATH | os.O_DIRECTORY)
        assert liveness.ask(fd) is Use.FREE
        _sys.unshare(_sys.CLONE_NEWNS)
        assert liveness.ask(fd) is Use.UNKNOWN

    in_way("root", action)


def test_asking_changes_nothing(open_tmp: Path) -> None:
    require_way("root")

    def action() -> None:
        os.utime(open_tmp, ns=(1, 2))
        fd = os.open(open_tmp, os.O_PATH | os.O_DIRECTORY)
        assert liveness.upper_use(fd) is Use.FREE
        assert os.listdir(open_tmp) == []
        assert os.listxattr(open_tmp) == []
        assert open_tmp.stat().st_mtime_ns == 2

    in_way("root", action)


@pytest.fixture
def lent(open_tmp: Path) -> bytes:
    require_way("root")
    build(open_tmp / "base", {"a": "a"})
    build(open_tmp / "rw", {".wh.a": "", "b": "b"})
    rw = os.fsencode(open_tmp / "rw")
    convert.enter(rw, [os.fsencode(open_tmp / "base")], Kind.TRUSTED)
    return rw


def test_nobody_to_ask(lent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then only another boot of the machine proves that no mount is left."""
    monkeypatch.setattr(liveness, "upper_use", lambda _: Use.UNKNOWN)
    before = disk_state(Path(os.fsdecode(lent)))
    with pytest.raises(BusyError, match="nobody here may ask"):
        convert.settle(lent)
    assert disk_state(Path(os.fsdecode(lent))) == before
    monkeypatch.setattr(liveness, "boot_id", lambda: "another")
    assert convert.settle(lent)
    assert disk_state(Path(os.fsdecode(lent))) == {".wh.a": "", "b": "b"}


def test_a_live_mount_is_busy_whatever_the_boot(
    lent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "upper_use", lambda _: Use.BUSY)
    monkeypatch.setattr(liveness, "boot_id", lambda: "another")
    with pytest.raises(BusyError, match="mounted with overlayfs"):
        convert.settle(lent)


def test_a_damaged_record_is_told(lent: bytes) -> None:
    form = Path(os.fsdecode(lent)) / ".wh..wh.overlay" / "form"
    form.unlink()
    form.symlink_to("nonsense")
    with pytest.raises(StoreError, match="record of its overlay form is damaged"):
        convert.settle(lent)
    with pytest.raises(BusyError, match="on its way"):
        convert.locate(lent)
