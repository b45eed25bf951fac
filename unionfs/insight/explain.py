"""Why a path is visible or not: the facts of every branch, the verdict, and what would change it.

The rule is that of `unionfs.branch.merge`: branches are asked from the top, and the first barrier
(a whiteout of the path or an ancestor, an opaque ancestor, a non-directory in the way) ends the
search.

Invariant: the cost is layers times depth of the path. Directories are listed only where a
listing is the answer: the merge of a directory, and the nearest names of one that never was.
"""

from __future__ import annotations

import difflib
import enum
import os
import stat
from collections.abc import Sequence
from typing import Any, Final

import attrs

from unionfs.branch import Branch, DirScan, Stack, Status, merge, whiteout
from unionfs.errors import show
from unionfs.insight.probe import Barrier, Barring, Probe, kind_name, probe, split_path
from unionfs.insight.where import NamedBranch, Where

__all__ = ["BranchFacts", "ChildFacts", "Explanation", "Role", "Verdict", "explain"]

_NEAREST: Final = 3
_CUTOFF: Final = 0.6
#: A directory with more names is not searched for nearest ones.
_MANY: Final = 50_000


class Role(enum.Enum):
    """What a branch has to do with the path."""

    VISIBLE = "visible"
    MERGED = "merged"
    HIDDEN = "hidden"
    MARKER = "marker"
    ABSENT = "absent"


class Verdict(enum.Enum):
    """What the union shows at the path."""

    VISIBLE = "visible"
    HIDDEN = "hidden"
    NEVER = "never existed"
    RESERVED = "reserved name"
    TOO_LONG = "name too long"


@attrs.frozen
class BranchFacts:
    """A branch's part. `hidden_by` is the number of the branch that hides this one's entry."""

    branch: NamedBranch
    role: Role
    entry: Status | None = None
    barriers: tuple[Barrier, ...] = ()
    hidden_by: int | None = None


@attrs.frozen
class ChildFacts:
    """A name in a directory: `given_by` branch numbers, top first, empty when it is hidden.

    `hidden_in` are the branches whose entry of that name does not show; `why` is for people.
    """

    name: bytes
    fmt: int
    given_by: tuple[int, ...]
    hidden_in: tuple[int, ...]
    why: str


@attrs.frozen
class Explanation:
    """The answer. `path` is absolute inside the image.

    `layer` is the number of the branch that shows the path, or that hides it. `see` is where a
    symbolic link on the way leads.
    """

    path: bytes
    verdict: Verdict
    words: str
    branches: tuple[BranchFacts, ...]
    layer: int | None = None
    barrier: Barrier | None = None
    children: tuple[ChildFacts, ...] = ()
    nearest: tuple[bytes, ...] = ()
    see: bytes | None = None
    advice: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "path": self.path,
            "verdict": self.verdict.value,
            "words": self.words,
            "layer": self.layer,
            "cause": None if self.barrier is None else _barrier_document(self.barrier),
            "branches": [_branch_document(facts) for facts in self.branches],
            "children": [
                {
                    "name": child.name,
                    "type": kind_name(child.fmt),
                    "given_by": list(child.given_by),
                    "hidden_in": list(child.hidden_in),
                    "why": child.why,
                }
                for child in self.children
            ],
            "nearest": list(self.nearest),
            "see": self.see,
            "advice": list(self.advice),
        }


def _barrier_document(barrier: Barrier) -> dict[str, Any]:
    return {
        "kind": barrier.kind.value,
        "at": b"/" + barrier.at,
        "marker": b"/" + barrier.marker if barrier.marker else None,
        "type": kind_name(barrier.fmt) if barrier.fmt else None,
    }


def _branch_document(facts: BranchFacts) -> dict[str, Any]:
    entry = facts.entry
    return {
        **facts.branch.document(),
        "number": facts.branch.number,
        "role": facts.role.value,
        "hidden_by": facts.hidden_by,
        "entry": None
        if entry is None
        else {
            "type": kind_name(entry.fmt),
            "mode": stat.S_IMODE(entry.mode),
            "uid": entry.uid,
            "gid": entry.gid,
            "size": entry.size,
            "mtime_ns": entry.mtime_ns,
            "device": [os.major(entry.rdev), os.minor(entry.rdev)],
            "placeholder": entry.placeholder,
        },
        "barriers": [_barrier_document(barrier) for barrier in facts.barriers],
    }


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
    children: tuple[ChildFacts, ...] = ()
    merged = [item.branch.title for item in facts if item.role is Role.MERGED]
    if merged:
        words += f", merged with {', '.join(merged)}"
    entry = probes[top].entry
    if entry is not None and entry.fmt == stat.S_IFDIR:
        children = _children(where, branches, facts, closed, parts)
    advice = []
    own = b"/".join(parts)
    if any(item.kind is Barring.WHITEOUT and item.at == own for item in probes[top].barriers):
        advice.append(
            f"{named.title} has a whiteout of it as well: by OCI the entry counts, but AUFS and"
            " fuse-overlayfs hide it"
        )
    hidden = [item for item in facts if item.role is Role.HIDDEN]
    if hidden and closed is not None:
        barrier = closed[1]
        titles = ", ".join(item.branch.title for item in hidden)
        if barrier.kind is Barring.ENTRY:
            advice.append(f"it covers the one of {titles}; without it that would show")
        else:
            cause = _cause(barrier, where.branches[closed[0]])
            advice.append(f"{titles}: hidden by {cause}; without it that would show")
    return Explanation(
        b"/" + b"/".join(parts),
        Verdict.VISIBLE,
        words,
        facts,
        layer=named.number,
        children=children,
        advice=tuple(advice),
    )


def _hidden(where: Where, found: Explanation, closed: tuple[int, Barrier]) -> Explanation:
    position, barrier = closed
    named = where.branches[position]
    first = next(item for item in found.branches if item.role is Role.HIDDEN)
    advice = _bring_back(named, barrier, first.branch, found.path)
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


def _bring_back(
    named: NamedBranch, barrier: Barrier, source: NamedBranch, path: bytes
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
    if named.is_rw:
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
    nearest, visible = _nearest(branches, parts)
    words = "never existed"
    if closed is not None:
        cause = _cause(closed[1], where.branches[closed[0]])
        if closed[1].kind is Barring.NOT_DIRECTORY:
            words += f" ({cause} is in the way)"
        elif closed[1].kind is Barring.WHITEOUT:
            words += f" ({cause} hides nothing of it)"
    if nearest:
        texts = [show(name) + ("" if name in visible else " (hidden)") for name in nearest]
        words += f"; nearest: {', '.join(texts)}"
    advice: tuple[str, ...] = ()
    if found.see is not None:
        advice = (f"the link leads to {show(found.see)}; ask for that path",)
    return attrs.evolve(found, words=words, nearest=tuple(nearest), advice=advice)


def _nearest(branches: Sequence[Branch], parts: Sequence[bytes]) -> tuple[list[bytes], set[bytes]]:
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


# -- the merge of a directory ------------------------------------------------------


def _children(
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
