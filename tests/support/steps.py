"""Killing a child before the n-th change that it makes to a file system.

Invariant: every way in which the engine changes a disk is counted: the calls of `os` that
change something, opening to create, and those of `unionfs._sys`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from support.crash import run_child
from unionfs import _sys

__all__ = ["run_killed_at_change"]

_WATCHED = (
    "mkdir",
    "mknod",
    "symlink",
    "link",
    "rename",
    "unlink",
    "rmdir",
    "chmod",
    "fchmod",
    "chown",
    "fchown",
    "utime",
    "setxattr",
    "removexattr",
    "write",
    "pwrite",
    "ftruncate",
    "copy_file_range",
)

_Call = Callable[..., Any]


def run_killed_at_change(step: int, action: Callable[[], object]) -> bool:
    """Kill a child just before its `step`-th change; True when it got to the end."""

    def child() -> None:
        left = step

        def watched(call: _Call, counts: Callable[..., bool]) -> _Call:
            def replacement(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if counts(*args, **kwargs):
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return replacement

        for name in _WATCHED:
            setattr(os, name, watched(getattr(os, name), lambda *_, **__: True))
        os.open = watched(os.open, lambda _, flags, *__, **___: bool(flags & os.O_CREAT))
        for name in ("renameat2", "clone_file"):
            setattr(_sys, name, watched(getattr(_sys, name), lambda *_, **__: True))
        action()

    status = run_child(child)
    assert status in (0, -signal.SIGKILL), f"the action itself failed: {status}"
    return status == 0
