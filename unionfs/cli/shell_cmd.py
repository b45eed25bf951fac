"""`unionfs shell`: look around in an image with its own shell.

Exit status as of `unionfs run`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from unionfs.cli.arguments import IMAGE
from unionfs.cli.run_cmd import ImageFirst, execute, run_options

if TYPE_CHECKING:
    from unionfs.run import RunConfig

__all__ = ["command"]


@click.command("shell", cls=ImageFirst)
@click.argument("words", metavar="IMAGE", nargs=-1, type=IMAGE)
@run_options
def command(*, words: tuple[str, ...], **options: Any) -> int:
    """Start a shell with an image as its root.

    bash if the image has it, else sh; the image's entry point is ignored. Without --rw or
    --ephemeral the image is read-only, with empty /tmp, /run and /var/tmp.
    """
    if len(words) > (0 if options["layers"] else 1):
        raise click.UsageError(
            "one image only; `unionfs run` runs commands", click.get_current_context()
        )

    def configure(settings: dict[str, Any], _: tuple[bytes, ...]) -> RunConfig:
        from unionfs.run import RunConfig  # noqa: PLC0415  # help stays fast

        return RunConfig.build(  # noqa: S604  # a program of the image, no line to parse
            settings,
            env=[os.fsencode(item) for item in options["env"]],
            workdir=None if options["workdir"] is None else os.fsencode(options["workdir"]),
            user=None if options["user"] is None else os.fsencode(options["user"]),
            shell=True,  # a program of the image, not a parsed line
        )

    return execute(words, options, configure)
