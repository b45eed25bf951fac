"""Fixtures of the report's tests: layers from a few words, a command line, one browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chromium import Browser, MakePage, browser
from support.commands import Done, Run
from support.insight import MakeImage, MakeLayers, image_maker, layer_maker

from unionfs.cli import boundary
from unionfs.insight.where import Where
from unionfs.report.page import render
from unionfs.report.picture import collect


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command line in this process, with the error boundary around it."""

    def call(*arguments: object) -> Done:
        capfdbinary.readouterr()
        status = boundary.run([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        out, err = capfdbinary.readouterr()
        return Done(status, os.fsdecode(out), os.fsdecode(err))

    return call


@pytest.fixture
def layers(tmp_path: Path) -> MakeLayers:
    """Lay layers out as they are spelled; `layer1` is the base."""
    return layer_maker(tmp_path)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeImage:
    """Import layers as an image into a store of this test."""
    root = tmp_path / "store"
    monkeypatch.setenv("UNIONFS_ROOT", str(root))
    return image_maker(root)


@pytest.fixture
def page(tmp_path: Path) -> MakePage:
    """Write the page of some layers."""

    def make(where: Where) -> Path:
        path = tmp_path / "page.html"
        path.write_bytes(render(collect(where)))
        return path

    return make


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Return a browser; the test is skipped where there is none."""
    with browser() as found:
        yield found
