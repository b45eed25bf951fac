"""`unionfs gc`: remove what nothing leads to.

JSON: a list of `id` and `size` (bytes) of what was, or would be, removed.
"""

from __future__ import annotations

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, state, verbose_option

__all__ = ["command"]


@click.command("gc")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("-a", "--all", "everything", is_flag=True, help="Images without a name as well.")
@output.json_option
@root_option
@verbose_option
def command(*, dry_run: bool, everything: bool, as_json: bool) -> None:
    """Remove images that no name leads to.

    By default only layers that belong to no image any more; with --all also images without a
    name. Nothing that is mounted is removed. Prints the removed ids.
    """
    with state().graph() as graph:
        garbage = graph.gc(dry_run=dry_run, all_images=everything)
    sizes = {image.id: image.facts.size if image.facts else image.record.size for image in garbage}
    if as_json:
        output.write_json([{"id": key, "size": value} for key, value in sizes.items()])
        return
    for image_id in sizes:
        output.result(image_id)
    word = "would be removed" if dry_run else "removed"
    output.note(f"{len(sizes)} entries, {output.size(sum(sizes.values()))}, {word}")
