"""The rounds: every round visits every subject once, in a new order.

"Cold" means a fresh mount whose own caches are empty, while the branches' pages, names and
inodes are in the kernel's caches; "again" is the same once more on the same mount.

Invariant: whatever happens, a signal included, nothing stays mounted, running or on the disk.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from unionfs.bench import watch
from unionfs.bench.children import BenchError, Worker, deferred, stop
from unionfs.bench.result import VERSION, About, Failure, Result, Rounds
from unionfs.bench.shape import Shape, make_trees, needed
from unionfs.bench.subjects import Case, Mounted, Subject
from unionfs.bench.workloads import WORKLOADS, Workload
from unionfs.errors import UnionfsError, UsageError, show

__all__ = [
    "CONDITIONS",
    "Plan",
    "Report",
    "begin",
    "keep",
    "measure",
    "mounting",
    "warm",
    "workplace",
]

#: What goes on, steps done, steps in all.
Report = Callable[[str, int, int], None]
_BLOCK: Final = 1 << 20

CONDITIONS: Final = (
    (
        "every round visits every subject once, in random order; ratios are of medians over rounds,"
        " in parentheses the smallest and largest ratio within one round"
    ),
    (
        "cold: a fresh mount, its own caches empty; the branches' data, names and inodes are in the"
        " kernel's caches. again: the same pass once more on the same mount"
    ),
    (
        "each workload has files of its own, so that none finds what another has touched; before"
        " those that write much, everything dirty is written to disk (sync), outside of the clock"
    ),
    "a plain directory has no caches of its own: its cold numbers are warm ones",
)


@attrs.frozen
class Plan:
    """What to measure, and where."""

    shape: Shape
    rounds: int
    subjects: Sequence[Subject]
    directory: Path
    workloads: Sequence[Workload] = WORKLOADS
    scale: bool = True
    baseline: str | None = None
    seed: int = 0


def begin(plan: Plan) -> Result:
    """Return an empty result: the subjects that can run, and what machine this is."""
    subjects = []
    for subject in plan.subjects:
        reason = subject.missing()
        version = subject.version() if reason is None else ""
        about = About(subject.key, subject.title, subject.options or "defaults", version, reason)
        subjects.append(about)
    usable = [subject.key for subject in subjects if subject.left_out is None]
    if not usable:
        raise UnionfsError("none of the subjects can run here; `unionfs doctor` says more")
    if plan.baseline is not None and plan.baseline not in usable:
        raise UsageError(f"baseline {show(plan.baseline)} is not measured; there are {usable}")
    order = (plan.baseline, "overlayfs", "overlayfs-userns", "plain", *usable)
    baseline = next(key for key in order if key in usable)
    notes = [
        f"left out: {workload.title}: {workload.needs} is not installed"
        for workload in plan.workloads
        if workload.needs and shutil.which(workload.needs) is None
    ]
    reason = watch.requests_reason()
    if reason:
        notes.append(f"requests by kind are left out: {reason}")
    return Result(
        version=VERSION,
        facts=_facts(plan.directory),
        conditions=list(CONDITIONS),
        shape=plan.shape.name,
        rounds=plan.rounds,
        baseline=baseline,
        subjects=subjects,
        notes=notes,
    )


def _facts(directory: Path) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "filesystem": _filesystem(directory),
        "python": platform.python_version(),
        "root": os.geteuid() == 0,
        "load": list(os.getloadavg()),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


def _filesystem(directory: Path) -> str:
    from unionfs.fuse.registry import mount_table  # noqa: PLC0415  # loads what serves mounts

    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return next((entry.fstype for entry in mount_table() if entry.device == wanted), "unknown")


@contextlib.contextmanager
def workplace(plan: Plan, result: Result) -> Iterator[Path]:
    """Make a directory for everything, after checking for space; it is gone afterwards."""
    plain = any(subject.key == "plain" for subject in result.measured())
    wanted = needed(plan.shape, plain=plain)
    free = shutil.disk_usage(plan.directory).free
    if free < wanted:
        raise UnionfsError(
            f"{show(str(plan.directory))} has {free // _BLOCK} MiB free, this needs"
            f" {wanted // _BLOCK}; use --dir DIR for another place, or --quick"
        )
    place = None
    try:
        with deferred():
            place = Path(tempfile.mkdtemp(prefix="unionfs-bench-", dir=plan.directory))
        yield place
    finally:
        if place is not None:
            with deferred():
                _unmount_leftovers(place)
                _remove(place)


def _unmount_leftovers(place: Path) -> None:
    from unionfs.fuse.registry import mount_table  # noqa: PLC0415  # loads what serves mounts

    inside = os.fsencode(place) + b"/"
    for entry in mount_table():
        if entry.target.startswith(inside):
            target = os.fsdecode(entry.target)
            words = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
            subprocess.run([*words, target], check=False, stderr=subprocess.DEVNULL)


def _remove(tree: Path) -> None:
    """Remove a tree; overlayfs leaves a work directory that its owner may not enter."""
    for directory, names, _ in os.walk(tree):
        for name in names:
            path = os.path.join(directory, name)
            if stat.S_IMODE(os.lstat(path).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700, follow_symlinks=not os.path.islink(path))
    shutil.rmtree(tree)


@contextlib.contextmanager
def mounting(
    subject: Subject, place: Path, layers: tuple[str, ...], shape: Shape
) -> Iterator[tuple[Worker, Mounted, float]]:
    """Mount for the length of the block; gives the worker and how long mounting took."""
    scratch = Path(tempfile.mkdtemp(prefix="round-", dir=place))
    case = Case(place, layers, scratch / "rw", scratch / "work", scratch / "mnt")
    for directory in (case.rw, case.work, case.target):
        directory.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            with deferred():
                since = time.perf_counter()
                mounted = subject.mount(case)
                seconds = time.perf_counter() - since
                stack.callback(_end, subject, case, mounted)
                mounted.minor = os.minor(os.stat(case.target).st_dev)
            with deferred():
                worker = Worker(
                    shape.name, case.target, place, enter=mounted.enter, inside=mounted.inside
                )
                stack.callback(worker.close)
            yield worker, mounted, worker.mount_seconds if mounted.inside else seconds
    finally:
        with deferred():
            _unmount_leftovers(scratch)
            _remove(scratch)


def _end(subject: Subject, case: Case, mounted: Mounted) -> None:
    with deferred():
        try:
            subject.unmount(case, mounted)
        finally:
            if mounted.child is not None:
                stop(mounted.child)


def warm(place: Path, layers: tuple[str, ...]) -> None:
    """Bring the layers' data, names and inodes into the kernel's caches."""
    buffer = memoryview(bytearray(_BLOCK))
    for layer in layers:
        for directory, _, files in os.walk(place / layer):
            for name in files:
                with open(os.path.join(directory, name), "rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass


def keep(rounds: Rounds, key: str, subject: str, number: int, value: float) -> None:
    """Put a value at its round; what is missing before it stays None."""
    values = rounds.setdefault(key, {}).setdefault(subject, [])
    values.extend([None] * (number + 1 - len(values)))
    values[number] = value


def measure(plan: Plan, result: Result, place: Path, report: Report) -> None:
    """Do all rounds on the two layers of small and big files, and fill in the result."""
    report("making the layers", 0, 1)
    layers = tuple(str(layer.relative_to(place)) for layer in make_trees(place, plan.shape))
    usable = {about.key for about in result.measured()}
    subjects = [subject for subject in plan.subjects if subject.key in usable]
    workloads = [w for w in plan.workloads if w.needs is None or shutil.which(w.needs)]
    steps, step = plan.rounds * len(subjects), 0
    shuffled = random.Random(plan.seed)  # noqa: S311  # an order, not a secret
    for number in range(plan.rounds):
        warm(place, layers)
        for subject in shuffled.sample(subjects, len(subjects)):
            report(f"round {number + 1} of {plan.rounds}: {subject.title}", step, steps)
            try:
                with mounting(subject, place, layers, plan.shape) as (worker, mounted, _):
                    _round(result, number, subject, worker, mounted.pid, workloads)
            except BenchError as error:
                result.failures.append(Failure(subject.key, "mount", str(error)))
            step += 1
    if watch.requests_reason() is None:
        for subject in subjects:
            if not subject.fuse:
                continue
            report(f"counting requests: {subject.title}", step, steps)
            with contextlib.suppress(BenchError):
                _count(plan, result, place, layers, subject, workloads)
    report("rounds done", steps, steps)


def _round(
    result: Result,
    number: int,
    subject: Subject,
    worker: Worker,
    pid: int | None,
    workloads: Sequence[Workload],
) -> None:
    for workload in workloads:
        if workload.settle:
            os.sync()
        for key in workload.keys:
            before = watch.sample(pid)
            try:
                seconds, _ = worker.do(workload.key)
            except BenchError as error:
                result.failures.append(Failure(subject.key, key, str(error)))
                break
            after = watch.sample(pid)
            keep(result.seconds, key, subject.key, number, seconds)
            if pid is not None:
                keep(result.server_cpu, key, subject.key, number, after.cpu_since(before))
            if subject.fuse:
                calls = after.calls - before.calls
                keep(result.server_calls, key, subject.key, number, calls)
    if pid is not None:
        peaks = result.server_peak.setdefault(subject.key, [])
        peaks.extend([None] * (number + 1 - len(peaks)))
        peaks[number] = watch.sample(pid).peak


def _count(
    plan: Plan,
    result: Result,
    place: Path,
    layers: tuple[str, ...],
    subject: Subject,
    workloads: Sequence[Workload],
) -> None:
    """Do everything once more, slower, with the kernel's trace event on."""
    with (
        mounting(subject, place, layers, plan.shape) as (worker, mounted, _),
        watch.trace() as requests,
    ):
        requests.start(mounted.minor)
        for workload in workloads:
            for key in workload.keys:
                requests.clear()
                worker.do(workload.key)
                counts = requests.counts()
                if counts is not None:
                    result.requests.setdefault(key, {})[subject.key] = counts
