"""What listings show: images with their tags, sizes and layers, the tree of the graph, details.

Invariant: nothing here changes the store, and a damaged entry is left out of a listing (and
reported by `Graph.problems`), never an error of all the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import attrs

from unionfs.store import config as configs
from unionfs.store.collect import on_cycles
from unionfs.store.graph import Graph, Image
from unionfs.store.ids import ImageId

__all__ = ["ImageNode", "ImageSummary", "image_tree", "inspect", "list_images"]


@attrs.frozen
class ImageSummary:
    """One line of a listing.

    `created_ns` is ns since 1970 (negative: never set); `size` the bytes of file content in all its
    layers, `own_size` in its topmost entry; `layers` counts layers with content of their own kind
    (not the entry that only holds the configuration). `is_image` is false for a bare layer.
    """

    id: ImageId
    references: tuple[str, ...]
    created_ns: int
    size: int
    own_size: int
    layers: int
    is_image: bool
    comment: str = ""


@attrs.define
class ImageNode:
    """An entry in the tree of the graph, with what is built on it."""

    summary: ImageSummary
    children: list[ImageNode] = attrs.field(factory=list)


def _own_size(image: Image) -> int:
    if image.facts is not None:
        return image.facts.size
    try:
        return image.record.size or _tree_size(image.layer_path)
    except OSError:
        return 0


def _tree_size(top: bytes) -> int:
    """Return the bytes of all regular files: early Docker noted no sizes."""
    total = 0
    pending = [top]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


class _Sums:
    """Sizes and layer counts of chains, each entry looked at once."""

    def __init__(self, images: dict[ImageId, Image]) -> None:
        self._images = images
        self._known: dict[ImageId, tuple[int, int]] = {}

    def of(self, image_id: ImageId) -> tuple[int, int]:
        """Return (size, layers) of the chain that ends at `image_id`."""
        chain: list[Image] = []
        seen: set[ImageId] = set()
        current: ImageId | None = image_id
        while current is not None and current not in self._known and current not in seen:
            seen.add(current)
            image = self._images.get(current)
            if image is None:
                break
            chain.append(image)
            current = image.parent
        size, layers = self._known.get(current, (0, 0)) if current is not None else (0, 0)
        for image in reversed(chain):
            size += _own_size(image)
            layers += not image.metadata_only
            self._known[image.id] = (size, layers)
        return size, layers


def _summaries(graph: Graph) -> dict[ImageId, ImageSummary]:
    images = graph.map()
    tags = graph.tags.by_id()
    sums = _Sums(images)
    found = {}
    for image_id, image in images.items():
        size, layers = sums.of(image_id)
        found[image_id] = ImageSummary(
            image_id,
            tuple(tags.get(image_id, ())),
            image.record.created_ns,
            size,
            _own_size(image),
            layers,
            image.facts is None or image.metadata_only,
            image.record.comment,
        )
    return found


def _newest_first(items: Iterable[ImageSummary]) -> list[ImageSummary]:
    return sorted(items, key=lambda item: (-item.created_ns, item.id))


def list_images(graph: Graph, *, all_entries: bool = False) -> list[ImageSummary]:
    """Return the images, newest first.

    Those are entries with a tag, entries that hold a configuration, and entries of early Docker
    that nothing is built on. With `all_entries` also the layers between them.
    """
    images = graph.map()
    parents = {image.parent for image in images.values()}

    def is_shown(item: ImageSummary) -> bool:
        image = images.get(item.id)
        if all_entries or item.references or image is None:
            return True
        return image.metadata_only or (image.facts is None and image.id not in parents)

    return _newest_first(item for item in _summaries(graph).values() if is_shown(item))


def image_tree(graph: Graph) -> list[ImageNode]:
    """Return the roots of the graph's tree; siblings newest first.

    An entry whose parent is missing counts as a root, as does one whose parents lead back to it.
    """
    images = graph.map()
    cyclic = frozenset(on_cycles(images))
    nodes = {image_id: ImageNode(item) for image_id, item in _summaries(graph).items()}
    roots = []
    for item in _newest_first(node.summary for node in nodes.values()):
        parent = images[item.id].parent
        if parent is not None and parent in nodes and item.id not in cyclic:
            nodes[parent].children.append(nodes[item.id])
        else:
            roots.append(nodes[item.id])
    return roots


def inspect(graph: Graph, image_id: ImageId) -> dict[str, Any]:
    """Return all that is known about an image, ready for JSON. Errors as `Graph.history`."""
    history = graph.history(image_id)
    image = history[0]
    layers = [entry for entry in reversed(history) if not entry.metadata_only]
    diff_ids = [entry.facts.diff_id or "" if entry.facts else "" for entry in layers]
    document = configs.config_of(graph, image_id, diff_ids)
    return {
        "id": image_id,
        "tags": sorted(graph.tags.by_id().get(image_id, [])),
        "parent": image.parent,
        "created": document.get("created", image.record.created),
        "author": document.get("author", image.record.author),
        "comment": image.record.comment,
        "architecture": document.get("architecture", ""),
        "os": document.get("os", ""),
        "config": document.get("config") or {},
        "history": document.get("history") or [],
        "size": sum(_own_size(entry) for entry in layers),
        "transport": image.facts.transport if image.facts else "docker 0.x",
        "layers": [
            _layer(entry, step)
            for entry, step in zip(layers, configs.history_of_layers(document), strict=True)
        ],
    }


def _command(entry: Image, step: dict[str, Any]) -> str:
    """Return what made a layer: as its image tells, else as its own record does."""
    words = step.get("created_by") or entry.record.container_config.get("Cmd")
    return " ".join(map(str, words)) if isinstance(words, list) else str(words or "")


def _layer(entry: Image, step: dict[str, Any]) -> dict[str, Any]:
    facts = entry.facts
    found: dict[str, Any] = {
        "id": entry.id,
        "created": entry.record.created,
        "command": _command(entry, step),
        "path": entry.layer_path.decode("utf-8", "backslashreplace"),
        "size": _own_size(entry),
    }
    if facts is not None:
        found |= {
            "diff_id": facts.diff_id,
            "chain_id": facts.chain_id,
            "entries": facts.entries,
            "tar_size": facts.tar_size,
            "ownership": facts.dialect,
            "transport": facts.transport,
            "imported": facts.imported,
            "warnings": list(facts.warnings),
        }
    return found
