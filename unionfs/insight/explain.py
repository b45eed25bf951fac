"""Why a path is visible or not: the facts of every branch, the verdict, and what would change it.

The rule is that of `unionfs.branch.merge`: branches are asked from the top, and the first barrier
(a whiteout of the path or an ancestor, an opaque ancestor, a non-directory in the way) ends the
search.

Invariant: the cost is layers times depth of the path. Directories are listed only where a
listing is the answer: the merge of a directory, and the nearest names of one that never was.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final

import attrs

from unionfs.branch import Branch, Dialect, whiteout
from unionfs.errors import show
from unionfs.insight.explanation import BranchFacts, ChildFacts, Explanation, Role, Verdict
from unionfs.insight.listing import children, nearest
from unionfs.insight.probe import Barrier, Barring, Probe, kind_name, probe, split_path
from unionfs.insight.where import NamedBranch, Where

__all__ = ["explain"]

#: The longest name that AUFS reaches: 255 minus room for its temporary names.
_AUFS_MAX: Final = 242
#: Of many branches or markers only so many are named.
_FEW: Final = 3


def explain(where: Where, path: bytes) -> Explanation:
    """Explain one path, absolute or relative to the root of the image. Raises `OSError`."""
    parts = split_path(path)
    shown = b"/" + b"/".join(parts)
    with where.open() as branches:
        if any(whiteout.is_reserved(part) for part in parts):
            return _reserved(where, branches, parts, shown)
        probes = [probe(branch, parts) for branch in branches]
        facts, top, closed = _judge(where, probes)
        if any(len(part) > whiteout.NAME_MAX for part in parts):
            words = f"a name in it is longer than {whiteout.NAME_MAX} bytes; no branch can hold it"
            return Explanation(shown, Verdict.TOO_LONG, words, facts)
        if top is not None:
            return _visible(where, branches, probes, facts, top, closed, parts)
        found = Explanation(
            shown, Verdict.NEVER, "never existed", facts, see=_follow(branches, facts, parts)
        )
        if closed is not None and any(item.role is Role.HIDDEN for item in facts):
            return _hidden(where, found, closed)
        return _never(branches, found, closed, where, parts)


def _judge(
    where: Where, probes: Sequence[Probe]
) -> tuple[tuple[BranchFacts, ...], int | None, tuple[int, Barrier] | None]:
    """Return every branch's role, the position that shows the path, and the first barrier."""
    facts: list[BranchFacts] = []
    top: int | None = None
    closed: tuple[int, Barrier] | None = None
    for position, (named, found) in enumerate(zip(where.branches, probes, strict=True)):
        role, hidden_by = Role.ABSENT, None
        if found.entry is not None:
            if closed is not None:
                role, hidden_by = Role.HIDDEN, where.branches[closed[0]].number
            elif top is None:
                role, top = Role.VISIBLE, position
            elif found.entry.fmt == stat.S_IFDIR:
                role = Role.MERGED
            else:
                role, hidden_by = Role.HIDDEN, where.branches[top].number
        elif found.barriers:
            role = Role.MARKER
        if closed is None and found.barriers:
            closed = (position, found.barriers[0])
        facts.append(BranchFacts(named, role, found.entry, found.barriers, hidden_by))
    return tuple(facts), top, closed


def _cause(barrier: Barrier, named: NamedBranch) -> str:
    """Say what a barrier is and in which branch."""
    if barrier.kind is Barring.WHITEOUT:
        what = f"the whiteout {show(b'/' + barrier.marker)}"
    elif barrier.kind is Barring.OPAQUE:
        what = (
            f"`{show(os.path.basename(barrier.marker))}` in {show(b'/' + barrier.at)}"
            if barrier.marker
            else f"the opaque attribute of {show(b'/' + barrier.at)}"
        )
        return f"{what} of {named.words}"
    else:
        what = f"the {kind_name(barrier.fmt)} {show(b'/' + barrier.at)}"
    return f"{what} in {named.words}"


# -- verdicts ----------------------------------------------------------------------


def _reserved(
    where: Where, branches: Sequence[Branch], parts: Sequence[bytes], shown: bytes
) -> Explanation:
    facts = []
    for named, branch in zip(where.branches, branches, strict=True):
        present = _on_disk(branch, parts)
        facts.append(BranchFacts(named, Role.MARKER if present else Role.ABSENT))
    name = next(part for part in parts if whiteout.is_reserved(part))
    marker = whiteout.classify(name)
    meaning = {
        whiteout.Meaning.WHITEOUT: f"it is the whiteout of `{show(marker.target)}`",
        whiteout.Meaning.OPAQUE: "it marks its directory as opaque",
        whiteout.Meaning.LONG_WHITEOUT: "it is the whiteout of a name too long for a plain one",
        whiteout.Meaning.INVALID: "it is an invalid whiteout, which OCI tells readers to refuse",
    }.get(marker.meaning, "it is housekeeping of a union")
    held = [item.branch.title for item in facts if item.role is Role.MARKER]
    words = f"reserved: `{show(name)}` never shows; {meaning}" + (
        f" (present in {', '.join(held)})" if held else " (no branch has it)"
    )
    advice: tuple[str, ...] = ()
    if marker.meaning is whiteout.Meaning.WHITEOUT:
        hidden = b"/".join([*parts[: parts.index(name)], marker.target])
        advice = (f"ask for the path that it hides: {show(b'/' + hidden)}",)
    return Explanation(shown, Verdict.RESERVED, words, tuple(facts), advice=advice)


def _on_disk(branch: Branch, parts: Sequence[bytes]) -> bool:
    """Tell whether the branch's directory tree has such a name, whatever it means."""
    try:
        fd = branch.open_path(b"/".join(parts[:-1]))
    except OSError:
        return False
    try:
        os.stat(parts[-1], dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _visible(
    where: Where,
    branches: Sequence[Branch],
    probes: Sequence[Probe],
    facts: tuple[BranchFacts, ...],
    top: int,
    closed: tuple[int, Barrier] | None,
    parts: Sequence[bytes],
) -> Explanation:
    named = where.branches[top]
    words = f"visible, from {named.words}"
    inner: tuple[ChildFacts, ...] = ()
    merged = [item.branch.title for item in facts if item.role is Role.MERGED]
    if merged:
        words += f", merged with {', '.join(merged)}"
    entry = probes[top].entry
    if entry is not None and entry.fmt == stat.S_IFDIR:
        inner = children(where, branches, facts, closed, parts)
    advice = _long_names(parts)
    own = b"/".join(parts)
    if any(item.kind is Barring.WHITEOUT and item.at == own for item in probes[top].barriers):
        advice.append(
            f"{named.title} has a whiteout of it as well: by OCI the entry counts, but AUFS and"
            " fuse-overlayfs hide it"
        )
    hidden = [item for item in facts if item.role is Role.HIDDEN]
    if hidden and closed is not None:
        barrier = closed[1]
        titles = _few([item.branch.title for item in hidden])
        if barrier.kind is Barring.ENTRY:
            undo = _undo("revert", where, named, b"/" + own)
            advice.append(f"it covers the one of {titles}; without it that would show{undo}")
        else:
            cause = _cause(barrier, where.branches[closed[0]])
            undo = _undo("undelete", where, where.branches[closed[0]], b"/" + own)
            advice.append(f"{titles}: hidden by {cause}; without it that would show{undo}")
    return Explanation(
        b"/" + b"/".join(parts),
        Verdict.VISIBLE,
        words,
        facts,
        layer=named.number,
        children=inner,
        advice=tuple(advice),
    )


def _long_names(parts: Sequence[bytes]) -> list[str]:
    """Say what the length of a visible name means to those who want to delete or reach it."""
    longest = max(map(len, parts), default=0)
    if longest > whiteout.MAX_NAME:
        what = "no `.wh.` file can hide it; only unionfs knows the whiteouts that can"
        return [f"a name in it has {longest} bytes: {what}"]
    if longest > _AUFS_MAX:
        return [f"a name in it has {longest} bytes: AUFS lists it, but reaches {_AUFS_MAX} at most"]
    return []


def _hidden(where: Where, found: Explanation, closed: tuple[int, Barrier]) -> Explanation:
    position, barrier = closed
    named = where.branches[position]
    first = next(item for item in found.branches if item.role is Role.HIDDEN)
    advice = _bring_back(where, named, barrier, first.branch, found.path)
    more = _more_barriers(found, first)
    if more:
        advice.insert(1, f"that alone would not show it: it is also hidden by {_few(more)}")
    if found.see is not None:
        advice.append(f"the link leads to {show(found.see)}; ask for that path")
    return attrs.evolve(
        found,
        verdict=Verdict.HIDDEN,
        words=f"hidden by {_cause(barrier, named)}; {first.branch.title} has it",
        layer=named.number,
        barrier=barrier,
        advice=tuple(advice),
    )


def _few(words: Sequence[str]) -> str:
    """Join words; of many only the first, and how many there are."""
    if len(words) <= _FEW + 1:
        return ", ".join(words)
    return f"{', '.join(words[:_FEW])} and {len(words) - _FEW} more"


def _more_barriers(found: Explanation, source: BranchFacts) -> list[str]:
    """Return all that hides the entry of `source`, but the first, which is the verdict's cause."""
    causes: list[str] = []
    for item in found.branches:
        if item is source:
            break
        causes += [_cause(barrier, item.branch) for barrier in item.barriers]
    return causes[1:]


def _undo(verb: str, where: Where, named: NamedBranch, path: bytes) -> str:
    """Return the words for the command that takes something of a rw branch back, if it can."""
    if not named.is_rw or named.dialect is not Dialect.AUFS:
        return ""
    if where.mount is not None:
        place = show(where.mount)
    else:
        below = f"--image {where.title}" if where.branches[-1].layer_id else "--layer ..."
        place = f"{below} --rw {show(named.path)}"
    return f": `unionfs {verb} {place} {show(path)}`"


def _bring_back(
    where: Where, named: NamedBranch, barrier: Barrier, source: NamedBranch, path: bytes
) -> list[str]:
    marker = named.path + b"/" + (barrier.marker or barrier.at)
    advice = []
    if barrier.kind is Barring.OPAQUE:
        scope = (
            f" (with it everything else that the layers below have in {show(b'/' + barrier.at)})"
        )
    elif barrier.kind is Barring.WHITEOUT and b"/" + barrier.at != path:
        scope = f" (with it all of {show(b'/' + barrier.at)})"
    else:
        scope = ""
    undo = _undo("undelete", where, named, path)
    if undo and barrier.kind is not Barring.NOT_DIRECTORY:
        advice.append(f"take the deletion back{undo}")
    elif undo:
        back = _undo("revert", where, named, b"/" + barrier.at)
        advice.append(f"take {show(b'/' + barrier.at)} of the rw branch away{back}")
    elif named.is_rw:
        advice.append(f"remove {show(marker)} while nothing is mounted on the branch{scope}")
    elif not named.layer_id:
        advice.append(f"remove {show(marker)} from the layer{scope}")
    else:
        advice.append(f"use the image as it was below {named.title}")
    advice.append(f"or copy {show(source.path + path)} into a rw branch")
    return advice


def _never(
    branches: Sequence[Branch],
    found: Explanation,
    closed: tuple[int, Barrier] | None,
    where: Where,
    parts: Sequence[bytes],
) -> Explanation:
    names, visible = nearest(branches, parts)
    words = "never existed"
    if closed is not None:
        cause = _cause(closed[1], where.branches[closed[0]])
        if closed[1].kind is Barring.NOT_DIRECTORY:
            words += f" ({cause} is in the way)"
        elif closed[1].kind is Barring.WHITEOUT:
            words += f" ({cause} hides nothing of it)"
    if names:
        texts = [show(name) + ("" if name in visible else " (hidden)") for name in names]
        words += f"; nearest: {', '.join(texts)}"
    advice: tuple[str, ...] = ()
    if found.see is not None:
        advice = (f"the link leads to {show(found.see)}; ask for that path",)
    return attrs.evolve(found, words=words, nearest=tuple(names), advice=advice)


def _follow(
    branches: Sequence[Branch], facts: Sequence[BranchFacts], parts: Sequence[bytes]
) -> bytes | None:
    """Return where the first visible symbolic link above the path leads, with the rest appended."""
    links = [
        (position, barrier)
        for position, item in enumerate(facts)
        for barrier in item.barriers
        if barrier.kind is Barring.NOT_DIRECTORY and barrier.fmt == stat.S_IFLNK
    ]
    if not links:
        return None
    at = links[0][1].at
    depth = at.count(b"/") + 1
    probes = [probe(branch, parts[:depth]) for branch in branches]
    for branch, found in zip(branches, probes, strict=True):
        if found.entry is None:
            if found.barriers:
                return None
            continue
        if found.entry.fmt != stat.S_IFLNK:
            return None
        parent, _, name = at.rpartition(b"/")
        fd = branch.open_path(parent)
        try:
            target = branch.readlink(fd, name)
        finally:
            os.close(fd)
        base = target if target.startswith(b"/") else parent + b"/" + target
        return b"/" + b"/".join([*split_path(base), *parts[depth:]])
    return None
