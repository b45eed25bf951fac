"""What every whiteout hides, and how many bytes an image ships that nobody sees.

A byte is wasted when no name of its file is visible in the merged tree. The efficiency score and
the keys `layer`, `image` of the JSON are those of dive (dive/filetree/efficiency.go), so its CI
rules can be fed with it. For dive a path occurs once in every layer that ships it, and a removal is
one more occurrence, of 0 bytes. The score is the sum of the smallest occurrences over the sum of
all; `inefficientBytes` adds up all of every path that occurs more than once, the visible one
included. `wastedBytes` (ours) are the invisible ones only. One repair: see `_removed`.

Invariant: `wasted` is the sum over the layers, and over the paths; the bytes of hard-linked
names count once.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from unionfs.insight.model import Effect, Lost, Tree
from unionfs.insight.probe import kind_name
from unionfs.insight.shipped import LEFT_OUT, Item, Shipped, read_branch, read_stored
from unionfs.insight.where import NamedBranch, Where

__all__ = ["Account", "Hidden", "LayerWaste", "MarkerReport", "PathWaste", "Report", "report"]


@attrs.frozen
class Hidden:
    """A hidden entry: its path, type, bytes, and the number of the layer that ships it."""

    path: bytes
    fmt: int
    size: int
    layer: int


@attrs.frozen
class MarkerReport:
    """A whiteout or opaque marker. `path` is what it hides (the directory, when opaque).

    `marker` is the path of the marker itself. `hides` is everything hidden, parents first;
    `reason` says why a dangling one hides nothing. `foreign` says that no layer below ever shipped
    what it would hide: it was made for another image, or its layers were put in another order.
    """

    branch: NamedBranch
    kind: str
    path: bytes
    marker: bytes
    hides: tuple[Hidden, ...]
    reason: str = ""
    foreign: bool = False

    @property
    def bytes_hidden(self) -> int:
        """Bytes of the hidden files."""
        return sum(item.size for item in self.hides)


@attrs.frozen
class PathWaste:
    """Bytes of a path that are shipped and not visible, and how many copies of it."""

    path: bytes
    size: int
    count: int
    layers: tuple[int, ...]


@attrs.frozen
class LayerWaste:
    """A layer's bytes: all that it ships, and those that are not visible in the end."""

    branch: NamedBranch
    size: int
    wasted: int
    files: int
    markers: int


@attrs.frozen
class Reference:
    """A path as dive counts it: occurrences, bytes of all of them, bytes of the smallest."""

    path: bytes
    count: int
    size: int
    smallest: int


@attrs.frozen
class Report:
    """Everything; `layers` base first, `paths` the most wasteful first."""

    markers: tuple[MarkerReport, ...]
    layers: tuple[LayerWaste, ...]
    paths: tuple[PathWaste, ...]
    references: tuple[Reference, ...]

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(layer.size for layer in self.layers)

    @property
    def wasted(self) -> int:
        """Bytes that are shipped and not visible."""
        return sum(layer.wasted for layer in self.layers)

    @property
    def score(self) -> float:
        """Dive's efficiency: smallest copies over all copies of every path, 1.0 is perfect."""
        discovered = sum(item.size for item in self.references)
        return sum(item.smallest for item in self.references) / discovered if discovered else 1.0

    @property
    def inefficient(self) -> int:
        """Dive's `inefficientBytes`: bytes of all paths that occur more than once."""
        return sum(item.size for item in self.references if item.count > 1)

    def document(self) -> dict[str, Any]:
        """Return the JSON form, a superset of dive's."""
        repeated = sorted(
            (item for item in self.references if item.count > 1),
            key=lambda item: (-item.size, item.path),
        )
        wasted = {item.path: item for item in self.paths}
        return {
            "layer": [
                {
                    "index": layer.branch.number - 1,
                    "id": layer.branch.layer_id or layer.branch.path,
                    "digestId": layer.branch.diff_id,
                    "sizeBytes": layer.size,
                    "command": layer.branch.command,
                    "wastedBytes": layer.wasted,
                    "files": layer.files,
                    "markers": layer.markers,
                    **layer.branch.document(),
                }
                for layer in self.layers
            ],
            "image": {
                "sizeBytes": self.size,
                "inefficientBytes": self.inefficient,
                "efficiencyScore": self.score,
                "wastedBytes": self.wasted,
                "fileReference": [
                    {
                        "count": item.count,
                        "sizeBytes": item.size,
                        "file": b"/" + item.path,
                        "wastedBytes": wasted[item.path].size if item.path in wasted else 0,
                        "layers": list(wasted[item.path].layers) if item.path in wasted else [],
                    }
                    for item in repeated
                ],
            },
            "wasted": [
                {
                    "path": b"/" + item.path,
                    "sizeBytes": item.size,
                    "count": item.count,
                    "layers": list(item.layers),
                }
                for item in self.paths
            ],
            "markers": [
                {
                    "layer": marker.branch.number,
                    "rw": marker.branch.is_rw,
                    "kind": marker.kind,
                    "path": b"/" + marker.path,
                    "marker": b"/" + marker.marker,
                    "count": len(marker.hides),
                    "sizeBytes": marker.bytes_hidden,
                    "dangling": not marker.hides,
                    "reason": marker.reason,
                    "foreign": marker.foreign,
                    "hides": [
                        {
                            "path": b"/" + item.path,
                            "type": kind_name(item.fmt),
                            "sizeBytes": item.size,
                            "layer": item.layer,
                        }
                        for item in marker.hides
                    ],
                }
                for marker in self.markers
            ],
        }


class Account:
    """Sums of one run over all layers, which are put in base first."""

    def __init__(self) -> None:
        self._layers: list[Shipped] = []
        self._markers: list[MarkerReport] = []
        self._copies: dict[bytes, list[int]] = {}
        self._items: list[tuple[bytes, Item, int]] = []
        #: Every path that some layer so far has shipped, with its parents, visible or not.
        self._ever: set[bytes] = {b""}

    def layer(self, shipped: Shipped, effects: Sequence[Effect]) -> None:
        """Count a layer and what `Tree.apply` said that it does."""
        number = shipped.branch.number
        self._layers.append(shipped)
        for path, item in shipped.entries.items():
            if item.fmt == stat.S_IFDIR:
                continue
            self._items.append((path, item, number))
            self._copies.setdefault(path, []).append(item.size)
        for effect in effects:
            if effect.kind != "entry":
                self._markers.append(self._marker(shipped, effect))
                self._removed(effect)
        for path in shipped.entries:
            at = path
            while at not in self._ever:
                self._ever.add(at)
                at = at.rpartition(b"/")[0]

    def _removed(self, effect: Effect) -> None:
        """Count every removed file as an occurrence of its path without bytes.

        Dive does so for a file with a whiteout of its own. The files of a removed directory it
        adds up under the directory's name, where nothing sets them off, so that removing much
        looks efficient; and it does not know opaque directories. Here all files count alike.
        """
        for lost in effect.lost:
            if lost.item.fmt != stat.S_IFDIR:
                self._copies.setdefault(lost.path, []).append(0)

    def _marker(self, shipped: Shipped, effect: Effect) -> MarkerReport:
        reason, foreign = "", False
        if not effect.lost:
            foreign = not effect.covered and effect.path not in self._ever
            reason = _why_nothing(shipped, effect, foreign=foreign)
        return MarkerReport(
            shipped.branch,
            effect.kind,
            effect.path,
            effect.item.path,
            tuple(_hidden(lost) for lost in effect.lost),
            reason,
            foreign,
        )

    def report(self, tree: Tree) -> Report:
        """Return the sums; `tree` is what all the layers show together."""
        visible = {id(node.item) for _, node in tree.walk()}
        shown_groups = {
            (node.layer, node.item.group) for _, node in tree.walk() if node.item.group is not None
        }
        wasted = [
            (path, item, number)
            for path, item, number in self._items
            if id(item) not in visible and (number, item.group) not in shown_groups
        ]
        by_layer: dict[int, int] = {}
        for _, item, number in wasted:
            by_layer[number] = by_layer.get(number, 0) + item.size
        return Report(
            tuple(self._markers),
            tuple(
                _layer(shipped, by_layer.get(shipped.branch.number, 0)) for shipped in self._layers
            ),
            _paths(wasted),
            tuple(
                Reference(path, len(sizes), sum(sizes), min(sizes))
                for path, sizes in self._copies.items()
            ),
        )


def _hidden(lost: Lost) -> Hidden:
    return Hidden(lost.path, lost.item.fmt, lost.item.size, lost.layer)


def _why_nothing(shipped: Shipped, effect: Effect, *, foreign: bool) -> str:
    if effect.covered:
        return "the directory around it is hidden or opaque in the same layer"
    if shipped.branch.number == 1:
        return "there is no layer below"
    if foreign:
        return "no layer of this image ever had such a name"
    if effect.kind == "opaque":
        return "the layers below have nothing in this directory"
    return "the layers below have no such name any more"


def report(where: Where, seen_one: Callable[[], None] = lambda: None) -> Report:
    """Read all branches and report. Cost: every entry of every layer, once.

    The bytes of layers that came with markers that hide nothing are read as well.

    `seen_one` is called after every entry read; what it raises ends the work.
    """
    tree = Tree()
    account = Account()
    for named in reversed(where.branches):
        if any(note.endswith(LEFT_OUT) for note in named.notes):
            # The store keeps no marker that hides nothing; the archive has them.
            shipped = read_stored(named)
        else:
            shipped = read_branch(named, seen_one)
        account.layer(shipped, tree.apply(shipped))
    return account.report(tree)


def _layer(shipped: Shipped, wasted: int) -> LayerWaste:
    files = [item for item in shipped.entries.values() if item.fmt != stat.S_IFDIR]
    markers = len(shipped.whiteouts) + len(shipped.opaque)
    return LayerWaste(
        shipped.branch,
        sum(item.size for item in files),
        wasted,
        len(files),
        markers,
    )


def _paths(wasted: Sequence[tuple[bytes, Item, int]]) -> tuple[PathWaste, ...]:
    found: dict[bytes, list[tuple[Item, int]]] = {}
    for path, item, number in wasted:
        found.setdefault(path, []).append((item, number))
    paths = [
        PathWaste(
            path,
            sum(item.size for item, _ in items),
            len(items),
            tuple(number for _, number in items),
        )
        for path, items in found.items()
    ]
    return tuple(sorted(paths, key=lambda item: (-item.size, item.path)))
