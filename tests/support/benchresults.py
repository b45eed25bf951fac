"""Results of benchmarks that nobody measured: the numbers are the test's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unionfs.bench.result import VERSION, About, Result

__all__ = ["make_result"]


def make_result(
    seconds: Mapping[str, Mapping[str, Sequence[float | None]]],
    *,
    baseline: str = "overlayfs",
    root: bool = False,
    load: float = 0.0,
) -> Result:
    """Return a result of these times by workload and subject."""
    subjects = list(dict.fromkeys(key for by in seconds.values() for key in by))
    facts = {
        "time": "2026-01-01T00:00:00Z",
        "kernel": "6.1",
        "machine": "x86_64",
        "cpu": "a CPU",
        "cores": 2,
        "memory": 2**32,
        "filesystem": "ext4",
        "python": "3.11",
        "root": root,
        "load": [load, load, load],
    }
    return Result(
        version=VERSION,
        facts=facts,
        conditions=["cold is cold"],
        shape="quick",
        rounds=max(len(values) for by in seconds.values() for values in by.values()),
        baseline=baseline,
        subjects=[About(key, key, "defaults") for key in subjects],
        seconds={key: {s: list(v) for s, v in by.items()} for key, by in seconds.items()},
    )
