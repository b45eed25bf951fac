"""What the union tests share: the usual lower tree, and a union with its branches.

Invariant: closing a `Union` proves that its layers are what they were.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
from support.engine_fs import EngineFs, disk_state, fingerprint

from unionfs.union import Engine, EngineOptions

__all__ = ["LOWER", "Union", "UnionMaker", "raises_errno", "start"]

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


@contextlib.contextmanager
def raises_errno(code: int) -> Iterator[None]:
    """Expect an OSError with this errno."""
    try:
        yield
    except OSError as exc:
        found = errno.errorcode.get(exc.errno or 0)
        assert exc.errno == code, f"{found} instead of {errno.errorcode[code]}"
    else:
        raise AssertionError(f"no error instead of {errno.errorcode[code]}")
