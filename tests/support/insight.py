"""What the tests of the debugging commands share: layers in the notation of `support.rows`."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from support.rows import Row, _row
from unionfs.insight.where import Where

__all__ = ["MakeImage", "MakeLayers", "empty_markers", "parse"]

#: Lays layers out as they are spelled, as plain directories.
MakeLayers = Callable[[str], Where]
#: Imports layers and tags the image (second argument); returns the image's id.
MakeImage = Callable[..., str]


def parse(layers: str) -> Row:
    """Return layers, base first, separated by `‖`; markers are empty unless a body is given."""
    return empty_markers(_row(0, "made", layers, "∅", ""))


def empty_markers(row: Row) -> Row:
    """Return a row whose markers have no body; the notation gives every file its layer's number."""
    return attrs.evolve(
        row,
        layers=tuple(
            tuple(
                attrs.evolve(member, data=b"")
                if member.data == b"%d" % number and b"/.wh." in b"/" + member.name
                else member
                for member in layer
            )
            for number, layer in enumerate(row.layers)
        ),
    )
