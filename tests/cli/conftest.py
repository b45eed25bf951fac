"""Fixtures of the command line's tests: run it in this process, or as a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import image_builder
from support.commands import CHECKOUT, Done, Run, child_env
from support.image_builder import BuiltImage
from support.workspace import Workspace, workspace

from unionfs.cli import boundary

_CACHE = CHECKOUT / ".demo"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process, with the error boundary around it."""

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        status = boundary.run([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Done(status, out, err)

    return call


@pytest.fixture
def process() -> Run:
    """Run a command line as a process of its own."""

    def call(*arguments: object, **options: Any) -> Done:
        argv = [sys.executable, "-m", "unionfs", *map(str, arguments)]
        env = child_env(**options.pop("env", {}))
        done = subprocess.run(
            argv, capture_output=True, check=False, env=env, text=True, timeout=100, **options
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def old_store(tmp_path: Path) -> Path:
    """Return a store as Docker 0.5 left it: base <- middle <- top, and a second head."""
    root = tmp_path / "store"
    for number, (name, parent) in enumerate(
        [("aaaa0001", ""), ("bbbb0002", "aaaa0001"), ("cccc0003", "bbbb0002"), ("aaaa0004", "")]
    ):
        entry = root / "graph" / name
        (entry / "layer").mkdir(parents=True)
        (entry / "layer" / "file").write_bytes(b"x" * 1000 * (number + 1))
        record = {"id": name, "parent": parent, "created": f"2013-06-0{number + 1}T00:00:00Z"}
        record["container_config"] = {"Cmd": ["/bin/sh", "-c", f"step {number}"]}  # type: ignore[assignment]  # one nested value
        (entry / "json").write_text(json.dumps(record))
    (root / "graph").chmod(0o700)
    tags = {"Repositories": {"demo/app": {"latest": "cccc0003", "old": "aaaa0001"}}}
    (root / "repositories").write_text(json.dumps(tags))
    return root


@pytest.fixture(scope="session")
def image() -> BuiltImage:
    """Return the real image, built at most once and kept between runs."""
    return image_builder.build(_CACHE)


@pytest.fixture
def place() -> Iterator[Workspace]:
    """Return a directory in which an unprivileged user types commands."""
    with workspace() as made:
        yield made
