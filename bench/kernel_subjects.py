"""The kernel's unions as this project mounts them: AUFS, and overlayfs over AUFS-form layers.

Invariant: each is insisted on, so that no row shows another back end than its name says.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from bench.subjects import Subject
from unionfs.kernel.choose import mount_fastest
from unionfs.kernel.mounted import KernelMount, KernelRequest, Layer
from unionfs.kernel.probe import probe_aufs, probe_overlay

__all__ = ["KERNEL_SUBJECTS"]

_PROBES = {"aufs": probe_aufs, "overlay": probe_overlay}


@attrs.define
class KernelUnion(Subject):
    """A kernel back end of this project."""

    backend: str = "overlay"
    live: dict[Path, KernelMount] = attrs.field(factory=dict, repr=False)

    def missing(self) -> str | None:
        """Try it."""
        status = _PROBES[self.backend]()
        return None if status.usable else status.reason

    def mount(self, layers: list[Path], rw: Path, target: Path) -> None:
        """Mount with the options that the back end chooses itself."""
        request = KernelRequest(
            tuple(Layer(os.fsencode(layer)) for layer in layers),
            os.fsencode(target),
            os.fsencode(rw.parent),
            os.fsencode(rw),
        )
        mounted = mount_fastest(request, self.backend).mount
        if mounted is None:
            raise RuntimeError(f"{self.backend} was not mounted")
        self.live[target] = mounted

    def unmount(self, target: Path) -> None:
        """Unmount, and bring the branch back into AUFS form."""
        self.live.pop(target).unmount()


KERNEL_SUBJECTS: tuple[Subject, ...] = (
    KernelUnion("aufs", "=ro+wh, dirperm1, xino=", "aufs"),
    KernelUnion("overlay-shim", "index=on, metacopy=off, redirect_dir=nofollow", "overlay"),
)
