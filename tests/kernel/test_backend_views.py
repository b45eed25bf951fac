"""Views of a mount that kernel overlayfs makes: older states, but no markers of its branch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.backendplace import Place, backend_place
from support.engine_fs import build

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.usefixtures("as_root")]

_LAYERS = ("--layer", "top", "--layer", "base")


@pytest.fixture
def place() -> Iterator[Place]:
    with backend_place() as made:
        build(made.path / "base", {"one": "1", "two": "2"})
        build(made.path / "top", {".wh.one": "", "three": "3"})
        made.ok("mount", *_LAYERS, "mnt", "--rw", "rw", "--backend", "overlay")
        yield made


def test_what_overlayfs_writes_is_not_read_as_aufs(place: Place) -> None:
    (place.path / "mnt" / "two").unlink()
    said = place.fails("mount", "mnt", "view", "--show-whiteouts")
    assert "has no files for the whiteouts" in said
    assert "--upto 2" in said
    assert not (place.path / "view").exists()
    place.ok("mount", "mnt", "view", "--show-whiteouts", "--upto", "2")
    assert place.names("view") == [".wh.one", "three", "two"]
    place.ok("umount", "view")
    place.ok("umount", "mnt")
    assert (place.path / "rw" / ".wh.two").exists()


def test_markers_are_shown_by_our_own_union_only(place: Place) -> None:
    said = place.fails("mount", *_LAYERS, "other", "-o", "shwh", "--backend", "overlay")
    assert "needs fuse" in said
    place.ok("mount", *_LAYERS, "other", "--show-whiteouts", "--backend", "auto")
    assert ".wh.one" in place.names("other")
