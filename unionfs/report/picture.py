"""What a report is about: every path of every layer, which of them show, and what hides the rest.

Invariant: an item of a layer is hidden by exactly one cause, the first later layer that takes it
out of the merged tree; a directory that a later layer ships again is merged, not hidden. `wasted`
marks the items whose bytes `unionfs.insight.waste` counts, so sums over them agree with its.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from unionfs.insight.lint import Finding, lint_layers
from unionfs.insight.model import Effect, Tree
from unionfs.insight.probe import kind_name
from unionfs.insight.shipped import Item, Shipped, read_branch, read_stored
from unionfs.insight.waste import Account, LayerWaste, Report
from unionfs.insight.where import NamedBranch, Where

__all__ = ["Cause", "LayerLine", "Picture", "Version", "collect"]

#: Told which layer is read, from the base (1), how many there are, and the bytes found so far.
Watch = Callable[[int, int, int], None]


@attrs.frozen
class Cause:
    """What hides an item: the number of the layer, `whiteout`, `opaque` or `entry`.

    `path` is the hidden path, the opaque directory or the entry; `marker` the path of the marker
    or entry itself.
    """

    layer: int
    kind: str
    path: bytes
    marker: bytes


@attrs.frozen
class Version:
    """A path as one layer ships it. `cause` is None while nothing above hides it."""

    layer: int
    item: Item
    cause: Cause | None = None
    wasted: bool = False


@attrs.frozen
class LayerLine:
    """A layer's bytes, and how many paths it adds, ships again and takes away.

    Compared with what the layers below show. A directory shipped again counts as changed only
    if its mode or owner differ, for archives repeat the directories above every entry.
    """

    waste: LayerWaste
    added: int
    changed: int
    deleted: int

    @property
    def branch(self) -> NamedBranch:
        """The layer itself."""
        return self.waste.branch

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "number": self.branch.number,
            **self.branch.document(),
            "size": self.waste.size,
            "wasted": self.waste.wasted,
            "files": self.waste.files,
            "markers": self.waste.markers,
            "added": self.added,
            "changed": self.changed,
            "deleted": self.deleted,
        }


@attrs.frozen
class Picture:
    """Everything. `layers` base first; `paths` sorted, parents first, versions base first."""

    title: str
    layers: tuple[LayerLine, ...]
    paths: dict[bytes, tuple[Version, ...]]
    waste: Report
    findings: tuple[Finding, ...]

    @property
    def visible(self) -> int:
        """Bytes of the merged tree."""
        return self.waste.size - self.waste.wasted

    def summary(self) -> dict[str, Any]:
        """Return all but the paths as JSON."""
        rules = {finding.rule.id: finding.rule for finding in self.findings}
        return {
            "title": self.title,
            "totals": {
                "size": self.waste.size,
                "visible": self.visible,
                "wasted": self.waste.wasted,
                "inefficient": self.waste.inefficient,
                "score": self.waste.score,
            },
            "layers": [layer.document() for layer in self.layers],
            "markers": [
                {
                    "layer": marker.branch.number,
                    "kind": marker.kind,
                    "path": b"/" + marker.path,
                    "marker": b"/" + marker.marker,
                    "count": len(marker.hides),
                    "size": marker.bytes_hidden,
                    "reason": marker.reason,
                }
                for marker in self.waste.markers
            ],
            "findings": [
                {
                    "rule": finding.rule.id,
                    "layer": finding.branch.number,
                    "path": b"/" + finding.path,
                    "detail": finding.detail,
                }
                for finding in self.findings
            ],
            "rules": {
                name: {
                    "severity": rule.severity.name.lower(),
                    "title": rule.title,
                    "why": rule.why,
                    "shows": rule.shows,
                    "fix": rule.fix,
                }
                for name, rule in rules.items()
            },
        }

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **self.summary(),
            "paths": [
                {
                    "path": b"/" + path,
                    "visible": any(version.cause is None for version in versions),
                    "versions": [_version(version) for version in versions],
                }
                for path, versions in self.paths.items()
            ],
        }


def _version(version: Version) -> dict[str, Any]:
    item, cause = version.item, version.cause
    return {
        "layer": version.layer,
        "type": kind_name(item.fmt),
        "mode": item.mode,
        "uid": item.uid,
        "gid": item.gid,
        "size": item.size,
        "wasted": version.wasted,
        "hidden_by": None
        if cause is None
        else {"layer": cause.layer, "kind": cause.kind, "marker": b"/" + cause.marker},
    }


class _Collector:
    """The paths of the layers so far, and the counts of each layer."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.account = Account()
        self.paths: dict[bytes, list[Version]] = {}
        self.counts: list[tuple[int, int, int]] = []

    def layer(self, shipped: Shipped) -> None:
        number = shipped.branch.number
        added, changed = self._compare(shipped)
        effects = self.tree.apply(shipped)
        self.account.layer(shipped, effects)
        deleted = 0
        for effect in effects:
            cause = Cause(number, effect.kind, effect.path, effect.item.path)
            deleted += self._hide(effect, cause)
        for path, item in shipped.entries.items():
            self.paths.setdefault(path, []).append(Version(number, item))
        self.counts.append((added, changed, deleted))

    def _compare(self, shipped: Shipped) -> tuple[int, int]:
        """Count entries that the layers below do not show, and those that they show otherwise."""
        added = changed = 0
        for path, item in shipped.entries.items():
            node = self.tree.find(path)
            if node is None:
                added += 1
            elif item.fmt != stat.S_IFDIR or _look(node.item) != _look(item):
                # The root is there before any layer.
                changed += bool(path)
        return added, changed

    def _hide(self, effect: Effect, cause: Cause) -> int:
        """Mark what an effect hides; count the paths that do not show any more."""
        deleted = 0
        for lost in effect.lost:
            deleted += self.tree.find(lost.path) is None
            self.paths[lost.path] = [
                attrs.evolve(version, cause=cause) if version.cause is None else version
                for version in self.paths.get(lost.path, ())
            ]
        return deleted

    def finish(self, where: Where, findings: Sequence[Finding]) -> Picture:
        waste = self.account.report(self.tree)
        wasted = {(item.path, layer) for item in waste.paths for layer in item.layers}
        return Picture(
            where.title,
            tuple(
                LayerLine(line, *counts)
                for line, counts in zip(waste.layers, self.counts, strict=True)
            ),
            {
                path: tuple(
                    attrs.evolve(version, wasted=True)
                    if (path, version.layer) in wasted
                    else version
                    for version in versions
                )
                for path, versions in sorted(self.paths.items(), key=lambda pair: _order(pair[0]))
            },
            waste,
            tuple(findings),
        )


def _look(item: Item) -> tuple[int, int, int, int]:
    return item.fmt, item.mode, item.uid, item.gid


def _order(path: bytes) -> list[bytes]:
    return path.split(b"/") if path else []


def collect(where: Where, watch: Watch = lambda *_: None) -> Picture:
    """Read all branches, once, and check them as `unionfs lint` does. Raises `OSError`.

    Layers of the store are checked as their archives came in, for which their bytes are read, too.
    """
    collector = _Collector()
    total = len(where.branches)
    done = 0

    def read() -> Iterator[Shipped]:
        nonlocal done
        for named in reversed(where.branches):
            watch(named.number, total, done)
            shipped = read_branch(named)
            collector.layer(shipped)
            done += sum(item.size for item in shipped.entries.values())
            yield shipped if named.entry is None else read_stored(named)

    return collector.finish(where, lint_layers(read()))
