"""The direct lane: a thread that reads /dev/fuse itself and answers most requests at once.

A request through pyfuse3's task loop costs several times what reading, answering and
writing cost here. The lane owns the device; what it does not answer goes unchanged over
a SOCK_SEQPACKET pair to pyfuse3, which takes its end for the device, and a second thread
brings pyfuse3's replies and notifications back.

Lock discipline: `unionfs.fuse.guard`. Handlers: `unionfs.fuse.lane_ops`.

Invariant: every request read is answered by exactly one of lane, worker and pyfuse3; an
exception costs one EIO and a line in the log. Where the kernel lacks what the lane needs
it only passes messages on, from INIT to the end. When the device or the socket ends, the
session is told, once.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from unionfs.fuse import protocol
from unionfs.fuse.lane_ops import LATER, PASS, SILENT, LaneOps, Request
from unionfs.fuse.lane_work import LaneWork
from unionfs.fuse.options import MountOptions
from unionfs.fuse.policy import Policy
from unionfs.fuse.protocol import InitFlag, Op
from unionfs.union import Engine

__all__ = ["Lane", "reason_against"]

_log = logging.getLogger(__name__)

#: Linux 5.1 was the first to take ENOSYS for an answer to OPENDIR.
_OLDEST: Final = (5, 1)
#: As libfuse: the largest request is 256 pages of data and one of header.
_BUFFER: Final = 257 * os.sysconf("SC_PAGE_SIZE")
#: Seconds to try again without sleeping: waking a sleeping core takes as long.
_SPIN: Final = 200e-6
#: After so many vain tries in a row the lane sleeps at once until requests come fast again.
_PATIENCE: Final = 4
_NEEDED: Final = InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT
_WANTED: Final = InitFlag.PARALLEL_DIROPS | InitFlag.CACHE_SYMLINKS
_FLAGS: Final = struct.Struct("=I")
#: Where INIT has its flags, in the request and in the reply, headers included.
_FLAGS_ASKED: Final = protocol.IN_HEADER.size + 12
_FLAGS_AGREED: Final = protocol.OUT_HEADER.size + 12
#: Answers to write(2) on the device that concern one request that nobody waits for any more.
_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED)
_STARTING: Final = -1
#: Seconds without a request after which the kernel has nothing queued.
_MOMENT: Final = 0.05


def reason_against(options: MountOptions) -> str | None:
    """Return why a mount with these options gets no lane, or None."""
    if not options.lane:
        return "option nolane"
    if options.coherent:
        return "option coherent: the lane has the kernel keep contents"
    release = os.uname().release.split("-")[0].split(".")
    version = tuple(int(part) for part in release[:2] if part.isdigit())
    if version < _OLDEST:
        return "the kernel is older than Linux 5.1"
    return None


class Lane:
    """The lane of one mounted device `fd`, which it owns from now on.

    `inner` is the descriptor for pyfuse3. Whoever else uses the engine must hold `lock`.
    """

    def __init__(
        self,
        fd: int,
        engine: Engine,
        lock: threading.Lock,
        options: MountOptions,
        policy: Policy,
    ) -> None:
        self._fd = fd
        os.set_blocking(fd, False)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = ours
        self.inner = theirs.detach()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._work = LaneWork(engine, lock, self._reply)
        self._table = LaneOps(engine, lock, options, policy, self._work).table
        self._init_unique = _STARTING
        self._asked = 0
        #: Whether the lane answers, which is sure once the kernel has sent INIT.
        self.active = True
        self._taken = 0
        self._cores = len(os.sched_getaffinity(0))
        self._threads: list[threading.Thread] = []
        self._on_end: Callable[[], None] = lambda: None

    def start(self, on_end: Callable[[], None]) -> None:
        """Begin to serve; `on_end` is called from a thread when the device has ended."""
        self._on_end = on_end
        for name, target in (("lane", self._forward), ("back", self._backward)):
            thread = threading.Thread(target=target, name=f"unionfs-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End the threads and the device's connection; `inner` must be closed by now."""
        os.eventfd_write(self._wake, 1)
        self._ours.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        os.close(self._fd)  # ends the connection: whoever still waits gets an error
        self._fd = -1
        self._work.close()
        self._ours.close()
        os.close(self._wake)

    def settle(self) -> None:
        """Wait until no request has come, and none was waited for, for a moment."""
        seen = -1
        while seen != self._taken or not self._work.idle:
            seen = self._taken
            time.sleep(_MOMENT)

    # -- from the kernel -----------------------------------------------------------

    def _forward(self) -> None:
        try:
            self._serve()
        except Exception:  # noqa: BLE001  # logged; the session ends in an orderly way
            _log.exception("the direct lane has failed; the mount ends")
        finally:
            self._on_end()

    def _serve(self) -> None:
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        ready = select.poll()
        ready.register(self._fd, select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        vain = _PATIENCE
        while True:
            try:
                size = os.readv(self._fd, [buffer])
            except BlockingIOError:
                idle = time.perf_counter()
                spinning = self._cores > 1 and vain < _PATIENCE
                found = spinning and self._spin(idle)
                if found:
                    vain = 0
                    continue
                events = ready.poll()
                if any(fd == self._wake for fd, _ in events):
                    return
                vain = 0 if time.perf_counter() - idle < _SPIN else vain + 1
            except OSError as exc:
                if exc.errno == errno.ENODEV:
                    return
                if exc.errno not in (errno.ENOENT, errno.EINTR):
                    raise
            else:
                self._take(view[:size])

    def _spin(self, since: float) -> bool:
        """Wait for the next request for a moment without sleeping."""
        ready = select.poll()
        ready.register(self._fd, select.POLLIN)
        while time.perf_counter() - since < _SPIN:
            if ready.poll(0):
                return True
        return False

    def _take(self, message: memoryview) -> None:
        self._taken += 1
        request = Request(message)
        if request.opcode == Op.INIT:
            self._init_unique = request.unique
            (self._asked,) = _FLAGS.unpack_from(message, _FLAGS_ASKED)
            self.active = self._asked & _NEEDED == _NEEDED
            if not self.active:
                _log.warning("no direct lane: the kernel does not offer to leave out OPEN")
        handler = self._table.get(request.opcode) if self.active else None
        if handler is None:
            self._pass(message)
            return
        unique, code = request.unique, 0
        try:
            outcome = handler(request)
        except OSError as exc:
            outcome, code = b"", exc.errno or errno.EIO
        except Exception:  # noqa: BLE001  # this is the boundary
            _log.exception("%s failed; the caller got EIO", handler.__name__)
            outcome, code = b"", errno.EIO
        if isinstance(outcome, bytes):
            self._reply(unique, code, outcome)
        elif isinstance(outcome, memoryview):
            protocol.OUT_HEADER.pack_into(outcome, 0, len(outcome), 0, unique)
            self._write(outcome)
        elif outcome == PASS:
            self._pass(message)
        elif outcome not in (LATER, SILENT):
            self._reply(unique, errno.EIO, b"")

    def _pass(self, message: memoryview) -> None:
        """Give a request to pyfuse3."""
        try:
            self._ours.send(message)
        except OSError as exc:
            (unique,) = struct.unpack_from("=Q", message, 8)
            _log.warning("a request cannot be handed over: %s", exc.strerror)
            self._reply(unique, exc.errno or errno.EIO, b"")

    # -- to the kernel ---------------------------------------------------------------

    def _reply(self, unique: int, code: int, payload: bytes) -> None:
        length = protocol.OUT_HEADER.size + len(payload)
        self._write(protocol.OUT_HEADER.pack(length, -code, unique) + payload)

    def _write(self, message: bytes | memoryview) -> None:
        try:
            os.write(self._fd, message)
        except OSError as exc:
            if exc.errno not in _GONE:
                _log.warning("the kernel does not take an answer: %s", exc.strerror)

    def _backward(self) -> None:
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        while True:
            try:
                size = self._ours.recv_into(buffer)
            except OSError:
                return
            if not size:
                return
            message = view[:size]
            _, _, unique = protocol.OUT_HEADER.unpack_from(message)
            if unique and unique == self._init_unique:
                self._agree(message)
                self._init_unique = _STARTING
            self._write(message)

    def _agree(self, message: memoryview) -> None:
        """Edit the answer to INIT: truncation comes as SETATTR where no OPEN is sent."""
        if not self.active or len(message) <= _FLAGS_AGREED:
            return
        (flags,) = _FLAGS.unpack_from(message, _FLAGS_AGREED)
        flags = (flags | self._asked & _WANTED) & ~InitFlag.ATOMIC_O_TRUNC
        _FLAGS.pack_into(message, _FLAGS_AGREED, flags)
