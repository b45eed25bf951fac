"""Names in advance: has directories listed before all their names have been looked for.

A name that the kernel does not know costs a request, and nothing that a FUSE server can send makes
a name known but the answer to a listing. So a process beside the server (`unionfs.fuse.lister`)
lists directories through the mount, as any program could: one request brings hundreds of names with
their attributes. `unionfs.fuse.sought` says which are worth it.

It is a process of its own because the server must never wait for itself: one that has a request
open at its own mount cannot be killed.

Invariant: the server never waits for the process but a moment at its own end, and soon after
programs have left the mount alone (`_QUIET`, and the part of a listing under way) the process has
nothing open on it: it would keep it from being unmounted. When the process cannot be started,
or has ended, names are looked for one by one as before.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from typing import Final, NamedTuple

from unionfs.fuse import lister
from unionfs.fuse.background import Background
from unionfs.fuse.sought import Sought
from unionfs.union import Engine

__all__ = ["Place", "Scout"]

_log = logging.getLogger(__name__)
#: Directories that the process is told of before it is done with the first.
_TOLD: Final = 4
_WAITING: Final = 256
#: Seconds since the last request of a program after which nothing more is listed.
_QUIET: Final = 1e-3
#: Seconds to wait for the process at the end.
_MOMENT: Final = 1.0
#: What an interpreter may need to start.
_KEPT: Final = ("LD_LIBRARY_PATH",)
_NOBODY: Final = -1


class Place(NamedTuple):
    """Where a mount is: its absolute path and, to know it by, its device as MAJOR:MINOR."""

    target: bytes
    device: str


class Scout:
    """Has directories of the mount at `place` listed; without a place nothing is done.

    `lock` is the engine's; `thread` tells the process.
    """

    def __init__(
        self, engine: Engine, lock: threading.Lock, thread: Background, place: Place | None
    ) -> None:
        self._lock = lock
        self._thread = thread
        self._on = place is not None
        self._sought = Sought(engine)
        self._queue: deque[bytes] = deque(maxlen=_WAITING)
        self._told = 0
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        #: The process.
        self.pid = _NOBODY
        #: When a program's last request came (time.perf_counter), for whoever takes them to set.
        self.seen = 0.0
        if place is not None:
            tell = functools.partial(self._tell, place)
            thread.add("listing directories in advance", self._take, tell)

    # -- from the lane's thread ------------------------------------------------------

    def looked(self, directory: int, pid: int) -> None:
        """Note that a process looked for a name, and found it."""
        if not self._on or pid == self.pid or not self._sought.looked(directory):
            return
        try:
            with self._lock:
                paths = self._sought.worth(directory)
            if paths:
                with self._thread.lock:
                    self._queue.extend(paths[1:])
                    self._queue.appendleft(paths[0])  # the last, or a full queue would drop it
                    self._thread.wake()
        except OSError:
            return  # gone, or unreadable: whoever lists it will be told
        except Exception:  # noqa: BLE001  # logged; a mount lives without
            _log.exception("listing directories in advance has failed and stays off")
            self._on = False

    def lists(self, directory: int) -> None:
        """Note that somebody begins to list a directory."""
        if self._on:
            self._sought.listed(directory)

    def refuses(self, directory: int, offset: int, pid: int) -> bool:
        """Tell whether the process is not to go on, if it is that which asks for a listing."""
        if pid != self.pid:
            return False
        if time.perf_counter() - self.seen > _QUIET:
            self._sought.unlisted(directory)
            with self._thread.lock:
                self._queue.clear()
            return True
        if offset:
            return False
        with self._lock:
            return self._sought.too_large(directory)

    def forget(self, directory: int) -> None:
        """Drop what is known of a directory that the kernel knows no longer."""
        if self._on:
            self._sought.forget(directory)

    # -- the thread --------------------------------------------------------------------

    def _take(self) -> bytes | None:
        if self._socket is not None and self._on:
            try:
                while answer := self._socket.recv(1, socket.MSG_DONTWAIT):
                    self._told -= len(answer)
            except BlockingIOError:
                pass
            except OSError as exc:
                self._give_up(exc.strerror)
            else:
                self._give_up("its process has ended")
        if not self._on and self._process is not None:
            self._process.poll()  # what has ended is not to stay a zombie
        return self._queue.popleft() if self._on and self._queue and self._told < _TOLD else None

    def _tell(self, place: Place, path: bytes) -> bool:
        try:
            if self._socket is None:
                self._socket = self._start(place)
            self._socket.send(b"/" + path, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True  # it has more than enough to do
        except OSError as exc:
            if exc.errno != errno.EMSGSIZE:
                self._give_up(exc.strerror)
            return self._on
        self._told += 1
        return True

    def _give_up(self, reason: str | None) -> None:
        _log.info("no directory is listed in advance any more: %s", reason)
        self._on = False
        self.pid = _NOBODY
        self._queue.clear()

    def _start(self, place: Place) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            program = [sys.executable, "-I", "-S", "-B", lister.__file__]
            try:
                self._process = subprocess.Popen(
                    [*program, str(number), os.fsdecode(place.target), place.device],
                    pass_fds=(number,),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={name: os.environ[name] for name in _KEPT if name in os.environ},
                )
            except OSError:
                ours.close()
                raise
        self.pid = self._process.pid
        return ours

    # -- the end -----------------------------------------------------------------------

    def stop(self) -> None:
        """End the process, which may still wait for an answer; `thread` must have ended."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()

    def wait(self) -> None:
        """Reap the process, if it ends soon; the mount's connection must have."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_MOMENT)
