"""The rounds: every round visits every subject once, in a new order.

"Cold" means a fresh mount whose own caches are empty, while the branches' pages, names and
inodes are in the kernel's caches; "again" is the same once more on the same mount.

Invariant: whatever happens, a signal included, nothing stays mounted, running or on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import random
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from unionfs.bench import watch
from unionfs.bench.children import BenchError, Worker, deferred, stop
from unionfs.bench.image import ImageLayers
from unionfs.bench.result import VERSION, About, Failure, Result, Rounds
from unionfs.bench.shape import Shape, make_trees, needed
from unionfs.bench.subjects import Case, Mounted, Subject
from unionfs.bench.workloads import GROWTH, WORKLOADS, Workload
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
#: They separate mount options and the layers in one; see mount(8) and overlayfs.
_SEPARATORS: Final = ",:=\\"

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
    growth: frozenset[str] = frozenset(GROWTH)
    baseline: str | None = None
    seed: int = 0
    image: ImageLayers | None = None


def begin(plan: Plan) -> Result:
    """Return an empty result: the subjects that can run, and what machine this is."""
    subjects = []
    for subject in plan.subjects:
        reason = subject.missing()
        if reason is None and plan.image is not None:
            reason = plan.image.reason(subject)
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
        notes.append(f"requests by kind are those that unionfs itself counts: {reason}")
    return Result(
        version=VERSION,
        facts=_facts(plan.directory),
        conditions=list(CONDITIONS),
        shape=plan.shape.name if plan.image is None else f"image {plan.image.name}",
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
    if set(str(plan.directory)) & set(_SEPARATORS):
        raise UnionfsError(
            f"{show(str(plan.directory))}: mount options cannot hold any of {_SEPARATORS} in a"
            " name; use --dir DIR for another place"
        )
    plain = any(subject.key == "plain" for subject in result.measured())
    wanted = needed(plan.shape, plain=plain) if plan.image is None else 4 * plan.image.size
    free = shutil.disk_usage(plan.directory).free
    if free < wanted:
        raise UnionfsError(
            f"{show(str(plan.directory))} has {free // _BLOCK} MiB free, this needs"
            f" {wanted // _BLOCK}; use --dir DIR for another place, or --quick"
        )
    place, lock = None, -1
    try:
        with deferred():
            sweep(plan.directory)
            made = tempfile.mkdtemp(prefix=".unionfs-bench-", dir=plan.directory)
            lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Only now does it have the name that sweeping looks for.
            place = plan.directory / os.path.basename(made)[1:]
            os.rename(made, place)
        yield place
    finally:
        with deferred():
            if place is not None:
                _unmount_leftovers(place)
                _remove(place)
            if lock >= 0:
                os.close(lock)


def sweep(directory: Path) -> list[str]:
    """Remove what runs of this user that were killed have left in a directory; their names."""
    gone = []
    for entry in directory.glob("unionfs-bench-*"):
        try:
            lock = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _unmount_leftovers(entry)
                _remove(entry)
                gone.append(entry.name)
        except OSError:
            continue  # in use, or not ours to remove after all
        finally:
            os.close(lock)
    return gone


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
def mounted_at(
    subject: Subject, place: Path, layers: tuple[str, ...]
) -> Iterator[tuple[Mounted, Path, float]]:
    """Mount for the length of the block; gives the mountpoint and how long mounting took."""
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
            yield mounted, case.target, seconds
    finally:
        with deferred():
            _unmount_leftovers(scratch)
            _remove(scratch)


@contextlib.contextmanager
def mounting(
    subject: Subject, place: Path, layers: tuple[str, ...], shape: Shape
) -> Iterator[tuple[Worker, Mounted, float]]:
    """Mount as `mounted_at`, and give the worker too, in whose namespace the mount may be."""
    with (
        mounted_at(subject, place, layers) as (mounted, target, seconds),
        contextlib.ExitStack() as stack,
    ):
        with deferred():
            worker = Worker(shape.name, target, place, enter=mounted.enter, inside=mounted.inside)
            stack.callback(worker.close)
        yield worker, mounted, worker.mount_seconds if mounted.inside else seconds


def _end(subject: Subject, case: Case, mounted: Mounted) -> None:
    with deferred():
        try:
            subject.unmount(case, mounted)
        finally:
            if mounted.child is not None:
                stop(mounted.child)


def warm(place: Path, layers: Iterable[str]) -> None:
    """Bring the layers' data, names and inodes into the kernel's caches."""
    buffer = memoryview(bytearray(_BLOCK))
    for layer in layers:
        for directory, _, files in os.walk(place / layer):
            for name in files:
                path = os.path.join(directory, name)
                with contextlib.suppress(PermissionError):
                    if stat.S_ISREG(os.lstat(path).st_mode):
                        with open(path, "rb", buffering=0) as file:
                            while file.readinto(buffer):
                                pass


def keep(rounds: Rounds, key: str, subject: str, number: int, value: float) -> None:
    """Put a value at its round; what is missing before it stays None."""
    values = rounds.setdefault(key, {}).setdefault(subject, [])
    values.extend([None] * (number + 1 - len(values)))
    values[number] = value


def measure(plan: Plan, result: Result, place: Path, report: Report) -> None:
    """Do all rounds on two layers of small and big files, or on an image's; fill in the result."""
    if not plan.workloads:
        return
    report("making the layers", 0, 1)
    usable = {about.key for about in result.measured()}
    subjects = [subject for subject in plan.subjects if subject.key in usable]
    if plan.image is None:
        made = tuple(str(layer.relative_to(place)) for layer in make_trees(place, plan.shape))
        forms = {subject.form: made for subject in subjects}
    else:
        forms = plan.image.prepare(place, subjects)
    workloads = [w for w in plan.workloads if w.needs is None or shutil.which(w.needs)]
    steps, step = plan.rounds * len(subjects), 0
    shuffled = random.Random(plan.seed)  # noqa: S311  # an order, not a secret
    counts: dict[str, int] = {}
    for number in range(plan.rounds):
        warm(place, dict.fromkeys(layer for layers in forms.values() for layer in layers))
        for subject in shuffled.sample(subjects, len(subjects)):
            report(f"round {number + 1} of {plan.rounds}: {subject.title}", step, steps)
            try:
                with mounting(subject, place, forms[subject.form], plan.shape) as found:
                    worker, mounted, _ = found
                    possible = _possible(workloads, subject)
                    _round(result, number, subject, worker, mounted.pid, possible, counts)
            except (BenchError, OSError) as error:
                result.failures.append(Failure(subject.key, "mount", str(error)))
            step += 1
    for subject in subjects:
        if subject.fuse:
            report(f"counting requests: {subject.title}", step, steps)
            with contextlib.suppress(UnionfsError, OSError):
                possible = _possible(workloads, subject)
                _count(plan, result, place, forms[subject.form], subject, possible)
    report("rounds done", steps, steps)


def _possible(workloads: Sequence[Workload], subject: Subject) -> list[Workload]:
    return [workload for workload in workloads if not (workload.writes and subject.read_only)]


def _round(
    result: Result,
    number: int,
    subject: Subject,
    worker: Worker,
    pid: int | None,
    workloads: Sequence[Workload],
    counts: dict[str, int],
) -> None:
    """Do every workload once; `counts` are how much the first subject did of each."""
    for workload in workloads:
        if workload.settle:
            os.sync()
        for key in workload.keys:
            before = watch.sample(pid)
            try:
                seconds, count = worker.do(workload.key)
                if workload.agree:
                    _agree(count, counts.setdefault(key, count))
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


def _agree(count: int, others: int) -> None:
    if count != others:
        raise BenchError(f"{count} instead of {others}, which another subject showed")


def _count(
    plan: Plan,
    result: Result,
    place: Path,
    layers: tuple[str, ...],
    subject: Subject,
    workloads: Sequence[Workload],
) -> None:
    """Do everything once more, outside of the rounds, and count requests by kind."""
    with (
        mounting(subject, place, layers, plan.shape) as (worker, mounted, _),
        contextlib.ExitStack() as stack,
    ):
        requests: watch.Requests | watch.OwnRequests
        if watch.requests_reason() is None:
            requests = stack.enter_context(watch.trace())
            requests.start(mounted.minor)
        elif mounted.control is not None:
            requests = watch.OwnRequests(mounted.control)
        else:
            return
        for workload in workloads:
            for key in workload.keys:
                requests.clear()
                worker.do(workload.key)
                counts = requests.counts()
                if counts is not None:
                    result.requests.setdefault(key, {})[subject.key] = counts
