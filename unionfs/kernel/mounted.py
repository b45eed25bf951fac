"""What a kernel union is asked to mount, and the mount as something to end properly.

Invariant: `KernelMount.finish` leaves no directory of ours behind and the rw branch in AUFS
form; it may be called again after a failure, and by another process than the one that
mounted (`settle` of the branch does the rest).
"""

from __future__ import annotations

import abc
import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

import attrs

from unionfs import _sys
from unionfs.errors import BusyError, show
from unionfs.kernel import convert
from unionfs.kernel.plinks import flush_pseudo_links, refuse_live_branch
from unionfs.union import Engine, EngineOptions

__all__ = [
    "KernelMount",
    "KernelRequest",
    "Layer",
    "mounts_on",
    "ready_branch",
    "settle_branch",
]


@attrs.frozen
class Layer:
    """A read-only branch: its absolute path, and where its shims may be kept for ever.

    `shims` is a directory to be made beside the layer (in a store `graph/<id>/shims`), or None
    for a directory that is not ours: its shims live as long as the mount.
    """

    path: bytes
    shims: bytes | None = None


@attrs.frozen
class KernelRequest:
    """A mount to make: absolute paths, `layers` top first, `target` an existing directory.

    `scratch` is where temporary directories may be made (the runtime directory). `flags` are
    MS_NOSUID, MS_NODEV and MS_NOEXEC bits. `faithful` refuses layers whose recorded owners
    and modes the kernel would show otherwise; without it they are only listed as losses.
    `root_mode` replaces a top layer's root mode of 0700 (old stores), None keeps it.
    """

    layers: tuple[Layer, ...]
    target: bytes
    scratch: bytes
    rw: bytes | None = None
    flags: int = 0
    faithful: bool = True
    root_mode: int | None = None


def mounts_on(target: bytes | None = None) -> list[tuple[bytes, bytes, bytes]]:
    """Return (mount id, device, type) of what is mounted on `target`, topmost last (None: all)."""
    found = []
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split(b" ")
            if target is None or _unescape(fields[4]) == target:
                found.append((fields[0], fields[2], fields[fields.index(b"-") + 1]))
    return found


def _unescape(field: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field


def _lock(rw: bytes) -> int:
    fd = os.open(rw, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(fd)
        if isinstance(exc, BlockingIOError):
            raise BusyError(
                f"writable branch {show(rw)} is in use by another mount; unmount that first"
            ) from exc
        raise
    return fd


def settle_branch(rw: bytes) -> None:
    """Bring a rw branch that overlayfs had into AUFS form, if need be. BusyError while in use."""
    fd = _lock(rw)
    try:
        refuse_live_branch(rw)
        convert.settle(rw)
        flush_pseudo_links(rw, {})
    finally:
        os.close(fd)


@contextlib.contextmanager
def ready_branch(request: KernelRequest, rw: bytes) -> Iterator[contextlib.ExitStack]:
    """Make a rw branch ready and lock it; the caller may keep the lock with `pop_all()`.

    Our own engine opens it first, so that a journal left by a crash is replayed and a new
    branch gets its root attributes and ownership marks as under FUSE. BusyError.
    """
    settle_branch(rw)
    layers = [layer.path for layer in request.layers]
    options = EngineOptions(root_mode_fallback=request.root_mode)
    Engine.start(layers, rw, options=options).close()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, _lock(rw))
        yield stack


class KernelMount(abc.ABC):
    """A live kernel mount. Keep the object: it holds the lock of the rw branch."""

    backend: str
    fstype: bytes

    def __init__(self, request: KernelRequest, held: contextlib.ExitStack) -> None:
        self.request = request
        self.losses: tuple[str, ...] = ()
        self._identity: tuple[bytes, bytes, bytes] | None = None
        self._held = held

    @property
    def mounted(self) -> bool:
        """Whether the mount still exists in the present mount namespace, wherever it is now."""
        return self._identity is not None and self._identity in mounts_on()

    @property
    def device(self) -> str:
        """The `MAJOR:MINOR` of the mount in mountinfo; empty before it is mounted."""
        return "" if self._identity is None else self._identity[1].decode()

    @property
    def temporary(self) -> bytes | None:
        """The directory that `finish` removes, if there is one."""
        return None

    def recognise(self) -> None:
        """Remember which mount is ours; called right after mounting."""
        found = [item for item in mounts_on(self.request.target) if item[2] == self.fstype]
        self._identity = found[-1] if found else None

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount and bring everything in order; BusyError while files are open in it.

        `lazy` detaches it all the same; `finish` then raises BusyError until they are closed.
        """
        if self.mounted:
            self.before_unmount()
            if lazy:
                self.detach()
            else:
                self._unmount_now()
        self.finish()

    def _unmount_now(self) -> None:
        try:
            _sys.umount(self.request.target)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                raise BusyError(f"{show(self.request.target)} is in use") from exc
            raise

    def detach(self) -> None:
        """Take the mount away at once; who still uses it may finish. Then call `finish`."""
        try:
            self._unmount_now()
        except BusyError:
            _sys.umount(self.request.target, _sys.MNT_DETACH)

    def before_unmount(self) -> None:
        """Do what only works while it is mounted; nothing unless a back end needs it."""
        return

    @abc.abstractmethod
    def finish(self) -> None:
        """Bring the rw branch into AUFS form, remove our directories, release the lock.

        BusyError while the mount lives on in another namespace or through open files.
        """

    def release(self) -> None:
        """Give up the lock without finishing (the branch is settled at its next use)."""
        self._held.close()
