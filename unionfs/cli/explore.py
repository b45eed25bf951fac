"""`unionfs explore`: a full-screen browser of layers and the tree they make.

Invariant: textual is imported here and nowhere before, and only for a terminal; whatever goes
wrong in the browser leaves the terminal as it was and is reported as by any other command.
"""

from __future__ import annotations

import os

import click

from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.upto import upto_option
from unionfs.cli.where import WHERE, Options, locate, split_words, where_options
from unionfs.errors import UnsupportedError

__all__ = ["command"]


@click.command("explore")
@click.argument("words", metavar="[WHERE]", nargs=-1, type=WHERE)
@where_options
@upto_option
@root_option
@verbose_option
def command(
    *, words: tuple[str, ...], layers: tuple[str, ...], rw: str | None, dialect: str
) -> int:
    """Browse layers and the tree they make, in the terminal.

    Layers are on the left, on the right the tree as it is with the layers up to the chosen one:
    what the layer added, changed and deleted, and with a key what lies hidden. `?` shows the keys.

    For scripts: `unionfs explain --json`, `unionfs whiteouts --json`.
    """
    options = Options(layers, rw, dialect)
    word, _ = split_words(words, options, 0, "")
    if not all(os.isatty(fd) for fd in (0, 1, 2)) or os.environ.get("TERM") in ("", "dumb"):
        raise UnsupportedError(
            "explore needs a terminal; `unionfs explain` and `unionfs whiteouts` (with --json for"
            " scripts) say the same"
        )
    where = locate(word, options)
    from unionfs.explore.app import ExploreApp  # noqa: PLC0415  # textual takes its time to load
    from unionfs.explore.model import Explorer  # noqa: PLC0415  # see above

    with Explorer(where) as explorer:
        app = ExploreApp(explorer, color="NO_COLOR" not in os.environ)
        status = app.run()
        if app.failure is not None:
            raise app.failure
    return status or 0
