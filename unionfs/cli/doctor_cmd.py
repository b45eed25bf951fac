"""`unionfs doctor`: what this machine allows, and what would make it allow more.

JSON: `usable`, `backends` (`name`, `usable`, `reason`, `remedy`), `checks` (`area`, `name`,
`ok`: true, false or null for information, `detail`, `remedy`). Exit status 0 if at least one
back end is usable, else 1.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.errors import show

if TYPE_CHECKING:
    from unionfs.doctor import Report

__all__ = ["command"]

_MARKS: Final = {True: "yes", False: "NO", None: "-"}
_WIDTH: Final = 34


@click.command("doctor")
@click.option(
    "--rw",
    "branches",
    multiple=True,
    type=DIRECTORY,
    help="Examine the file system of a writable branch too (default: the current directory).",
)
@output.json_option
@root_option
@verbose_option
def command(*, branches: tuple[str, ...], as_json: bool) -> int:
    """Find out which back ends work here and what others need.

    Everything is tried in scratch places; nothing is left behind.
    """
    from unionfs.doctor import examine  # noqa: PLC0415  # help stays fast

    places = [os.path.abspath(os.fsencode(branch)) for branch in branches or (".",)]
    report = examine(state().store_root(), places)
    if as_json:
        output.write_json(report.document())
    else:
        _print(report)
    return 0 if report.usable else 1


def _print(report: Report) -> None:
    output.result("Back ends, fastest first (...-userns: for `unionfs run` and `unionfs shell`):")
    for status in report.backends:
        word = "usable here" if status.usable else "not usable here, because"
        output.result(f"  {status.name}: {word}: {show(status.reason)}")
        if status.remedy and not status.usable:
            output.result(f"      to enable: {show(status.remedy)}")
    area = ""
    for check in report.checks:
        if check.area != area:
            area = check.area
            output.result(f"{show(area[:1].upper() + area[1:])}:")
        mark = _MARKS[check.ok]
        line = f"  {check.name:<{_WIDTH}} {mark:<4} {show(check.detail)}"
        output.result(line.rstrip())
        if check.remedy and check.ok is not True:
            output.result(f"      to have it: {show(check.remedy)}")
