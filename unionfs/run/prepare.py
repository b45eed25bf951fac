"""From directories to a union that process 1 can mount.

Invariant: what is made here (a writable branch, a throw-away one) is unmade when it fails.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from unionfs.errors import NotFoundError, UsageError, show
from unionfs.run import scratch as scratch_branches
from unionfs.run.unions import FuseUnion, Union

__all__ = ["prepare"]


def prepare(
    layers: Sequence[bytes],
    rw: bytes | None,
    *,
    backend: str = "auto",
    scratch: bytes | None = None,
) -> Union:
    """Return a union of `layers` (top first) and the writable branch.

    `rw` is made if it is missing; `scratch` is a store in which to make a throw-away one.
    """
    del backend
    for layer in layers:
        if not os.path.isdir(layer):
            raise NotFoundError(f"layer {show(layer)} is not a directory")
    if scratch is not None:
        made = scratch_branches.make(scratch)
        return FuseUnion(layers, made.rw, remove=made.path)
    if rw is not None:
        try:
            os.mkdir(rw, 0o755)
        except FileExistsError:
            if not os.path.isdir(rw):
                raise UsageError(f"writable branch {show(rw)} is not a directory") from None
        except OSError as exc:
            raise UsageError(f"cannot make the writable branch {show(rw)}: {exc.strerror}") from exc
    return FuseUnion(layers, rw)
