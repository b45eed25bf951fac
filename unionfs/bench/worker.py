"""The process that touches the mount: it does what its standard input names, and times it.

Protocol, one line of JSON each: it begins with `{"ready": seconds}` (how long the mount given
to it took, for unions that can only be mounted inside of its namespace); a request is
`[KEY]`, the answer `{"seconds": s, "count": n}` or `{"error": text}`.

Invariant: nothing but the workload itself lies between the two clock readings.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time

from unionfs.bench.shape import SHAPES, Shape
from unionfs.bench.workloads import (
    IMAGE_WORKLOADS,
    LAYER_WORKLOADS,
    TREE_WORKLOADS,
    WORKLOADS,
    Workload,
    WrongError,
)

__all__ = ["main"]


def _answer(workload: Workload, target: str, shape: Shape) -> dict[str, object]:
    try:
        start = time.perf_counter()
        count = workload.run(target, shape)
        return {"seconds": time.perf_counter() - start, "count": count}
    except (WrongError, OSError, ValueError, subprocess.SubprocessError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _say(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve: `worker SHAPE TARGET [MOUNT COMMAND...]`."""
    shape, target = SHAPES[sys.argv[1]], sys.argv[2]
    start = time.perf_counter()
    if sys.argv[3:]:
        subprocess.run(sys.argv[3:], check=True)
    _say({"ready": time.perf_counter() - start})
    every = (*WORKLOADS, *LAYER_WORKLOADS, *TREE_WORKLOADS, *IMAGE_WORKLOADS)
    known = {workload.key: workload for workload in every}
    gc.disable()
    for line in sys.stdin:
        _say(_answer(known[json.loads(line)[0]], target, shape))
        gc.collect()


if __name__ == "__main__":
    # Whoever started it is gone: there is nobody left to tell.
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
        os._exit(0)
