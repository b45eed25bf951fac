"""What the union tests share: the usual lower tree, and a union with its branches.

Invariant: closing a `Union` proves that its layers are what they were.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

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
        self.reopen_closed()

    def reopen_closed(self) -> None:
        """Mount again after `engine.close`."""
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
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is what counts
        yield
    found = errno.errorcode.get(caught.value.errno or 0)
    assert caught.value.errno == code, f"{found} instead of {errno.errorcode[code]}"
