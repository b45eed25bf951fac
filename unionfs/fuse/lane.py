"""The direct lane: a thread that reads /dev/fuse itself and answers requests at once.

A request through pyfuse3's task loop costs several times what reading, answering and
writing cost here. The lane owns the device and the engine; pyfuse3 agrees on INIT and
answers what the lane does not know, over a SOCK_SEQPACKET pair that it takes for the
device. A second thread brings its replies back.

The lock discipline of a mount with a lane, in full:

- There is one lock; whoever calls the engine holds it. These are the lane's thread, its
  workers (`lane_work`), read-ahead, and through `unionfs.fuse.guard` the session and the
  control socket, for single calls. pyfuse3's side of a mount with a lane has no engine.
- It is never held while `CopyPlan.copy` runs, while a cold file is read from disk, during
  fsync, or while anything is written to the device or the socket (but the short
  notification that an ACL has changed a mode, which waits for nothing).
- A backing descriptor is used under the lock or duplicated under it, because a copy-up
  may replace it at any other time.
- Nobody waits for another request, or for pyfuse3, while holding it or on the lane's thread.

Invariant: every request read is answered by exactly one of lane, worker and pyfuse3; an
exception costs one EIO and a line in the log. When the device or the socket ends, the
session is told, once.
"""

from __future__ import annotations

import errno
import gc
import logging
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from unionfs import _sys
from unionfs.fuse import protocol
from unionfs.fuse.background import Background
from unionfs.fuse.device import READ_AHEAD
from unionfs.fuse.lane_changes import Changes
from unionfs.fuse.lane_reads import Reads
from unionfs.fuse.lane_request import Context, Request
from unionfs.fuse.lane_space import Space
from unionfs.fuse.meter import Meter
from unionfs.fuse.options import MountOptions
from unionfs.fuse.passthrough import STACK_DEPTH, Passthrough
from unionfs.fuse.policy import Policy
from unionfs.fuse.protocol import InitFlag, Op
from unionfs.fuse.readahead import ReadAhead
from unionfs.fuse.scout import Place, Scout
from unionfs.union import Engine

__all__ = ["Lane", "reason_against"]

_log = logging.getLogger(__name__)

#: As libfuse: the largest request is 256 pages of data and one of header.
_BUFFER: Final = 257 * os.sysconf("SC_PAGE_SIZE")
#: Seconds to try again without sleeping: waking a sleeping core takes as long.
_SPIN: Final = 200e-6
#: After so many vain tries in a row the lane sleeps at once until requests come fast again.
_PATIENCE: Final = 4
#: With V2 the kernel asks for the capability before the first write(2) to a file, not before each.
_WANTED: Final = InitFlag.PARALLEL_DIROPS | InitFlag.CACHE_SYMLINKS | InitFlag.HANDLE_KILLPRIV_V2
_UNWANTED: Final = InitFlag.ATOMIC_O_TRUNC | InitFlag.SETXATTR_EXT
#: In the reply to INIT: most read-ahead and flags, and further on the upper half and most stacking.
_AGREED_AT: Final = protocol.OUT_HEADER.size + 8
_AGREED: Final = struct.Struct("=II")
_MORE_AT: Final = protocol.OUT_HEADER.size + 32
_MORE: Final = struct.Struct("=II")
#: Answers to write(2) on the device that concern one request that nobody waits for any more.
_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED)
_NO_INIT: Final = -1
#: These come when the kernel likes, not because somebody uses the mount.
_FORGETS: Final = (Op.FORGET, Op.BATCH_FORGET)
#: So many files forgotten are worth giving their memory back, after a pause of so many ms.
_MANY: Final = 50_000
_REST: Final = 500
#: Seconds without a request after which the kernel has nothing queued.
_MOMENT: Final = 0.05


def reason_against(options: MountOptions) -> str | None:
    """Return why a mount with these options gets no lane, or None."""
    if not options.lane:
        return "option nolane"
    if options.coherent:
        return "option coherent: the lane has the kernel keep contents"
    return None


class Lane:
    """The lane of one mounted device `fd`, which it owns from now on.

    `inner` is the descriptor for pyfuse3; `place` is where the mount is, if that is known. Whoever
    else uses the engine must hold `lock`.
    Raises OSError, the device untouched, when it cannot have what it needs.
    """

    def __init__(
        self,
        fd: int,
        engine: Engine,
        lock: threading.Lock,
        options: MountOptions,
        policy: Policy,
        meter: Meter,
        place: Place | None = None,
    ) -> None:
        self._fd = fd
        self._engine, self._lock = engine, lock
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = ours
        self.inner = theirs.detach()
        try:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError:
            ours.close()
            os.close(self.inner)
            raise
        os.set_blocking(fd, False)
        self._thread = thread = Background("unionfs-ahead")
        self._ahead = ahead = ReadAhead(fd, engine, lock, thread, on=options.ahead)
        reply = meter.replied(self.reply)
        useful = options.ahead and options.entry_timeout > 0
        self._scout = scout = Scout(engine, lock, thread, place if useful else None)
        self._passthrough = passing = Passthrough(fd, engine)
        #: Why files are not read by the kernel itself though they were to be, or None.
        self.no_passthrough: str | None = None
        self._passes_through = options.passthrough
        helpers = ahead, scout, thread, passing
        context = Context(engine, lock, options, policy, *helpers, reply, self.notify)
        self._taken = 0
        self._work = context.work
        self._reads = Reads(context)
        tables = self._reads.table | Changes(context).table | Space(context).table
        self._table = meter.watched(tables)
        self._init_unique = _NO_INIT
        self._helps = True
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
        self._thread.close()  # it may wait for the answer to a READ
        self._scout.stop()
        self._ahead.close()
        os.eventfd_write(self._wake, 1)
        self._ours.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._work.close()  # before the number may be somebody else's
        os.close(self._fd)  # ends the connection: whoever still waits gets an error
        self._fd = -1
        self._ours.close()
        os.close(self._wake)
        self._scout.wait()

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
        # What is to be written begins with a page: those are copied faster.
        area = memoryview(mmap.mmap(-1, mmap.PAGESIZE + _BUFFER))
        view = area[mmap.PAGESIZE - protocol.IN_HEADER.size - protocol.WRITE_IN.size :]
        buffers = [view]
        device, ready = select.poll(), select.poll()
        device.register(self._fd, select.POLLIN)
        ready.register(self._fd, select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        vain = _PATIENCE
        while True:
            try:
                size = os.readv(self._fd, buffers)
            except BlockingIOError:
                if self._works_ahead():
                    continue
                idle = time.perf_counter()
                if vain < _PATIENCE and self._spin(device, idle):
                    vain = 0
                    continue
                events = ready.poll(self._give_back_after)
                if not events:
                    self._give_back()
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

    def _works_ahead(self) -> bool:
        """Do something useful instead of waiting, if there is anything to do."""
        try:
            return self._helps and self._reads.lists.work_ahead()
        except Exception:  # noqa: BLE001  # logged; a mount lives without
            _log.exception("making listings in advance has failed and stays off")
            self._helps = False
            return False

    @property
    def _give_back_after(self) -> int | None:
        """Milliseconds without a request after which memory is given back; None for never."""
        return _REST if self._reads.forgotten >= _MANY else None

    def _give_back(self) -> None:
        """Give memory back that forgotten files took; nobody waits for anything now.

        The collector looks at all that is left, which takes long if that is much.
        """
        forgotten, self._reads.forgotten = self._reads.forgotten, 0
        try:
            with self._lock:
                if self._engine.live > forgotten:
                    return
                self._engine.compact()
            gc.collect()  # also empties the lists of free objects that types keep
            _sys.trim_memory()
        except Exception:  # noqa: BLE001  # logged; it goes on as it is
            _log.exception("no memory could be given back")

    @property
    def _may_spin(self) -> bool:
        """Whether there is a core to spare, and no other thread that would have to wait."""
        return self._cores > 1 and not self._thread.busy and self._work.idle

    def _spin(self, device: select.poll, since: float) -> bool:
        """Wait for the next request for a moment without sleeping."""
        while self._may_spin and time.perf_counter() - since < _SPIN:
            if device.poll(0):
                return True
        return False

    def _take(self, message: memoryview) -> None:
        request = Request(message)
        self._taken += 1
        if request.pid != self._scout.pid and request.opcode not in _FORGETS:
            self._scout.seen = time.perf_counter()
        handler = self._table.get(request.opcode)
        if handler is None:
            self._pass(request, message)
            return
        code = 0
        try:
            outcome = handler(request)
        except OSError as exc:
            outcome, code = b"", exc.errno or errno.EIO
        except Exception:  # noqa: BLE001  # this is the boundary
            _log.exception("%s failed; the caller got EIO", handler.__name__)
            outcome, code = b"", errno.EIO
        if isinstance(outcome, bytes):
            self.reply(request.unique, code, outcome)
        elif isinstance(outcome, memoryview):
            protocol.OUT_HEADER.pack_into(outcome, 0, len(outcome), 0, request.unique)
            self._write(outcome)

    def _pass(self, request: Request, message: memoryview) -> None:
        """Give a request to pyfuse3."""
        if request.opcode == Op.INIT:
            self._init_unique = request.unique
            self._reads.offered = offered = protocol.offered(message)
            if self._passes_through and not offered & InitFlag.PASSTHROUGH:
                self._passes_through = False
                self.no_passthrough = (
                    "this kernel has none (Linux 6.9 with CONFIG_FUSE_PASSTHROUGH)"
                )
                _log.warning("no passthrough: %s", self.no_passthrough)
        try:
            self._ours.send(message, socket.MSG_DONTWAIT)
        except OSError as exc:
            _log.warning("a request cannot be handed over: %s", exc.strerror)
            self.reply(request.unique, exc.errno or errno.EIO, b"")

    # -- to the kernel, from any thread ------------------------------------------------

    def reply(self, unique: int, code: int, payload: bytes) -> None:
        """Answer a request with an errno or 0 and the payload."""
        length = protocol.OUT_HEADER.size + len(payload)
        self._write(protocol.OUT_HEADER.pack(length, -code, unique) + payload)

    def notify(self, code: int, payload: bytes) -> None:
        """Send a notification; nothing tells whether the kernel cared."""
        length = protocol.OUT_HEADER.size + len(payload)
        self._write(protocol.OUT_HEADER.pack(length, code, 0) + payload)

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
                self._init_unique = _NO_INIT
            self._write(message)

    def _agree(self, message: memoryview) -> None:
        """Edit the answer to INIT: truncation comes as SETATTR where no OPEN is sent."""
        if len(message) < _AGREED_AT + _AGREED.size:
            return
        _, flags = _AGREED.unpack_from(message, _AGREED_AT)
        flags = (flags | self._reads.offered & _WANTED) & ~_UNWANTED
        if self._passes_through and len(message) >= _MORE_AT + _MORE.size:
            more, _ = _MORE.unpack_from(message, _MORE_AT)
            more |= InitFlag.PASSTHROUGH >> 32
            _MORE.pack_into(message, _MORE_AT, more, STACK_DEPTH)
            flags |= InitFlag.INIT_EXT | InitFlag.ATOMIC_O_TRUNC
            self._passthrough.agree()
        _AGREED.pack_into(message, _AGREED_AT, READ_AHEAD, flags)
