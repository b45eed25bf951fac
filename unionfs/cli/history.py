"""`unionfs history`: the layers of an image, top-most first.

JSON: a list of `id`, `diff_id`, `chain_id`, `created`, `size`, `entries`, `command`,
`path`, `transport`, `dialect`, `warnings`, `names`.
"""

from __future__ import annotations

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE
from unionfs.cli.describe import Catalogue
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.cli.inspect import layer_document

__all__ = ["command"]


@click.command("history")
@click.argument("image", type=IMAGE)
@output.json_option
@root_option
@verbose_option
def command(*, image: str, as_json: bool) -> None:
    """Show the layers of an image, top-most first.

    Columns: short id, age, size, the command that made the layer.
    """
    with state().graph() as graph:
        catalogue = Catalogue(graph)
        layers = catalogue.layers(graph.get_exact(graph.tags.resolve(graph, image)))
    if as_json:
        names = catalogue.names
        output.write_json(
            [layer_document(layer) | {"names": names.get(layer.image.id, [])} for layer in layers]
        )
        return
    output.table(
        ("ID", "CREATED", "SIZE", "CREATED BY"),
        (
            (
                layer.image.id[:12],
                output.age(layer.image.record.created_ns),
                output.size(layer.size),
                layer.command,
            )
            for layer in layers
        ),
    )
