"""What the tests of the debugging commands share: layers in the notation of `support.rows`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import attrs

from support.layers import image_of
from support.literal import lay_out_all
from support.rows import Row, _row
from unionfs.insight.where import Where, of_directories
from unionfs.store.store import Store

__all__ = ["MakeImage", "MakeLayers", "empty_markers", "image_maker", "layer_maker", "parse"]

#: Lays layers out as they are spelled, as plain directories.
MakeLayers = Callable[[str], Where]
#: Imports layers and tags the image (second argument); returns the image's id.
MakeImage = Callable[..., str]


def parse(layers: str) -> Row:
    """Return layers, base first, separated by `‖`; markers are empty unless a body is given."""
    return empty_markers(_row(0, "made", layers, "∅", ""))


def layer_maker(place: Path) -> MakeLayers:
    """Return a function that lays layers out as they are spelled; `layer1` is the base."""

    def make(text: str) -> Where:
        return of_directories(lay_out_all(parse(text).layers, place))

    return make


def image_maker(root: Path) -> MakeImage:
    """Return a function that imports layers as an image into the store at `root`."""

    def make(text: str, tag: str = "demo/app:v1") -> str:
        with Store.open(os.fsencode(root)) as store:
            source = image_of(parse(text).tars(), created="2020-01-02T03:04:05Z")
            return store.import_image(source, transport="test", references=[tag]).id

    return make


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
