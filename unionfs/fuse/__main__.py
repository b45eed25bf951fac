"""The daemon: `python -m unionfs.fuse CONFIG_FD READY_FD`, started by `unionfs.fuse.start`.

It reads its plan from the first descriptor and writes one JSON object to the second:
`{"record": ...}` when the mount works or `{"kind": ..., "message": ...}` when it does not.
"""

from __future__ import annotations

import json
import logging
import os
import sys

from unionfs.errors import UnionfsError
from unionfs.fuse.daemon import configure_logging, serve
from unionfs.fuse.plan import Plan
from unionfs.fuse.registry import MountRecord, decode, encode

_log = logging.getLogger("unionfs.fuse")


def _read_plan(fd: int) -> Plan:
    with open(fd, "rb") as file:
        return decode(Plan, file.read())


def _main(config_fd: int, ready_fd: int) -> int:
    configure_logging()
    os.set_inheritable(ready_fd, False)
    plan = _read_plan(config_fd)
    answered = False

    def answer(value: object) -> None:
        nonlocal answered
        if not answered:
            answered = True
            with open(ready_fd, "w", encoding="ascii") as file:
                json.dump(value, file)

    def ready(record: MountRecord) -> None:
        answer({"record": json.loads(encode(record))})

    try:
        serve(plan, ready)
    except (UnionfsError, OSError) as exc:
        if answered:
            _log.exception("the mount has ended")
        kind = type(exc).__name__ if isinstance(exc, UnionfsError) else "OSError"
        answer({"kind": kind, "message": str(exc)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), int(sys.argv[2])))
