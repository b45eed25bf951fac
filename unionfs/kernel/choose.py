"""Picking the fastest back end that shows these layers as they are: aufs, overlay, fuse.

Each kernel union is tried on the real request; what it answers becomes a reason. FUSE is
what remains: whoever called mounts it.

Invariant: under `auto` only a defect of the request itself (a busy branch, a missing layer)
is an error; with a back end insisted on, its reason is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from unionfs.errors import UnsupportedError, UsageError
from unionfs.fuse.request import BACKENDS
from unionfs.kernel.aufs_union import mount_aufs
from unionfs.kernel.mounted import KernelMount, KernelRequest
from unionfs.kernel.overlay_union import mount_overlay

__all__ = ["Choice", "mount_fastest"]

_KERNEL: Final[dict[str, Callable[[KernelRequest], KernelMount]]] = {
    "aufs": mount_aufs,
    "overlay": mount_overlay,
}


@attrs.frozen
class Choice:
    """The back end's name, its mount (None for fuse), and why not the faster ones."""

    backend: str
    mount: KernelMount | None
    reasons: tuple[str, ...] = ()


def mount_fastest(request: KernelRequest, backend: str = "auto") -> Choice:
    """Mount `request` with the fastest back end, or with the one named.

    With a name, layers whose recorded owners and modes the kernel shows otherwise are
    accepted (see `KernelMount.losses`); `auto` falls back for them. Raises UnsupportedError
    when the one named cannot, UsageError for an unknown name, BusyError when the rw branch is
    in use.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown back end {backend}; known are {', '.join(BACKENDS)}")
    if backend == "fuse":
        return Choice("fuse", None)
    if backend != "auto":
        return Choice(backend, _KERNEL[backend](attrs.evolve(request, faithful=False)))
    reasons: list[str] = []
    for name, mount in _KERNEL.items():
        try:
            return Choice(name, mount(attrs.evolve(request, faithful=True)), tuple(reasons))
        except UnsupportedError as exc:
            reasons.append(str(exc))
    return Choice("fuse", None, tuple(reasons))
