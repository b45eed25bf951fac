"""Filtering the whole tree: every name that fits, with the directories that lead to it.

What is compared is the path as it is shown, so what stands on the screen can be typed, escapes and
all.

Invariant: directories that cannot hold anything wanted are not read: where a lens sees the same
branches on both sides nothing came, went or changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

from unionfs.errors import UsageError, show
from unionfs.explore.model import Explorer, Folder, Kind, Lens, Tick
from unionfs.explore.rows import Node, Rows

__all__ = ["Matcher", "matcher", "search", "shown_name"]

Matcher = Callable[[str], bool]


def shown_name(name: bytes) -> str:
    """Return `show(name)`, quickly for the names that most files have."""
    if name.isascii():
        text = name.decode("ascii")
        if text.isprintable() and "\\" not in text:
            return text
    return show(name)


def matcher(text: str, *, is_regex: bool) -> Matcher:
    """Return a test for shown paths. Text without capitals fits both cases. `UsageError`."""
    flags = re.NOFLAG if any(char.isupper() for char in text) else re.IGNORECASE
    try:
        pattern = re.compile(text if is_regex else re.escape(text), flags)
    except (re.error, OverflowError, RecursionError) as exc:
        raise UsageError(f"not a regular expression: {show(str(exc))}") from exc
    return lambda path: pattern.search(path) is not None


@attrs.define(eq=False)
class _Frame:
    """A folder at work: the names still to enter and those to keep."""

    folder: Folder
    text: str
    pending: list[bytes] = attrs.field(factory=list)
    kept: set[bytes] = attrs.field(factory=set)
    inner: dict[bytes, Node] = attrs.field(factory=dict)


def search(
    explorer: Explorer, lens: Lens, kinds: frozenset[Kind], fits: Matcher, tick: Tick
) -> Rows:
    """Return the rows of all names of these kinds that fit, with everything around them open."""
    stack = [_frame(explorer.root(lens), "/", kinds, fits)]
    while True:
        tick()
        frame = stack[-1]
        if frame.pending:
            name = frame.pending.pop()
            inner = explorer.inner(frame.folder, name)
            if inner is not None:
                stack.append(_frame(inner, f"{frame.text}{shown_name(name)}/", kinds, fits))
            continue
        names = [name for name in frame.folder.names if name in frame.kept or name in frame.inner]
        node = Node(frame.folder, names, frame.inner)
        stack.pop()
        if not stack:
            return Rows(node)
        if names:
            stack[-1].inner[frame.folder.path.rpartition(b"/")[2]] = node


def _frame(folder: Folder, text: str, kinds: frozenset[Kind], fits: Matcher) -> _Frame:
    frame = _Frame(folder, text)
    for name in folder.names:
        if folder.kind(name) in kinds and fits(text + shown_name(name)):
            frame.kept.add(name)
    frame.pending += [name for name in folder.dirs if _promises(folder, name, kinds)]
    return frame


def _promises(folder: Folder, name: bytes, kinds: frozenset[Kind]) -> bool:
    """Tell whether anything of these kinds can be in a folder's directory."""
    if Kind.HIDDEN in kinds:
        return True
    now, before = folder.sides(name)
    if not now and not before:
        return False
    return Kind.SAME in kinds or now != before
