"""An older state: the branches from one layer down.

Invariant: what remains keeps its numbers, because they count from the base.
"""

from __future__ import annotations

import os
from typing import Final

import attrs

from unionfs.errors import AmbiguousError, InvalidNameError, NotFoundError, show
from unionfs.insight.where import NamedBranch, Where
from unionfs.store.ids import short_id
from unionfs.store.references import parse_reference

__all__ = ["upto"]

#: Digits of an id that are enough to mean it, if only one layer begins so.
_SHORTEST: Final = 4
_SHOWN: Final = 20


def upto(where: Where, word: str) -> Where:
    """Return `where` without everything above the layer that `word` means; never a rw branch.

    A number as `explain` shows it (the base is 1), the beginning of a layer's id or diff_id, a
    tag of an image that ends with the layer, or the layer's directory. Raises `NotFoundError`,
    naming the layers, and `AmbiguousError`.
    """
    layers = where.without_rw()
    chosen = _find(layers, word)
    return attrs.evolve(layers, branches=layers.branches[layers.branches.index(chosen) :])


def _find(where: Where, word: str) -> NamedBranch:
    layers = where.branches
    if word.isascii() and word.isdigit() and len(word) < _SHORTEST and 0 < int(word) <= len(layers):
        return where.by_number(int(word))
    tag = _tag(word)
    for layer in layers:
        if tag in layer.names or (not layer.layer_id and os.fsencode(word) == layer.path):
            return layer
    plain = word.removeprefix("sha256:")
    found = [
        layer
        for layer in layers
        if len(plain) >= _SHORTEST and any(text.startswith(plain) for text in _ids(layer))
    ]
    if len(found) > 1:
        raise AmbiguousError(
            f"{show(word)} means more than one layer: {_listed(found)}; give its number",
            tuple(layer.layer_id for layer in found),
        )
    if not found:
        raise NotFoundError(
            f"no layer {show(word)} in {show(where.title)}; the layers are {_listed(layers)}"
        )
    return found[0]


def _tag(word: str) -> str | None:
    try:
        return str(parse_reference(word))
    except InvalidNameError:
        return None


def _ids(layer: NamedBranch) -> tuple[str, str]:
    return layer.layer_id, layer.diff_id.removeprefix("sha256:")


def _listed(layers: tuple[NamedBranch, ...] | list[NamedBranch]) -> str:
    texts = []
    for layer in layers[:_SHOWN]:
        what = [short_id(layer.layer_id) if layer.layer_id else show(layer.path), *layer.names]
        texts.append(f"{layer.number} ({', '.join(what)})")
    return ", ".join(texts) + (", ..." if len(layers) > _SHOWN else "")
