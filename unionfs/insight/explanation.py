"""The answer of `explain` as a value, and its JSON form.

Invariant: numbers of branches count from the base (1), positions are not seen outside.
"""

from __future__ import annotations

import enum
import os
import stat
from typing import Any

import attrs

from unionfs.branch import Status
from unionfs.insight.probe import Barrier, kind_name
from unionfs.insight.where import NamedBranch

__all__ = ["BranchFacts", "ChildFacts", "Explanation", "Role", "Verdict"]


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
