"""`unionfs explain`: why a path is visible, hidden or not there.

JSON: `path`, `verdict` (visible, hidden, never existed, reserved name, name too long), `words`,
`layer` (number of the branch that shows or hides it), `cause`, `branches` (top first: `layer`,
`rw`, `number`, `path`, `role`, `entry`, `barriers`, `hidden_by` and the layer's labels),
`children` (of a directory: `name`, `type`, `given_by`, `hidden_in`, `why`), `nearest`, `see`,
`advice`.
"""

from __future__ import annotations

import os

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.upto import upto_option
from unionfs.cli.where import WHERE, Options, inside_mount, locate, split_words, where_options

__all__ = ["command"]


@click.command("explain")
@click.argument("words", metavar="[WHERE] PATH", nargs=-1, type=WHERE)
@where_options
@upto_option
@output.json_option
@root_option
@verbose_option
def command(
    *, words: tuple[str, ...], layers: tuple[str, ...], rw: str | None, dialect: str, as_json: bool
) -> None:
    """Say why a path is visible, hidden or not there.

    \b
    unionfs explain IMAGE /etc/motd          in an image (with --rw DIR: and a branch)
    unionfs explain MOUNTPOINT /etc/motd     in a live mount
    unionfs explain MOUNTPOINT/etc/motd      the same
    unionfs explain --layer TOP --layer BASE /etc/motd

    The path is one of the image. Links on the way are not followed, but named.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    options = Options(layers, rw, dialect)
    if len(words) == 1 and not layers:
        mount = inside_mount(words[0])
        if mount is not None:
            path = os.path.abspath(os.fsencode(words[0]))
            inner = os.path.relpath(_real_parent(path), mount.target)
            words = (os.fsdecode(mount.target), os.fsdecode(inner))
    word, rest = split_words(words, options, 1, "PATH")
    where = locate(word, options)
    from unionfs.insight.explain import explain  # noqa: PLC0415  # help stays fast
    from unionfs.insight.wording import lines  # noqa: PLC0415  # help stays fast

    found = explain(where, os.fsencode(rest[0]))
    if as_json:
        output.write_json(found.document())
        return
    for line in lines(found):
        output.result(line)
    for line in found.advice:
        output.note(f"unionfs: {line}")


def _real_parent(path: bytes) -> bytes:
    """Resolve links above the mount and in it, but not in the last component."""
    directory, name = os.path.split(path)
    return os.path.join(os.path.realpath(directory), name)
