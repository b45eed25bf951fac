"""Fixtures of the debugging commands: a command line in this process, layers from a few words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.commands import Done, Run
from support.insight import MakeImage, MakeLayers, image_maker, layer_maker

from unionfs.cli import boundary


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
def layers(tmp_path: Path) -> MakeLayers:
    """Lay layers out as they are spelled; `layer1` is the base."""
    return layer_maker(tmp_path)


@pytest.fixture
def store_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place of the store that commands of this test use."""
    root = tmp_path / "store"
    monkeypatch.setenv("UNIONFS_ROOT", str(root))
    return root


@pytest.fixture
def image(store_root: Path) -> MakeImage:
    """Import layers as an image."""
    return image_maker(store_root)
