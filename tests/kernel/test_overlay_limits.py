"""Many layers and awkward names, with the new mount API and with the one page of mount(2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.engine_fs import build, disk_state
from support.kernelways import WAYS, in_way, request_for, require_way

from unionfs import _sys
from unionfs.errors import UnsupportedError
from unionfs.kernel import overlay
from unionfs.kernel.overlay_union import mount_overlay
from unionfs.kernel.survey import Kind

ODD = (b"a:b", b"a,b", b"a\\b", b"a\nb", b"\xff\xfe", b"a b", b'"', b"lowerdir=x", b"x" * 255)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    require_way(request.param)
    return str(request.param)


@pytest.fixture(params=["context", "page", "legacy"])
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Mount as a new kernel lets us, as one without `lowerdir+` does, or as one before 6.5.

    The last takes every option into a page and refuses what it does not know at the mount.
    """

    def refused(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    real = _sys.fsconfig_set

    def old_kernel(fd: int, key: bytes, value: bytes | None = None) -> None:
        if key == b"lowerdir+":
            refused()
        real(fd, key, value)

    if request.param == "page":
        monkeypatch.setattr(_sys, "fsconfig_set", old_kernel)
    elif request.param == "legacy":
        monkeypatch.setattr(_sys, "fsconfig_set", lambda *_: None)
        monkeypatch.setattr(_sys, "fsconfig_create", refused)
    return str(request.param)


def stack(place: Path, count: int) -> list[Path]:
    """Make layers, top first; the first of them hides the base's file by a whiteout."""
    home = place / "layers" / ("deep-" * 20)
    home.mkdir(parents=True)
    layers = []
    for number in range(count):
        layer = home / f"{number:03}"
        layer.mkdir()
        (layer / f"f{number}").write_text(str(number))
        layers.append(layer)
    (layers[-1] / "hidden").write_text("base")
    (layers[0] / ".wh.hidden").touch()
    return layers


@pytest.mark.parametrize("rw", [True, False])
def test_as_many_layers_as_the_kernel_takes(
    way: str, lane: str, open_tmp: Path, *, rw: bool
) -> None:
    del lane

    def action() -> None:
        # Two shims and, read-only, the root's own make 500.
        layers = stack(open_tmp, 498 if rw else 497)
        mounted = mount_overlay(request_for(open_tmp, *layers, rw=rw))
        target = open_tmp / "target"
        assert len(os.listdir(target)) == len(layers)
        assert not (target / "hidden").exists()
        assert (target / f"f{len(layers) - 1}").read_text() == str(len(layers) - 1)
        if rw:
            (target / "f0").unlink()
        mounted.unmount()
        assert disk_state(open_tmp / "rw") == ({".wh.f0": ""} if rw else {})

    in_way(way, action)


def test_more_are_refused_with_the_number(way: str, open_tmp: Path) -> None:
    def action() -> None:
        layers = stack(open_tmp, 499)
        with pytest.raises(UnsupportedError, match=r"501 directories.*takes 500"):
            mount_overlay(request_for(open_tmp, *layers))
        assert disk_state(open_tmp / "rw") == {}
        assert list((open_tmp / "scratch").iterdir()) == []

    in_way(way, action)


def test_any_name_may_be_a_layer_or_a_branch(way: str, lane: str, open_tmp: Path) -> None:
    del lane

    def action() -> None:
        for number, odd in enumerate(ODD):
            home = Path(os.fsdecode(os.fsencode(open_tmp) + b"/%d/" % number + odd))
            home.mkdir(parents=True)
            build(home / "top", {".wh.a": "", "t": "t"})
            build(home / "base", {"a": "a", "b": "b"})
            mounted = mount_overlay(request_for(home, home / "top", home / "base"))
            assert sorted(os.listdir(home / "target")) == ["b", "t"]
            (home / "target" / "b").unlink()
            states = [mounted.mounted]
            mounted.unmount()
            states.append(mounted.mounted)
            assert states == [True, False]
            assert disk_state(home / "rw") == {".wh.b": ""}

    in_way(way, action)


def test_the_page_is_measured_and_its_names_escaped() -> None:
    spec = overlay.OverlaySpec((b"/",), Kind.USER)
    assert len(overlay._page(spec, [b"1234567"] * 600, None)) > overlay._PAGE_DATA
    assert overlay._escape(b"a:b,c\\d") == b"a\\:b\\,c\\\\d"
