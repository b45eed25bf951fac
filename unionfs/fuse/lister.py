"""A process of its own that lists directories of a mount: `python lister.py FD TARGET DEVICE`.

See `unionfs.fuse.scout`. It is told directories over the socket FD, relative to TARGET, and sends
a byte back when it is done with one. It imports nothing of the package, so that it starts at once.

Invariant: it never asks another filesystem for anything, follows no symbolic link, and has a
directory open only while it lists it. It ends when its socket does.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

NAME: Final = "unionfs-lister"

_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MESSAGE_MAX: Final = 1 << 16


def _mount_id(fd: int) -> bytes:
    """Return the number of the mount that an O_PATH descriptor lies in; asks no filesystem."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return line.split()[1]
    return b""


def _is_of(mount_id: bytes, device: bytes) -> bool:
    """Tell whether a mount shows the device MAJOR:MINOR (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", "rb") as file:
        return any(line.split(b" ", 3)[:3:2] == [mount_id, device] for line in file)


def _runs_from(device: bytes) -> bool:
    """Tell whether this very program lies on a device: it would keep it from being unmounted."""
    major, _, minor = device.partition(b":")
    wanted = b"%02x:%02x" % (int(major), int(minor))
    with open("/proc/self/maps", "rb") as file:
        return any(line.split(None, 4)[3] == wanted for line in file)


class Lister:
    """Lists directories of the mount of `device` on `target`."""

    def __init__(self, target: bytes, device: bytes) -> None:
        self._target = target
        self._device = device
        self._mount_id = b""

    def list(self, path: bytes) -> None:
        """Take in a directory's names; OSError when that is not to be."""
        with contextlib.ExitStack() as stack:
            fd = os.open(self._target, _STEP)
            stack.callback(os.close, fd)
            here = _mount_id(fd)
            if here != self._mount_id:
                if not _is_of(here, self._device):
                    return  # covered by another mount, moved or gone
                self._mount_id = here
            for name in filter(None, path.split(b"/")):
                fd = os.open(name, _STEP, dir_fd=fd)
                stack.callback(os.close, fd)
                if _mount_id(fd) != here:
                    return
            fd = os.open(b".", _LIST, dir_fd=fd)
            stack.callback(os.close, fd)
            with os.scandir(fd) as entries:
                for _ in entries:
                    pass


def main(arguments: list[str]) -> None:
    """Obey until the socket ends."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as comm:
        comm.write(NAME.encode())
    fd, target, device = int(arguments[0]), os.fsencode(arguments[1]), arguments[2].encode()
    if _runs_from(device):
        return
    lister = Lister(target, device)
    while message := os.read(fd, _MESSAGE_MAX):
        with contextlib.suppress(OSError):
            lister.list(message[1:])
        os.write(fd, b".")


if __name__ == "__main__":
    with contextlib.suppress(OSError, KeyboardInterrupt):
        main(sys.argv[1:])
