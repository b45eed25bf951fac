"""What a run needs of a union, and the union over FUSE from a daemon of its own.

Invariant: the union is mounted by process 1 in its own mount namespace only, so it ends
with that process; a daemon then sees its connection end, closes the engine and removes a
throw-away branch, also when the supervisor was killed.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import attrs

from unionfs.errors import UnionfsError, UnsupportedError
from unionfs.fuse.device import mount_device
from unionfs.fuse.options import MountOptions
from unionfs.run import messages
from unionfs.run.messages import Kind

__all__ = ["FuseUnion", "Report", "Union"]

_MESSAGE: Final = b"f"


@attrs.frozen
class Report:
    """The pipe to the supervisor: `fd` to write, `reading` to be closed; `mask` of signals."""

    fd: int
    reading: int
    mask: frozenset[int]

    def detach(self) -> None:
        """Leave the caller's session, directory and standard input and output (in a child)."""
        os.close(self.reading)
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in range(2):
            os.dup2(null, number)
        os.close(null)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


class Union(Protocol):
    """A union in the making. `pid` is the process that serves or tidies it up, 0 for none yet."""

    @property
    def pid(self) -> int:
        """Return the process id."""

    @property
    def backend(self) -> str:
        """Return what makes the union."""

    def start(self, report: Report) -> None:
        """Do what must be done before process 1 exists (in the supervisor)."""

    def mount(self, target: bytes) -> None:
        """Mount on `target` (in process 1)."""

    def started(self) -> None:
        """Let go of what only process 1 needs (in the supervisor, after it was made)."""

    def ended(self) -> None:
        """Tell that process 1 is gone, so that its own process may end (in the supervisor)."""

    def finish(self) -> None:
        """Clean up after everybody has ended (in the supervisor)."""


class FuseUnion:
    """A FUSE union, see `Union`. `rw` None means read-only; `cleanup` runs after everything."""

    backend = "fuse"

    def __init__(
        self, layers: Sequence[bytes], rw: bytes | None, cleanup: Callable[[], None]
    ) -> None:
        self.pid = 0
        self._layers = tuple(layers)
        self._rw = rw
        self._cleanup = cleanup
        # Processes in the namespace run as several ids, and the kernel must judge them all.
        self._options = MountOptions(allow_other=True, default_permissions=True, nosuid=False)
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def start(self, report: Report) -> None:
        """Fork the daemon."""
        self.pid = os.fork()
        if self.pid:
            self._theirs.close()
            return
        try:
            report.detach()
            self._be_daemon()
        except UnionfsError as exc:
            messages.send(report.fd, Kind.DAEMON_FAILED, str(exc), exc.exit_status)
        except OSError as exc:
            name = f"{os.fsdecode(exc.filename)}: " if isinstance(exc.filename, bytes) else ""
            messages.send(report.fd, Kind.DAEMON_FAILED, f"{name}{exc.strerror}", 1)
        except BaseException as exc:  # noqa: BLE001  # must not return into the supervisor's code
            messages.send(report.fd, Kind.DAEMON_FAILED, f"internal error: {exc!r}", 1)
        finally:
            self._cleanup()
            os._exit(0)

    def _be_daemon(self) -> None:
        from unionfs.fuse.lent import serve_lent  # noqa: PLC0415  # pyfuse3, in this process only

        self._ours.close()
        options = self._options.settled(uid=os.geteuid(), writable=self._rw is not None)
        serve_lent(self._layers, self._rw, options, self._receive)

    def _receive(self) -> int | None:
        """Wait for the mounted device; None when nobody is left to send it."""
        with self._theirs:
            _, fds, _, _ = socket.recv_fds(self._theirs, len(_MESSAGE), 1)
        return fds[0] if fds else None

    def mount(self, target: bytes) -> None:
        """Mount, and hand the device to the daemon."""
        options = self._options.settled(uid=os.geteuid(), writable=self._rw is not None)
        fd = mount_device(target, options)
        try:
            socket.send_fds(self._ours, [_MESSAGE], [fd])
        except OSError as exc:
            raise UnsupportedError("the mount daemon has died") from exc
        finally:
            os.close(fd)
            self._ours.close()

    def started(self) -> None:
        """Close our end of the channel: the daemon must see when process 1 is gone."""
        self._ours.close()

    def ended(self) -> None:
        """Nothing to tell: the connection ends with process 1."""
        self._ours.close()

    def finish(self) -> None:
        """Remove what the daemon could not."""
        self._ours.close()
        self._theirs.close()
        self._cleanup()
