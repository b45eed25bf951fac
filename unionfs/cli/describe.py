"""What the reading verbs say about images: names, sizes, layers and commands.

Invariant: the numbers shown count layers that hold files; the entry that stands for an
image itself (its configuration, no files) is not a layer.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from unionfs.errors import StoreError, UnionfsError

if TYPE_CHECKING:
    from unionfs.store.entry import Image
    from unionfs.store.graph import Graph
    from unionfs.store.ids import ImageId

__all__ = ["Catalogue", "Layer", "configuration"]

_CONFIG_NAME: Final = b"/config.json"
_MAX_CONFIG: Final = 8 << 20


class Layer(NamedTuple):
    """One line of an image's history; `size` in bytes, `command` made the layer."""

    image: Image
    size: int
    command: str


def configuration(image: Image) -> dict[str, Any]:
    """Return the OCI configuration stored with an image; empty for images of early Docker."""
    try:
        with open(image.path + _CONFIG_NAME, "rb") as file:
            document = json.loads(file.read(_MAX_CONFIG))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StoreError(f"`config.json` of image {image.id} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise StoreError(f"`config.json` of image {image.id} is damaged: not an object")
    return document


def _tree_size(path: bytes) -> int:
    """Return the bytes of all regular files below a directory (layers without facts)."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                total += _tree_size(entry.path)
            elif entry.is_file(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def _created_by(config: dict[str, Any]) -> list[str]:
    """Return what the configuration says made each layer with files, the lowest first."""
    history = config.get("history")
    return [
        str(step.get("created_by", ""))
        for step in (history if isinstance(history, list) else [])
        if isinstance(step, dict) and not step.get("empty_layer")
    ]


def _own_command(image: Image) -> str:
    command = image.record.container_config.get("Cmd")
    return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")


class Catalogue:
    """All sound entries of a graph, read once, with their names."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.entries: dict[ImageId, Image] = graph.map()
        self.names: dict[ImageId, list[str]] = graph.tags.by_id()

    def images(self) -> list[Image]:
        """Return what people call images, newest first: not mere layers of them."""
        parents = {entry.parent for entry in self.entries.values()}
        chosen = [
            entry
            for entry in self.entries.values()
            if entry.id in self.names
            or entry.metadata_only
            or (entry.facts is None and entry.id not in parents)
        ]
        return sorted(chosen, key=lambda entry: (-entry.record.created_ns, entry.id))

    def layer_size(self, entry: Image) -> int:
        """Return the bytes of the files in one layer."""
        if entry.facts is not None:
            return entry.facts.size
        try:
            return entry.record.size or _tree_size(entry.layer_path)
        except OSError:
            return 0

    def layers(self, image: Image) -> list[Layer]:
        """Return the layers with files, top-most first; errors as of `Graph.history`."""
        entries = [e for e in self.graph.history(image.id) if not e.metadata_only]
        commands = [_own_command(entry) for entry in entries]
        stated = _created_by(configuration(image))[::-1]
        if len(stated) == len(entries):
            commands = stated
        return [
            Layer(entry, self.layer_size(entry), command)
            for entry, command in zip(entries, commands, strict=True)
        ]

    def size(self, image: Image) -> int | None:
        """Return the bytes of all layers, or None when a layer is missing."""
        try:
            return sum(layer.size for layer in self.layers(image))
        except UnionfsError:
            return None

    def summary(self, entry: Image) -> dict[str, Any]:
        """Return the keys that `images --json` has for an entry."""
        try:
            layers: list[Layer] | None = self.layers(entry)
        except UnionfsError:
            layers = None
        return {
            "id": entry.id,
            "names": self.names.get(entry.id, []),
            "parent": entry.parent,
            "created": entry.record.created,
            "size": None if layers is None else sum(layer.size for layer in layers),
            "layers": None if layers is None else len(layers),
            "layer_only": entry not in self.images(),
        }
