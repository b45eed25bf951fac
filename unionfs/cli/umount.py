"""`unionfs umount`: end mounts and wait until everything is on disk."""

from __future__ import annotations

import os

import click

from unionfs.cli.arguments import DIRECTORY
from unionfs.cli.group import root_option, verbose_option
from unionfs.errors import BusyError, UnionfsError

__all__ = ["command"]


def _all(*, lazy: bool) -> None:
    from unionfs.mounts import MOUNTED, clean, list_mounts, umount  # noqa: PLC0415  # help stays fast

    failures = []
    # The last mount first: it may lie in an earlier one.
    for mount in reversed(list_mounts()):
        if mount.state in MOUNTED and mount.record is not None:
            try:
                umount(mount.target, lazy=lazy)
            except UnionfsError as error:
                failures.append(str(error))
    clean()
    if failures:
        raise BusyError("; ".join(failures))


@click.command("umount")
@click.argument("targets", metavar="[TARGET]...", nargs=-1, type=DIRECTORY)
@click.option("-l", "--lazy", is_flag=True, help="Take the name away now, end when nobody uses it.")
@click.option("-a", "--all", "everything", is_flag=True, help="Unmount all your mounts.")
@root_option
@verbose_option
def command(*, targets: tuple[str, ...], lazy: bool, everything: bool) -> None:
    """Unmount what `unionfs mount` mounted.

    Returns when the branch is complete on disk. Cleans up after a daemon that was killed.
    """
    if bool(targets) == everything:
        raise click.UsageError("give a TARGET or --all", click.get_current_context())
    if everything:
        _all(lazy=lazy)
        return
    from unionfs.mounts import umount  # noqa: PLC0415  # help stays fast

    for target in targets:
        umount(os.path.abspath(os.fsencode(target)), lazy=lazy)
