"""The process beside a kernel mount: it holds the locks and tidies up when the mount ends.

A kernel union needs no daemon to work, but somebody must hold the rw branch's lock while it
is mounted and bring the branch back into AUFS form afterwards, however it was unmounted.

Invariant: when `keep` returns normally the mount is gone and finished; a killed keeper
leaves a branch that `settle_branch` finishes at its next use.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from typing import Final

from unionfs.errors import BusyError
from unionfs.kernel.mounted import KernelMount

__all__ = ["keep"]

#: Milliseconds between looks at a mount that is unmounted here but still in use elsewhere;
#: a look costs time, so they become rarer.
_RETRY: Final = 500
_RETRY_MAX: Final = 15_000
_RARER: Final = 1.2


def keep(mount: KernelMount, on_ready: Callable[[], object]) -> None:
    """Wait until the mount is gone or SIGTERM, SIGINT or SIGHUP arrives, and finish it.

    A signal unmounts; while files are open in it the mount is detached and finished as soon
    as the last user is gone. `on_ready` is called once signals are understood. Call it in the
    main thread.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    before = {number: signal.signal(number, lambda *_: None) for number in wanted}
    previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    poller = select.poll()
    poller.register(table, select.POLLERR | select.POLLPRI)
    poller.register(reading, select.POLLIN)
    try:
        on_ready()
        while mount.mounted:
            events = dict(poller.poll())
            if reading in events:
                os.read(reading, 1)
                _end(mount)
        poller.unregister(reading)  # a signal says nothing new now
        _finish(mount, poller)
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        for fd in (table, reading, writing):
            os.close(fd)


def _end(mount: KernelMount) -> None:
    mount.before_unmount()
    mount.detach()


def _finish(mount: KernelMount, poller: select.poll) -> None:
    pause = float(_RETRY)
    while True:
        try:
            mount.finish()
        except BusyError:
            poller.poll(pause)
            pause = min(pause * _RARER, _RETRY_MAX)
        else:
            return
