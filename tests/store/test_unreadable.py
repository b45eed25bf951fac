"""Directories that may not be read are named in full, and fsck finds them before a mount does."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.workspace import Workspace, workspace


@pytest.fixture
def place() -> Iterator[Workspace]:
    """Give a plain user's directory with an image, a branch and the same layer as a directory."""
    with workspace() as made:
        made.sh("mkdir -p base/a/b/c rw/x/y/z rw/a/b; echo 1 > base/a/b/c/f; touch rw/a/b/new")
        assert made.sh("unionfs import rootfs:base -t demo/app:v1").returncode == 0
        yield made
        made.sh("chmod -R u+rwx base rw .data")


def fails(place: Workspace, *words: str) -> str:
    done = place.sh(shlex.join(["unionfs", *words]))
    assert done.returncode == 1
    (line,) = [item for item in done.stderr.decode().splitlines() if item.startswith("unionfs: ")]
    return line


def layer_of(place: Workspace) -> Path:
    (path,) = (place.path / ".data/unionfs/graph").glob("*/layer/a")
    return path.parent


@pytest.mark.parametrize("verb", ["changes", "commit"])
def test_a_branch(place: Workspace, verb: str) -> None:
    place.sh("chmod 000 rw/x/y")
    words = (verb, "--image", "demo/app:v1", "--rw", "rw")
    assert fails(place, *words) == f"unionfs: {place.path}/rw/x/y: Permission denied"


def test_a_layer(place: Workspace) -> None:
    place.sh("chmod 000 base/a/b")
    changes = ("changes", "--layer", "base", "--rw", "rw")
    assert fails(place, *changes) == f"unionfs: {place.path}/base/a/b: Permission denied"
    inner = layer_of(place) / "a" / "b"
    place.sh(f"chmod 000 {inner}")
    for words in (("export", "demo/app:v1", "rootfs:out.tar"), ("whiteouts", "demo/app:v1")):
        assert fails(place, *words) == f"unionfs: {inner}: Permission denied"


def test_fsck_finds_them(place: Workspace) -> None:
    layer = layer_of(place)
    assert place.sh("unionfs fsck --verify").returncode == 0
    for path, words, said in (
        (layer, "fsck", f"{layer} cannot be read by you, so not be mounted"),
        (layer / "a" / "b", "fsck --verify", f"{layer}/a/b: Permission denied"),
    ):
        place.sh(f"chmod 000 {path}")
        done = place.sh(f"unionfs {words}")
        assert done.returncode == 1
        assert said in done.stdout.decode()
        place.sh(f"chmod 755 {path}")
