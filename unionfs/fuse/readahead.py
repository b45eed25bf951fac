"""Read-ahead across files: contents go into the page cache before they are asked for.

A thread sends the files that `unionfs.fuse.guess` names with NOTIFY_STORE. Only files of
layers are sent, whole, and small ones.

Invariant: the kernel never gets contents that somebody could have made old. In a rw
mount a lower file changes only after a request for it: READ precedes every shared writable
mapping of a page that was not sent, the capability is asked for before the first write(2)
touches the cache (before each, without HANDLE_KILLPRIV_V2), and truncation is a SETATTR. `hold`
is called for each of them before it is
answered. A file that was held or sent is never sent again while the kernel knows it; and one
that is on its way is stopped by taking away the memory it is sent from: the kernel
locks a page first and only then looks at the bytes for it (`fuse_notify_store` in
fs/fuse/dev.c), so that no page can be filled after `hold` has returned, except one whose lock
the sender already has, which nobody else can have changed. Before it comes to the pages the
kernel makes a file as long as what is sent: the answer to a truncation, which sets the size, is
not given before the sending has ended (`wait`).
In a ro mount nothing changes, and nothing is held.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
import threading
import time
from typing import Final

from unionfs import _sys
from unionfs.fuse.background import Background
from unionfs.fuse.guess import Guess
from unionfs.fuse.protocol import NOTIFY_STORE, OUT_HEADER
from unionfs.union import Engine

__all__ = ["ReadAhead"]

_log = logging.getLogger(__name__)
#: Bytes; larger files are left to the kernel's own read-ahead.
_LARGEST: Final = 1 << 17
#: nodeid, offset, size, padding
_STORE: Final = struct.Struct("=QQII")
_HEADER: Final = OUT_HEADER.size + _STORE.size
#: Answers that concern one file: unknown to the kernel, stopped, out of memory.
_LOST: Final = (errno.ENOENT, errno.EFAULT, errno.ENOMEM, errno.EINVAL, errno.EINTR)
#: Files opened at a time.
_BATCH: Final = 16
#: A file is made known by the answer to a listing, which its reader takes in after a moment.
_TRIES: Final = 10
_MOMENT: Final = 100e-6


class ReadAhead:
    """Sends files of `engine` to the kernel over the device `fd`.

    `lock` is the engine's; it is never taken while that of `thread`, which does the sending, is
    held. Until that has ended READ must be answered: it may wait for the lock of a page. With
    `on` false everything is ignored.
    """

    def __init__(
        self, fd: int, engine: Engine, lock: threading.Lock, thread: Background, *, on: bool
    ) -> None:
        self._fd = fd
        self._engine = engine
        self._lock = lock
        self._on = on
        self._writable = on and not engine.read_only
        self._guess = Guess(engine.by_name)
        self._thread = thread
        thread.add("read-ahead across files", self._take, self._send_all)
        #: The sender's own lock.
        self._mine = thread.lock
        self._held: set[int] = set()
        #: Files that may have been opened for sending.
        self._batch: frozenset[int] = frozenset()
        self._sending = 0
        self._stopped = False
        self._room = mmap.mmap(-1, _LARGEST + mmap.PAGESIZE)
        self._view = memoryview(self._room)
        #: Files sent.
        self.sent = 0

    def close(self) -> None:
        """Give back what is sent from; `thread` must have ended."""
        self._view.release()
        self._room.close()

    # -- from the lane's thread --------------------------------------------------------

    def listed(self, directory: int, files: list[int], *, anew: bool) -> None:
        """Note the regular files in a part of a listing."""
        if not self._on:
            return
        with self._mine:
            self._guess.listed(directory, files, anew=anew)
            self._thread.wake()

    def asked(self, directory: int, file: int) -> None:
        """Note that a file's first bytes are asked for; needs the engine's lock."""
        if not self._on:
            return
        with self._mine:
            self._guess.asked(directory, file)
            self._thread.wake()

    def hold(self, file: int) -> bool:
        """Send a file no more, and not the rest of it; tell whether it is still on its way."""
        if not self._writable:
            return False
        with self._mine:
            self._held.add(file)
            if self._sending != file:
                return False
            if not self._stopped:
                _sys.deny_memory(self._room)
                self._stopped = True
            return True

    def wait(self, file: int) -> None:
        """Wait until a file is on its way no longer: for as long as READs take, so in a worker."""
        with self._mine:
            while self._sending == file:
                self._mine.wait()

    def forget(self, ino: int) -> None:
        """Drop what is known of a file or directory that the kernel knows no longer."""
        with self._mine:
            if ino not in self._batch:  # else what was read of it might be sent to it as it is next
                self._held.discard(ino)
            self._guess.forget(ino)

    # -- the thread --------------------------------------------------------------------

    def _take(self) -> list[int] | None:
        files = self._guess.take(_BATCH)
        self._batch = frozenset(files)
        return [file for file in files if file not in self._held] if files else None

    def _send_all(self, files: list[int]) -> bool:
        with self._lock:
            opened = self._engine.open_layer_files(files)
        going = True
        for file, fd in opened:
            try:
                # One byte more than is sent: what fills it all is too large.
                size = os.readv(fd, [self._room]) if going else 0
            except OSError:
                size = 0  # whoever reads the file will be told
            finally:
                os.close(fd)
            if 0 < size <= _LARGEST:
                going = self._send(file, size)
        return going

    def _send(self, file: int, size: int) -> bool:
        if not self._writable:
            return self._store(file, size)
        with self._mine:
            if file in self._held:
                return True
            self._held.add(file)
            self._sending = file
        try:
            return self._store(file, size)
        finally:
            with self._mine:
                self._sending = 0
                self._mine.notify_all()
                if self._stopped:
                    _sys.allow_memory(self._room)
                    self._stopped = False

    def _store(self, file: int, size: int) -> bool:
        """Have the kernel take a file's contents; tell whether it takes more."""
        header = OUT_HEADER.pack(_HEADER + size, NOTIFY_STORE, 0) + _STORE.pack(file, 0, size, 0)
        for _ in range(_TRIES):
            try:
                os.writev(self._fd, (header, self._view[:size]))
            except FileNotFoundError:
                time.sleep(_MOMENT)
            except OSError as exc:
                if exc.errno not in _LOST:
                    _log.info("read-ahead across files ends: %s", exc.strerror)
                    return False
                return True
            else:
                self.sent += 1
                return True
        with self._mine:
            self._guess.stop()  # its reader does not go through the listing
        return True
