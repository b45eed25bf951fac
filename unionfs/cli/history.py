"""`unionfs history`: the layers of an image, top-most first.

JSON: a list of what `inspect --json` has as `layers`, but top-most first, with `names` (list).
"""

from __future__ import annotations

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE
from unionfs.cli.group import root_option, state, verbose_option

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
    from unionfs.store.image import parse_time  # noqa: PLC0415  # help stays fast
    from unionfs.store.images import inspect  # noqa: PLC0415  # see above

    with state().graph() as graph:
        layers = inspect(graph, graph.tags.resolve(graph, image))["layers"][::-1]
        names = graph.tags.by_id()
    if as_json:
        output.write_json([layer | {"names": names.get(layer["id"], [])} for layer in layers])
        return
    output.table(
        ("ID", "CREATED", "SIZE", "CREATED BY"),
        (
            (
                layer["id"][:12],
                output.age(parse_time(layer["created"])),
                output.size(layer["size"]),
                layer["command"],
            )
            for layer in layers
        ),
    )
