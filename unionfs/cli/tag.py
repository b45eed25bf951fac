"""`unionfs tag`: one more name for an image."""

from __future__ import annotations

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE, NAME
from unionfs.cli.group import root_option, state, verbose_option

__all__ = ["command"]


@click.command("tag")
@click.argument("image", type=IMAGE)
@click.argument("name", type=NAME)
@click.option("-f", "--force", is_flag=True, help="Take the name from another image.")
@root_option
@verbose_option
def command(*, image: str, name: str, force: bool) -> None:
    """Give an image a name.

    NAME is `repository:tag`, `latest` when the tag is left out. The full name is printed.
    """
    from unionfs.store.references import parse_reference  # noqa: PLC0415  # keeps completion fast

    reference = parse_reference(name)
    with state().graph() as graph:
        graph.tags.set(reference, graph.tags.resolve(graph, image), force=force)
    output.result(str(reference))
