"""Reading a branch that overlayfs writes at this moment: the same changes, the same layer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.backendplace import Place, backend_place, until
from support.engine_fs import build

from unionfs.kernel import convert
from unionfs.kernel.form import State
from unionfs.kernel.survey import Kind
from unionfs.store.config import read_config
from unionfs.store.graph import Graph

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.usefixtures("as_root")]

TREE = {
    "etc/a": "a",
    "etc/b": "b",
    "gone/x": "x",
    "again/old": "old",
    "again/deep/er": "er",
    "file": "file",
    "name": "name",
    "p": "pair",
    "sub/q": "=p",
    "sub/r": "r",
    "far/away/s": "=p",
}
#: Everything that the changes touch: times are set so that only the changes can differ.
TOUCHED = (
    *("again/new", "again/deep/only", "again/deep", "again", "file/in", "file", "name", "etc/b"),
    *("new/inner/x", "new/inner", "new", "p", "far/away", "far", "sub", "etc", "."),
)


def change(mnt: Path) -> None:
    """Make what overlayfs marks opaque though nothing is below, and what really hides."""
    shutil.rmtree(mnt / "gone")
    shutil.rmtree(mnt / "again")
    (mnt / "again").mkdir()
    (mnt / "again/new").write_text("new")
    (mnt / "again/deep").mkdir()
    (mnt / "again/deep/only").write_text("only")
    (mnt / "file").unlink()
    (mnt / "file").mkdir()
    (mnt / "file/in").write_text("in")
    (mnt / "new/inner").mkdir(parents=True)
    (mnt / "new/inner/x").write_text("x")
    (mnt / "new/tmp").write_text("tmp")
    (mnt / "new/tmp").unlink()
    (mnt / "name").unlink()
    (mnt / "name").write_text("again")
    (mnt / "etc/a").unlink()
    (mnt / "etc/b").chmod(0o600)
    with (mnt / "p").open("r+") as file:
        file.write("PAIR")
    for path in TOUCHED:
        os.utime(mnt / path, (10**9, 10**9))


@pytest.fixture
def place() -> Iterator[Place]:
    with backend_place() as made:
        build(made.path / "image", TREE)
        made.ok("import", "rootfs:image", "-t", "base")
        yield made


def mounted(place: Place, name: str, backend: str) -> Path:
    place.ok("mount", "base", name, "--rw", f"{name}-rw", "--backend", backend)
    return place.path / name


def diff_ids(place: Place, image: str) -> list[str]:
    with Graph(os.fsencode(place.path / "store")) as graph:
        raw = read_config(graph.get_exact(image.strip()))
    assert raw is not None
    found: list[str] = json.loads(raw)["rootfs"]["diff_ids"]
    return found


def test_one_diff_id_live_at_rest_and_under_fuse(place: Place) -> None:
    found = {}
    for backend in ("fuse", "overlay"):
        mnt = mounted(place, backend, backend)
        change(mnt)
        found[f"{backend}, live"] = diff_ids(place, place.ok("commit", backend))
        changes = place.ok("changes", backend)
        place.ok("umount", backend)
        at_rest = ("--image", "base", "--rw", f"{backend}-rw")
        found[f"{backend}, at rest"] = diff_ids(place, place.ok("commit", *at_rest))
        assert place.ok("changes", *at_rest) == changes
    assert len(set(map(tuple, found.values()))) == 1, found
    assert all(len(ids) == 2 for ids in found.values())


def test_every_name_of_a_file_is_committed(place: Place) -> None:
    """Overlayfs links a name to the copy only when it is used; nobody has used two of them."""
    mnt = mounted(place, "mnt", "overlay")
    with (mnt / "p").open("r+") as file:
        file.write("PAIR")
    rw = os.fsencode(place.path / "mnt-rw")
    assert sorted(convert.pending_names(rw)) == [b"far/away/s", b"sub/q"]
    before = (mnt / "sub/q").stat()
    image = place.ok("commit", "mnt").strip()
    assert convert.pending_names(rw) == []
    after = (mnt / "sub/q").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    place.ok("umount", "mnt")
    place.ok("mount", image, "seen")
    seen = [(place.path / "seen" / name) for name in ("p", "sub/q", "far/away/s")]
    assert [path.read_text() for path in seen] == ["PAIR"] * 3
    assert len({path.stat().st_ino for path in seen}) == 1


def test_names_that_are_hidden_or_replaced_are_not_brought_back(place: Place) -> None:
    mnt = mounted(place, "mnt", "overlay")
    (mnt / "sub/q").unlink()
    (mnt / "far/away/s").unlink()
    (mnt / "far/away/s").write_text("other")
    with (mnt / "p").open("r+") as file:
        file.write("PAIR")
    assert convert.pending_names(os.fsencode(place.path / "mnt-rw")) == []
    shutil.rmtree(mnt / "far")
    (mnt / "far/away").mkdir(parents=True)
    assert convert.pending_names(os.fsencode(place.path / "mnt-rw")) == []
    assert place.ok("changes", "mnt") == "D /far/away/s\nC /p\nD /sub/q\n"


def test_a_name_that_a_layer_cannot_hold_is_not_lost_silently(place: Place) -> None:
    mnt = mounted(place, "mnt", "overlay")
    (mnt / "sub/.wh.r").write_text("a program's own file")
    said = place.fails("commit", "mnt")
    assert said.startswith("unionfs: /sub/.wh.r: such a name means a deletion in a layer;")
    (mnt / "sub/.wh.r").rename(mnt / "sub/r")
    place.ok("commit", "mnt")


def test_a_branch_between_two_forms_is_brought_into_order(place: Place) -> None:
    """What a crash left on the way is finished by whoever reads the branch next."""
    rw = place.path / "rw"
    build(rw, {".wh.name": "", "etc/new": "new"})
    fd = os.open(rw, os.O_RDONLY | os.O_DIRECTORY)
    State.create(fd, os.fsencode(rw), Kind.TRUSTED, []).close()
    os.close(fd)
    at_rest = ("--image", "base", "--rw", "rw")
    assert "A /etc/new\nD /name\n" in place.ok("changes", *at_rest)
    assert sorted(os.listdir(rw)) == [".wh.name", "etc"]
    place.ok("commit", *at_rest)


def test_a_branch_that_nobody_finished_is_finished_by_whoever_reads_it(place: Place) -> None:
    """The keeper was killed, the mount went away, and names were not linked yet."""
    mnt = mounted(place, "mnt", "overlay")
    with (mnt / "p").open("r+") as file:
        file.write("PAIR")
    (mnt / "name").unlink()
    place.kill_keeper()
    subprocess.run(["umount", mnt], check=True)
    at_rest = ("--image", "base", "--rw", "mnt-rw")
    until(lambda: "C /sub/q" in place.ok("changes", *at_rest))
    assert sorted(os.listdir(place.path / "mnt-rw")) == [".wh.name", "far", "p", "sub"]
    place.ok("commit", *at_rest)
    place.ok("umount", "mnt")
