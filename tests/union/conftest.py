"""A union of small layers, in either ownership dialect of the rw branch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.engine_fs import EngineFs, build, fingerprint
from support.union_case import LOWER, Union, UnionMaker, start

from unionfs.union import EngineOptions


@pytest.fixture(params=[True, False], ids=["native", "override"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def make_union(tmp_path: Path, native: bool) -> Iterator[UnionMaker]:  # noqa: FBT001  # a fixture
    made: list[Union] = []

    def make(*trees: dict[str, str], **settings: Any) -> Union:
        base = tmp_path / f"union{len(made)}"
        base.mkdir()
        layers = []
        for index, tree in enumerate(trees or (LOWER,)):
            layer = base / f"layer{index}"
            build(layer, tree)
            layers.append(layer)
        rw = base / "rw"
        rw.mkdir()
        options = EngineOptions(native=native, volatile=True)
        options = attrs.evolve(options, **settings)
        before = {layer: fingerprint(layer) for layer in layers}
        engine = start(layers, rw, options)
        union = Union(base, layers, rw, options, engine, EngineFs(engine), before)
        made.append(union)
        return union

    yield make
    for union in made:
        if union.engine is not None and not union.engine.closed:
            union.engine.close()


@pytest.fixture
def union(make_union: UnionMaker) -> Union:
    return make_union()
