"""Fixtures of the explorer's tests: layers from a few words, opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.insight import parse
from support.literal import lay_out_all
from support.looking import Look

from unionfs.explore.model import Explorer
from unionfs.insight.where import of_directories


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Look]:
    """Lay layers out as they are spelled, base first, and open an explorer on them."""
    with ExitStack() as stack:

        def make(text: str, rw: Path | None = None) -> Explorer:
            where = of_directories(
                lay_out_all(parse(text).layers, tmp_path), None if rw is None else os.fsencode(rw)
            )
            return stack.enter_context(Explorer(where))

        yield make
