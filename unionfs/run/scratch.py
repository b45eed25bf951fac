"""Throw-away writable branches of runs, in the store's own file system.

Invariant: a branch whose run is over is removed by the run itself or, if all of its
processes were killed, by the next one that makes a branch: whoever is alive holds a lock
on the directory around it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from typing import Final, NamedTuple

__all__ = ["Scratch", "make"]

#: Beside the graph, where `unionfs mount --ephemeral` has its branches as well.
_BASE: Final = b"ephemeral"
_PREFIX: Final = b"run-"
_BRANCH: Final = b"rw"


class Scratch(NamedTuple):
    """`path` is to be removed at the end, `rw` in it is the branch, `lock` stays open till then."""

    path: bytes
    rw: bytes
    lock: int


def make(root: bytes) -> Scratch:
    """Make a branch under the store `root` (made if missing) and sweep those left behind."""
    base = os.path.join(root, _BASE)
    os.makedirs(base, 0o700, exist_ok=True)
    _sweep(base)
    path = os.path.join(base, _PREFIX + secrets.token_hex(8).encode())
    os.mkdir(path, 0o700)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    rw = os.path.join(path, _BRANCH)
    os.mkdir(rw, 0o755)
    return Scratch(path, rw, lock)


def _sweep(base: bytes) -> None:
    for name in os.listdir(base):
        if not name.startswith(_PREFIX):
            continue
        path = os.path.join(base, name)
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # One that was made a moment ago and is not yet locked is still empty.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.listdir(fd):
                    shutil.rmtree(path)
            finally:
                os.close(fd)
