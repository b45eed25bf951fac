"""`unionfs convert`: a layer directory in another whiteout dialect.

JSON: `path`, `entries`, `whiteouts`, `opaque` (numbers of each in the result).
"""

from __future__ import annotations

import os
from typing import Final

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY
from unionfs.cli.group import root_option, verbose_option
from unionfs.errors import UsageError

__all__ = ["command"]

_DIALECTS: Final = click.Choice(("aufs", "overlay", "overlay-userxattr"))


@click.command("convert")
@click.argument("directory", metavar="DIR", type=DIRECTORY)
@click.argument("target", metavar="[OUTPUT]", type=DIRECTORY, required=False)
@click.option("--from", "origin", type=_DIALECTS, required=True, help="How DIR marks deletions.")
@click.option("--to", "dialect", type=_DIALECTS, required=True, help="How the result does.")
@click.option("--in-place", is_flag=True, help="Replace DIR by the result.")
@output.json_option
@root_option
@verbose_option
def command(
    *,
    directory: str,
    target: str | None,
    origin: str,
    dialect: str,
    in_place: bool,
    as_json: bool,
) -> None:
    """Turn a layer directory from one whiteout dialect into another.

    \b
    aufs               .wh.NAME and .wh..wh..opq, as in OCI layers
    overlay            devices 0/0 and trusted.overlay.opaque (root only)
    overlay-userxattr  devices 0/0 and user.overlay.opaque

    The result is a copy in the new directory OUTPUT. It is compared with DIR, merged over a layer
    that has something at every place that matters, before it appears.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    if in_place == (target is not None):
        raise UsageError("give OUTPUT or --in-place")
    from unionfs.branch import Dialect  # noqa: PLC0415  # help stays fast
    from unionfs.insight.convert import convert  # noqa: PLC0415  # help stays fast

    done = convert(
        os.fsencode(directory),
        Dialect(origin),
        Dialect(dialect),
        None if target is None else os.fsencode(target),
    )
    if as_json:
        output.write_json(
            {
                "path": done.path,
                "entries": done.entries,
                "whiteouts": done.whiteouts,
                "opaque": done.opaque,
            }
        )
    else:
        output.note(
            f"{done.entries} entries, {done.whiteouts} whiteouts, {done.opaque} opaque directories"
        )
        output.result(done.path)
