"""`unionfs mount`: one tree out of an image, or out of plain directories.

Invariant: when this fails, nothing stays behind that it made: no mountpoint, no writable
branch, no process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY, IMAGE
from unionfs.cli.group import root_option, state, verbose_option, verbosity
from unionfs.cli.mount_what import complete
from unionfs.cli.mounts import print_mounts, reason_of
from unionfs.cli.upto import upto_option
from unionfs.errors import UsageError, show

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from unionfs.mounts import MountRecord

__all__ = ["command"]


class _ImageOrTarget(click.ParamType[str]):
    """The first word may be an image, the last is a directory."""

    name = "word"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found = DIRECTORY.shell_complete(ctx, param, incomplete)
        if ctx.params.get("words") or ctx.params.get("layers"):
            return found
        return IMAGE.shell_complete(ctx, param, incomplete) + found


@contextlib.contextmanager
def _mountpoint(path: bytes) -> Iterator[None]:
    """Make the target if its parent is there; unmake it if the mount fails."""
    try:
        os.mkdir(path, 0o755)
    except FileNotFoundError:
        where = show(os.path.dirname(path) or b".")
        raise UsageError(f"target {show(path)}: {where} does not exist") from None
    except OSError:
        # It exists, or only the mount itself can tell what is wrong with it.
        yield
        return
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        raise


@click.command("mount")
@click.argument("words", metavar="[IMAGE] [TARGET]", nargs=-1, type=_ImageOrTarget())
@click.option(
    "--layer",
    "layers",
    multiple=True,
    type=DIRECTORY,
    help="A directory instead of an image; again for more, the top-most first.",
)
@click.option("--rw", type=DIRECTORY, help="Keep changes in this directory (made if missing).")
@click.option("--ephemeral", is_flag=True, help="Allow changes and drop them at unmount.")
@click.option(
    "-o", "options", metavar="OPTION[,...]", multiple=True, help="Mount options as in mount(8)."
)
@click.option("-f", "--foreground", is_flag=True, help="Serve in this process until unmounted.")
@click.option(
    "--ready-fd",
    type=click.IntRange(min=0),
    metavar="N",
    help="Write `s` to descriptor N when the mount works, `f` when it fails.",
)
@click.option(
    "--backend",
    type=click.Choice(("auto", "aufs", "overlay", "fuse")),
    default="fuse",
    show_default=True,
    help="What makes the union; `auto` takes the fastest that works here and shows all.",
)
@click.option("--force", is_flag=True, help="Mount over a directory that is not empty.")
@upto_option
@click.option(
    "--show-whiteouts",
    is_flag=True,
    help="Show whiteouts and opaque markers as the files they are (read-only; `-o shwh`).",
)
@output.json_option
@root_option
@verbose_option
def command(
    *,
    words: tuple[str, ...],
    layers: tuple[str, ...],
    rw: str | None,
    ephemeral: bool,
    options: tuple[str, ...],
    foreground: bool,
    ready_fd: int | None,
    backend: str,
    force: bool,
    show_whiteouts: bool,
    as_json: bool,
) -> None:
    """Mount an image or directories as one tree.

    \b
    unionfs mount IMAGE TARGET                      read-only
    unionfs mount IMAGE TARGET --rw DIR             changes go to DIR
    unionfs mount --layer TOP --layer BASE TARGET   no store needed
    unionfs mount                                   list mounts
    unionfs mount IMAGE TARGET --upto LAYER         as it was at an older layer
    unionfs mount MOUNT TARGET --show-whiteouts     what a live mount hides, beside it

    Returns when the mount is ready, and prints the mountpoint. TARGET is made if it does not
    exist.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    if not words and not layers:
        print_mounts(as_json=as_json)
        return
    from unionfs.mounts import MountOptions, MountRequest, run_foreground, start_mount  # noqa: PLC0415  # help stays fast

    expected = 1 if layers else 2
    if len(words) != expected:
        form = "--layer DIR TARGET" if layers else "IMAGE TARGET"
        raise click.UsageError(f"give exactly {form}", click.get_current_context())
    if as_json:
        raise click.UsageError("--json is for the list of mounts", click.get_current_context())
    request = MountRequest(
        target=os.path.abspath(os.fsencode(words[-1])),
        layers=tuple(os.path.abspath(os.fsencode(layer)) for layer in layers),
        rw=None if rw is None else os.path.abspath(os.fsencode(rw)),
        ephemeral=ephemeral,
        options=MountOptions.parse([*options, "shwh"] if show_whiteouts else options),
        option_text=options,
        scratch=state().store_root() if ephemeral else None,
        force=force,
        ready_fd=ready_fd,
        backend=backend,
    )
    request = complete(request, None if layers else words[0])

    def ready(record: MountRecord) -> None:
        for loss in record.losses:
            output.note(f"{record.backend}: {loss}")
        if verbosity() and backend != "fuse":
            output.note(reason_of(record))
        output.result(record.target)
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()  # whoever reads a pipe waits for this line, not for the end

    with _mountpoint(request.target):
        if foreground:
            run_foreground(request, ready)
        else:
            ready(start_mount(request))
