"""The life of one mount: open the engine, mount, serve, and leave nothing behind.

Invariant: whichever way it ends (a signal, an unmount from outside, an error), the
target is unmounted, the engine closed, a throw-away branch removed and the record
gone. Dirty pages are written while the session still serves. Only SIGKILL escapes,
and for that the record is left.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Final

import attrs
import pyfuse3
import trio

from unionfs import _sys
from unionfs.branch import Branch
from unionfs.errors import BusyError, StoreError, UnionfsError, show
from unionfs.fuse import device, passthrough, registry
from unionfs.fuse.control import Control
from unionfs.fuse.daemon import LEGACY_ROOT_MODE, held
from unionfs.fuse.options import MountOptions
from unionfs.fuse.plan import Plan
from unionfs.fuse.registry import MountRecord
from unionfs.fuse.request import MountRequest
from unionfs.fuse.scout import Place
from unionfs.fuse.serving import Serving
from unionfs.kernel.leftover import settle_if_needed
from unionfs.store.hardlinks import HARDLINKS_NAME, load_hardlinks, scan_hardlinks
from unionfs.union import Engine, EngineOptions, HardlinkTable

__all__ = ["engine_options", "serve"]

_log = logging.getLogger(__name__)
_MIN_TASKS: Final = 8  # each keeps a receive buffer of 1 MiB; fewer allocate it again and again
_MAX_TASKS: Final = 99
#: Seconds between our unmount and the end of the session: longer only when another mount
#: namespace holds the mount too.
_GRACE: Final = 2.0


def serve(plan: Plan, on_ready: Callable[[MountRecord], None]) -> None:
    """Mount and serve until unmounted; `on_ready` is called when the mount works.

    Raises `UnionfsError` or `OSError` when it cannot be mounted, after undoing everything.
    """
    os.chdir("/")
    os.umask(0)
    # vfork(2) keeps the interpreter until the child has its program, which may lie in the mount.
    # This is the switch that the documentation of subprocess names.
    subprocess._USE_VFORK = False  # type: ignore[misc]  # noqa: SLF001
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    request = plan.request
    with contextlib.ExitStack() as stack:
        if request.ephemeral and request.rw is not None:
            stack.callback(shutil.rmtree, request.rw, ignore_errors=True)
        for path in request.hold:
            stack.enter_context(held(path))
        writable = request.rw is not None and not request.options.read_only
        options = request.options.settled(uid=os.geteuid(), writable=writable)
        no_passthrough = passthrough.reason_against(request.layers) if options.passthrough else None
        if writable:
            settle_if_needed(request.rw)
        engine = Engine.start(
            request.layers,
            request.rw,
            options=attrs.evolve(engine_options(request.layers, options), labels=_labels(request)),
        )
        stack.callback(engine.close)
        _Session(plan, options, engine, on_ready, no_passthrough).run()


def engine_options(layers: tuple[bytes, ...], options: MountOptions) -> EngineOptions:
    """Return how the engine is to open `layers` under settled mount options."""
    return EngineOptions(
        volatile=options.volatile,
        read_only=bool(options.read_only),
        root_mode_fallback=LEGACY_ROOT_MODE,
        link_tables=_link_tables(layers),
        show_xattrs=options.show_xattrs,
        show_markers=options.show_whiteouts,
        follow=bool(options.read_only) and options.coherent,
    )


def _labels(request: MountRequest) -> dict[bytes, bytes]:
    """Return what the attribute `layer` says of a layer of an image: its id and the image."""
    if request.image_id is None:
        return {}
    name = os.fsencode(request.image_name or request.image_id)
    return {
        path: b"%b %b" % (os.path.basename(os.path.dirname(path)), name) for path in request.layers
    }


def _link_tables(layers: tuple[bytes, ...]) -> dict[bytes, Callable[[], HardlinkTable]]:
    """Return loaders of the hard-link tables that a store keeps beside its layers."""

    def load(layer: bytes) -> HardlinkTable:
        with Branch.open(layer) as branch:
            try:
                return load_hardlinks(os.path.dirname(layer), branch)
            except (StoreError, OSError) as exc:
                _log.warning("%s; the layer is searched for links instead", exc)
                return scan_hardlinks(branch)

    return {
        layer: functools.partial(load, layer)
        for layer in layers
        if os.path.isfile(os.path.join(os.path.dirname(layer), HARDLINKS_NAME))
    }


class _Session:
    """One mounted device and the loop that serves it."""

    def __init__(
        self,
        plan: Plan,
        options: MountOptions,
        engine: Engine,
        on_ready: Callable[[MountRecord], None],
        no_passthrough: str | None,
    ) -> None:
        self.plan = plan
        self._no_passthrough = no_passthrough
        self.target = plan.request.target
        self.options = options
        self.on_ready = on_ready
        self.serving = Serving(engine, options, self._ready)
        self.record: MountRecord | None = None
        self._device = ""
        self._control = Control(self.serving, lambda: self.record)

    def run(self) -> None:
        fd = device.mount_device(self.target, self.options)
        try:
            self._device = self._find_device()
            device.widen_read_ahead(self._device)
            with self._control.open(registry.control_path(self.plan.runtime, self.plan.stem), fd):
                self.serving.run(fd, self._main, self._place())
        finally:
            self._leave()

    def _find_device(self) -> str:
        for entry in reversed(registry.mount_table()):
            if entry.target == self.target:
                return entry.device
        return ""

    def _place(self) -> Place | None:
        return Place(self.target, self._device) if self._device else None

    def _leave(self) -> None:
        """Unmount if that has not happened yet, and forget the mount."""
        try:
            if any(
                entry.device == self._device and entry.target == self.target
                for entry in registry.mount_table()
            ):
                device.unmount(self.target, lazy=True)
        except (UnionfsError, OSError):
            _log.exception("cannot unmount %s", show(self.target))
        if self.record is not None:
            registry.remove_record(self.plan.runtime, self.record)

    def _ready(self) -> None:
        request = self.plan.request
        pid = os.getpid()
        self.record = MountRecord(
            stem=self.plan.stem,
            target=self.target,
            image_id=request.image_id,
            image_name=request.image_name,
            layers=request.layers,
            rw=request.rw,
            ephemeral=request.ephemeral,
            read_only=bool(self.options.read_only),
            backend="fuse",
            pid=pid,
            start=registry.process_start(pid) or 0,
            device=self._device,
            namespace=registry.mount_namespace(),
            options=request.option_text,
            log=self.plan.log,
            created=time.time(),
            lane=self.serving.lane is not None,
            no_lane=self.serving.no_lane,
            no_passthrough=self.serving.no_passthrough or self._no_passthrough,
            control=registry.control_path(self.plan.runtime, self.plan.stem),
            wanted=request.backend,
            reasons=self.plan.reasons,
        )
        registry.write_record(self.plan.runtime, self.record)
        self.on_ready(self.record)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey_signals)
            nursery.start_soon(self._control.serve)
            await pyfuse3.main(min_tasks=_MIN_TASKS, max_tasks=_MAX_TASKS)
            nursery.cancel_scope.cancel()

    async def _obey_signals(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Unmount at the first signal; end at once at the second."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for _ in signals:
                    if nursery.child_tasks:
                        pyfuse3.terminate()
                    else:
                        nursery.start_soon(self._stop)

    async def _stop(self) -> None:
        try:
            await trio.to_thread.run_sync(device.unmount, self.target)
            await trio.sleep(_GRACE)
        except BusyError:
            await trio.to_thread.run_sync(self._detach, self.serving.engine.open_paths())
        except UnionfsError:
            _log.exception("cannot unmount %s", show(self.target))
        pyfuse3.terminate()

    def _detach(self, open_paths: list[bytes]) -> None:
        """Bring out what programs have written, then take the name away from them.

        syncfs(2) starts writing what they changed through mappings, but does not wait for a
        FUSE server; fsync(2) on each file does. A lane is not told which files are open, but
        whatever syncfs(2) has started lies before it then.
        """
        for path in open_paths:
            with contextlib.suppress(OSError):
                self._fsync(os.path.join(self.target, path))
        with contextlib.suppress(OSError):
            fd = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _sys.syncfs(fd)
            finally:
                os.close(fd)
        self.serving.settle()
        with contextlib.suppress(UnionfsError):
            device.unmount(self.target, lazy=True)

    @staticmethod
    def _fsync(path: bytes) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
