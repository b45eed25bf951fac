"""The temporary directory of a kernel mount: who uses it, and what a killed process left.

Shims of layers that are not in a store live there. Taken away from a mount that programs still
use, they would bring deleted files back, so a mount that was detached keeps its directory
until nobody can be seen using it.

Invariant: `sweep` removes only directories that `Scratch.make` made, that no living process
holds, no record names and no mount shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from unionfs import _sys, mountinfo
from unionfs.branch.branch import proc_path
from unionfs.errors import UnsupportedError, show
from unionfs.kernel import liveness, trees
from unionfs.kernel.survey import Kind

__all__ = ["Scratch", "can_hold_shims", "in_use", "sweep"]

_PROBE: Final = b".unionfs-probe-"
_PREFIX: Final = b"overlay-"
_NAME: Final = re.compile(rb"overlay-[0-9a-f]{16}")
#: A symbolic link `MAJOR:MINOR BOOT-ID` that says which mount uses the directory.
_MOUNT: Final = b"mount"
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
    """A temporary directory of one mount, made in the first place that can hold shims.

    It is locked as long as the object is open, also in processes forked meanwhile.
    """

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._lock = os.open(path, _FLAGS)
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits for a sweeper that just looks at it

    @classmethod
    def make(cls, candidates: Sequence[bytes], kind: Kind) -> Scratch:
        """Make one; UnsupportedError when no candidate fits."""
        for directory in candidates:
            if can_hold_shims(directory, kind):
                path = directory + b"/" + _PREFIX + secrets.token_hex(8).encode()
                os.mkdir(path, 0o700)
                return cls(path)
        shown = ", ".join(show(directory) for directory in candidates)
        raise UnsupportedError(
            f"overlay: none of {shown} can hold whiteout devices and {kind.value}.* attributes;"
            " set TMPDIR to a directory on ext4, xfs or btrfs"
        )

    def note(self, device: str) -> None:
        """Write down which mount uses it, for a time when it shows in no table any more."""
        os.symlink(f"{device} {liveness.boot_id()}", self.path + b"/" + _MOUNT)

    def close(self) -> None:
        """Give up the lock and leave the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> None:
        """Remove it with all below; absent is fine."""
        _remove(self.path)
        self.close()


def _remove(path: bytes) -> None:
    parent, name = os.path.split(path)
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            trees.remove_tree(fd, name)
        finally:
            os.close(fd)


def in_use(path: bytes) -> bool:
    """Tell whether a mount over the scratch directory `path` can be seen to live on.

    It does while a mount table shows it, or a process has something of it open, though it is
    mounted nowhere. A program that only has a file mapped needs no names any more.
    """
    try:
        device, boot = os.readlink(path + b"/" + _MOUNT).decode().split(" ")
    except (OSError, ValueError):
        device, boot = "", liveness.boot_id()
    if boot != liveness.boot_id():
        return False
    name = os.path.basename(path)
    if any(union.device == device or name in union.options for union in mountinfo.kernel_unions()):
        return True
    return bool(device) and any(number == device for number in _open_devices())


def _open_devices() -> Iterator[str]:
    """Yield the `MAJOR:MINOR` of whatever the visible processes have open."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        links = [f"/proc/{process}/{name}" for name in ("cwd", "root", "exe")]
        with contextlib.suppress(OSError):
            links += [f"/proc/{process}/fd/{fd}" for fd in os.listdir(f"/proc/{process}/fd")]
        for link in links:
            with contextlib.suppress(OSError):
                major, minor = _sys.device_of(link.encode())
                yield f"{major}:{minor}"


def sweep(directory: bytes, named: Collection[bytes]) -> None:
    """Remove what killed processes left in `directory`; `named` are those that records name."""
    try:
        names = [name for name in os.listdir(directory) if _NAME.fullmatch(name)]
    except FileNotFoundError:
        return
    for name in names:
        path = directory + b"/" + name
        if path in named:
            continue
        with contextlib.suppress(OSError):
            fd = os.open(path, _FLAGS)
            try:
                st = os.fstat(fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # One that was made a moment ago and is not yet locked is still empty.
                if st.st_uid == os.geteuid() and os.listdir(fd) and not in_use(path):
                    _remove(path)
            finally:
                os.close(fd)
