"""`unionfs history-of`: the life of one path through the layers.

JSON: a list, base first, of `number`, `event` (added, changed, replaced, touched, deleted, added
again), `what`, `size` and the layer's labels.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.upto import upto_option
from unionfs.cli.where import WHERE, Options, locate, split_words, where_options
from unionfs.errors import NotFoundError, show

if TYPE_CHECKING:
    from unionfs.insight.life import Event

__all__ = ["command"]


@click.command("history-of")
@click.argument("words", metavar="[WHERE] PATH", nargs=-1, type=WHERE)
@where_options
@upto_option
@output.json_option
@root_option
@verbose_option
def command(
    *, words: tuple[str, ...], layers: tuple[str, ...], rw: str | None, dialect: str, as_json: bool
) -> None:
    """Show what each layer did to a path, base first.

    Added, changed (and what), deleted (and by what), added again, with the image and the command
    that made the layer. Layers that did nothing to it are left out.
    """
    options = Options(layers, rw, dialect)
    word, rest = split_words(words, options, 1, "PATH")
    where = locate(word, options)
    from unionfs.insight.life import life  # noqa: PLC0415  # help stays fast

    path = os.fsencode(rest[0])
    events = life(where, path)
    if not events:
        raise NotFoundError(
            f"no layer of {show(where.title)} ever had {show(path)}; `unionfs explain` names"
            " the nearest"
        )
    if as_json:
        output.write_json([event.document() for event in events])
        return
    for event in events:
        output.result(_line(event))


def _line(event: Event) -> str:
    text = f"{event.branch.title:<10} {event.kind.value:<12} {event.what}"
    if event.size:
        text += f", {output.size(event.size)}" if event.what else output.size(event.size)
    labels = [", ".join(event.branch.names), show(event.branch.command)]
    about = "; ".join(label for label in labels if label)
    return f"{text}  [{about}]" if about else text.rstrip()
