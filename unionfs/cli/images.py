"""`unionfs images`: what is in the store, as a list or as the graph.

JSON: a list of `id`, `names` (list), `created` (RFC 3339), `size` (bytes of all layers),
`own_size` (bytes of the top-most one), `layers` (count), `image` (false for a mere layer),
`comment`; with --tree also `children`, a list of the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.errors import NotFoundError, show

if TYPE_CHECKING:
    from unionfs.store.graph import Graph
    from unionfs.store.images import ImageNode, ImageSummary

__all__ = ["command"]


@click.command("images")
@click.option("-a", "--all", "everything", is_flag=True, help="Show the layers of images as well.")
@click.option("--tree", is_flag=True, help="Draw which image stands on which layers.")
@click.option("-q", "--quiet", is_flag=True, help="Print full ids only.")
@output.json_option
@root_option
@verbose_option
def command(*, everything: bool, tree: bool, quiet: bool, as_json: bool) -> None:
    """List the images of the store.

    Columns: name, short id, age, size of all layers, number of layers.
    """
    try:
        graph = state().graph()
    except NotFoundError as error:
        output.note(f"unionfs: {error}")
        if as_json:
            output.write_json([])
        return
    with graph:
        if tree:
            _print_tree(graph, as_json=as_json)
        else:
            _print_list(graph, everything=everything, quiet=quiet, as_json=as_json)
        broken = len(graph.ids()) - len(graph.all())
    if broken:
        output.note(f"unionfs: {broken} damaged entries are not shown; `unionfs fsck` explains")


def _print_list(graph: Graph, *, everything: bool, quiet: bool, as_json: bool) -> None:
    from unionfs.store.images import list_images  # noqa: PLC0415  # help stays fast

    found = list_images(graph, all_entries=everything)
    if as_json:
        output.write_json([_document(item) for item in found])
    elif quiet:
        for item in found:
            output.result(item.id)
    else:
        output.table(
            ("NAME", "ID", "CREATED", "SIZE", "LAYERS"),
            (
                (
                    name,
                    item.id[:12],
                    output.age(item.created_ns),
                    output.size(item.size),
                    str(item.layers),
                )
                for item in found
                for name in item.references or ("<none>",)
            ),
        )


def _document(item: ImageSummary) -> dict[str, Any]:
    from unionfs.store.image import format_time  # noqa: PLC0415  # help stays fast

    return {
        "id": item.id,
        "names": list(item.references),
        "created": format_time(item.created_ns),
        "size": item.size,
        "own_size": item.own_size,
        "layers": item.layers,
        "image": item.is_image,
        "comment": item.comment,
    }


def _print_tree(graph: Graph, *, as_json: bool) -> None:
    from unionfs.store.images import image_tree  # noqa: PLC0415  # help stays fast

    roots = image_tree(graph)
    if as_json:
        documents: list[dict[str, Any]] = []
        unfinished = [(root, documents) for root in roots]
        # Loops and not recursion: a chain may be longer than Python's.
        for node, place in unfinished:
            children: list[dict[str, Any]] = []
            place.append(_document(node.summary) | {"children": children})
            unfinished += [(child, children) for child in node.children]
        output.write_json(documents)
        return
    pending = [(root, "", "") for root in reversed(roots)]
    while pending:
        node, lead, below = pending.pop()
        output.result(lead + _label(node))
        for number, child in enumerate(reversed(node.children)):
            branch, rest = ("├─ ", "│  ") if number else ("└─ ", "   ")
            pending.append((child, below + branch, below + rest))


def _label(node: ImageNode) -> str:
    item = node.summary
    names = ", ".join(show(name) for name in item.references)
    if item.is_image and not item.own_size:
        return f"{item.id[:12]} image {names or '<none>'}"
    return f"{item.id[:12]} {output.size(item.own_size)} {names}".rstrip()
