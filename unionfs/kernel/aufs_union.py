"""The union on AUFS: layers as they are, pseudo-links flushed at the end.

Invariant: after `finish` the rw branch holds nothing of AUFS but its whiteouts, and
hard-link groups are whole.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from typing import Final

from unionfs import _sys
from unionfs.errors import UnsupportedError, show
from unionfs.kernel import aufs, plinks
from unionfs.kernel.mounted import KernelMount, KernelRequest, Layer, ready_branch
from unionfs.kernel.shims import prepare
from unionfs.kernel.survey import Kind, LayerFacts, aufs_blockers, survey

__all__ = ["AufsMount", "mount_aufs"]


_LEGACY_ROOT: Final = 0o700


class AufsMount(KernelMount):
    """An AUFS mount."""

    backend = "aufs"
    fstype = b"aufs"

    def __init__(self, request: KernelRequest, held: contextlib.ExitStack) -> None:
        super().__init__(request, held)
        self._names: dict[bytes, list[bytes]] = {}

    def before_unmount(self) -> None:
        """Use every name of a copied-up hard-link group, so that AUFS links it."""
        if self.request.rw is not None:
            links = plinks.pseudo_links(self.request.rw)
            self._names = plinks.touch_names(self.request.target, links)

    def finish(self) -> None:
        """See `KernelMount.finish`."""
        if self.request.rw is not None:
            plinks.refuse_live_branch(self.request.rw)
            plinks.flush_pseudo_links(self.request.rw, self._names)
        self.release()


def mount_aufs(request: KernelRequest) -> AufsMount:
    """Mount `request` with AUFS and keep the rw branch's lock.

    UnsupportedError with the reason when this caller, machine or these layers cannot;
    BusyError when the rw branch is in use.
    """
    places = [request.scratch, os.fsencode(tempfile.gettempdir())]
    if request.rw is not None:
        places.insert(1, os.path.dirname(request.rw))
    features = aufs.probe_features(*places)
    layers = _visible_layers(request)
    if request.rw is None:
        _judge_root(request, layers)
    with contextlib.ExitStack() as undo:
        held = contextlib.ExitStack()
        rw = request.rw
        if rw is not None:
            held = undo.enter_context(ready_branch(request, rw))
            facts = survey(rw, Kind.TRUSTED).facts
            _judge(rw, facts)
            if facts.root_opaque:
                layers = []
        paths = layers if rw is None else [rw, *layers]
        with aufs.short_names(paths, request.scratch) as names:
            plan = aufs.build(
                names if rw is None else names[1:], None if rw is None else names[0], features
            )
            flags = request.flags | (_sys.MS_RDONLY if rw is None else 0)
            aufs.mount(plan, request.target, flags)
        mounted = AufsMount(request, held.pop_all())
        mounted.recognise()
        undo.pop_all()
    return mounted


def _visible_layers(request: KernelRequest) -> list[bytes]:
    """Return the layers down to the first with an opaque root, which AUFS does not know."""
    paths = []
    for layer in request.layers:
        facts = _facts(layer)
        _judge(layer.path, facts)
        paths.append(layer.path)
        if facts.root_opaque:
            break
    return paths


def _judge_root(request: KernelRequest, layers: list[bytes]) -> None:
    """Refuse a root that only root could enter because an old store keeps it so.

    AUFS shows the mode of the topmost branch and no other.
    """
    if request.root_mode is None or not layers:
        return
    if stat.S_IMODE(os.stat(layers[0]).st_mode) == _LEGACY_ROOT:
        raise UnsupportedError(
            f"aufs: {show(layers[0])} has the mode 0700 of an old store, and AUFS would show it so"
        )


def _facts(layer: Layer) -> LayerFacts:
    if layer.shims is not None:
        # A walk over a whole layer is worth keeping, where the store has room for it.
        with contextlib.suppress(OSError, UnsupportedError):
            return prepare(layer.path, layer.shims, Kind.TRUSTED).facts
    try:
        return survey(layer.path, Kind.TRUSTED).facts
    except OSError as exc:
        raise UnsupportedError(f"aufs: cannot read {show(layer.path)}: {exc.strerror}") from exc


def _judge(path: bytes, facts: LayerFacts) -> None:
    blockers = aufs_blockers(facts)
    if blockers:
        raise UnsupportedError(f"aufs: {show(path)} holds {'; '.join(blockers)}")
