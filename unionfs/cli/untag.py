"""`unionfs untag`: take names away; no image is removed."""

from __future__ import annotations

import click

from unionfs.cli import output
from unionfs.cli.arguments import NAME
from unionfs.cli.group import root_option, state, verbose_option

__all__ = ["command"]


@click.command("untag")
@click.argument("names", metavar="NAME...", type=NAME, nargs=-1, required=True)
@root_option
@verbose_option
def command(*, names: tuple[str, ...]) -> None:
    """Take a name away; the image stays.

    Prints the names that are gone.
    """
    from unionfs.store.references import parse_reference  # noqa: PLC0415  # keeps completion fast

    references = [parse_reference(name) for name in names]
    with state().graph() as graph:
        for reference in references:
            graph.tags.remove(reference)
            output.result(str(reference))
