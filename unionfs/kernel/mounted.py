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
import secrets
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from unionfs import _sys
from unionfs.branch.branch import proc_path
from unionfs.errors import BusyError, UnsupportedError, show
from unionfs.kernel import convert, trees
from unionfs.kernel.plinks import flush_pseudo_links, refuse_live_branch
from unionfs.kernel.survey import Kind
from unionfs.union import Engine, EngineOptions

__all__ = [
    "KernelMount",
    "KernelRequest",
    "Layer",
    "Scratch",
    "can_hold_shims",
    "mounts_on",
    "ready_branch",
    "settle_branch",
]

_PROBE: Final = b".unionfs-probe-"


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


def can_hold_shims(directory: bytes, kind: Kind) -> bool:
    """Try whether whiteout devices and opaque xattrs can be made in `directory`."""
    name = _PROBE + secrets.token_hex(6).encode()
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.mkdir(name, 0o700, dir_fd=fd)
        attribute = f"{kind.value}.overlay.opaque"
        os.setxattr(proc_path(fd, name), attribute, b"y", follow_symlinks=False)
        os.mknod(name + b"/x", stat.S_IFCHR, os.makedev(0, 0), dir_fd=fd)
        made = os.stat(name + b"/x", dir_fd=fd, follow_symlinks=False)
        # Some shared filesystems turn devices into something else without an error.
        return stat.S_ISCHR(made.st_mode) and made.st_rdev == 0
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            trees.remove_tree(fd, name)
        os.close(fd)


class Scratch:
    """A temporary directory of one mount, made in the first place that can hold shims."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    @classmethod
    def make(cls, candidates: Sequence[bytes], kind: Kind) -> Scratch:
        """Make one; UnsupportedError when no candidate fits."""
        for directory in candidates:
            if can_hold_shims(directory, kind):
                path = directory + b"/overlay-" + secrets.token_hex(8).encode()
                os.mkdir(path, 0o700)
                return cls(path)
        shown = ", ".join(show(directory) for directory in candidates)
        raise UnsupportedError(
            f"overlay: none of {shown} can hold whiteout devices and {kind.value}.* attributes;"
            " set TMPDIR to a directory on ext4, xfs or btrfs"
        )

    def remove(self) -> None:
        """Remove it with all below; absent is fine."""
        parent, name = os.path.split(self.path)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                trees.remove_tree(fd, name)
            finally:
                os.close(fd)


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
        #: Detached while in use: the kernel may go on for a while.
        self.lingering = False
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
            self.lingering = True

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
