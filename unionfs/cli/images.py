"""`unionfs images`: what is in the store, as a list or as the graph.

JSON keys: `id`, `names` (list), `parent` (id or null), `created` (RFC 3339), `size`
(bytes, null when a layer is missing), `layers` (count, null likewise), `layer_only`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from unionfs.cli import output
from unionfs.cli.describe import Catalogue
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.errors import NotFoundError, show

if TYPE_CHECKING:
    from unionfs.store.entry import Image

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
        catalogue = Catalogue(graph)
        chosen = catalogue.images()
        if everything or (tree and as_json):
            chosen += sorted(
                (entry for entry in catalogue.entries.values() if entry not in chosen),
                key=lambda entry: entry.id,
            )
        if as_json:
            output.write_json([catalogue.summary(entry) for entry in chosen])
        elif quiet:
            for entry in chosen:
                output.result(entry.id)
        elif tree:
            _draw(catalogue)
        else:
            rows = (row for entry in chosen for row in _rows(catalogue.summary(entry), entry))
            output.table(("NAME", "ID", "CREATED", "SIZE", "LAYERS"), rows)
        broken = len(graph.ids()) - len(catalogue.entries)
    if broken:
        output.note(f"unionfs: {broken} damaged entries are not shown; `unionfs fsck` explains")


def _rows(summary: dict[str, Any], entry: Image) -> list[tuple[str, ...]]:
    size = "incomplete" if summary["size"] is None else output.size(summary["size"])
    layers = "?" if summary["layers"] is None else str(summary["layers"])
    created = output.age(entry.record.created_ns)
    names = summary["names"] or ["<none>"]
    return [(name, entry.id[:12], created, size, layers) for name in names]


def _draw(catalogue: Catalogue) -> None:
    children: dict[str | None, list[Image]] = {}
    for entry in catalogue.entries.values():
        parent = entry.parent if entry.parent in catalogue.entries else None
        children.setdefault(parent, []).append(entry)
    # A stack and not recursion: a chain may be longer than Python's.
    pending = [(entry, "", "") for entry in reversed(_ordered(children.get(None, [])))]
    while pending:
        entry, lead, below = pending.pop()
        output.result(lead + _label(catalogue, entry))
        kids = _ordered(children.get(entry.id, []))
        for number, kid in enumerate(reversed(kids)):
            last = number == 0
            branch, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
            pending.append((kid, below + branch, below + rest))


def _ordered(entries: list[Image]) -> list[Image]:
    return sorted(entries, key=lambda entry: (entry.record.created_ns, entry.id))


def _label(catalogue: Catalogue, entry: Image) -> str:
    names = ", ".join(show(name) for name in catalogue.names.get(entry.id, []))
    if entry.metadata_only:
        return f"{entry.id[:12]} image {names or '<none>'}"
    missing = ""
    if entry.parent is not None and entry.parent not in catalogue.entries:
        missing = f" (parent {entry.parent[:12]} is missing)"
    return f"{entry.id[:12]} {output.size(catalogue.layer_size(entry))} {names}".rstrip() + missing
