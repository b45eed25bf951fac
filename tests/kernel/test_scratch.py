"""Temporary directories of kernel mounts: kept while somebody uses the mount, swept after."""

from __future__ import annotations

import os
from pathlib import Path

from support.engine_fs import build
from support.kernelways import in_way, request_for, require_way

from unionfs import _sys
from unionfs.errors import BusyError
from unionfs.kernel import scratch
from unionfs.kernel.overlay_union import mount_overlay, overlay_kind, prepare_overlay


def test_who_uses_a_mount_is_seen(open_tmp: Path) -> None:
    """While it is mounted, through an open directory afterwards, and then no more."""
    require_way("root")

    def action() -> None:
        build(open_tmp / "base", {"f": "f", "g": "g"})
        build(open_tmp / "top", {".wh.f": ""})
        layers = (open_tmp / "top", open_tmp / "base")
        mounted = mount_overlay(request_for(open_tmp, *layers, rw=False))
        (place,) = os.listdir(open_tmp / "scratch")
        path = os.fsencode(open_tmp / "scratch" / place)
        assert scratch.in_use(path)
        scratch.sweep(os.fsencode(open_tmp / "scratch"), ())
        fd = os.open(open_tmp / "target", os.O_RDONLY | os.O_DIRECTORY)
        mounted.detach()
        assert scratch.in_use(path)
        told = []
        try:
            mounted.finish()
        except BusyError as error:
            told.append(str(error))
        assert len(told) == 1
        assert os.listdir(fd) == ["g"]
        os.close(fd)
        mounted.finish()
        assert os.listdir(open_tmp / "scratch") == []
        assert not scratch.in_use(path)

    in_way("root", action)


def test_a_trial_is_not_taken_for_the_mount(open_tmp: Path) -> None:
    """A run tries its mount first: the number of that device says nothing later."""
    require_way("root")

    def action() -> None:
        build(open_tmp / "base", {"f": "f"})
        (open_tmp / "trial").mkdir()
        request = request_for(open_tmp, open_tmp / "base", rw=False)
        mounted = prepare_overlay(request, overlay_kind())
        mounted.attach(os.fsencode(open_tmp / "trial"))
        _sys.umount(os.fsencode(open_tmp / "trial"))
        (place,) = os.listdir(open_tmp / "scratch")
        path = os.fsencode(open_tmp / "scratch" / place)
        assert os.listdir(path) == [b"root"]
        assert not scratch.in_use(path)
        mounted.attach()
        assert sorted(os.listdir(path)) == [b"mount", b"root"]
        mounted.unmount()
        assert os.listdir(open_tmp / "scratch") == []

    in_way("root", action)


def test_of_another_boot_nothing_is_in_use(open_tmp: Path) -> None:
    home = open_tmp / "overlay-0123456789abcdef"
    home.mkdir()
    device = os.stat("/").st_dev
    os.symlink(f"{os.major(device)}:{os.minor(device)} another-boot", home / "mount")
    assert not scratch.in_use(os.fsencode(home))
    scratch.sweep(os.fsencode(open_tmp), (os.fsencode(home),))
    assert home.exists()
    scratch.sweep(os.fsencode(open_tmp), ())
    assert not home.exists()
    scratch.sweep(os.fsencode(open_tmp / "absent"), ())


def test_what_is_locked_or_just_made_is_not_swept(open_tmp: Path) -> None:
    made = open_tmp / "overlay-0123456789abcdef"
    made.mkdir()
    scratch.sweep(os.fsencode(open_tmp), ())
    assert made.exists()
    held = scratch.Scratch(os.fsencode(made))
    (made / "root").mkdir()
    scratch.sweep(os.fsencode(open_tmp), ())
    assert made.exists()
    held.close()
    (open_tmp / "overlay-other").mkdir()
    scratch.sweep(os.fsencode(open_tmp), ())
    assert [path.name for path in open_tmp.iterdir()] == ["overlay-other"]
