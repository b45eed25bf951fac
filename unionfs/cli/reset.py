"""`unionfs reset`: take all that a rw branch has in a subtree away.

JSON: an object of `actions` (each `action`: undelete, revert or remove; `path`, `type`, `size`
of what goes), `notes`, and `done` (false with --dry-run).
"""

from __future__ import annotations

from typing import Any

import click

from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.undoing import undo, undo_options
from unionfs.cli.where import WHERE

__all__ = ["command"]


@click.command("reset")
@click.argument("words", metavar="[MOUNT] [SUBTREE]", nargs=-1, type=WHERE)
@undo_options
@root_option
@verbose_option
def command(*, words: tuple[str, ...], **options: Any) -> None:
    """Take everything back: a subtree becomes as the layers have it.

    \b
    unionfs reset MOUNT                          all of it
    unionfs reset MOUNT /var/lib
    unionfs reset --rw DIR --image IMAGE /var/lib

    Lists what would be lost and asks; where nobody can be asked it needs --yes.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    undo("reset", words, **options)
