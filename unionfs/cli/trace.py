"""`unionfs trace`: every request that a live mount answers, as it happens.

JSON: one object a line: `time` (seconds since 1970), `pid` (null where pyfuse3 does not tell),
`op`, `path`, `errno`, `result` (ok or the name of the errno), `microseconds`, `branch` (rw, layer
N, or null), `whiteouts` (branch:path of the markers met); or `dropped`, a number of requests that
came too fast to be told.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.live import client_at
from unionfs.errors import show

__all__ = ["command"]


@click.command("trace")
@click.argument("mountpoint", metavar="MOUNT", type=DIRECTORY)
@click.option("--pid", type=int, help="Only requests of this process.")
@click.option("--op", metavar="KIND", help="Only requests of this kind: lookup, read, ...")
@click.option("--path", metavar="PATH", help="Only this path of the image and what is below it.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many requests.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@root_option
@verbose_option
def command(
    *,
    mountpoint: str,
    pid: int | None,
    op: str | None,
    path: str | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Print each request of a live mount and who answers it.

    One line each: time, process, kind, path, result, duration, branch, whiteouts met. What the
    kernel answers from its caches is not asked for; `unionfs control MOUNT invalidate` empties
    them. A mount that nobody traces loses no time by it.
    """
    from unionfs.control.protocol import Request  # noqa: PLC0415  # help stays fast

    with client_at(mountpoint) as client:
        client.ask(Request("trace", pid=pid, op=op, path=path))
        output.note("unionfs: tracing; Ctrl-C ends it")
        left = -1 if count is None else count
        for event in client.events():
            if "dropped" in event:
                if not as_json:
                    output.note(f"unionfs: {event['dropped']} requests were too fast to be told")
                    continue
            else:
                left -= 1
            output.result(json.dumps(event) if as_json else _line(event))
            sys.stdout.flush()
            if not left:
                return


def _line(event: dict[str, Any]) -> str:
    stamp = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    fraction = f"{event['time'] % 1:.6f}"[1:]
    words = [
        stamp + fraction,
        str(event["pid"] or "-"),
        event["op"],
        show(os.fsencode(event["path"])) or "-",
        event["result"],
        f"{event['microseconds']}us",
        event["branch"] or "-",
        *(show(os.fsencode(item)) for item in event["whiteouts"]),
    ]
    return " ".join(words)
