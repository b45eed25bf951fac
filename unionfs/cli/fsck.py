"""`unionfs fsck`: what is wrong with the store, and whether layers still are what came in.

JSON: an object of `problems` (list of `name` and `message`) and `verified` (list of the ids of
layers whose content gave their diff_id; empty without --verify).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE
from unionfs.cli.boundary import describe
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.cli.progress import progress
from unionfs.errors import UnionfsError

if TYPE_CHECKING:
    from unionfs.cli.progress import Report
    from unionfs.store.graph import Graph, Image

__all__ = ["command"]


def _verify(image: Image, report: Report) -> str | None:
    """Return what is wrong with the content of a layer, or None."""
    from unionfs.branch import Branch  # noqa: PLC0415  # help stays fast
    from unionfs.store.export import replay_layer  # noqa: PLC0415  # see above
    from unionfs.store.layertar import walk  # noqa: PLC0415  # see above

    if image.facts is None or image.facts.diff_id is None:
        return None
    digest = hashlib.sha256()
    done = 0
    try:
        for chunk in replay_layer(image):
            digest.update(chunk)
            done += len(chunk)
            report(image.id[:12], done, None)
        with Branch.open(image.layer_path) as branch:
            for _ in walk(branch):  # small files are verified without a look at their directory
                pass
    except OSError as error:
        return f"layer {image.id}: {describe(error)}"
    except UnionfsError as error:
        return f"layer {image.id}: {error}"
    found = f"sha256:{digest.hexdigest()}"
    if found != image.facts.diff_id:
        return (
            f"layer {image.id}: its files now give {found}, not {image.facts.diff_id}; it was"
            " changed after its import: remove it and import the image again"
        )
    return None


def _chosen(graph: Graph, images: tuple[str, ...]) -> list[Image]:
    """Return the layers to verify: those of the named images, or all."""
    if not images:
        return [entry for entry in graph.all() if not entry.metadata_only]
    found: dict[str, Image] = {}
    for name in images:
        for entry in graph.history(graph.tags.resolve(graph, name)):
            if not entry.metadata_only:
                found.setdefault(entry.id, entry)
    return list(found.values())


@click.command("fsck")
@click.argument("images", metavar="[IMAGE]...", type=IMAGE, nargs=-1)
@click.option("--verify", is_flag=True, help="Read every layer and compare its digest.")
@output.json_option
@root_option
@verbose_option
def command(*, images: tuple[str, ...], verify: bool, as_json: bool) -> None:
    """Check the store, and with --verify every layer's content.

    With images named, only their layers are verified. Exit status 1 if anything is wrong.
    """
    with state().graph() as graph:
        problems = [(item.name, item.message) for item in graph.problems()]
        verified = []
        if verify or images:
            with progress("verifying") as report:
                for entry in _chosen(graph, images):
                    wrong = _verify(entry, report)
                    if wrong is not None:
                        problems.append((entry.id, wrong))
                    elif entry.facts is not None and entry.facts.diff_id is not None:
                        verified.append(entry.id)
    if as_json:
        found = [{"name": name, "message": message} for name, message in problems]
        output.write_json({"problems": found, "verified": verified})
    else:
        for _, message in problems:
            output.result(message)
        output.note(f"{len(problems)} problems" + (f", {len(verified)} layers verified" * verify))
    if problems:
        click.get_current_context().exit(1)
