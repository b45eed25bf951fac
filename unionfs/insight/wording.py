"""An explanation as lines of text, the same wherever it is shown.

Invariant: one fact is one line, and no byte of a name can break or forge one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping

from unionfs.errors import show
from unionfs.insight.explanation import BranchFacts, ChildFacts, Explanation, Role
from unionfs.insight.probe import Barring, kind_name

__all__ = ["lines"]


def lines(found: Explanation) -> Iterator[str]:
    """Yield the verdict, what each branch says, and the children of a directory."""
    titles = {item.branch.number: item.branch.title for item in found.branches}
    yield f"{show(found.path)}: {found.words}"
    for item in found.branches:
        yield f"  {item.branch.title:<10} {_facts(item, titles)}".rstrip()
    if found.children:
        yield "children:"
    for child in found.children:
        yield f"  {_child(child, titles)}"


def _facts(item: BranchFacts, titles: Mapping[int, str]) -> str:
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
