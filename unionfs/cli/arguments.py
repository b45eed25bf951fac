"""Arguments that several verbs share, with what the shell may complete them to.

Invariant: completion never fails and never makes a store; it only knows less.
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import CompletionItem

from unionfs.cli.group import State
from unionfs.errors import UnionfsError

__all__ = ["DIRECTORY", "IMAGE", "NAME"]


class _ImageName(click.ParamType[str]):
    """The name, id or beginning of an id of an image in the store."""

    name = "image"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        del param
        try:
            with ctx.ensure_object(State).graph() as graph:
                names = [str(reference) for reference in graph.tags.all()]
                names += graph.ids() if incomplete else []
        except (UnionfsError, OSError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


IMAGE: Final = _ImageName()
#: A name to be given: nothing to complete but what is there already.
NAME: Final = _ImageName()
DIRECTORY: Final = click.Path(file_okay=False)
