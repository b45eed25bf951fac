"""What starting costs: the modules that must not be loaded for a task that needs them not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import child_env

_SNIPPET = """
import json, sys
from unionfs.cli import boundary
status = boundary.run(json.loads(sys.argv[1]))
sys.stdout.flush()
print("\\n" + json.dumps([status, sorted({name.split(".")[0] for name in sys.modules})]))
"""
_NEVER = {"pyfuse3", "trio", "rich"}


def _loaded(*arguments: str) -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _SNIPPET, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=child_env(),
    )
    status, names = json.loads(done.stdout.splitlines()[-1])
    return status, set(names)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("images", "--help")])
def test_help_loads_little(arguments: tuple[str, ...]) -> None:
    status, names = _loaded(*arguments)
    assert status == 0
    assert not names & (_NEVER | {"msgspec", "attr", "attrs", "platformdirs", "logging", "ctypes"})
    # click and what it needs make up most of them; a new dependency at start shows here.
    assert len(names) < 130


@pytest.mark.parametrize(
    "arguments",
    [
        ("images",),
        ("images", "--tree"),
        ("inspect", "demo/app"),
        ("history", "demo/app"),
        ("tag", "demo/app", "demo/app:again"),
        ("untag", "demo/app:old"),
        ("rmi", "aaaa0004"),
        ("gc", "--dry-run"),
        ("fsck",),
        ("export", "demo/app", "docker-archive:out.tar"),
    ],
)
def test_store_commands_load_no_fuse(
    arguments: tuple[str, ...], old_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    status, names = _loaded("--root", str(old_store), *arguments)
    assert status == 0
    assert not names & _NEVER


def test_mounts_loads_no_fuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    status, names = _loaded("mounts")
    assert status == 0
    assert not names & _NEVER
