"""The AUFS option builder: pure, so it is tested where no kernel has AUFS."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from unionfs import _sys
from unionfs.errors import UnsupportedError
from unionfs.kernel import aufs
from unionfs.kernel.aufs import (
    AufsPlan,
    Features,
    build,
    mount,
    probe_features,
    short_names,
)

STORE = b"/var/lib/docker/graph/%064x/layer"
PAGE = 4095  # what mount(2) passes on
CRASH = 85  # branches in one call that crash the kernel


def layers(count: int, pattern: bytes = STORE) -> list[bytes]:
    return [pattern % number for number in range(count)]


def branches(plan: AufsPlan) -> list[tuple[bytes, bytes]]:
    """Read the calls back as the kernel's parser does: branches in order with permission."""
    head, *options = plan.first.split(b",")
    assert head.startswith(b"br:")
    assert not any(option.startswith(b"append:") for option in options)
    words = head.removeprefix(b"br:").split(b":")
    for data in plan.appends:
        for option in data.split(b","):
            assert option.startswith(b"append:")
            words.append(option.removeprefix(b"append:"))
    found = []
    for word in words:
        path, _, permission = word.partition(b"=")
        assert path, "an empty branch ends the list silently"
        found.append((path, permission))
    return found


def calls(plan: AufsPlan) -> list[tuple[bytes, int]]:
    """Return every call's data with the number of options and branches in it."""
    first = plan.first.count(b":") + plan.first.count(b",")
    return [(plan.first, first), *((data, data.count(b",") + 1) for data in plan.appends)]


@pytest.mark.parametrize("features", [Features(), Features(dirperm1=True, xino=b"/dev/shm/x.xino")])
@pytest.mark.parametrize("rw", [None, b"/rw"])
@pytest.mark.parametrize("pattern", [STORE, b"/l/%d"])
@pytest.mark.parametrize("count", [1, 42, 43, 126, 127, 500])
def test_every_layer_arrives_within_the_limits(
    count: int, pattern: bytes, rw: bytes | None, features: Features
) -> None:
    lowers = layers(count, pattern)
    plan = build(lowers, rw, features)
    expected = [] if rw is None else [(rw, b"rw")]
    assert branches(plan) == expected + [(path, b"ro+wh") for path in lowers]
    for data, options in calls(plan):
        assert len(data) <= PAGE
        assert options <= 80 < CRASH
        assert not data.endswith((b":", b","))
    assert (b"dirperm1" in plan.first) is features.dirperm1
    assert (b",xino=" in plan.first) is (features.xino is not None)


@pytest.mark.parametrize("count", [127, 500])
def test_the_limit_of_branches_is_told_by_the_kernel(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """127 branches mostly, more where AUFS was built so; nothing stays mounted."""
    plan = build(layers(count), b"/rw", Features())
    kernel = Kernel(dict.fromkeys(range(1 + len(plan.appends), 99), errno.ENOSPC))
    install(monkeypatch, kernel, right=True)
    with pytest.raises(UnsupportedError, match=f"^aufs: {count + 1} branches, and this kernel's"):
        mount(plan, b"/t")
    assert kernel.unmounted == 1
    roomy = Kernel({})
    install(monkeypatch, roomy, right=True)
    mount(plan, b"/t")
    assert (len(roomy.calls), roomy.unmounted) == (1 + len(plan.appends), 0)


def test_one_page_holds_what_docker_could_mount() -> None:
    """42 branches of its usual length fit the first call; more go into remounts."""
    assert not build(layers(40), b"/rw", Features()).appends
    plan = build(layers(43), b"/rw", Features())
    assert len(plan.appends) == 1


def test_no_branches_at_all() -> None:
    with pytest.raises(UnsupportedError, match="at least one"):
        build([], None, Features())


@pytest.mark.parametrize("bad", [b"/a:b", b"/a,b", b"/a=b", b"/a\\b", b"/a\nb", b"/\xff", b"rel"])
def test_paths_that_cannot_be_options(bad: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot be written as an option"):
        build([bad], b"/rw", Features())
    if bad == b"rel":
        return
    home = os.fsencode(tmp_path)
    with short_names([b"/fine", bad], home) as names:
        assert names[0] == b"/fine"
        assert os.readlink(names[1]) == bad
        assert branches(build(names, None, Features())) == [(name, b"ro+wh") for name in names]
    assert os.listdir(home) == []


def test_a_path_longer_than_a_page_gets_a_short_name(tmp_path: Path) -> None:
    with short_names([b"/" + b"/".join([b"x" * 200] * 19)], os.fsencode(tmp_path)) as names:
        assert len(names[0]) < 200


def test_short_names_that_would_not_help_are_refused(tmp_path: Path) -> None:
    odd = tmp_path / "a:b"
    odd.mkdir()
    with (
        pytest.raises(UnsupportedError, match=re.escape("the place for a short name")),
        short_names([b"/x:y"], os.fsencode(odd)),
    ):
        pass
    assert list(odd.iterdir()) == []


class Kernel:
    """Stands in for mount(2): fails where told, and remembers."""

    def __init__(self, failures: dict[int, int]) -> None:
        self.failures = failures
        self.calls: list[tuple[int, bytes]] = []
        self.unmounted = 0

    def mount(self, _source: bytes, _target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
        assert fstype == b"aufs"
        self.calls.append((flags, data))
        code = self.failures.get(len(self.calls))
        if code is not None:
            raise OSError(code, os.strerror(code))

    def umount(self, _target: bytes, _flags: int = 0) -> None:
        self.unmounted += 1


def install(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, *, right: bool) -> list[str]:
    loaded: list[str] = []

    def load() -> str:
        loaded.append("aufs")
        return "modprobe: module not found"

    monkeypatch.setattr(_sys, "mount", kernel.mount)
    monkeypatch.setattr(_sys, "umount", kernel.umount)
    monkeypatch.setattr(_sys, "has_capability", lambda _: right)
    monkeypatch.setattr(aufs, "_load_module", load)
    return loaded


def test_a_failure_half_way_unmounts(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel({3: errno.EINVAL})
    install(monkeypatch, kernel, right=True)
    plan = build(layers(100, b"/l/%d"), b"/rw", Features())
    assert len(plan.appends) > 1
    with pytest.raises(UnsupportedError, match="appending branches failed: Invalid"):
        mount(plan, b"/t")
    assert kernel.unmounted == 1
    assert kernel.calls[1][0] & _sys.MS_REMOUNT


def test_the_first_error_is_told_and_the_module_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel({1: 19, 2: 22})
    loaded = install(monkeypatch, kernel, right=True)
    with pytest.raises(UnsupportedError, match="this kernel has no AUFS; modprobe: module not"):
        mount(build([b"/l"], None, Features()), b"/t")
    assert loaded == ["aufs"]
    assert len(kernel.calls) == 1
    assert kernel.unmounted == 0


@pytest.mark.parametrize(("code", "right"), [(19, False), (22, True), (1, True)])
def test_the_module_is_not_tried_without_need_or_right(
    monkeypatch: pytest.MonkeyPatch, code: int, *, right: bool
) -> None:
    kernel = Kernel({1: code})
    loaded = install(monkeypatch, kernel, right=right)
    with pytest.raises(UnsupportedError):
        mount(build([b"/l"], None, Features()), b"/t")
    assert loaded == []


def test_a_loaded_module_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel({1: 19})
    install(monkeypatch, kernel, right=True)
    monkeypatch.setattr(aufs, "_load_module", lambda: None)
    mount(build([b"/l"], None, Features()), b"/t")
    assert len(kernel.calls) == 2


@pytest.mark.parametrize(
    ("failures", "dirperm1", "xino"),
    [({}, True, True), ({1: 22}, True, False), ({1: 22, 2: 22}, False, False)],
)
def test_features_are_found_by_trying_the_best_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failures: dict[int, int],
    *,
    dirperm1: bool,
    xino: bool,
) -> None:
    kernel = Kernel(failures)
    install(monkeypatch, kernel, right=True)
    monkeypatch.setattr(aufs, "_xino_path", lambda: b"/dev/shm/x")  # only a word here
    found = probe_features(os.fsencode(tmp_path))
    assert (found.dirperm1, found.xino is not None) == (dirperm1, xino)
    assert len(kernel.calls) == len(failures) + 1
    assert kernel.unmounted == 1
    assert list(tmp_path.iterdir()) == []


def test_another_place_is_tried_where_the_first_does_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overlayfs cannot be a branch, and a runtime directory may lie on it."""
    places = [os.fsencode(tmp_path / name) for name in ("absent", "one", "two")]
    for path in places[1:]:
        os.mkdir(path)
    kernel = Kernel({1: 22, 2: 22, 3: 22})
    install(monkeypatch, kernel, right=True)
    assert probe_features(*places[1:]).dirperm1
    assert len(kernel.calls) == 4
    for code, calls, reason in ((22, 3, "refuses the branches"), (1, 1, "not permitted")):
        kernel = Kernel(dict.fromkeys(range(1, 9), code))
        install(monkeypatch, kernel, right=True)
        with pytest.raises(UnsupportedError, match=reason):
            probe_features(places[1])
        assert len(kernel.calls) == calls
    with pytest.raises(UnsupportedError, match=r"cannot try it in .*absent: No such file"):
        probe_features(places[0])
