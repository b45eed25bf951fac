"""How fast the FUSE back end means to be, and whether a result shows it.

Invariant: the goals are this table and stand nowhere else; a row that was not measured is
neither met nor missed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Final

import attrs

from unionfs.bench.result import Result, ratios

__all__ = ["GOALS", "Goal", "Outcome", "check"]

#: The subjects that the goals speak of.
_OURS: Final = "fuse"
_KERNELS: Final = ("overlayfs", "overlayfs-userns")
_PEER: Final = "fuse-overlayfs"
_PASSTHROUGH: Final = "fuse-passthrough"
_BY_KERNEL: Final = "root with passthrough"
#: Load average when the run began, from which on a machine counts as busy.
_BUSY: Final = 1.0


@attrs.frozen
class Goal:
    """Largest allowed ratio of one workload's times to kernel overlayfs' and fuse-overlayfs'.

    `busy` is what `peer` becomes when other work waits for the cores, because then waking a
    sleeping core, which read-ahead avoids, costs the peer nothing. `subject` is whose times.
    """

    key: str
    title: str
    kernel: float
    peer: float | None
    busy: float | None = None
    subject: str = _OURS


GOALS: Final = (
    Goal("walk.cold", "tree walk with stat, cold", 1.6, 0.5),
    Goal("walk.again", "tree walk with stat, again", 1.0, 1.0),
    Goal("tar.cold", "read of all small files (tar), cold", 1.5, 0.15, 0.35),
    Goal("tar.again", "read of all small files (tar), again", 1.0, 0.15),
    Goal("python.cold", "python start with many imports, cold", 2.0, 0.4),
    Goal("git.cold", "git status, cold", 2.0, 0.4),
    Goal("grep.cold", "grep -r, cold", 2.0, 0.4),
    Goal("big.cold", "big file, sequential read, cold", 5.0, 0.85),
    Goal("big.again", "big file, sequential read, again", 2.5, 1.0),
    Goal("big.cold", f"big file, {_BY_KERNEL}, cold", 1.2, None, subject=_PASSTHROUGH),
    Goal("big.again", f"big file, {_BY_KERNEL}, again", 1.2, None, subject=_PASSTHROUGH),
    Goal("random.cold", "random 4 KiB reads, cold", 4.0, 1.0),
    Goal("create", "create files", 5.0, 0.8),
    Goal("untar", "extract a tar", 5.0, 0.8),
    Goal("delete", "delete lower files", 5.0, 0.1),
    Goal("delete-big", "delete the big lower file", 10.0, 0.05),
    Goal("sparse", "copy-up of the big sparse file", 1.5, 0.05),
    Goal("append", "first append to small lower files", 1.0, 0.5),
    Goal("clients.cold", "4 clients reading small files, cold", 2.5, 0.6),
)
#: Most layers against fewest, in a directory that is known.
_LAYERS_LIMIT: Final = 1.3
_LAYERS_KEYS: Final = (
    ("absent.cold", "look up absent names"),
    ("open.cold", "open and read files"),
    ("list.again", "list and stat again"),
)


@attrs.frozen
class Outcome:
    """A goal and what a result says: `value` may be at most `limit`; `met` None: not measured.

    `low` and `high` are the smallest and largest ratio within one round.
    """

    title: str
    against: str
    limit: float
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool | None:
        """Tell whether the value keeps the limit."""
        return None if self.value is None else self.value <= self.limit

    @property
    def clear(self) -> bool:
        """Tell whether all rounds agree with `met`."""
        if self.low is None or self.high is None:
            return False
        return not self.low <= self.limit < self.high


def check(result: Result) -> list[Outcome]:
    """Return the outcome of every goal, in the order of the table."""
    measured = {subject.key for subject in result.measured()}
    kernel = next((key for key in _KERNELS if key in measured), _KERNELS[0])
    busy = result.facts["load"][0] >= _BUSY
    outcomes = []
    for goal in GOALS:
        peer = goal.busy if busy and goal.busy is not None else goal.peer
        for against, limit in ((kernel, goal.kernel), (_PEER, peer)):
            if limit is None:
                continue
            found = ratios(result.seconds.get(goal.key, {}), goal.subject, against)
            outcomes.append(Outcome(goal.title, against, limit, *(found or ())))
    outcomes.extend(_layers(result))
    outcomes.append(_memory(result))
    return outcomes


def _layers(result: Result) -> Iterator[Outcome]:
    counts = sorted(map(int, result.layers))
    for key, title in _LAYERS_KEYS:
        if len(counts) < 2:  # noqa: PLR2004  # a comparison takes two
            yield Outcome(f"{title}, many layers", "1 layer", _LAYERS_LIMIT)
            continue
        few, many = (result.layers[str(n)].get(key, {}) for n in (counts[0], counts[-1]))
        both = {"many": many.get(_OURS, []), "few": few.get(_OURS, [])}
        yield Outcome(
            f"{title}, {counts[-1]} layers",
            f"{counts[0]} layer",
            _LAYERS_LIMIT,
            *(ratios(both, "many", "few") or ()),
        )


def _memory(result: Result) -> Outcome:
    """Compare the growth of memory in the walk of the largest tree."""
    counts = sorted(map(int, result.trees))
    if not counts:
        return Outcome("memory for each known file", _PEER, 1.0)
    growth = result.trees[str(counts[-1])].get("memory", {})
    found = ratios(growth, _OURS, _PEER)
    if found is not None and statistics.median(v for v in growth[_PEER] if v is not None) <= 0:
        found = None
    return Outcome(f"memory for each of {counts[-1]:,} known files", _PEER, 1.0, *(found or ()))
