"""`unionfs undelete`: take whiteouts and opaque markers of a rw branch away.

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


@click.command("undelete")
@click.argument("words", metavar="[MOUNT] PATH", nargs=-1, type=WHERE)
@undo_options
@root_option
@verbose_option
def command(*, words: tuple[str, ...], **options: Any) -> None:
    """Bring back what was deleted.

    \b
    unionfs undelete MOUNT /etc/motd
    unionfs undelete MOUNT/etc/motd              the same
    unionfs undelete --rw DIR --image IMAGE /etc/motd
    unionfs undelete DIR /etc/motd               a branch alone, by its own markers

    Everything that the layers have at the path and below it, and that was deleted, shows again;
    nothing else does, and nothing is lost.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    undo("undelete", words, **options)
