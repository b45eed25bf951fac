"""`unionfs report`: an image as one page for a browser, with everything in it.

JSON: what the page is about: `title`, `totals` (`size`, `visible`, `wasted`, `inefficient`,
`score`), `layers` (base first), `markers`, `findings`, `rules` (those of the findings), `paths`
(`path`, `visible`, `versions`: base first, each `layer`, `type`, `mode`, `uid`, `gid`, `size`,
`wasted`, `hidden_by`).
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.progress import progress
from unionfs.cli.signals import orderly_end
from unionfs.cli.upto import upto_option
from unionfs.cli.where import WHERE, Options, locate, split_words, where_options
from unionfs.errors import ConflictError, UsageError, show

if TYPE_CHECKING:
    from unionfs.insight.where import Where
    from unionfs.report.picture import Picture

__all__ = ["command"]


@click.command("report")
@click.argument("words", metavar="[WHERE]", nargs=-1, type=WHERE)
@where_options
@upto_option
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Where to write the page; - is standard output.",
)
@click.option("-f", "--force", is_flag=True, help="Replace a file that exists.")
@output.json_option
@root_option
@verbose_option
def command(
    *,
    words: tuple[str, ...],
    layers: tuple[str, ...],
    rw: str | None,
    dialect: str,
    target: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make a page for a browser: layers, waste, findings, files.

    The page is one file that loads and sends nothing: a table of the layers, a map of their bytes
    with those that are shipped and hidden, what `unionfs lint` finds, and every path with the
    layer that gives it or hides it.
    """
    if target is None and not as_json:
        raise UsageError("say where the page goes: -o FILE, or -o - for standard output")
    if target is not None and as_json:
        raise UsageError("give -o or --json, not both")
    if target == "-" and sys.stdout.isatty():
        raise UsageError("a page on a terminal is of no use; redirect standard output")
    options = Options(layers, rw, dialect)
    word, _ = split_words(words, options, 0, "")
    where = locate(word, options)
    if target is None:
        output.write_json(_collect(where).document())
        return
    from unionfs.report.page import render  # noqa: PLC0415  # help stays fast

    if target == "-":
        page = render(_collect(where))
        sys.stdout.flush()
        sys.stdout.buffer.write(page)
        return
    _write(os.fsencode(target), where, force=force)


def _write(path: bytes, where: Where, *, force: bool) -> None:
    from unionfs.archive.staging import replacing  # noqa: PLC0415  # help stays fast
    from unionfs.report.page import render  # noqa: PLC0415  # help stays fast

    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise ConflictError(f"{show(path)} is no regular file; choose another name")
    with orderly_end(), replacing(path, replace=force) as file:
        file.write(render(_collect(where)))
    output.result(path)


def _collect(where: Where) -> Picture:
    from unionfs.report.picture import collect  # noqa: PLC0415  # help stays fast

    with progress("reading") as report:
        return collect(
            where,
            lambda number, total, done: report(f"layer {number} of {total}", done, None),
        )
