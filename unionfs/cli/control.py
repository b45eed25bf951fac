"""`unionfs control`: small requests to the process of a live mount.

JSON: `ping`: `version`, `pid`, `target`, `lane`; `invalidate`: `names`, `inodes` (numbers of
those that the kernel was told to forget); `log-level`: `level`.
"""

from __future__ import annotations

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.live import client_at

__all__ = ["command"]


@click.command("control")
@click.argument("mountpoint", metavar="MOUNT", type=DIRECTORY)
@click.argument("request", type=click.Choice(("ping", "invalidate", "log-level")))
@click.argument("word", required=False)
@output.json_option
@root_option
@verbose_option
def command(*, mountpoint: str, request: str, word: str | None, as_json: bool) -> None:
    """Ask the process of a live mount for something small.

    \b
    unionfs control MOUNT ping
    unionfs control MOUNT invalidate [PATH]     have the kernel ask anew
    unionfs control MOUNT log-level [LEVEL]     debug, info, warning or error

    The kernel cannot be told to forget all absent names at once: name the PATH for that.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    from unionfs.control.protocol import Request  # noqa: PLC0415  # help stays fast

    if word is not None and request == "ping":
        raise click.UsageError("ping takes nothing more", click.get_current_context())
    question = Request(
        request,
        path=word if request == "invalidate" else None,
        level=word if request == "log-level" else None,
    )
    with client_at(mountpoint) as client:
        answer = client.ask(question)
    if as_json:
        output.write_json(answer)
    elif request == "ping":
        output.result(f"process {answer['pid']}, protocol {answer['version']}")
    elif request == "invalidate":
        output.result(f"{answer['names']} names, {answer['inodes']} inodes")
    else:
        output.result(answer["level"])
