"""A run's union on kernel overlayfs: prepared here, mounted by process 1, tidied by a keeper.

Invariant: the keeper, a process that outlives a killed supervisor, brings the writable
branch back into AUFS form and removes temporary directories when process 1 is gone. If it
is killed as well, the branch is settled at its next use.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final

from unionfs import _sys
from unionfs.errors import BusyError, UnionfsError, UnsupportedError
from unionfs.kernel.mounted import KernelRequest
from unionfs.kernel.overlay_union import OverlayMount, overlay_kind, prepare_overlay
from unionfs.run import messages
from unionfs.run.messages import Kind
from unionfs.run.unions import Report

__all__ = ["KernelUnion"]

#: Seconds that the kernel gets to take down the namespace of a process that has ended.
_PATIENCE: Final = 30.0
_PAUSE: Final = 0.05
_TRIAL: Final = b"/"


class KernelUnion:
    """An overlayfs union, see `unionfs.run.unions.Union`. `cleanup` runs after everything."""

    backend = "overlay"

    def __init__(self, request: KernelRequest, cleanup: Callable[[], None]) -> None:
        self.pid = 0
        self._request = request
        self._cleanup = cleanup
        self._mount: OverlayMount | None = None
        self._alive = -1
        self.losses: tuple[str, ...] = ()

    def start(self, report: Report) -> None:
        """Prepare the union, try it, and fork the keeper; UnsupportedError when it cannot be."""
        self._mount = prepare_overlay(self._request, overlay_kind())
        self.losses = self._mount.losses
        try:
            self._try_mount()
        except BaseException:
            self._finish_mount()
            raise
        watched, self._alive = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(watched)
            return
        try:
            os.close(self._alive)
            report.detach()
            os.read(watched, 1)  # returns when the supervisor closes it, or is gone
            self._finish_mount()
        except (UnionfsError, OSError) as exc:
            messages.send(report.fd, Kind.DAEMON_FAILED, f"cannot tidy up: {exc}", 1)
        except BaseException as exc:  # noqa: BLE001  # must not return into the supervisor's code
            messages.send(report.fd, Kind.DAEMON_FAILED, f"internal error: {exc!r}", 1)
        finally:
            self._cleanup()
            os._exit(0)

    def _try_mount(self) -> None:
        """Mount in a child with a mount namespace of its own, so that a failure costs nothing."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _sys.unshare(_sys.CLONE_NEWNS)
                _sys.mount(b"none", b"/", b"", _sys.MS_REC | _sys.MS_PRIVATE, b"")
                self.mount(_TRIAL)
            except (UnionfsError, OSError) as exc:
                os.write(writing, str(exc).encode("utf-8", "backslashreplace")[:1000])
            except BaseException as exc:  # noqa: BLE001  # must not return into the caller's code
                os.write(writing, repr(exc).encode("utf-8", "backslashreplace")[:1000])
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
        if said:
            raise UnsupportedError(said.decode("utf-8", "replace"))

    def mount(self, target: bytes) -> None:
        """Mount on `target` (in process 1)."""
        assert self._mount is not None  # noqa: S101  # start() came first
        self._mount.attach(target)

    def started(self) -> None:
        """Nothing to let go of: the keeper waits for the supervisor."""

    def ended(self) -> None:
        """Tell the keeper that process 1 is gone."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def finish(self) -> None:
        """Clean up what is left; the keeper has done the rest."""
        self.ended()
        self._cleanup()

    def _finish_mount(self) -> None:
        if self._mount is None:
            return
        end = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(BusyError):
                self._mount.finish()
                return
            if time.monotonic() > end:
                raise BusyError("the writable branch is still in use; its next use settles it")
            time.sleep(_PAUSE)
