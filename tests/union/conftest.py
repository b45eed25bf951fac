"""A union of small layers, in either ownership dialect of the rw branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from support.engine_fs import EngineFs, build, disk_state, fingerprint

from unionfs.union import Engine, EngineOptions

LOWER = {
    "f": "lower f",
    "d/a": "lower a",
    "d/b": "lower b",
    "s": "->f",
    "p": "pair",
    "q": "=p",
}


@attrs.define
class Union:
    """Layers (top first), a rw branch and the engine that is open on them."""

    base: Path
    layers: list[Path]
    rw: Path
    options: EngineOptions
    engine: Engine
    fs: EngineFs
    before: dict[Path, dict[str, tuple[object, ...]]]

    def reopen(self) -> None:
        """Unmount and mount again."""
        self.engine.close()
        self.engine = start(self.layers, self.rw, self.options)
        self.fs = EngineFs(self.engine)

    def close(self) -> dict[str, str]:
        """Unmount, check the layers and return what the rw branch holds."""
        self.engine.close()
        for layer in self.layers:
            assert fingerprint(layer) == self.before[layer], f"{layer} was modified"
        return disk_state(self.rw)


def start(layers: list[Path], rw: Path | None, options: EngineOptions) -> Engine:
    paths = [bytes(layer) for layer in layers]
    return Engine.start(paths, None if rw is None else bytes(rw), options=options)


UnionMaker = Callable[..., Union]


@pytest.fixture(params=[True, False], ids=["native", "override"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def make_union(tmp_path: Path, native: bool) -> Iterator[UnionMaker]:  # noqa: FBT001  # a fixture
    made: list[Union] = []

    def make(*trees: dict[str, str], **settings: object) -> Union:
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
