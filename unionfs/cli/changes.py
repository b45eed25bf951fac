"""`unionfs changes`: what a rw branch adds, changes and deletes.

JSON: a list of `kind` (A, C or D) and `path` (absolute inside the image).
"""

from __future__ import annotations

import sys

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY, IMAGE
from unionfs.cli.branches import branch_of
from unionfs.cli.group import root_option, verbose_option

__all__ = ["command"]


@click.command("changes")
@click.argument("mountpoint", metavar="[MOUNT]", type=DIRECTORY, required=False)
@click.option("--image", type=IMAGE, help="With --rw: the image below, no mount is needed.")
@click.option("--layer", "layers", type=DIRECTORY, multiple=True, help="A directory below --rw.")
@click.option("--rw", type=DIRECTORY, help="The branch that holds the changes.")
@click.option("-0", "null", is_flag=True, help="End lines with NUL and print names as they are.")
@output.json_option
@root_option
@verbose_option
def command(
    *,
    mountpoint: str | None,
    image: str | None,
    layers: tuple[str, ...],
    rw: str | None,
    null: bool,
    as_json: bool,
) -> None:
    """Show what a rw branch changed, as `docker diff` does.

    \b
    A /path  added      C /path  changed      D /path  deleted

    Names that are not printable are escaped, but for -0.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    if null and as_json:
        raise click.UsageError("-0 and --json exclude each other", click.get_current_context())
    branch = branch_of(mountpoint, image, layers, rw)
    from unionfs.store.changes import changes  # noqa: PLC0415  # help stays fast

    found = changes(branch.layers, branch.rw) if branch.rw is not None else []
    if as_json:
        output.write_json([{"kind": item.kind.value, "path": item.path} for item in found])
    elif null:
        sys.stdout.flush()
        sys.stdout.buffer.writelines(b"%b %b\0" % (i.kind.value.encode(), i.path) for i in found)
    else:
        for item in found:
            output.result(str(item))
