"""`unionfs explain`: why a path is visible, hidden or not there.

JSON: `path`, `verdict` (visible, hidden, never existed, reserved name, name too long), `words`,
`layer` (number of the branch that shows or hides it), `cause`, `branches` (top first: `layer`,
`rw`, `number`, `path`, `role`, `entry`, `barriers`, `hidden_by` and the layer's labels),
`children` (of a directory: `name`, `type`, `given_by`, `hidden_in`, `why`), `nearest`, `see`,
`advice`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.where import WHERE, Options, inside_mount, locate, split_words, where_options
from unionfs.errors import show

if TYPE_CHECKING:
    from unionfs.insight.explanation import BranchFacts, ChildFacts, Explanation

__all__ = ["command"]


@click.command("explain")
@click.argument("words", metavar="[WHERE] PATH", nargs=-1, type=WHERE)
@where_options
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

    found = explain(where, os.fsencode(rest[0]))
    if as_json:
        output.write_json(found.document())
    else:
        _print(found)


def _real_parent(path: bytes) -> bytes:
    """Resolve links above the mount and in it, but not in the last component."""
    directory, name = os.path.split(path)
    return os.path.join(os.path.realpath(directory), name)


def _print(found: Explanation) -> None:
    titles = {item.branch.number: item.branch.title for item in found.branches}
    output.result(f"{show(found.path)}: {found.words}")
    for item in found.branches:
        output.result(f"  {item.branch.title:<10} {_facts(item, titles)}".rstrip())
    if found.children:
        output.result("children:")
    for child in found.children:
        output.result(f"  {_child(child, titles)}")
    for line in found.advice:
        output.note(f"unionfs: {line}")


def _facts(item: BranchFacts, titles: Mapping[int, str]) -> str:
    from unionfs.insight.explanation import Role  # noqa: PLC0415  # help stays fast
    from unionfs.insight.probe import Barring, kind_name  # noqa: PLC0415  # help stays fast

    words = []
    entry = item.entry
    if entry is not None:
        numbers = f"{entry.uid}:{entry.gid}"
        text = f"{kind_name(entry.fmt)} {stat.S_IMODE(entry.mode):04o} {numbers}"
        if entry.fmt == stat.S_IFREG:
            text += f" {entry.size} bytes"
        if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
            text += f" {os.major(entry.rdev)}:{os.minor(entry.rdev)}"
        words.append(text)
    for barrier in item.barriers:
        where = show(b"/" + (barrier.marker or barrier.at))
        if barrier.kind is Barring.WHITEOUT:
            words.append(f"whiteout {where}")
        elif barrier.kind is Barring.OPAQUE:
            words.append(f"opaque {show(b'/' + barrier.at)}")
        elif barrier.kind is Barring.NOT_DIRECTORY:
            words.append(f"{kind_name(barrier.fmt)} at {where}")
    role = "" if item.role is Role.MARKER else item.role.value
    if item.hidden_by is not None:
        role += f" by {titles[item.hidden_by]}"
    return f"{role:<18} {', '.join(words)}"


def _child(child: ChildFacts, titles: Mapping[int, str]) -> str:
    name = show(child.name) + ("/" if stat.S_ISDIR(child.fmt) else "")
    text = f"{name:<24} " + (", ".join(titles[at] for at in child.given_by) or "hidden")
    if child.hidden_in:
        below = ", ".join(titles[at] for at in child.hidden_in)
        text += f"  ({below}: {child.why})"
    return text
