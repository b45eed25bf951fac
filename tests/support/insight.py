"""What the tests of the debugging commands share: layers in the notation of `support.rows`."""

from __future__ import annotations

from collections.abc import Callable

from support.rows import Row, _row
from unionfs.insight.where import Where

__all__ = ["MakeImage", "MakeLayers", "parse"]

#: Lays layers out as they are spelled, as plain directories.
MakeLayers = Callable[[str], Where]
#: Imports layers and tags the image (second argument); returns the image's id.
MakeImage = Callable[..., str]


def parse(layers: str) -> Row:
    """Return layers, base first, separated by `‖`."""
    return _row(0, "made", layers, "∅", "")
