"""What is measured: ways to show the same layers as one tree.

Invariant: every subject gets the same layers and an empty rw branch on the same
filesystem, with the best options its documentation names, and says why it cannot run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs

__all__ = ["SUBJECTS", "Subject"]


@attrs.define
class Subject:
    """One way to mount. `options` is printed with the results."""

    name: str
    options: str = ""

    def missing(self) -> str | None:
        """Return why this subject cannot run here, or None."""
        return None

    def mount(self, layers: list[Path], rw: Path, target: Path) -> None:
        """Show `layers` (top first) under `rw` at `target`."""
        raise NotImplementedError

    def unmount(self, target: Path) -> None:
        """Undo `mount`."""
        subprocess.run(["umount", target], check=True)


class Plain(Subject):
    """The merged tree as a directory: the floor."""

    def mount(self, layers: list[Path], rw: Path, target: Path) -> None:
        """Copy the layers over each other; data is shared where the filesystem can."""
        del rw
        for layer in reversed(layers):
            subprocess.run(
                ["cp", "-a", "--reflink=auto", "--sparse=always", f"{layer}/.", target], check=True
            )

    def unmount(self, target: Path) -> None:
        """Empty the directory."""
        for entry in target.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


class Overlay(Subject):
    """The kernel's overlayfs."""

    def missing(self) -> str | None:
        """Need root: a plain user could mount it only inside a namespace of its own."""
        if os.geteuid() != 0:
            return "mounting overlayfs needs root"
        return None

    def mount(self, layers: list[Path], rw: Path, target: Path) -> None:
        """Mount with default options."""
        work = rw.with_name("work")
        work.mkdir(exist_ok=True)
        lower = ":".join(map(str, layers))
        data = f"lowerdir={lower},upperdir={rw},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "-o", data, "overlay", target], check=True)


class FuseOverlayfs(Subject):
    """containers/fuse-overlayfs, the FUSE union that podman users have."""

    def missing(self) -> str | None:
        """Need the program."""
        return None if shutil.which("fuse-overlayfs") else "fuse-overlayfs is not installed"

    def mount(self, layers: list[Path], rw: Path, target: Path) -> None:
        """Mount with its defaults: caching for ever, writeback, its own thread model."""
        work = rw.with_name("work")
        work.mkdir(exist_ok=True)
        lower = ":".join(map(str, layers))
        data = f"lowerdir={lower},upperdir={rw},workdir={work}"
        subprocess.run(["fuse-overlayfs", "-o", data, target], check=True)

    def unmount(self, target: Path) -> None:
        """Unmount the way its user can."""
        subprocess.run(["fusermount3", "-u", target], check=True)


class Unionfs(Subject):
    """This project, FUSE back end."""

    def mount(self, layers: list[Path], rw: Path, target: Path) -> None:
        """Mount plain layer directories."""
        argv = [sys.executable, "-m", "unionfs", "mount", "--rw", str(rw)]
        for layer in layers:
            argv += ["--layer", str(layer)]
        subprocess.run([*argv, str(target)], check=True, stdout=subprocess.DEVNULL)

    def unmount(self, target: Path) -> None:
        """Unmount and wait for the daemon."""
        argv = [sys.executable, "-m", "unionfs", "umount", str(target)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


SUBJECTS: tuple[Subject, ...] = (
    Plain("plain"),
    Overlay("overlayfs", "defaults"),
    FuseOverlayfs("fuse-overlayfs", "defaults (writeback, infinite timeouts)"),
    Unionfs("unionfs", "defaults"),
)
