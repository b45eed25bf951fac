"""The life of one path through the layers: added, changed in what, deleted by what, added again.

Invariant: the last event that is not `touched` tells what the merged view shows now; the cost is
layers times depth of the path, plus the contents that are compared.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator
from typing import Any

import attrs

from unionfs.branch import Branch
from unionfs.errors import show
from unionfs.insight.aspects import Place, differences, place_at
from unionfs.insight.probe import Barrier, Barring, Probe, kind_name, probe, split_path
from unionfs.insight.where import NamedBranch, Where

__all__ = ["Event", "EventKind", "life"]


class EventKind(enum.Enum):
    """What a layer did to the path. TOUCHED: shipped again, nothing differs."""

    ADDED = "added"
    CHANGED = "changed"
    REPLACED = "replaced"
    TOUCHED = "touched"
    DELETED = "deleted"
    READDED = "added again"


@attrs.frozen
class Event:
    """One event. `what` says in which way; `size` in bytes after it, 0 for other than files."""

    branch: NamedBranch
    kind: EventKind
    what: str = ""
    size: int = 0

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "number": self.branch.number,
            **self.branch.document(),
            "event": self.kind.value,
            "what": self.what,
            "size": self.size,
        }


def life(where: Where, path: bytes) -> list[Event]:
    """Return the events of a path, base first; empty when no layer ever had it."""
    parts = split_path(path)
    events: list[Event] = []
    with where.open() as branches:
        current: Branch | None = None
        known = False
        for named, branch in zip(reversed(where.branches), reversed(branches), strict=True):
            found = probe(branch, parts)
            event = _event(named, branch, found, current, b"/".join(parts), known=known)
            if event is not None:
                events.append(event)
                current = None if event.kind is EventKind.DELETED else branch
                known = True
    return events


def _event(
    named: NamedBranch,
    branch: Branch,
    found: Probe,
    current: Branch | None,
    path: bytes,
    *,
    known: bool,
) -> Event | None:
    entry = found.entry
    hiding = [barrier for barrier in found.barriers if _hides(barrier, path)]
    if entry is None:
        if current is None or not hiding:
            return None
        return Event(named, EventKind.DELETED, _by(hiding[0], path))
    size = entry.size if entry.fmt == stat.S_IFREG else 0
    if current is None:
        kind = EventKind.READDED if known else EventKind.ADDED
        return Event(named, kind, kind_name(entry.fmt), size)
    changed = _compare(current, branch, path)
    if hiding and entry.fmt == stat.S_IFDIR:
        detail = ", ".join(("its content below is hidden", *changed))
        return Event(named, EventKind.REPLACED, detail, size)
    if not changed:
        return Event(named, EventKind.TOUCHED, "", size)
    return Event(named, EventKind.CHANGED, ", ".join(changed), size)


def _hides(barrier: Barrier, path: bytes) -> bool:
    """Tell whether a barrier hides what the layers below have at the path."""
    return barrier.kind is not Barring.ENTRY or barrier.at != path


def _by(barrier: Barrier, path: bytes) -> str:
    at = show(b"/" + (barrier.marker or barrier.at))
    if barrier.kind is Barring.NOT_DIRECTORY:
        return f"by the {kind_name(barrier.fmt)} {at}"
    if barrier.kind is Barring.WHITEOUT and barrier.at != path:
        return f"with its directory, by {at}"
    return f"by {at}"


def _compare(old: Branch, new: Branch, path: bytes) -> tuple[str, ...]:
    with_places = list(_places(old, new, path))
    try:
        return differences(*with_places)
    finally:
        for place in with_places:
            os.close(place.fd)


def _places(old: Branch, new: Branch, path: bytes) -> Iterator[Place]:
    yield place_at(old, path)
    yield place_at(new, path)
