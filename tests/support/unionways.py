"""One way to say "mount this" for every back end and every right to mount.

The FUSE union is what `unionfs run` serves: the kernel's device mounted here, the engine and
its adapter in a process of its own.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

import pytest

from support.kernelways import require_way
from unionfs import _sys
from unionfs.errors import UnsupportedError
from unionfs.fuse.device import mount_device
from unionfs.fuse.lent import serve_lent
from unionfs.fuse.options import MountOptions
from unionfs.kernel import aufs, convert, plinks
from unionfs.kernel.aufs_union import mount_aufs
from unionfs.kernel.mounted import KernelRequest
from unionfs.kernel.overlay_union import mount_overlay

__all__ = [
    "UNION_WAYS",
    "Mounted",
    "backend_of",
    "complete",
    "mount_way",
    "require_union",
    "rights_of",
]

#: Back end and, in a user namespace, the word `userns`.
UNION_WAYS: Final = ("fuse", "fuse-userns", "overlay", "overlay-userns", "aufs")


class Mounted(Protocol):
    """A union that is mounted on its request's target."""

    def unmount(self) -> None:
        """Take it away; the rw branch is in its form on disk then."""


class _Served:
    """A FUSE union."""

    def __init__(self, request: KernelRequest) -> None:
        self._target = request.target
        wanted = MountOptions(allow_other=True, default_permissions=True)
        options = wanted.settled(uid=os.geteuid(), writable=request.rw is not None)
        layers = tuple(layer.path for layer in request.layers)
        ready, told = os.pipe()
        device = mount_device(request.target, options)
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(ready)

                def opened() -> int:
                    os.close(told)
                    return device

                serve_lent(layers, request.rw, options, opened)
                status = 0
            finally:
                os._exit(status)
        os.close(told)
        os.close(device)
        os.read(ready, 1)
        os.close(ready)

    def unmount(self) -> None:
        _sys.umount(self._target)
        assert os.waitpid(self._pid, 0)[1] == 0, "the server failed"


def backend_of(way: str) -> str:
    """Return the name of the back end."""
    return way.partition("-")[0]


def rights_of(way: str) -> str:
    """Return the way of `support.kernelways` in which it is mounted."""
    return "userns" if way.endswith("-userns") else "root"


def require_union(way: str, place: bytes) -> None:
    """Skip the test, with the reason, where this way is closed."""
    require_way(rights_of(way))
    if backend_of(way) == "aufs":
        try:
            aufs.probe_features(place)
        except UnsupportedError as exc:
            pytest.skip(str(exc))
    elif backend_of(way) == "fuse" and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse for everybody (make test sees to it)")


def mount_way(way: str, request: KernelRequest) -> Mounted:
    """Mount with the rights that the caller has."""
    if backend_of(way) == "fuse":
        return _Served(request)
    return mount_overlay(request) if backend_of(way) == "overlay" else mount_aufs(request)


def complete(way: str, request: KernelRequest) -> None:
    """Let the live union write down every name of the files it has copied, as `changes` does."""
    if request.rw is None:
        return
    if backend_of(way) == "overlay":
        plinks.touch_paths(request.target, convert.pending_names(request.rw))
    elif backend_of(way) == "aufs":
        plinks.touch_names(request.target, plinks.pseudo_links(request.rw))
