"""Starting, listing and ending mounts from the command line, without a store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import Done, Run, child_env

pytestmark = pytest.mark.fuse


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: Run) -> Iterator[Path]:
    """Return a directory with two layers, the current one, with no mounts of others in sight."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("UNIONFS_ROOT", str(tmp_path / "store"))
    for name, files in {"top": (".wh.one",), "base": ("one", "two")}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(file)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    process("umount", "--all", "--lazy")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def _mine(done: Done, tree: Path) -> list[dict[str, Any]]:
    """Return the mounts of this test: the machine may have others, which come and go."""
    return [item for item in done.json() if item["target"].startswith(f"{tree}/")]


def _states(process: Run, tree: Path) -> dict[str, str]:
    listed = _mine(process("mounts", "--json"), tree)
    return {item["target"].removeprefix(f"{tree}/"): item["state"] for item in listed}


def test_layers_are_merged_and_the_target_is_made(tree: Path, process: Run) -> None:
    done = process("mount", "--layer", "top", "--layer", "base", "new")
    assert (done.status, done.out, done.err) == (0, f"{tree}/new\n", "")
    assert os.listdir(tree / "new") == ["two"]
    with pytest.raises(OSError, match="Read-only"):
        (tree / "new" / "file").write_text("x")
    assert _states(process, tree) == {"new": "live"}
    assert process("umount", "new").status == 0
    assert _states(process, tree) == {}


def test_changes_of_directories(tree: Path, process: Run) -> None:
    layers = ("--layer", "top", "--layer", "base")
    assert process("mount", *layers, "--rw", "rw", "mnt").status == 0
    (tree / "mnt" / "two").unlink()
    (tree / "mnt" / "a\nb").write_text("x")
    assert process("changes", "mnt").out == "A /a\\nb\nD /two\n"
    assert process("changes", "-0", "mnt").out == "A /a\nb\0D /two\0"
    assert process("changes", "mnt", "--json").json() == [
        {"kind": "A", "path": "/a\nb"},
        {"kind": "D", "path": "/two"},
    ]
    refused = process("commit", "mnt")
    assert refused.status == 2
    assert "plain directories" in refused.err
    assert process("umount", "mnt").status == 0
    assert process("changes", "--rw", "rw", *layers).out == "A /a\\nb\nD /two\n"


def test_mount_without_words_lists(tree: Path, process: Run) -> None:
    assert process("mount", "--layer", "base", "--ephemeral", "mnt").status == 0
    for verb in ("mount", "mounts"):
        (row,) = [line for line in process(verb).out.splitlines() if f"{tree}/" in line]
        assert row.split("\t")[:3] == [f"{tree}/mnt", "1 directory", "ephemeral"]
    assert _mine(process("mount", "--json"), tree) == _mine(process("mounts", "--json"), tree)


def test_umount_all(tree: Path, process: Run) -> None:
    for name in ("a", "b"):
        assert process("mount", "--layer", "base", name).status == 0
    assert set(_states(process, tree)) == {"a", "b"}
    assert process("umount", "--all").status == 0
    assert _states(process, tree) == {}


def test_a_busy_mount_names_its_users_and_lazy_lets_them_finish(tree: Path, process: Run) -> None:
    assert process("mount", "--layer", "base", "mnt").status == 0
    with (tree / "mnt" / "two").open() as file:
        done = process("umount", "mnt")
        assert done.status == 1
        assert done.err.count("\n") == 1
        assert f"({os.getpid()})" in done.err
        assert "--lazy" in done.err
        assert process("umount", "--lazy", "mnt").status == 0
        assert os.listdir(tree / "mnt") == []
        assert file.read() == "two"


def test_foreground_with_readiness(tree: Path, process: Run) -> None:
    reading, writing = os.pipe()
    argv = ["mount", "--foreground", "--ready-fd", str(writing), "--layer", "base", "mnt"]
    with subprocess.Popen(
        [sys.executable, "-m", "unionfs", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[writing],
        env=child_env(),
    ) as child:
        os.close(writing)
        with open(reading, "rb") as pipe:
            assert pipe.read(1) == b"s"
        assert sorted(os.listdir(tree / "mnt")) == ["one", "two"]
        assert _states(process, tree) == {"mnt": "live"}
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (0, f"{tree}/mnt\n".encode(), b"")
    assert _states(process, tree) == {}


def test_foreground_failure_says_so(tree: Path) -> None:
    (tree / "full").mkdir()
    (tree / "full" / "file").write_text("x")
    reading, writing = os.pipe()
    argv = ["mount", "--foreground", "--ready-fd", str(writing), "--layer", "base", "full"]
    with subprocess.Popen(
        [sys.executable, "-m", "unionfs", *argv],
        stderr=subprocess.PIPE,
        pass_fds=[writing],
        env=child_env(),
    ) as child:
        os.close(writing)
        with open(reading, "rb") as pipe:
            assert pipe.read(1) == b"f"
        _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert b"not empty" in err
