"""A process of its own that lists directories of a mount: `python lister.py FD TARGET DEVICE`.

See `unionfs.fuse.scout`. It is told directories over the socket FD, relative to TARGET, and sends
a byte back when it is done with one. It imports nothing of the package, so that it starts at once.

Invariant: it never leaves the mount (device number DEVICE), follows no symbolic link, and has a
directory open only while it lists it. It ends when its socket does.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_MAX: Final = 1 << 16


def list_directory(target: bytes, path: bytes, device: int) -> None:
    """Take in a directory's names; OSError when that is not to be."""
    with contextlib.ExitStack() as stack:
        fd = os.open(target, _STEP)
        stack.callback(os.close, fd)
        for name in filter(None, path.split(b"/")):
            fd = os.open(name, _STEP, dir_fd=fd)
            stack.callback(os.close, fd)
        if os.fstat(fd).st_dev == device:
            fd = os.open(b".", _LIST, dir_fd=fd)
            stack.callback(os.close, fd)
            with os.scandir(fd) as entries:
                for _ in entries:
                    pass


def main(arguments: list[str]) -> None:
    """Obey until the socket ends."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as comm:
        comm.write(b"unionfs-lister")
    fd, target, device = int(arguments[0]), os.fsencode(arguments[1]), int(arguments[2])
    while message := os.read(fd, _PATH_MAX):
        with contextlib.suppress(OSError):
            list_directory(target, message[1:], device)
        os.write(fd, b".")


if __name__ == "__main__":
    with contextlib.suppress(OSError, KeyboardInterrupt):
        main(sys.argv[1:])
