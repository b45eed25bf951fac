"""Run a function in a child process and kill it before its n-th system call of interest."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from unionfs import _sys

_WATCHED = ("mkdir", "open", "rename", "unlink", "rmdir", "fsync", "fchmod", "chmod")


def fork(action: Callable[[], object]) -> int:
    """Run `action` in a child process and return its pid; exit status 1 if it raises."""
    with warnings.catch_warnings():
        # Idle worker threads of earlier tests hold no lock that the child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        action()
        status = 0
    except BaseException:  # noqa: BLE001  # the child must never return into pytest
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_child(action: Callable[[], object]) -> int:
    """Run `action` in a child process; return its exit status, negative for a signal."""
    _, status = os.waitpid(fork(action), 0)
    return os.waitstatus_to_exitcode(status)


def run_killed_at(step: int, action: Callable[[], object]) -> bool:
    """Kill a child that runs `action` just before its `step`-th call; True if it got to the end.

    Calls counted: those of `os` that change directories or wait for the disk, and syncfs(2).
    """

    def child() -> None:
        left = step

        def watched(call: Callable[..., Any]) -> Callable[..., Any]:
            def replacement(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return replacement

        for name in _WATCHED:
            setattr(os, name, watched(getattr(os, name)))
        _sys.syncfs = watched(_sys.syncfs)
        action()

    status = run_child(child)
    assert status in (0, -signal.SIGKILL), f"the action itself failed: {status}"
    return status == 0
