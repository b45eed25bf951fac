"""`python -m bench`: measure all subjects on all workloads, interleaved, and print ratios.

"Cold" means a fresh mount whose own caches are empty while the branches' pages are in
the page cache. Every round visits every subject in a new order; the table shows medians
divided by the reference's median, and the spread of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.kernel_subjects import KERNEL_SUBJECTS
from bench.subjects import SUBJECTS, Subject
from bench.workloads import WORKLOADS, Shape, Workload, make_layers

Times = dict[str, dict[str, list[float]]]


def _measure(workload: Workload, subject: Subject, layers: list[Path], shape: Shape) -> list[float]:
    scratch = Path(tempfile.mkdtemp(prefix="round-", dir=layers[0].parent))
    rw, target = scratch / "rw", scratch / "mnt"
    rw.mkdir()
    target.mkdir()
    try:
        subject.mount(layers, rw, target)
        try:
            times = []
            for _ in range(2 if workload.again else 1):
                start = time.perf_counter()
                workload.run(target, shape)
                times.append(time.perf_counter() - start)
            return times
        finally:
            subject.unmount(target)
    finally:
        shutil.rmtree(scratch)


def _run(subjects: list[Subject], layers: list[Path], shape: Shape, rounds: int) -> Times:
    times: Times = {}
    for workload in WORKLOADS:
        for _ in range(rounds):
            for subject in random.sample(subjects, len(subjects)):
                print(f"\r{workload.name}: {subject.name:30}", end="", file=sys.stderr)
                results = _measure(workload, subject, layers, shape)
                for name, seconds in zip((workload.name, workload.again), results, strict=False):
                    if name is not None:
                        times.setdefault(name, {}).setdefault(subject.name, []).append(seconds)
    print("\r" + " " * 70 + "\r", end="", file=sys.stderr)
    return times


def _table(times: Times, subjects: list[Subject], reference: str) -> str:
    lines = [f"{'ratio to ' + reference:30}" + "".join(f"{s.name:>22}" for s in subjects)]
    for name, by_subject in times.items():
        base = statistics.median(by_subject[reference])
        row = f"{name:30}"
        for subject in subjects:
            values = by_subject[subject.name]
            ratio = statistics.median(values) / base
            row += f"{ratio:9.2f} ({min(values) / base:.1f}-{max(values) / base:.1f})".rjust(22)
        lines.append(row)
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print the table and perhaps write JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small tree, for a first look")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where the layers lie (default: a temp dir)")
    parser.add_argument("-o", "--output", type=Path, help="write all times as JSON")
    arguments = parser.parse_args()
    shape = Shape(quick=arguments.quick)
    subjects = []
    for subject in (*SUBJECTS, *KERNEL_SUBJECTS):
        reason = subject.missing()
        if reason:
            print(f"left out: {subject.name}: {reason}")
        else:
            subjects.append(subject)
    reference = "overlayfs" if any(s.name == "overlayfs" for s in subjects) else "plain"
    root = Path(tempfile.mkdtemp(prefix="unionfs-bench-", dir=arguments.dir))
    try:
        layers = make_layers(root, shape)
        times = _run(subjects, layers, shape, arguments.rounds)
    finally:
        shutil.rmtree(root)
    print(_table(times, subjects, reference))
    if any(s.name == "aufs" for s in subjects):
        print(_table(times, subjects, "aufs"))
    for subject in subjects:
        print(f"{subject.name}: {subject.options or 'no options'}")
    facts = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "rounds": arguments.rounds,
        "load": os.getloadavg(),
    }
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if arguments.output:
        arguments.output.write_text(json.dumps({"facts": facts, "seconds": times}, indent=1))


if __name__ == "__main__":
    main()
