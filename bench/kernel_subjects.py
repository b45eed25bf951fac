"""The kernel's unions as this project mounts them: AUFS, and overlayfs over AUFS-form layers.

Invariant: each is insisted on, so that no row shows another back end than its name says.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attrs

from bench.subjects import Subject
from unionfs.kernel.probe import probe_aufs, probe_overlay

__all__ = ["KERNEL_SUBJECTS"]

_PROBES = {"aufs": probe_aufs, "overlay": probe_overlay}


@attrs.define
class KernelUnion(Subject):
    """A kernel back end of this project."""

    backend: str = "overlay"

    def missing(self) -> str | None:
        """Try it."""
        status = _PROBES[self.backend]()
        return None if status.usable else status.reason

    def mount(self, layers: list[Path], rw: Path, target: Path) -> None:
        """Mount from the command line, with the options that the back end chooses itself."""
        argv = [sys.executable, "-m", "unionfs", "mount", "--backend", self.backend]
        for layer in layers:
            argv += ["--layer", str(layer)]
        argv += ["--rw", str(rw), str(target)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    def unmount(self, target: Path) -> None:
        """Unmount, and wait until the branch is in AUFS form again."""
        subprocess.run([sys.executable, "-m", "unionfs", "umount", str(target)], check=True)


KERNEL_SUBJECTS: tuple[Subject, ...] = (
    KernelUnion("aufs", "unionfs --backend aufs: =ro+wh, dirperm1, xino=", "aufs"),
    KernelUnion("overlay-shim", "unionfs --backend overlay: index=on, metacopy=off", "overlay"),
)
