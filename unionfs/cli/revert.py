"""`unionfs revert`: take what a rw branch has over entries of the layers away.

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


@click.command("revert")
@click.argument("words", metavar="[MOUNT] PATH", nargs=-1, type=WHERE)
@undo_options
@root_option
@verbose_option
def command(*, words: tuple[str, ...], **options: Any) -> None:
    """Take changes back: files become as the layers have them.

    \b
    unionfs revert MOUNT /etc/motd
    unionfs revert MOUNT/etc/motd                the same
    unionfs revert --rw DIR --image IMAGE /etc/motd

    Of a directory everything changed in it; what is new or deleted stays so. The other names of a
    file that has several go back with it. Programs that have the file open keep theirs.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    undo("revert", words, **options)
