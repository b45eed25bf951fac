"""`unionfs convert`: a layer, a directory or an archive, in another whiteout dialect.

JSON: `path`, `entries`, `whiteouts`, `opaque` (numbers of each in the result), `implied`
(directories that an archive did not have).
"""

from __future__ import annotations

import os
from typing import Final

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.signals import orderly_end
from unionfs.errors import UsageError

__all__ = ["command"]

_DIALECTS: Final = click.Choice(("aufs", "overlay", "overlay-userxattr"))


@click.command("convert")
@click.argument("layer", metavar="LAYER", type=click.Path())
@click.argument("target", metavar="[OUTPUT]", type=click.Path(), required=False)
@click.option("--from", "origin", type=_DIALECTS, required=True, help="How LAYER marks deletions.")
@click.option("--to", "dialect", type=_DIALECTS, required=True, help="How the result does.")
@click.option("--in-place", is_flag=True, help="Replace a directory by the result.")
@output.json_option
@root_option
@verbose_option
def command(
    *,
    layer: str,
    target: str | None,
    origin: str,
    dialect: str,
    in_place: bool,
    as_json: bool,
) -> None:
    """Turn a layer from one whiteout dialect into another.

    \b
    aufs               .wh.NAME and .wh..wh..opq, as in OCI layers
    overlay            devices 0/0 and trusted.overlay.opaque (root only)
    overlay-userxattr  devices 0/0 and user.overlay.opaque

    LAYER is a directory or an archive, compressed or not. The result is a copy, an archive if
    OUTPUT ends in .tar, .tar.gz, .tgz, .tar.zst or .tzst, else a new directory. It is compared with
    LAYER, merged over a layer that has something at every place that matters, before it appears.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    if in_place == (target is not None):
        raise UsageError("give OUTPUT or --in-place")
    from unionfs.branch import Dialect  # noqa: PLC0415  # help stays fast
    from unionfs.insight.convert_any import convert_any  # noqa: PLC0415  # help stays fast

    with orderly_end():
        done = convert_any(
            os.fsencode(layer),
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
                "implied": done.implied,
            }
        )
    else:
        output.note(
            f"{done.entries} entries, {done.whiteouts} whiteouts, {done.opaque} opaque directories"
        )
        if done.implied:
            output.note(f"{done.implied} directories are not in the archive: made with mode 0755")
        output.result(done.path)
