"""`unionfs rmi`: remove images, with the layers that no other image needs.

Invariant: a refused removal changes nothing, not even a tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.errors import InvalidNameError

if TYPE_CHECKING:
    from unionfs.store.graph import Graph

__all__ = ["command"]


def _remove(graph: Graph, name: str, *, force: bool) -> None:
    from unionfs.store.locks import store_lock  # noqa: PLC0415  # keeps completion fast
    from unionfs.store.references import parse_reference  # noqa: PLC0415  # see above

    with store_lock(graph.fd, exclusive=True):
        if name.removeprefix("sha256:") in graph.index():
            # By its full id also what is damaged and resolves no more.
            image_id = graph.index().get(name.removeprefix("sha256:"))
            graph.delete(image_id, force=force)
            output.result(image_id)
            return
        image_id = graph.tags.resolve(graph, name)
        tags = graph.tags.by_id().get(image_id, [])
        try:
            reference = parse_reference(name)
        except InvalidNameError:
            reference = None
        by_name = reference is not None and graph.tags.get(reference) == image_id
        if reference is None or not by_name:
            graph.delete(image_id, force=force)
            output.result(image_id)
            return
        graph.tags.remove(reference)
        if len(tags) > 1:
            output.result(str(reference))
            return
        try:
            graph.delete(image_id, force=force)
        except BaseException:
            graph.tags.set(reference, image_id)
            raise
        output.result(str(reference))
        output.result(image_id)


@click.command("rmi")
@click.argument("images", metavar="IMAGE...", type=IMAGE, nargs=-1, required=True)
@click.option(
    "-f", "--force", is_flag=True, help="Remove even if names or other images depend on it."
)
@root_option
@verbose_option
def command(*, images: tuple[str, ...], force: bool) -> None:
    """Remove images or names of images.

    A name is taken away; with its last name the image goes, and with the image the layers that
    nothing else needs. Prints the names and ids that are gone. An image that is mounted is
    never removed.
    """
    with state().graph() as graph:
        for name in images:
            _remove(graph, name, force=force)
        for layer in graph.gc():
            output.result(layer.id)
