"""`unionfs inspect`: everything the store knows about one image.

JSON keys: those of `images --json`, and `author`, `comment`, `os`, `architecture`, `path`,
`config` (the OCI configuration, or null), `record` (Docker's `json`, parsed), `stack`: a
list, top-most first, of `id`, `diff_id`, `chain_id`, `size`, `entries`, `command`, `path`,
`transport`, `dialect`, `warnings`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE
from unionfs.cli.describe import Catalogue, Layer, configuration
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.errors import show

if TYPE_CHECKING:
    from unionfs.store.entry import Image

__all__ = ["command", "layer_document"]


def layer_document(layer: Layer) -> dict[str, Any]:
    """Return the JSON form of one layer."""
    facts = layer.image.facts
    return {
        "id": layer.image.id,
        "diff_id": facts.diff_id if facts else None,
        "chain_id": facts.chain_id if facts else None,
        "created": layer.image.record.created,
        "size": layer.size,
        "entries": facts.entries if facts else None,
        "command": layer.command,
        "path": layer.image.layer_path,
        "transport": facts.transport if facts else None,
        "dialect": facts.dialect if facts else None,
        "warnings": list(facts.warnings) if facts else [],
    }


def _document(catalogue: Catalogue, image: Image) -> dict[str, Any]:
    record = image.record
    return {
        **catalogue.summary(image),
        "author": record.author,
        "comment": record.comment,
        "os": record.os,
        "architecture": record.architecture,
        "path": image.path,
        "config": configuration(image) or None,
        "record": json.loads(record.stored_bytes.decode("utf-8", "replace")),
        "stack": [layer_document(layer) for layer in catalogue.layers(image)],
    }


@click.command("inspect")
@click.argument("image", type=IMAGE)
@output.json_option
@root_option
@verbose_option
def command(*, image: str, as_json: bool) -> None:
    """Show everything the store knows about an image."""
    with state().graph() as graph:
        catalogue = Catalogue(graph)
        entry = graph.get_exact(graph.tags.resolve(graph, image))
        document = _document(catalogue, entry)
    if as_json:
        output.write_json(document)
        return
    settings = (document["config"] or {}).get("config") or entry.record.config or {}
    lines: list[tuple[str, str]] = [
        ("Id", entry.id),
        ("Names", ", ".join(document["names"]) or "<none>"),
        ("Created", document["created"]),
        ("Author", document["author"]),
        ("Comment", document["comment"]),
        ("Platform", "/".join(filter(None, (document["os"], document["architecture"])))),
        ("Size", f"{output.size(document['size'])} in {document['layers']} layers"),
        *((key, json.dumps(settings[key])) for key in sorted(settings) if settings[key]),
    ]
    for key, value in lines:
        if value:
            output.result(f"{key + ':':<14}{show(value)}")
    output.result("Layers, top-most first:")
    for layer in document["stack"]:
        digest = layer["diff_id"] or "no diff_id"
        words = f"{layer['id'][:12]}  {output.size(layer['size']):>7}  {digest}  {layer['command']}"
        output.result(f"  {show(words.rstrip())}")
        for warning in layer["warnings"]:
            output.result(f"    note: {show(warning)}")
