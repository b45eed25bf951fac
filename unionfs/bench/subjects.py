"""What is measured: ways to show the same layers, under an empty rw branch, as one tree.

Invariant: every subject gets the same layers on the same filesystem with the best options its
documentation names, which are printed; one that cannot run here says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from unionfs import __version__
from unionfs.bench.children import BenchError, run, start, stop
from unionfs.errors import UsageError, show

__all__ = ["SUBJECTS", "Case", "Mounted", "Subject", "choose"]

_PATIENCE: Final = 60.0
_PAUSE: Final = 0.005
_LONGEST: Final = 300


@attrs.frozen
class Case:
    """One mount to make: `layers` top first, given relative to `place` to keep options short."""

    place: Path
    layers: tuple[str, ...]
    rw: Path
    work: Path
    target: Path

    def absolute(self) -> list[str]:
        """Return the layers as absolute paths."""
        return [str(self.place / layer) for layer in self.layers]

    def overlay_data(self, *options: str) -> str:
        """Return overlayfs' options for this case; fuse-overlayfs takes the same."""
        lower = ":".join(self.layers)
        return ",".join((f"lowerdir={lower},upperdir={self.rw},workdir={self.work}", *options))


@attrs.define
class Mounted:
    """A mount that works: its server process, and how the worker gets to see it.

    `enter` comes before the worker's command line, `inside` is what the worker runs first;
    `minor` is the minor number of the mount's device, by which the kernel names a connection,
    `control` the socket of a server that counts its requests itself.
    """

    pid: int | None = None
    minor: int = 0
    control: bytes | None = None
    enter: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    child: subprocess.Popen[bytes] | None = None


@attrs.frozen
class Subject:
    """One way to mount. `options` is printed with the results; `fuse`: a process serves it.

    `form` is how it wants whiteouts: as AUFS does, as overlayfs, not at all ("none"), or nothing
    but one merged tree. A `read_only` one is left out where something is written.
    """

    key: str
    title: str
    options: str = ""
    fuse: bool = False
    form: str = "aufs"
    read_only: bool = False

    def missing(self) -> str | None:
        """Return why this subject cannot run here, or None."""
        return None

    def version(self) -> str:
        """Return what exactly is measured, if the program can tell."""
        return ""

    def mount(self, case: Case) -> Mounted:
        """Show the layers of `case` at its target."""
        raise NotImplementedError

    def unmount(self, case: Case, mounted: Mounted) -> None:
        """Undo `mount`; afterwards nobody serves or holds the target."""
        raise NotImplementedError


class Plain(Subject):
    """The merged tree as a directory: no union at all."""

    def mount(self, case: Case) -> Mounted:
        """Copy the layers over each other; data is shared where the filesystem can."""
        for layer in reversed(case.absolute()):
            run(["cp", "-a", "--reflink=auto", "--sparse=always", f"{layer}/.", str(case.target)])
        return Mounted()

    def unmount(self, case: Case, mounted: Mounted) -> None:
        """Leave the directory to the end of the round."""


class Overlay(Subject):
    """The kernel's overlayfs, mounted as root."""

    def missing(self) -> str | None:
        """Need root: a plain user can mount it only inside a user namespace."""
        return None if os.geteuid() == 0 else "mounting overlayfs outside a namespace needs root"

    def version(self) -> str:
        """Return the kernel's version."""
        return f"Linux {os.uname().release}"

    def mount(self, case: Case) -> Mounted:
        """Mount with default options."""
        data = case.overlay_data()
        run(["mount", "-t", "overlay", "-o", data, "overlay", str(case.target)], cwd=case.place)
        return Mounted()

    def unmount(self, case: Case, mounted: Mounted) -> None:
        """Unmount."""
        del mounted
        run(["umount", str(case.target)])


class UserOverlay(Overlay):
    """The kernel's overlayfs as a plain user has it: in a user and mount namespace."""

    def missing(self) -> str | None:
        """Try it."""
        from unionfs.kernel.probe import probe_userns_overlay  # noqa: PLC0415  # starts processes

        status = probe_userns_overlay()
        return None if status.usable else status.reason

    def mount(self, case: Case) -> Mounted:
        """Let the worker mount it where it runs."""
        data = case.overlay_data("userxattr")
        mount = ("mount", "-t", "overlay", "-o", data, "overlay", str(case.target))
        return Mounted(enter=("unshare", "--user", "--map-root-user", "--mount"), inside=mount)

    def unmount(self, case: Case, mounted: Mounted) -> None:
        """Leave it to the end of the worker, whose namespace it is."""


@attrs.frozen
class _Served(Subject):
    """A FUSE program that stays in the foreground."""

    program: str = ""

    def missing(self) -> str | None:
        """Need the program and the device."""
        if shutil.which(self.program) is None:
            return f"{self.program} is not installed"
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "/dev/fuse is not there or not for this user"
        return None

    def _argv(self, case: Case) -> list[str]:
        raise NotImplementedError

    def mount(self, case: Case) -> Mounted:
        """Start it and wait until the target is another filesystem."""
        before = os.stat(case.target).st_dev
        words = case.target.with_name("server.err")
        child = start(self._argv(case), cwd=case.place, errors=words)
        deadline = time.monotonic() + _PATIENCE
        while os.stat(case.target).st_dev == before:
            if child.poll() is not None or time.monotonic() > deadline:
                stop(child)
                said = " ".join(words.read_text(errors="replace").split())[-_LONGEST:]
                raise BenchError(f"{self.program} did not mount: {show(said)}")
            time.sleep(_PAUSE)
        return Mounted(child.pid, child=child)

    def unmount(self, case: Case, mounted: Mounted) -> None:
        """Unmount the way its user can, and wait for the program."""
        run(["fusermount3", "-u", str(case.target)])
        if mounted.child is not None:
            try:
                mounted.child.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                raise BenchError(f"{self.program} does not end after its mount") from None


class FuseOverlayfs(_Served):
    """containers/fuse-overlayfs, the FUSE union that podman users have."""

    def version(self) -> str:
        """Ask it."""
        lines = run([self.program, "--version"]).splitlines()
        return next((line.split()[-1] for line in lines if line.startswith("fuse-overlayfs")), "?")

    def _argv(self, case: Case) -> list[str]:
        data = case.overlay_data(*filter(None, self.options.split(",")))
        return [self.program, "-f", "-o", data, str(case.target)]


class UnionfsFuse(_Served):
    """rpodgorny/unionfs-fuse."""

    def version(self) -> str:
        """Ask it."""
        words = run([self.program, "--version"]).split()
        return next((word for word in words if word[:1].isdigit()), "?")

    def _argv(self, case: Case) -> list[str]:
        branches = ":".join((f"{case.rw}=RW", *(f"{layer}=RO" for layer in case.absolute())))
        return [self.program, "-f", "-o", self.options, branches, str(case.target)]


@attrs.frozen
class Ours(Subject):
    """This project."""

    backend: str = "fuse"

    def version(self) -> str:
        """Return this program's version."""
        return __version__

    def missing(self) -> str | None:
        """Try the back end."""
        from unionfs.kernel import probe  # noqa: PLC0415  # starts processes

        status = getattr(probe, f"probe_{self.backend}")()
        return None if status.usable else str(status.reason)

    def mount(self, case: Case) -> Mounted:
        """Mount from the command line and ask the registry who serves it."""
        from unionfs.mounts import find  # noqa: PLC0415  # loads what serves mounts

        argv = [sys.executable, "-m", "unionfs", "mount", "--backend", self.backend]
        if self.options:
            argv += ["-o", self.options]
        for layer in case.absolute():
            argv += ["--layer", layer]
        run([*argv, "--rw", str(case.rw), str(case.target)])
        found = find(os.fsencode(case.target))
        if found is None or found.record is None:
            raise BenchError(f"{show(case.target)} is not among the mounts")
        return Mounted(found.record.pid, control=found.record.control)

    def unmount(self, case: Case, mounted: Mounted) -> None:
        """Unmount and wait for the process behind it."""
        if self.fuse and mounted.pid is not None:
            run(["fusermount3", "-u", str(case.target)])
            _wait_for_end(mounted.pid)
            return
        run([sys.executable, "-m", "unionfs", "umount", str(case.target)])


class Passthrough(Ours):
    """This project, with the kernel reading big files itself."""

    def missing(self) -> str | None:
        """Need root, and a kernel that offers it."""
        from unionfs.doctor.handshake import read_init  # noqa: PLC0415  # mounts something

        reason = super().missing()
        if reason is not None:
            return reason
        if os.geteuid():
            return "passthrough needs root"
        with tempfile.TemporaryDirectory() as scratch:
            offers = read_init(os.fsencode(scratch))["features"]
        return None if "passthrough" in offers else "this kernel has no passthrough (Linux 6.9 has)"


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > deadline:
            raise BenchError(f"process {pid} does not end after its mount")
        time.sleep(_PAUSE)


SUBJECTS: Final[tuple[Subject, ...]] = (
    Plain("plain", "plain directory", "the merged tree copied together", form="merged"),
    Overlay("overlayfs", "overlayfs", "", form="overlay"),
    UserOverlay(
        *("overlayfs-userns", "overlayfs in a user namespace", "userxattr"),
        form="overlay-userxattr",
    ),
    # Both give up something that nothing here looks at, and both make it faster.
    FuseOverlayfs(
        *("fuse-overlayfs", "fuse-overlayfs", "noacl,static_nlink"),
        fuse=True,
        program="fuse-overlayfs",
    ),
    UnionfsFuse(
        "unionfs-fuse",
        "unionfs-fuse",
        "cow,kernel_cache,use_ino,big_writes,"
        "entry_timeout=3600,attr_timeout=3600,negative_timeout=3600",
        fuse=True,
        form="none",
        program="unionfs-fuse",
    ),
    Ours("fuse", "unionfs", "", fuse=True),
    Ours("fuse-nolane", "unionfs, lane off", "nolane", fuse=True),
    Passthrough(
        *("fuse-passthrough", "unionfs, passthrough", "ro,passthrough"),
        fuse=True,
        read_only=True,
    ),
    Ours("overlay", "unionfs --backend overlay", "", backend="overlay"),
    Ours("aufs", "unionfs --backend aufs", "", backend="aufs"),
)


def choose(names: Sequence[str]) -> list[Subject]:
    """Return the subjects of these names, all for none; `UsageError` names the known ones."""
    known = {subject.key: subject for subject in SUBJECTS}
    for name in names:
        if name not in known:
            raise UsageError(f"no subject {show(name)}; there are {', '.join(known)}")
    return [subject for subject in SUBJECTS if not names or subject.key in names]
