"""The union on kernel overlayfs: layers and shims below, a converted rw branch above.

Invariant: a failed mount leaves the rw branch in AUFS form and no mount, shim or directory
behind but shims that were finished for the layer's own cache.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from typing import Final

from unionfs import _sys
from unionfs.branch import Branch
from unionfs.branch.branch import proc_path
from unionfs.errors import BusyError, UnsupportedError, show
from unionfs.kernel import convert, overlay, shims, trees
from unionfs.kernel.mounted import KernelMount, KernelRequest, ready_branch
from unionfs.kernel.overlay import OverlaySpec
from unionfs.kernel.scratch import Scratch, in_use
from unionfs.kernel.shims import ShimSet
from unionfs.kernel.survey import Kind, LayerFacts, overlay_blockers, overlay_losses, survey

__all__ = ["OverlayMount", "mount_overlay", "overlay_kind", "prepare_overlay"]

_LEGACY_ROOT: Final = 0o700
_ROOT: Final = b"root"


def overlay_kind() -> Kind:
    """Return which overlayfs the caller may mount; UnsupportedError when none."""
    if not _sys.has_capability(_sys.CAP_SYS_ADMIN):
        raise UnsupportedError(
            "overlay: needs root or a user namespace (`unionfs run` and `unionfs shell` make one)"
        )
    return Kind.TRUSTED if _sys.has_all_ids() else Kind.USER


class OverlayMount(KernelMount):
    """An overlayfs mount, prepared or made; `spec` is what the kernel is asked for."""

    backend = "overlay"
    fstype = b"overlay"

    def __init__(
        self, request: KernelRequest, held: contextlib.ExitStack, scratch: Scratch
    ) -> None:
        super().__init__(request, held)
        self.spec = OverlaySpec((), Kind.USER)
        self._scratch = scratch

    @property
    def temporary(self) -> bytes | None:
        """See `KernelMount.temporary`."""
        return self._scratch.path

    def attach(self, target: bytes | None = None) -> None:
        """Mount on `target` (the request's); nothing else changes when it fails.

        May be called in a child process that has its own namespaces.
        """
        overlay.mount(self.spec, self.request.target if target is None else target)
        self.recognise()
        if target is None and self.device:
            # Elsewhere it is a trial, or a mount that ends with its namespace.
            self._scratch.note(self.device)

    def finish(self) -> None:
        """See `KernelMount.finish`."""
        if self.request.rw is not None:
            convert.settle(self.request.rw)
        elif in_use(self._scratch.path):
            # Without its shims deleted files would come back for whoever still looks in.
            raise BusyError(f"{show(self.request.target)} is unmounted, and still in use")
        self._scratch.remove()
        self.release()


def mount_overlay(request: KernelRequest) -> OverlayMount:
    """Mount `request` with overlayfs and keep the rw branch's lock.

    UnsupportedError with the reason when this caller, machine or these layers cannot;
    BusyError when the rw branch is in use.
    """
    mounted = prepare_overlay(request, overlay_kind())
    try:
        mounted.attach()
    except BaseException:
        mounted.finish()
        raise
    return mounted


def prepare_overlay(request: KernelRequest, kind: Kind) -> OverlayMount:
    """Do everything but the mount itself, which needs no namespace of its own.

    The result must be finished, mounted or not.
    """
    with contextlib.ExitStack() as undo:
        held = contextlib.ExitStack()
        if request.rw is not None:
            held = undo.enter_context(ready_branch(request, request.rw))
        scratch = Scratch.make(_scratch_places(request), kind)
        undo.callback(scratch.remove)
        prepared = [_prepare(request, item, scratch, kind) for item in range(len(request.layers))]
        losses = _judge(request, prepared, kind)
        lowers = tuple(shims.lower_directories(prepared))
        if request.rw is None:
            lowers = (_root_shim(request, scratch), *lowers)
            spec = OverlaySpec(lowers, kind, flags=request.flags | _sys.MS_RDONLY)
        else:
            spec = _with_branch(request, request.rw, lowers, scratch, kind)
        mounted = OverlayMount(request, held.pop_all(), scratch)
        mounted.losses = losses
        mounted.spec = spec
        undo.pop_all()
    return mounted


def _scratch_places(request: KernelRequest) -> list[bytes]:
    places = [request.scratch]
    if request.rw is not None:
        places.append(os.path.dirname(request.rw))
    places.append(os.fsencode(tempfile.gettempdir()))
    return places


def _prepare(request: KernelRequest, item: int, scratch: Scratch, kind: Kind) -> ShimSet:
    layer = request.layers[item]
    cache = layer.shims
    if cache is not None and (os.path.isdir(cache) or os.access(os.path.dirname(cache), os.W_OK)):
        return shims.prepare(layer.path, cache, kind)
    return shims.prepare_temporary(layer.path, scratch.path + b"/%d" % item, kind)


def _judge(request: KernelRequest, prepared: list[ShimSet], kind: Kind) -> tuple[str, ...]:
    """Refuse what overlayfs would show wrongly; return what it shows a little differently."""
    branches: list[tuple[bytes, LayerFacts]] = [(item.layer, item.facts) for item in prepared]
    if request.rw is not None:
        branches.insert(0, (request.rw, survey(request.rw, kind).facts))
    losses = []
    for path, facts in branches:
        blockers = overlay_blockers(facts, kind)
        lost = overlay_losses(facts, writable=path == request.rw)
        if request.faithful:
            blockers += lost
        if blockers:
            raise UnsupportedError(f"overlay: {show(path)} holds {'; '.join(blockers)}")
        losses += [f"{show(path)}: {text}" for text in lost]
    return tuple(losses)


def _root_shim(request: KernelRequest, scratch: Scratch) -> bytes:
    """Make an empty directory that looks like the top layer's root.

    On top of a read-only mount it hides the mode that an old store gave its layer directory,
    and overlayfs wants two directories at least.
    """
    path = scratch.path + b"/" + _ROOT
    os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if request.layers:
            with Branch.open(request.layers[0].path) as top:
                trees.copy_directory_attributes(top.fd, fd, b".")
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if request.root_mode is not None and mode == _LEGACY_ROOT:
            os.chmod(proc_path(fd, b"."), request.root_mode)
    finally:
        os.close(fd)
    return path


def _with_branch(
    request: KernelRequest, rw: bytes, lowers: tuple[bytes, ...], scratch: Scratch, kind: Kind
) -> OverlaySpec:
    cut = convert.hides_layers(rw)
    try:
        upper, work = convert.enter(rw, [layer.path for layer in request.layers], kind)
    except OSError as exc:
        convert.settle(rw)
        raise UnsupportedError(
            f"overlay: cannot convert the writable branch {show(rw)}: {exc.strerror}"
        ) from exc
    if cut or not lowers:
        lowers = (_root_shim(request, scratch),)
    return OverlaySpec(lowers, kind, upper, work, request.flags)
