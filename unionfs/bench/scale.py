"""What mounting, looking up and remembering cost as layers and files grow.

Invariant: the rounds are interleaved as those of `unionfs.bench.run`, and each mounts anew.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from unionfs.bench import watch
from unionfs.bench.children import BenchError
from unionfs.bench.result import Failure, Result, Rounds
from unionfs.bench.run import Plan, Report, keep, mounting
from unionfs.bench.subjects import Subject
from unionfs.bench.workloads import LAYER_WORKLOADS, TREE_WORKLOADS, Workload

__all__ = ["measure_layers", "measure_trees"]

_IN_DIRECTORY: Final = 1000
#: Seconds without a change of a server's memory after which none is expected.
_SETTLE: Final = 2.0
_DROP: Final = Path("/proc/sys/vm/drop_caches")
#: From here on one round is enough: the noise is small against it, and the time is not.
_ONCE: Final = 1_000_000


@attrs.frozen
class _Series:
    """Rounds over the same layers: who is mounted, what is done, and where results go."""

    plan: Plan
    result: Result
    place: Path
    layers: tuple[str, ...]
    workloads: Sequence[Workload]
    found: Rounds
    rounds: int
    what: str
    report: Report
    forget: bool = False

    def run(self) -> None:
        """Do all rounds."""
        usable = {about.key for about in self.result.measured()} - {"plain"}
        subjects = [subject for subject in self.plan.subjects if subject.key in usable]
        shuffled = random.Random(self.plan.seed)  # noqa: S311  # an order, not a secret
        steps = self.rounds * len(subjects)
        for number in range(self.rounds):
            for position, subject in enumerate(shuffled.sample(subjects, len(subjects))):
                done = number * len(subjects) + position
                self.report(f"{self.what}: {subject.title}", done, steps)
                try:
                    self._visit(subject, number)
                except (BenchError, OSError) as error:
                    self.result.failures.append(Failure(subject.key, self.what, str(error)))

    def _visit(self, subject: Subject, number: int) -> None:
        shape = self.plan.shape
        with mounting(subject, self.place, self.layers, shape) as (worker, mounted, seconds):
            keep(self.found, "mount", subject.key, number, seconds)
            before = watch.sample(mounted.pid).resident
            for workload in self.workloads:
                for key in workload.keys:
                    keep(self.found, key, subject.key, number, worker.do(workload.key)[0])
            if subject.fuse:
                after = watch.sample(mounted.pid).resident
                keep(self.found, "base", subject.key, number, before)
                keep(self.found, "memory", subject.key, number, after - before)
                if self.forget and _forget():
                    now = _settled(mounted.pid)
                    keep(self.found, "forgotten", subject.key, number, now - before)


def _settled(pid: int | None) -> int:
    """Return the memory of a server that has stopped changing: it may be given back late."""
    now, last = watch.sample(pid).resident, -1
    while now != last:
        time.sleep(_SETTLE)
        now, last = watch.sample(pid).resident, now
    return now


def measure_layers(plan: Plan, result: Result, place: Path, report: Report) -> None:
    """Fill in `layers`: mount time and the cost of look-ups by number of layers."""
    for count in plan.shape.layers:
        # Names are relative to this directory and short: overlayfs takes one page of options.
        top = place / f"l{count}"
        layers = tuple(map(str, range(count)))
        for layer in layers:
            (top / layer / "d").mkdir(parents=True)
        for number in range(plan.shape.listed):
            (top / str(number % count) / "d" / f"f{number}").write_bytes(b"x")
        found = result.layers.setdefault(str(count), {})
        what = "1 layer" if count == 1 else f"{count} layers"
        work = LAYER_WORKLOADS
        _Series(plan, result, top, layers, work, found, plan.shape.grown, what, report).run()
        shutil.rmtree(top)


def measure_trees(plan: Plan, result: Result, place: Path, report: Report) -> None:
    """Fill in `trees`: time and memory of a walk by number of files."""
    for count in plan.shape.trees:
        if os.statvfs(place).f_favail < count * 1.2:
            result.notes.append(f"left out: {count:,} files: too few inodes are free")
            break
        report(f"making {count:,} files", 0, 1)
        top = place / f"t{count}"
        for number in range(count):
            directory, name = divmod(number, _IN_DIRECTORY)
            if not name:
                (top / "0" / f"d{directory}").mkdir(parents=True)
            os.close(os.open(top / "0" / f"d{directory}" / f"f{name}", os.O_CREAT | os.O_WRONLY))
        found = result.trees.setdefault(str(count), {})
        rounds = 1 if count >= _ONCE else plan.shape.grown
        what = f"{count:,} files"
        last = count == plan.shape.trees[-1]
        work = TREE_WORKLOADS
        _Series(plan, result, top, ("0",), work, found, rounds, what, report, forget=last).run()
        report(f"removing {count:,} files", 0, 1)
        shutil.rmtree(top)


def _forget() -> bool:
    """Make the kernel forget names and inodes it does not use; only root may."""
    with contextlib.suppress(OSError):
        _DROP.write_text("2")
        return True
    return False
