"""From directories to a union that process 1 can mount: the faster back end that can do it.

Invariant: what is made here (a writable branch, a throw-away one) is unmade when the run
ends or fails, but for a writable branch that has been used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Sequence
from typing import Final

from unionfs import _sys
from unionfs.errors import NotFoundError, UnionfsError, UnsupportedError, UsageError, show
from unionfs.run import scratch
from unionfs.run.unions import FuseUnion, Report, Union

__all__ = ["BACKENDS", "prepare"]

#: What `--backend` takes. AUFS cannot be mounted by halves, so a run does not use it.
BACKENDS: Final = ("auto", "overlay", "fuse")
_LEGACY_ROOT_MODE: Final = 0o755
_log = logging.getLogger(__name__)


def prepare(
    layers: Sequence[bytes],
    rw: bytes | None,
    *,
    store: bytes,
    ephemeral: bool = False,
    backend: str = "auto",
    cached: bool = False,
) -> Union:
    """Return a union of `layers` (top first) and the writable branch.

    `rw` is made if it is missing; `ephemeral` makes a throw-away one in the store `store`.
    `cached` tells that the layers are the store's, which may keep what overlayfs needs
    beside them. Raises `UsageError` or `NotFoundError` for directories that cannot be used.
    """
    for layer in layers:
        if not os.path.isdir(layer):
            raise NotFoundError(f"layer {show(layer)} is not a directory")
    if rw is not None:
        _make_branch(rw)
    return _Chosen(tuple(layers), rw, store, backend, ephemeral=ephemeral, cached=cached)


def _make_branch(rw: bytes) -> None:
    try:
        os.mkdir(rw, 0o755)
    except FileExistsError:
        if not os.path.isdir(rw):
            raise UsageError(f"writable branch {show(rw)} is not a directory") from None
    except OSError as exc:
        raise UsageError(f"cannot make the writable branch {show(rw)}: {exc.strerror}") from exc


def _has_aufs() -> bool:
    with open("/proc/filesystems", encoding="ascii") as table:
        return "aufs" in table.read().split()


class _Chosen:
    """A union whose back end is chosen when it starts: only then are the rights known."""

    def __init__(
        self,
        layers: tuple[bytes, ...],
        rw: bytes | None,
        store: bytes,
        backend: str,
        *,
        ephemeral: bool,
        cached: bool,
    ) -> None:
        self._layers = layers
        self._rw = rw
        self._store = store
        self._wanted = backend
        self._ephemeral = ephemeral
        self._cached = cached
        self._scratch: scratch.Scratch | None = None
        self._union: Union | None = None

    @property
    def pid(self) -> int:
        return self._union.pid if self._union else 0

    @property
    def backend(self) -> str:
        return self._union.backend if self._union else self._wanted

    def start(self, report: Report) -> None:
        if self._ephemeral:
            self._rw = self._place().rw
        if self._wanted != "fuse":
            try:
                self._start_kernel(report)
            except UnsupportedError as exc:
                if self._wanted != "auto":
                    raise
                _log.info("not overlay: %s", exc)
            else:
                return
        self._union = FuseUnion(self._layers, self._rw, self._remove_scratch)
        self._union.start(report)

    def _place(self) -> scratch.Scratch:
        if self._scratch is None:
            self._scratch = scratch.make(self._store)
        return self._scratch

    def _start_kernel(self, report: Report) -> None:
        from unionfs.kernel.mounted import KernelRequest, Layer  # noqa: PLC0415  # not for FUSE
        from unionfs.kernel.overlay_union import overlay_kind  # noqa: PLC0415  # see above
        from unionfs.kernel.survey import Kind  # noqa: PLC0415  # see above
        from unionfs.run.kernel_union import KernelUnion  # noqa: PLC0415  # see above

        if self._wanted == "auto" and overlay_kind() is Kind.TRUSTED and _has_aufs():
            _log.info("not aufs: a run ends before AUFS could finish its hard links")

        def layer(path: bytes) -> Layer:
            return Layer(path, os.path.dirname(path) + b"/shims" if self._cached else None)

        try:
            place = self._place()
        except OSError as exc:
            raise UnsupportedError(f"overlay: {show(self._store)}: {exc.strerror}") from exc
        request = KernelRequest(
            layers=tuple(layer(path) for path in self._layers),
            target=b"/",
            scratch=place.path,
            rw=self._rw,
            flags=_sys.MS_NODEV,
            faithful=self._wanted == "auto",
            root_mode=_LEGACY_ROOT_MODE,
        )
        union = KernelUnion(request, self._remove_scratch)
        union.start(report)
        self._union = union
        for loss in union.losses:
            _log.info("overlay: %s", loss)

    def mount(self, target: bytes) -> None:
        if self._union is None:
            raise UnionfsError("the union has not been started")
        self._union.mount(target)

    def started(self) -> None:
        if self._union is not None:
            self._union.started()

    def ended(self) -> None:
        if self._union is not None:
            self._union.ended()

    def finish(self) -> None:
        if self._union is not None:
            self._union.finish()
        self._remove_scratch()

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._scratch.path)
