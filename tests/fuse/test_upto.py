"""`--upto` and views of live mounts from the command line, as a user without rights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.workspace import Workspace, workspace

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]

#: Three layers; `demo/app:v1` is two of them.
_IMAGE = (
    "mkdir -p one/d two/d three/d; echo 1 > one/d/a; echo 1 > one/d/b; echo 1 > one/d/c",
    "echo 2 > two/d/b; touch two/d/.wh.a; echo 3 > three/d/new; touch three/d/.wh.b",
    "unionfs import rootfs:one -t demo/app:v0",
    "unionfs import rootfs:two --parent demo/app:v0 -t demo/app:v1",
    "unionfs import rootfs:three --parent demo/app:v1 -t demo/app:v2",
    "unionfs untag demo/app:v0",
)


def ok(place: Workspace, line: str) -> str:
    done = place.sh(line)
    assert done.returncode == 0, f"{line}: {done.stderr.decode()}"
    return bytes(done.stdout).decode()


def fails(place: Workspace, line: str) -> str:
    done = place.sh(line)
    assert done.returncode != 0, f"{line}: {done.stdout.decode()}"
    return bytes(done.stderr).decode()


@pytest.fixture(scope="module")
def stored() -> Iterator[Workspace]:
    with workspace() as made:
        for line in _IMAGE:
            ok(made, line)
        yield made


@pytest.fixture
def place(stored: Workspace) -> Iterator[Workspace]:
    """Give the directory with the image; what a test mounts is unmounted after it."""
    yield stored
    stored.sh("unionfs umount --all; rm -rf rw view mnt")


def history(place: Workspace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ok(place, "unionfs history demo/app:v2 --json"))
    return found


def test_unknown_layers_are_answered_with_the_known_ones(place: Workspace) -> None:
    for word in ("4", "''"):
        said = fails(place, f"unionfs mount demo/app:v2 mnt --upto {word}")
        assert "no layer" in said, word
        assert "demo/app:v1" in said
        assert history(place)[2]["id"][:12] in said
    assert not (place.path / "mnt").exists()


def test_a_branch_on_an_older_layer_is_committed_on_that_layer(place: Workspace) -> None:
    ok(place, "unionfs mount demo/app:v2 mnt --upto 2 --rw rw")
    assert "demo/app:v1" in ok(place, "unionfs mounts")
    ok(place, "echo side > mnt/d/side; unionfs commit mnt -t demo/side:1; unionfs umount mnt")
    ok(place, "unionfs mount demo/side:1 mnt")
    assert ok(place, "ls mnt/d").split() == ["b", "c", "side"]
    layers = json.loads(ok(place, "unionfs history demo/side:1 --json"))
    assert layers[1]["id"] == history(place)[1]["id"]
    ok(place, "unionfs umount mnt; rm -r rw; unionfs rmi demo/side:1")


def test_a_layer_without_a_tag_can_be_committed_on(place: Workspace) -> None:
    ok(place, "unionfs mount demo/app:v2 mnt --upto 1 --rw rw")
    ok(place, "echo side > mnt/d/side; unionfs commit mnt -t demo/side:1; unionfs umount mnt")
    ok(place, "unionfs mount demo/side:1 mnt")
    assert ok(place, "ls mnt/d").split() == ["a", "b", "c", "side"]
    ok(place, "unionfs umount mnt; rm -r rw; unionfs rmi demo/side:1")


def test_mounted_layers_cannot_be_removed(place: Workspace) -> None:
    ok(place, "unionfs tag demo/app:v2 demo/copy:1")
    ok(place, "unionfs mount demo/app:v2 mnt --upto 1")
    base = history(place)[2]["id"]
    assert "in use" in fails(place, f"unionfs rmi --force {base}")
    assert ok(place, "cat mnt/d/a") == "1\n"


def test_what_a_live_mount_hides(place: Workspace) -> None:
    ok(place, "unionfs mount demo/app:v2 mnt --rw rw")
    ok(place, "rm mnt/d/c")
    ok(place, "unionfs mount mnt view --show-whiteouts")
    assert ok(place, "ls -A view/d").split() == [".wh.a", ".wh.b", ".wh.c", "new"]
    hidden = ok(place, "getfattr --only-values -n user.unionfs.hides view/d/.wh.b").split("\0")
    assert [path.rpartition("/layer")[2] for path in hidden] == ["/d/b", "/d/b"]
    layer = ok(place, "getfattr --only-values -n user.unionfs.layer view/d/new").split()
    assert layer == ["3", history(place)[0]["id"], "demo/app:v2"]
    ok(place, "echo later > mnt/d/later; rm mnt/d/new")
    assert ok(place, "ls -A view/d").split() == [
        *(".wh.a", ".wh.b", ".wh.c", ".wh.new"),
        "later",
    ]
    ok(place, "unionfs umount view; unionfs mount mnt view --upto 2 -o shwh")
    assert ok(place, "ls -A view/d; cat view/d/c").split() == [".wh.a", "b", "c", "1"]
    assert "Read-only" in fails(place, "touch view/x")
    ok(place, "unionfs umount mnt; cat view/d/c")


def test_a_view_outlives_and_never_changes_the_branch(place: Workspace) -> None:
    ok(place, "unionfs mount demo/app:v2 mnt --rw rw; rm mnt/d/c")
    ok(place, "unionfs mount mnt view --show-whiteouts")
    before = ok(place, "find rw | sort")
    ok(place, "ls -lR view; getfattr -R -d -m - view")
    assert ok(place, "find rw | sort") == before
    assert "read-only" in fails(place, "unionfs mount mnt other --show-whiteouts --rw rw2")
    assert "--show-whiteouts" in fails(place, "unionfs mount mnt other")
    ok(place, "unionfs umount mnt; unionfs mount demo/app:v2 mnt --rw rw; echo back > mnt/d/c")
    assert ok(place, "cat view/d/c") == "back\n"


def test_debugging_commands_take_it_with_a_mount(place: Workspace) -> None:
    ok(place, "unionfs mount demo/app:v2 mnt --rw rw; rm mnt/d/new")
    assert "visible, from layer 3" in ok(place, "unionfs explain mnt /d/new --upto 3")


def test_directories_by_number_and_by_path(place: Workspace) -> None:
    layers = "--layer three --layer two --layer one"
    for word, shown in (("2", "b c"), (f"{place.path}/one", "a b c")):
        ok(place, f"unionfs mount {layers} mnt --upto {word}")
        assert ok(place, "ls mnt/d").split() == shown.split()
        ok(place, "unionfs umount mnt")
    assert "no layer" in fails(place, f"unionfs mount {layers} mnt --upto demo/app:v1")
