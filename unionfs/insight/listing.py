"""The parts of an explanation that list directories: the merge of one, and the nearest names.

Invariant: only directories of the branches at the path asked for are listed, each once.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Sequence
from typing import Final

from unionfs.branch import Branch, DirScan, Stack, merge
from unionfs.errors import show
from unionfs.insight.explanation import BranchFacts, ChildFacts, Role
from unionfs.insight.probe import Barrier
from unionfs.insight.where import Where

__all__ = ["children", "nearest"]

_NEAREST: Final = 3
_CUTOFF: Final = 0.6
#: A directory with more names is not searched for nearest ones.
_MANY: Final = 50_000


def children(
    where: Where,
    branches: Sequence[Branch],
    facts: Sequence[BranchFacts],
    closed: tuple[int, Barrier] | None,
    parts: Sequence[bytes],
) -> tuple[ChildFacts, ...]:
    """Return every name that some branch has in the directory, sorted."""
    path = b"/".join(parts)
    scans: list[tuple[int, DirScan]] = []
    for position, (branch, item) in enumerate(zip(branches, facts, strict=True)):
        if item.entry is None or item.entry.fmt != stat.S_IFDIR:
            continue
        fd = branch.open_path(path)
        try:
            scans.append((position, branch.scan(fd)))
        finally:
            os.close(fd)
    live = [(at, scan) for at, scan in scans if facts[at].role in (Role.VISIBLE, Role.MERGED)]
    merged = merge(live)
    found: dict[bytes, ChildFacts] = {}
    for name in sorted({name for _, scan in scans for name in scan.entries}):
        child = merged.get(name)
        given = child.branches if child is not None else ()
        hidden = [at for at, scan in scans if name in scan.entries and at not in given]
        why = _child_reason(where, scans, closed, name, hidden[0]) if hidden else ""
        fmt = child.fmt if child is not None else dict(scans)[hidden[0]].entries[name]
        found[name] = ChildFacts(
            name,
            fmt or _type_of(branches[(given or hidden)[0]], path, name),
            tuple(where.branches[at].number for at in given),
            tuple(where.branches[at].number for at in hidden),
            why,
        )
    return tuple(found.values())


def _type_of(branch: Branch, path: bytes, name: bytes) -> int:
    fd = branch.open_path(path)
    try:
        return branch.status(fd, name).fmt
    finally:
        os.close(fd)


def _child_reason(
    where: Where,
    scans: Sequence[tuple[int, DirScan]],
    closed: tuple[int, Barrier] | None,
    name: bytes,
    hidden: int,
) -> str:
    """Say what hides the entry of the branch at position `hidden`: the first thing above it."""
    for position, scan in scans:
        if position >= hidden:
            break
        title = where.branches[position].title
        if name in scan.whiteouts:
            return f"whiteout in {title}"
        if scan.opaque:
            return f"opaque directory in {title}"
        if scan.entries.get(name, stat.S_IFDIR) != stat.S_IFDIR:
            return f"covered by {title}"
    if closed is not None and closed[0] < hidden:
        return f"{closed[1].kind.value} /{show(closed[1].at)} in {where.branches[closed[0]].title}"
    above = [at for at, scan in scans if at < hidden and name in scan.entries]
    return f"covered by {where.branches[above[0]].title}" if above else ""


def nearest(branches: Sequence[Branch], parts: Sequence[bytes]) -> tuple[list[bytes], set[bytes]]:
    """Return paths with names like the first missing component, and those of them that show.

    Hidden names count: what is misspelt may be deleted besides.
    """
    view = Stack(branches).root()
    depth = 0
    while depth < len(parts) and (inner := view.enter(parts[depth])) is not None:
        view, depth = inner, depth + 1
    if depth == len(parts):
        return [], set()
    names = set(view.listing)
    for branch in branches:
        try:
            fd = branch.open_path(b"/".join(parts[:depth]))
        except OSError:
            continue
        try:
            names.update(branch.scan(fd).entries)
        finally:
            os.close(fd)
    if len(names) > _MANY:
        return [], set()
    # Latin-1 maps every byte to one character, so any name can be compared and turned back.
    texts = sorted(name.decode("latin-1") for name in names)
    close = difflib.get_close_matches(parts[depth].decode("latin-1"), texts, _NEAREST, _CUTOFF)
    found = [text.encode("latin-1") for text in close]
    prefix = b"/" + b"".join(part + b"/" for part in parts[:depth])
    return [prefix + name for name in found], {prefix + n for n in found if n in view.listing}
