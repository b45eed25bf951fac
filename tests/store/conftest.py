"""A fresh store for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from unionfs.store.graph import Graph


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def graph(root: Path) -> Iterator[Graph]:
    with Graph(os.fsencode(root)) as graph:
        yield graph
