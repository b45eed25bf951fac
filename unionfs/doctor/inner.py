"""What works inside a user namespace, tried by a child process that enters one.

Run as `python -m unionfs.doctor.inner DIRECTORY`; prints one JSON object.

Invariant: all mounts are made in a mount namespace that ends with the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable
from typing import Any

from unionfs import _sys
from unionfs.doctor.checks import scratch
from unionfs.doctor.handshake import read_init
from unionfs.errors import UnionfsError
from unionfs.run import namespaces

__all__ = ["examine"]


def _try(action: Callable[[bytes], Any], place: bytes) -> dict[str, Any]:
    try:
        return {"ok": True, "result": action(place)}
    except UnionfsError as exc:
        return {"ok": False, "why": str(exc)}
    except OSError as exc:
        return {"ok": False, "why": exc.strerror or str(exc)}


def _whiteout_device(place: bytes) -> None:
    os.mknod(place + b"/whiteout", stat.S_IFCHR, os.makedev(0, 0))
    made = os.stat(place + b"/whiteout", follow_symlinks=False)
    if not stat.S_ISCHR(made.st_mode) or made.st_rdev != 0:
        raise OSError(0, "it was made, but it is not a device 0/0")


def _in_child(action: Callable[[], None]) -> None:
    """Run `action` as process 1 of a new process namespace."""
    _sys.unshare(_sys.CLONE_NEWPID)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except OSError as exc:
            os.write(writing, (exc.strerror or str(exc)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    if said:
        raise OSError(0, said)


def examine(directory: bytes) -> dict[str, Any]:
    """Enter the namespaces and return what worked; this process stays in them."""
    try:
        mapping = namespaces.enter()
    except UnionfsError as exc:
        return {"entered": False, "why": str(exc)}
    found: dict[str, Any] = {"entered": True, "single": mapping.single, "why": mapping.note}
    with scratch(directory) as place:
        found["whiteout_device"] = _try(_whiteout_device, place)
        os.mkdir(place + b"/mnt")
        try:
            _sys.unshare(_sys.CLONE_NEWNS)
            _sys.mount(b"none", b"/", b"", _sys.MS_REC | _sys.MS_PRIVATE, b"")
        except OSError as exc:
            found["mount_namespace"] = {"ok": False, "why": exc.strerror}
            return found
        found["mount_namespace"] = {"ok": True}
        found["fuse"] = _try(read_init, place + b"/mnt")
        target = place + b"/mnt"

        def mount_proc() -> None:
            _sys.mount(b"proc", target, b"proc", _sys.MS_NOSUID, b"")
            _sys.umount(target)

        found["proc"] = _try(lambda _: _in_child(mount_proc), place)
    return found


def _main() -> None:
    found = examine(os.fsencode(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _main()
