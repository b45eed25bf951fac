"""What can be asked to be undone in a rw branch, and the plan that answers it.

A rw branch says three things about a path: it is deleted (D: a whiteout, or an opaque marker
over it), changed (C: an entry of its own over one below) or added (A: an entry over nothing).
undelete takes D back, revert C, reset all three.

Invariant: a plan is a value: whoever holds one may look at it, nothing happens by it.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from typing import Any

import attrs

from unionfs.insight.probe import kind_name

__all__ = ["Action", "Kind", "Plan", "Targets", "Template", "Undo"]

#: Names on the way to what is taken back; None: this name and everything below it.
Targets = dict[bytes, "Targets | None"]


class Undo(enum.Enum):
    """What a person asks for."""

    UNDELETE = "undelete"
    REVERT = "revert"
    RESET = "reset"

    @property
    def kinds(self) -> Kind:
        """The kinds of change that are taken back."""
        return {"undelete": Kind.D, "revert": Kind.C}.get(self.value, Kind.A | Kind.C | Kind.D)


class Kind(enum.Flag):
    """Kinds of change, with the letters of `unionfs.store.changes`."""

    A = 1
    C = 2
    D = 4


@attrs.frozen
class Action:
    """One path that becomes as the layers have it.

    `verb` is undelete (it shows again), revert (the rw branch's own goes, that of the layers
    shows) or remove (it goes, and nothing below takes its place). `fmt` is the type of what
    comes or goes, `size` the bytes of a file that go. `path` is absolute inside the image.
    """

    verb: str
    path: bytes
    fmt: int
    size: int = 0


@attrs.frozen
class Template:
    """A directory to be made as the layers have it at `path`, all names hidden but `kept`."""

    path: bytes
    kept: dict[bytes, Template | None]
    hidden: tuple[bytes, ...]


@attrs.define
class Plan:
    """What is to be done; places are (directory path, name), paths relative to the root.

    `shown` are the names whose meaning changes, by directory. `lost` counts the names that a
    file of the rw branch loses, by (device, inode); `linked` are paths of those that have
    several, with their key and number of names.
    """

    targets: Targets | None = None
    actions: list[Action] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)
    removed: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    unhidden: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    hidden: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    built: list[tuple[bytes, bytes, Template]] = attrs.field(factory=list)
    opened: list[bytes] = attrs.field(factory=list)
    closed: list[bytes] = attrs.field(factory=list)
    dressed: list[bytes] = attrs.field(factory=list)
    shown: dict[bytes, set[bytes]] = attrs.field(factory=dict)
    lost: Counter[tuple[int, int]] = attrs.field(factory=Counter)
    linked: list[tuple[bytes, tuple[int, int], int]] = attrs.field(factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do, not even behind the scenes."""
        return not (self.removed or self.unhidden or self.built or self.opened or self.dressed)

    def stake(self, undo: Undo) -> str:
        """Return a digest of the paths that a person must have agreed to lose.

        Those that `undo` does not name by itself: reverting loses changes, that is what it is for.
        """
        verbs = {"remove", "revert"} if undo is Undo.RESET else {"remove"}
        digest = hashlib.sha256()
        for action in self.actions:
            if action.verb in verbs:
                digest.update(action.path + b"\0")
        return digest.hexdigest()

    def document(self, undo: Undo) -> dict[str, Any]:
        """Return the JSON form, with what the commands take out again before they print it.

        `hidden` tells that there is something to do behind the scenes; `stake` as the method.
        """
        return {
            "stake": self.stake(undo),
            "hidden": not self.empty,
            "actions": [
                {
                    "action": action.verb,
                    "path": action.path,
                    "type": kind_name(action.fmt) if action.fmt else None,
                    "size": action.size,
                }
                for action in self.actions
            ],
            "notes": self.notes,
        }
