"""`unionfs diff`: what changes from one image, mount or directory to another, and what causes it.

JSON: a list of `kind` (A, C or D), `path`, `type`, `what` (differs in a changed one), `old_size`,
`new_size`, `cause`, `branch` (the layer that causes it).
"""

from __future__ import annotations

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.where import WHERE, Options, locate, where_options
from unionfs.errors import show

__all__ = ["command"]


@click.command("diff")
@click.argument("words", metavar="[A] [B]", nargs=-1, type=WHERE)
@where_options
@click.option("--semantic", is_flag=True, help="Ignore times.")
@click.option(
    "--order",
    type=click.Choice(("path", "size")),
    default="path",
    show_default=True,
    help="Sort by path, or by the bytes that changed, most first.",
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if there is a difference.")
@output.json_option
@root_option
@verbose_option
def command(
    *,
    words: tuple[str, ...],
    layers: tuple[str, ...],
    rw: str | None,
    dialect: str,
    semantic: bool,
    order: str,
    exit_code: bool,
    as_json: bool,
) -> int:
    """Show what differs between two images or mounts, and why.

    \b
    unionfs diff A B              from A to B; each an image, a mountpoint or a directory
    unionfs diff MOUNTPOINT       what the rw branch of a mount changed
    unionfs diff IMAGE --rw DIR   what a rw branch changes in an image

    \b
    A /path  added      C /path  changed      D /path  deleted
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    options = Options(layers, rw, dialect)
    if len(words) == 2 and rw is None and not layers:  # noqa: PLR2004  # A and B
        first, second = locate(words[0], options), locate(words[1], options)
    elif len(words) + bool(layers) == 1:
        second = locate(words[0] if words else None, options)
        first = second.without_rw()
        if second.rw is None:
            raise click.UsageError(
                "give A and B, or one of them that has a rw branch", click.get_current_context()
            )
    else:
        raise click.UsageError("give A and B", click.get_current_context())
    from unionfs.insight.compare import compare  # noqa: PLC0415  # help stays fast

    found = compare(first, second, semantic=semantic)
    if order == "size":
        found.sort(key=lambda item: (-max(item.old_size, item.new_size), item.path))
    if as_json:
        output.write_json([item.document() for item in found])
    else:
        for item in found:
            size = output.size(max(item.old_size, item.new_size))
            reason = ", ".join(item.what) or item.cause
            line = f"{item.kind} {show(b'/' + item.path)}"
            output.result(f"{line}\t{size}\t{reason}\t{item.branch.title}")
    return int(bool(found) and exit_code)
