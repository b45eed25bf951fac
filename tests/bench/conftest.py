"""Trees of the smallest size, and a command line in this process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.commands import Done, Run

from unionfs.bench.shape import TINY, make_trees
from unionfs.cli import boundary


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the two layers, top first; for reading only."""
    return make_trees(tmp_path_factory.mktemp("trees"), TINY)


@pytest.fixture
def merged(layers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the layers copied together; what is done there hurts nobody."""
    monkeypatch.setenv("UNIONFS_BENCH_PLACE", str(layers[0].parent))
    target = tmp_path / "merged"
    for layer in reversed(layers):
        shutil.copytree(layer, target, symlinks=True, dirs_exist_ok=True)
    return target


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `unionfs bench` with these arguments in this process."""

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        status = boundary.run(["bench", *map(str, arguments)])
        return Done(status, *capfd.readouterr())

    return call
