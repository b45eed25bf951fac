"""The right to change a directory that may be a branch: nobody mounts it, no store owns it.

Invariant: while the block runs no mount of unionfs can take the directory as its rw branch, for
both use the same lock (flock on the branch's root).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final

from unionfs.errors import BusyError, UnsupportedError, show
from unionfs.store.entry import JSON_NAME, LAYER_NAME

__all__ = ["exclusive"]

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.contextmanager
def exclusive(path: bytes) -> Iterator[None]:
    """Lock a branch or layer directory for the block.

    Raises `UnsupportedError` for a layer of a store and `BusyError` if a live mount has it.
    """
    real = os.path.realpath(path)
    parent, name = os.path.split(real)
    if name == LAYER_NAME and os.path.isfile(os.path.join(parent, JSON_NAME)):
        raise UnsupportedError(f"{show(real)} is a layer of a store, which never changes; copy it")
    _check_mounts(real)
    fd = os.open(real, _FLAGS)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{show(real)} is in use by a mount; unmount it first") from None
        yield
    finally:
        os.close(fd)


def _check_mounts(real: bytes) -> None:
    from unionfs.mounts import State, list_mounts  # noqa: PLC0415  # only changes ask for mounts

    for mount in list_mounts():
        record = mount.record
        if record is None or mount.state in (State.STALE, State.DEAD):
            continue
        used = [*record.layers, *([record.rw] if record.rw else [])]
        if any(os.path.realpath(branch) == real for branch in used):
            raise BusyError(f"{show(real)} is mounted on {show(mount.target)}; unmount it first")
