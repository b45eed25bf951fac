"""Bad or awkward input to `mount --backend`: a clear error with a name, FUSE with the reason else.

Invariant of each row: a failed mount leaves no mount, shim, directory, record or log.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from support.backendplace import Place, backend_place
from support.engine_fs import build, disk_state

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.usefixtures("as_root")]

LAYERS: Final = ("--layer", "top", "--layer", "base")


@pytest.fixture
def place() -> Iterator[Place]:
    with backend_place() as made:
        build(made.path / "base", {"one": "1", "two": "2"})
        build(made.path / "top", {".wh.one": "", "three": "3"})
        yield made


def everything(place: Place) -> list[str]:
    """Return all names below the place; mounts are entered."""
    return sorted(
        os.path.relpath(os.path.join(directory, name), place.path)
        for directory, dirs, files in os.walk(place.path)
        for name in dirs + files
    )


def check_fallback(
    place: Place, words: tuple[str, ...], reason: str, *, aufs_can: bool = False
) -> None:
    """Mount with overlay, which must fail cleanly, and with auto, which must say why it is FUSE.

    `aufs_can`: where there is AUFS, it comes first and takes it.
    """
    (place.path / "run/unionfs").mkdir(mode=0o700, exist_ok=True)
    types, names = place.kernel_types(), everything(place)
    said = place.fails("mount", *words, "mnt", "--backend", "overlay")
    assert said.startswith("unionfs: overlay: ")
    assert reason in said
    assert (place.kernel_types(), everything(place)) == (types, names)
    place.ok("mount", *words, "mnt", "--backend", "auto")
    (mount,) = [item for item in place.mounts() if item["target"].endswith("/mnt")]
    if aufs_can and mount["backend"] == "aufs":
        place.ok("umount", "mnt")
        return
    assert mount["backend"] == "fuse"
    assert [item for item in mount["reasons"] if item.startswith("overlay: ") and reason in item]
    place.ok("umount", "mnt")
    assert place.kernel_types() == types


def test_a_branch_on_an_overlayfs(place: Place) -> None:
    place.ok("mount", *LAYERS, "outer", "--rw", "outer-rw", "--backend", "overlay")
    check_fallback(place, (*LAYERS, "--rw", "outer/rw"), "")
    place.ok("umount", "outer")


def test_layers_nested_too_deep(place: Place) -> None:
    outer = "base"
    for number in range(2):
        layers = ("--layer", outer, "--layer", "top")
        place.ok("mount", *layers, f"deep{number}", "--backend", "overlay")
        outer = f"deep{number}"
    check_fallback(place, ("--layer", outer, "--layer", "top"), "")
    for number in (1, 0):
        place.ok("umount", f"deep{number}")


def test_too_many_layers(place: Place) -> None:
    words = []
    (place.path / "l").mkdir()
    for number in range(501):
        build(place.path / f"l/{number}", {f"f{number}": "x"})
        words += ["--layer", f"l/{number}"]
    check_fallback(place, tuple(words), "the kernel takes 500")


def test_devices_that_only_fuse_can_show(place: Place) -> None:
    os.mknod(place.path / "top/null", 0o020600, os.makedev(0, 0))
    check_fallback(place, LAYERS, "character devices 0/0", aufs_can=True)


@pytest.mark.parametrize("odd", [b"a:b,c\\d", b'\n\xff\xfe "upperdir=x'])
@pytest.mark.parametrize("backend", ["overlay", "auto", "fuse"])
def test_awkward_names_everywhere(place: Place, backend: str, odd: bytes) -> None:
    """Colons, commas, backslashes, a newline, bytes that are no UTF-8, an option's own name."""
    home = Path(os.fsdecode(os.fsencode(place.path) + b"/" + odd))
    home.mkdir()
    for name in ("top", "base"):
        subprocess.run(["cp", "-a", place.path / name, home / name], check=True)
    place.ok(
        "mount",
        *("--layer", home / "top", "--layer", home / "base"),
        *(home / "mnt", "--rw", home / "rw", "--backend", backend),
    )
    assert sorted(os.listdir(home / "mnt")) == ["three", "two"]
    (home / "mnt/two").unlink()
    assert place.ok("changes", home / "mnt") == "D /two\n"
    place.ok("umount", home / "mnt")
    assert disk_state(home / "rw") == {".wh.two": ""}
    assert place.runtime() == []
    assert place.kernel_types() == []


@pytest.mark.parametrize("backend", ["overlay", "auto", "fuse", "aufs"])
def test_a_filesystem_that_cannot_hold_a_branch(place: Place, backend: str) -> None:
    """Ramfs keeps no extended attributes: no union could write there what it must."""
    ram = place.path / "ram"
    ram.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "x", ram], check=True)
    try:
        said = place.fails("mount", *LAYERS, "mnt", "--rw", "ram/rw", "--backend", backend)
        assert "extended attributes" in said or said.startswith("unionfs: aufs: this kernel")
        assert os.listdir(ram) == []
        assert not (place.path / "mnt").exists()
        assert place.runtime() == []
    finally:
        subprocess.run(["umount", ram], check=True)


def test_a_store_that_has_no_room_for_shims(place: Place) -> None:
    """A read-only store: the shims are made for the mount alone, and go with it."""
    place.ok("import", "rootfs:base", "-t", "base")
    store = place.path / "store"
    subprocess.run(["mount", "--bind", store, store], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
    try:
        place.ok("mount", "base", "mnt", "--backend", "overlay")
        assert sorted(os.listdir(place.path / "mnt")) == ["one", "two"]
        place.ok("umount", "mnt")
        assert place.runtime() == []
    finally:
        subprocess.run(["umount", store], check=True)
