"""What somebody asks to be mounted, and everything that speaks against it.

Invariant: `check()` changes nothing; what it lets pass can still fail (the machine may
refuse), but never because of how the directories lie to each other.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

import attrs

from unionfs.errors import BusyError, ConflictError, NotFoundError, UsageError, show
from unionfs.fuse.options import MountOptions
from unionfs.fuse.registry import mount_table

__all__ = ["BACKENDS", "MountRequest", "canonical", "check", "is_dead"]

#: What may be asked for: a union, or the fastest of them.
BACKENDS: Final = ("auto", "aufs", "overlay", "fuse")
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)


@attrs.frozen
class MountRequest:
    """A mount to make. File names are absolute or relative to the current directory.

    `layers` are directories in AUFS form, top first. `rw` is the writable branch (made if
    missing); `ephemeral` asks for a throw-away one, made in `scratch` (default: the user's
    data directory). `hold` are image directories to keep a shared lock on. `force` allows a
    target that is not empty. `ready_fd` gets `s` when the mount works, else `f`. `backend` is
    one of `BACKENDS`; `cached` tells that the layers are a store's, which may keep beside them
    what overlayfs needs.
    """

    target: bytes
    layers: tuple[bytes, ...]
    rw: bytes | None = None
    ephemeral: bool = False
    options: MountOptions = attrs.field(factory=MountOptions)
    option_text: tuple[str, ...] = ()
    image_id: str | None = None
    image_name: str | None = None
    hold: tuple[bytes, ...] = ()
    scratch: bytes | None = None
    force: bool = False
    ready_fd: int | None = None
    backend: str = "fuse"
    cached: bool = False


def canonical(path: bytes) -> bytes:
    """Return the absolute path without links; works for the target of a dead mount too."""
    return os.path.realpath(path)


def is_dead(target: bytes) -> bool:
    """Tell whether the mount on `target` has lost its daemon.

    statvfs(2) asks the daemon every time; stat(2) may be answered from the kernel's cache.
    """
    try:
        os.statvfs(target)
    except OSError as exc:
        return exc.errno in _DEAD
    return False


def _place(path: bytes) -> tuple[int, int] | None:
    try:
        st = os.stat(path)
    except OSError:
        return None
    return st.st_dev, st.st_ino


def _ancestors(path: bytes) -> Iterator[tuple[int, int]]:
    """Yield (device, inode) of `path`, if it exists, and of every directory above it."""
    while True:
        place = _place(path)
        if place is not None:
            yield place
        parent = os.path.dirname(path)
        if parent == path:
            return
        path = parent


def _inside(path: bytes, outer: bytes) -> bool:
    """Tell whether `path` is `outer` or lies under it, by identity and not by name."""
    place = _place(outer)
    return place is not None and place in _ancestors(path)


def check(request: MountRequest) -> MountRequest:
    """Return the request with canonical paths, or raise the reason why it cannot be done."""
    if not request.layers:
        raise UsageError("a mount needs at least one layer")
    if request.backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise UsageError(f"unknown back end {show(request.backend)}; known are {known}")
    if request.rw is not None and request.ephemeral:
        raise UsageError("--rw and --ephemeral exclude each other")
    writable = request.ephemeral or (request.rw is not None and not request.options.read_only)
    if writable and request.options.show_whiteouts:
        raise UsageError("whiteouts show in read-only mounts only: add `-o ro`, or leave out --rw")
    target = _check_target(request)
    layers = tuple(canonical(layer) for layer in request.layers)
    for layer in layers:
        if not os.path.isdir(layer):
            raise NotFoundError(f"layer {show(layer)} is not a directory")
        if _inside(target, layer):
            raise UsageError(
                f"target {show(target)} lies in the layer {show(layer)}, which must not change"
            )
        if _inside(layer, target):
            raise UsageError(f"layer {show(layer)} would disappear under the target {show(target)}")
    rw = None if request.rw is None else canonical(request.rw)
    if rw is not None:
        _check_rw(rw, target, layers)
    scratch = None if request.scratch is None else canonical(request.scratch)
    return attrs.evolve(
        request,
        target=target,
        layers=layers,
        rw=rw,
        scratch=scratch,
        hold=tuple(canonical(path) for path in request.hold),
    )


def _check_target(request: MountRequest) -> bytes:
    target = canonical(request.target)
    name = show(target)
    mounted = [entry for entry in mount_table() if entry.target == target]
    ours = f"fuse.{request.options.subtype}"
    if mounted and (mounted[-1].fstype == ours or mounted[-1].is_kernel_union):
        what = "a dead union lies" if is_dead(target) else "a union is mounted"
        raise ConflictError(f"{what} on {name} already; `unionfs umount {name}` first")
    try:
        names = os.listdir(target)
    except FileNotFoundError:
        raise UsageError(f"target {name} does not exist; make the directory first") from None
    except NotADirectoryError:
        raise UsageError(f"target {name} is not a directory") from None
    except PermissionError:
        raise UsageError(f"no right to read the target {name}") from None
    except OSError as exc:
        if exc.errno in _DEAD:
            raise BusyError(f"a dead mount lies on {name}; unmount it first") from None
        raise
    if names and not (request.force or request.options.nonempty):
        raise ConflictError(f"target {name} is not empty; --force mounts over its content")
    return target


def _check_rw(rw: bytes, target: bytes, layers: tuple[bytes, ...]) -> None:
    name = show(rw)
    if os.path.lexists(rw) and not os.path.isdir(rw):
        raise UsageError(f"writable branch {name} is not a directory")
    if not os.path.isdir(os.path.dirname(rw)):
        raise UsageError(f"writable branch {name}: {show(os.path.dirname(rw))} does not exist")
    for layer in layers:
        if _inside(rw, layer):
            raise UsageError(
                f"writable branch {name} lies in the layer {show(layer)}, which must not change"
            )
        if _inside(layer, rw):
            raise UsageError(f"layer {show(layer)} lies in the writable branch {name}")
    if _inside(rw, target):
        raise UsageError(f"writable branch {name} would disappear under the target {show(target)}")
    if _inside(target, rw):
        raise UsageError(f"target {show(target)} lies in the writable branch {name}")
