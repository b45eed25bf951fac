"""`unionfs inspect`: everything the store knows about one image.

JSON: `id`, `tags`, `parent`, `created`, `author`, `comment`, `architecture`, `os`, `config`
(what a container starts with), `history`, `size` (bytes), `transport` (where it came from) and
`layers`, the lowest first: `id`, `created`, `command`, `path`, `size`, and for all but those of
early Docker `diff_id`, `chain_id`, `entries`, `tar_size`, `ownership`, `transport`, `imported`,
`warnings`.
"""

from __future__ import annotations

import json

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.errors import show

__all__ = ["command"]


@click.command("inspect")
@click.argument("image", type=IMAGE)
@output.json_option
@root_option
@verbose_option
def command(*, image: str, as_json: bool) -> None:
    """Show everything the store knows about an image."""
    from unionfs.store.images import inspect  # noqa: PLC0415  # help stays fast

    with state().graph() as graph:
        document = inspect(graph, graph.tags.resolve(graph, image))
    if as_json:
        output.write_json(document)
        return
    lines: list[tuple[str, str]] = [
        ("Id", document["id"]),
        ("Names", ", ".join(document["tags"]) or "<none>"),
        ("Created", document["created"]),
        ("Author", document["author"]),
        ("Comment", document["comment"]),
        ("Platform", "/".join(filter(None, (document["os"], document["architecture"])))),
        ("Size", f"{output.size(document['size'])} in {len(document['layers'])} layers"),
        *((key, json.dumps(value)) for key, value in sorted(document["config"].items()) if value),
    ]
    for key, value in lines:
        if value:
            output.result(f"{key + ':':<14}{show(value)}")
    output.result("Layers, top-most first:")
    for layer in reversed(document["layers"]):
        digest = layer.get("diff_id") or "no diff_id"
        words = f"{layer['id'][:12]}  {output.size(layer['size']):>7}  {digest}  {layer['command']}"
        output.result(f"  {show(words.rstrip())}")
        for warning in layer.get("warnings", ()):
            output.result(f"    note: {show(warning)}")
