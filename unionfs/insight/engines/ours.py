"""Our own engines: the union in this process, our FUSE mount, kernel overlayfs with shims.

Invariant: branches are mounted as read-only layers, the rw branch among them, so nothing of them
changes and nobody's lock is needed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from unionfs.errors import UnionfsError
from unionfs.fuse import device
from unionfs.fuse.daemon import LEGACY_ROOT_MODE
from unionfs.insight.engines.layers import LayerSource
from unionfs.insight.engines.measure import Reference, measure
from unionfs.insight.engines.reading import Ids, read_directory, read_engine
from unionfs.insight.engines.seen import Outcome, View
from unionfs.insight.engines.workplace import LeftOutError, RefusedError, is_whole, serving
from unionfs.kernel.mounted import KernelRequest, Layer
from unionfs.kernel.overlay_union import overlay_kind, prepare_overlay
from unionfs.mounts import MountRecord
from unionfs.union import Engine, EngineOptions

__all__ = ["run_engine", "run_fuse", "run_live", "run_overlay"]

_INHERITED: Final = "PYTHONPATH"


def _branches(sources: Sequence[LayerSource]) -> list[bytes]:
    """Return the layers' directories, top first."""
    found = [source.mountable for source in reversed(sources)]
    return [path for path in found if path is not None]


def run_engine(
    sources: Sequence[LayerSource], place: bytes, reference: Reference | None
) -> Outcome:
    """Read the union without any mount."""
    del place
    options = EngineOptions(root_mode_fallback=LEGACY_ROOT_MODE)
    with Engine.start(_branches(sources), None, options=options) as engine:
        try:
            return measure(read_engine(engine), reference, View())
        except OSError as error:
            # Not being allowed to read says nothing about the union; all else is its failure.
            kind = LeftOutError if isinstance(error, PermissionError) else RefusedError
            raise kind(error.strerror or str(error)) from error


def run_fuse(sources: Sequence[LayerSource], place: bytes, reference: Reference | None) -> Outcome:
    """Mount as `unionfs mount` does and read the mount."""
    target = os.path.join(place, b"mnt")
    os.mkdir(target)
    argv: list[str | bytes] = [sys.executable, "-m", "unionfs", "mount", "--foreground"]
    for path in _branches(sources):
        argv += ["--layer", path]
    log = os.path.join(place, b"log")
    ids = Ids() if os.geteuid() == 0 else Ids.of_own_mount()
    try:
        with _module_path(), serving([*argv, target], target, place, log, end=signal.SIGTERM):
            view = View(whole=is_whole() or os.geteuid() != 0)
            return measure(read_directory(target, ids), reference, view)
    finally:
        if os.path.ismount(target):  # its process was killed
            with contextlib.suppress(UnionfsError, OSError):
                device.unmount(target, lazy=True)


@contextlib.contextmanager
def _module_path() -> Iterator[None]:
    """Let a child find this package where the present process has it."""
    before = os.environ.get(_INHERITED)
    os.environ[_INHERITED] = os.pathsep.join(filter(None, sys.path))
    try:
        yield
    finally:
        if before is None:
            del os.environ[_INHERITED]
        else:
            os.environ[_INHERITED] = before


def run_live(record: MountRecord, reference: Reference | None) -> Outcome:
    """Read what a mount that is there shows."""
    is_fuse = record.backend == "fuse"
    ids = Ids.of_own_mount() if is_fuse and os.geteuid() != 0 else Ids()
    options = record.options
    if is_fuse and any("map" in text or "squash" in text for text in options):
        raise LeftOutError("it shows other owners by its options")
    try:
        return measure(read_directory(record.target, ids), reference, View())
    except PermissionError as error:
        raise LeftOutError("you may not read it (allow_other was not given)") from error


def run_overlay(
    sources: Sequence[LayerSource], place: bytes, reference: Reference | None
) -> Outcome:
    """Mount the layers and their shims with kernel overlayfs, inside of `apart`."""
    target, scratch = os.path.join(place, b"mnt"), os.path.join(place, b"scratch")
    os.mkdir(target)
    os.mkdir(scratch)
    layers = tuple(Layer(path) for path in _branches(sources))
    request = KernelRequest(layers, target, scratch, faithful=False, root_mode=LEGACY_ROOT_MODE)
    mounted = prepare_overlay(request, overlay_kind())
    try:
        mounted.attach()
        losses = mounted.losses
        view = View(whole=is_whole() and not losses, modes=not losses)
        outcome = measure(read_directory(target, Ids()), reference, view)
        outcome.notes = list(losses)
    finally:
        mounted.unmount(lazy=True)
    return outcome
