"""`undelete`, `revert` and `reset` of branches that are not mounted, and what they refuse."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import Run
from support.engine_fs import disk_state, fingerprint

from unionfs.cli import undoing
from unionfs.union import Caller, Engine

ROOT = Caller(0, 0)


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Make a layer and a rw branch in which things are deleted, changed and added."""
    base, rw = tmp_path / "base", tmp_path / "rw"
    (base / "etc" / "sub").mkdir(parents=True)
    (base / "etc" / "motd").write_text("hi")
    (base / "etc" / "conf").write_text("conf")
    (base / "etc" / "sub" / "x").write_text("x")
    rw.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    with Engine.start([bytes(base)], bytes(rw)) as engine:
        etc = engine.lookup(engine.root, b"etc").ino
        engine.unlink(etc, b"motd")
        conf = engine.open(engine.lookup(etc, b"conf").ino, os.O_RDWR)
        engine.write(conf, 0, b"CONF!")
        engine.release(conf)
        fh, _, _ = engine.create(etc, b"\xffnew\n", 0o644, os.O_EXCL | os.O_RDWR, ROOT)
        engine.write(fh, 0, b"12345678")
        engine.release(fh)
    before = fingerprint(base)
    yield base, rw
    assert fingerprint(base) == before


def test_undelete_and_revert(run: Run, layers: tuple[Path, Path]) -> None:
    base, rw = layers
    below = ("--layer", base, "--rw", rw)
    done = run("undelete", *below, "/etc/motd", "--json").json()
    action = {"action": "undelete", "path": "/etc/motd", "type": "file", "size": 0}
    assert done == {"actions": [action], "notes": [], "done": True}
    assert "nothing there is deleted" in run("undelete", *below, "/etc/motd").err
    done = run("revert", *below, "etc", "-n")
    assert done.out == "revert /etc/conf  (5B go)\n"
    assert (rw / "etc" / "conf").exists()
    assert run("revert", *below, "etc").status == 0
    assert sorted(disk_state(rw)) == ["etc/", "etc/\udcffnew\n"]


def test_a_branch_alone(run: Run, layers: tuple[Path, Path]) -> None:
    _, rw = layers
    assert run("undelete", rw, "/etc/motd").out == "undelete /etc/motd\n"
    assert "needs the layers" in run("revert", rw, "/etc/conf").err
    assert "neither" not in run("undelete", rw, "/absent").err


def test_reset_asks_for_a_yes(run: Run, layers: tuple[Path, Path], tmp_path: Path) -> None:
    base, rw = layers
    below = ("--layer", base, "--rw", rw)
    state = fingerprint(rw)
    done = run("reset", *below)
    assert done.status == 1
    assert "say --yes" in done.err
    assert "remove /etc/\\xffnew\\n  (8B go)" in done.err
    assert run("reset", *below, "--dry-run").out.splitlines() == [
        "revert /etc/conf  (5B go)",
        "undelete /etc/motd",
        "remove /etc/\\xffnew\\n  (8B go)",
    ]
    dry = run("reset", *below, "--dry-run", "--json").json()
    assert dry["done"] is False
    assert [item["action"] for item in dry["actions"]] == ["revert", "undelete", "remove"]
    assert dry["actions"][2]["path"] == "/etc/\udcffnew\n"
    assert fingerprint(rw) == state
    assert run("reset", *below, "--yes").status == 0
    assert disk_state(rw) == {}
    assert "nothing to take back" in run("reset", *below).err
    del tmp_path


def test_what_comes_while_somebody_is_asked_is_not_lost(
    run: Run, layers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, rw = layers
    late = rw / "etc" / "late"
    monkeypatch.setattr(undoing, "_confirm", lambda _: late.write_text("not in the list"))
    done = run("reset", "--layer", base, "--rw", rw)
    assert done.status == 1
    assert "/etc/late" not in done.err
    assert "has changed meanwhile, so nothing was done" in done.err
    assert late.read_text() == "not in the list"
    monkeypatch.setattr(undoing, "_confirm", lambda _: None)
    assert run("reset", "--layer", base, "--rw", rw).status == 0
    assert disk_state(rw) == {}


def test_revert_asks_where_new_things_would_be_lost(run: Run, layers: tuple[Path, Path]) -> None:
    base, rw = layers
    (rw / "etc" / "conf").unlink()
    (rw / "etc" / "conf").mkdir()
    (rw / "etc" / "conf" / "mine").write_text("mine")
    below = ("--layer", base, "--rw", rw)
    done = run("revert", *below, "/etc/conf")
    assert done.status == 1
    assert "remove /etc/conf/mine  (4B go)" in done.err
    assert (rw / "etc" / "conf" / "mine").exists()
    assert run("revert", *below, "/etc/conf", "-y").status == 0
    assert not (rw / "etc" / "conf").exists()


def test_what_is_refused(run: Run, layers: tuple[Path, Path], tmp_path: Path) -> None:
    base, rw = layers
    for words, status, text in (
        (("undelete",), 2, "give MOUNT PATH"),
        (("undelete", "a", "b", "c"), 2, "give MOUNT PATH"),
        (("undelete", "--rw", rw), 2, "exactly PATH"),
        (("undelete", tmp_path / "no", "/x"), 1, "is not a directory"),
        (("undelete", "--image", "a/b", "/x"), 2, "--rw DIR"),
        (("revert", "--layer", base, "--rw", rw, "/etc/../x"), 2, "without `..`"),
        (("undelete", "--layer", base, "--rw", base, "/x"), 2, "given twice"),
        (("reset", tmp_path / "nowhere", "-y"), 1, "is not a directory"),
    ):
        done = run(*words)
        assert done.status == status, (words, done.err)
        assert text in done.err, words


def test_a_branch_in_use_is_left_alone(run: Run, layers: tuple[Path, Path]) -> None:
    base, rw = layers
    with Engine.start([bytes(base)], bytes(rw)):
        done = run("undelete", "--layer", base, "--rw", rw, "/etc/motd")
    assert done.status == 1
    assert "in use by another mount" in done.err
    assert (rw / "etc" / ".wh.motd").exists()


def test_an_unfinished_operation_is_not_planned_over(run: Run, layers: tuple[Path, Path]) -> None:
    base, rw = layers
    work = rw / ".wh..wh.unionfs"
    work.mkdir()
    (work / "journal").symlink_to("unhide//etc//motd///unhide//etc//x")
    done = run("undelete", "--layer", base, "--rw", rw, "/etc/motd")
    assert done.status == 1
    assert "not finished" in done.err


@pytest.mark.fuse
def test_a_mounted_branch_names_its_mount(
    process: Run, layers: tuple[Path, Path], tmp_path: Path
) -> None:
    base, rw = layers
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    assert process("mount", "--layer", base, "--rw", rw, mnt).status == 0
    try:
        done = process("undelete", "--layer", base, "--rw", rw, "/etc/motd")
        assert f"`unionfs undelete {mnt} /etc/motd`" in done.err
        assert "unionfs undelete" in process("explain", mnt, "/etc/motd").err
        assert process("undelete", mnt / "etc" / "motd").status == 0
        assert (mnt / "etc" / "motd").read_text() == "hi"
        assert process("undelete", mnt, "etc/motd").status == 1
        assert process("reset", mnt / "etc", "-y").out.splitlines()[0].startswith("revert")
        assert sorted(os.listdir(mnt / "etc")) == ["conf", "motd", "sub"]
    finally:
        assert process("umount", mnt).status == 0
    assert process("mount", "--layer", base, mnt).status == 0
    try:
        assert "read-only" in process("undelete", mnt, "/etc/motd").err
    finally:
        assert process("umount", mnt).status == 0


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.usefixtures("as_root")
def test_a_kernel_mount_is_refused_with_the_way(
    process: Run, layers: tuple[Path, Path], tmp_path: Path
) -> None:
    base, rw = layers
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    done = process("mount", "--backend", "overlay", "--layer", base, "--rw", rw, mnt)
    if done.status:
        pytest.skip(done.err.strip())
    try:
        done = process("undelete", mnt, "/etc/motd")
        assert done.status == 1
        assert f"`unionfs undelete --layer ... --rw {rw} /etc/motd`" in done.err
        assert "must not change under it" in done.err
        assert "unmount" in process("reset", "--layer", base, "--rw", rw, "-y").err
        for verb in ("stats", "trace"):
            assert "served by the kernel" in process(verb, mnt).err
    finally:
        assert process("umount", mnt).status == 0
    assert process("undelete", "--layer", base, "--rw", rw, "/etc/motd").status == 0
    assert subprocess.run(["ls", rw / "etc"], check=True, capture_output=True).stdout
