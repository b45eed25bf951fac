"""One run over the engines: what each makes of the same layers, compared with the reference.

Invariant: every engine that was asked for has an outcome, and the first one that worked is the
reference of all after it; `Verdict.agree` says that every one that could work here did, and shows
the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from unionfs.errors import HostileArchiveError
from unionfs.insight.engines import others, ours, reference
from unionfs.insight.engines.layers import LayerSource
from unionfs.insight.engines.measure import Reference, measure
from unionfs.insight.engines.seen import (
    Outcome,
    Seen,
    Status,
    View,
    describe,
    tree_digest,
)
from unionfs.insight.engines.workplace import RefusedError, apart, guarded, room
from unionfs.mounts import MountRecord

__all__ = ["ENGINES", "MOUNT", "PathViews", "Verdict", "contest", "document_of"]

Runner = Callable[[list[LayerSource], bytes, Reference | None], Outcome]

#: Our own, which need the layers' directories.
_OURS: Final[dict[str, Runner]] = {
    "unionfs": ours.run_engine,
    "fuse": ours.run_fuse,
    "overlay": ours.run_overlay,
}
_OTHERS: Final[dict[str, Runner]] = {
    "overlay-naive": others.run_naive,
    "aufs": others.run_aufs,
    "fuse-overlayfs": others.run_fuse_overlayfs,
    "umoci": others.run_umoci,
}
_OCI: Final = "oci"
#: Names of the engines, in the order in which they run; the first one is the reference.
ENGINES: Final = (_OCI, *_OURS, *_OTHERS)
#: The name of the live mount that is looked at, among the engines.
MOUNT: Final = "mount"
_HERE: Final = ("unionfs", "fuse")


@attrs.frozen
class PathViews:
    """A path on which engines differ: what the reference shows, and each that differs.

    `below` counts the paths under it that are absent or extra with it, the most of any engine.
    """

    path: bytes
    expected: Seen | None
    others: dict[str, tuple[Seen | None, tuple[str, ...]]]
    below: int = 0


@attrs.frozen
class Verdict:
    """The outcome of every engine; `digest` is that of the reference, empty if none worked."""

    outcomes: dict[str, Outcome]
    first: str
    tree: dict[bytes, Seen]
    digest: str

    @property
    def worked(self) -> list[str]:
        """The engines that show something."""
        return [name for name, item in self.outcomes.items() if item.status.state == "ok"]

    @property
    def refused(self) -> list[str]:
        """The engines that cannot take these layers."""
        return [name for name, item in self.outcomes.items() if item.status.state == "refused"]

    @property
    def agree(self) -> bool:
        """Whether all engines say the same: the same tree, or that the layers are invalid."""
        if self.refused and self.worked:
            return False
        return not any(item.differences for item in self.outcomes.values())

    def paths(self) -> list[PathViews]:
        """Return the paths on which engines differ, sorted."""
        names = sorted({path for item in self.outcomes.values() for path in item.differences})
        return [self._views(path) for path in names]

    def _views(self, path: bytes) -> PathViews:
        views = {}
        below = 0
        for name, outcome in self.outcomes.items():
            found = outcome.differences.get(path)
            if found is not None:
                views[name] = (found.seen, found.what)
                below = max(below, found.below)
        return PathViews(path, self.tree.get(path), views, below)


def contest(
    sources: Sequence[LayerSource],
    place: bytes,
    engines: Sequence[str] = ENGINES,
    *,
    refusal: str = "",
    live: MountRecord | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Run the engines of these names in `place`.

    `refusal` says why the store does not take the layers, which then is the answer of our own
    engines. `live` is a mount of these layers, to be read as one more engine.
    """
    outcomes: dict[str, Outcome] = {}
    known: Reference | None = None
    first = ""
    names = [name for name in ENGINES if name in engines]
    if live is not None:
        names.insert(1 if _OCI in names else 0, MOUNT)
    for name in names:
        if progress is not None:
            progress(name)
        outcome = _run(name, list(sources), place, known, refusal, live)
        reason = outcome.status.reason.removeprefix(f"{name.partition('-')[0]}: ")
        outcome.status = Status(outcome.status.state, reason)
        if known is None and outcome.status.state == "ok":
            known = Reference(outcome.tree, outcome.links, _view_of(outcome))
            first = name
        outcomes[name] = outcome
    if known is None:
        return Verdict(outcomes, "", {}, "")
    return Verdict(outcomes, first, known.tree, _digest(known, outcomes))


def _view_of(outcome: Outcome) -> View:
    left_out = outcome.left_out
    return View("owners" not in left_out, "times" not in left_out, "modes" not in left_out)


def _digest(known: Reference, outcomes: dict[str, Outcome]) -> str:
    view = known.view
    for outcome in outcomes.values():
        if outcome.status.state == "ok":
            view = view.both(_view_of(outcome))
    return tree_digest(known.tree, known.links, view)


def _run(
    name: str,
    sources: list[LayerSource],
    place: bytes,
    known: Reference | None,
    refusal: str,
    live: MountRecord | None,
) -> Outcome:
    if name == _OCI:
        return guarded(lambda: _apply(sources, known))
    if name == MOUNT:
        assert live is not None  # noqa: S101  # the name is chosen for a mount only
        return guarded(lambda: ours.run_live(live, known))
    runner = _OURS.get(name) or _OTHERS[name]
    if name in _OURS and refusal:
        return guarded(lambda: _refuse(refusal))
    with room(place, name) as own:
        if name in _HERE:
            return guarded(lambda: runner(sources, own, known))
        return apart(lambda: runner(sources, own, known))


def _refuse(reason: str) -> Outcome:
    raise RefusedError(reason)


def _apply(sources: list[LayerSource], known: Reference | None) -> Outcome:
    tree = reference.Reference()
    for source in sources:
        try:
            tree.apply(source.stream())
        except HostileArchiveError as error:
            raise RefusedError(str(error)) from error
    return measure(tree.shown(), known, View())


def document_of(seen: Seen | None) -> dict[str, Any] | None:
    """Return the JSON form of an entry."""
    if seen is None:
        return None
    return {
        "words": describe(seen),
        "mode": seen.mode,
        "uid": seen.uid,
        "gid": seen.gid,
        "device": [os.major(seen.rdev), os.minor(seen.rdev)],
        "size": seen.size,
        "mtime_ns": seen.mtime_ns,
        "content": seen.content.hex(),
        "xattrs": {name: value.hex() for name, value in seen.xattrs},
        "error": seen.error or None,
    }
