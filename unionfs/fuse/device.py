"""Opening /dev/fuse and mounting it: the only place that does either.

Two ways give the same thing, an open device that a session can serve: mount(2) where
the caller may (root, or root of a user namespace), else the set-uid helper fusermount3,
which mounts for us and passes the descriptor back over a socket.

Invariant: `mount_device()` returns a mounted close-on-exec descriptor, or raises one
clear error and leaves nothing mounted.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import shutil
import socket
import subprocess
from typing import Final

from unionfs import _sys
from unionfs.errors import (
    BusyError,
    NotFoundError,
    UnionfsError,
    UnsupportedError,
    UsageError,
    show,
)
from unionfs.fuse.options import MountOptions

__all__ = ["DEVICE", "READ_AHEAD", "mount_device", "unmount", "widen_read_ahead"]

DEVICE: Final = "/dev/fuse"
#: Bytes: as much as one READ carries.
READ_AHEAD: Final = 1 << 20
_UMOUNT_NOFOLLOW: Final = 0x8
_NO_RIGHT: Final = (errno.EPERM, errno.EACCES)
_HELPER_DIRECTORIES: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def mount_device(target: bytes, options: MountOptions) -> int:
    """Mount a FUSE device on the directory `target` (absolute) and return its descriptor.

    `options` must be settled. Raises `UnsupportedError` when the machine does not let the
    caller mount, `UsageError` when this target or these options are the reason.
    """
    fd = _open_device()
    try:
        return _mount_directly(fd, target, options)
    except OSError as exc:
        os.close(fd)
        if exc.errno not in _NO_RIGHT:
            raise _explain(exc, target) from exc
    except BaseException:
        os.close(fd)
        raise
    return _mount_with_helper(target, options)


def widen_read_ahead(device: str) -> None:
    """Let the kernel read so far ahead in files of the mount `MAJOR:MINOR`; only root may.

    To be called before INIT is answered, which sets the smaller one of this and its own.
    """
    with (
        contextlib.suppress(OSError),
        open(f"/sys/class/bdi/{device}/read_ahead_kb", "w", encoding="ascii") as file,
    ):
        file.write(str(READ_AHEAD >> 10))


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise UnsupportedError(
            f"there is no {DEVICE}: load the module (modprobe fuse), or give the container "
            f"the device (--device {DEVICE})"
        ) from exc
    except PermissionError as exc:
        raise UnsupportedError(
            f"no right to open {DEVICE}: have root set its usual mode (chmod 666 {DEVICE})"
        ) from exc
    except OSError as exc:
        raise UnsupportedError(
            f"cannot open {DEVICE}: {exc.strerror}; load the module (modprobe fuse)"
        ) from exc


def _mount_directly(fd: int, target: bytes, options: MountOptions) -> int:
    words = [
        f"fd={fd}",
        "rootmode=40000",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
    ]
    if options.default_permissions:
        words.append("default_permissions")
    if options.allow_other:
        words.append("allow_other")
    _sys.mount(
        options.fsname.encode(),
        target,
        f"fuse.{options.subtype}".encode(),
        options.mount_flags(),
        ",".join(words).encode(),
    )
    return fd


def _explain(exc: OSError, target: bytes) -> UnionfsError:
    reason = exc.strerror or str(exc)
    if exc.errno in (errno.ENODEV, errno.ENOTBLK):
        return UnsupportedError("this kernel has no FUSE: load the module (modprobe fuse)")
    if exc.errno == errno.ENOTDIR:
        return UsageError(f"{show(target)} is not a directory; a union is mounted on one")
    if exc.errno == errno.ENOENT:
        return UsageError(f"{show(target)} does not exist; make the directory first")
    if exc.errno == errno.ENOTCONN:
        return BusyError(
            f"a dead mount lies on {show(target)}; run `unionfs umount {show(target)}` first"
        )
    if exc.errno == errno.EINVAL:
        return UnsupportedError(f"the kernel refuses these mount options on {show(target)}")
    return UnsupportedError(f"cannot mount on {show(target)}: {reason}")


def _helper() -> str:
    path = shutil.which("fusermount3") or shutil.which("fusermount3", path=_HELPER_DIRECTORIES)
    if path is None:
        raise UnsupportedError(
            "mounting without root needs fusermount3: install the package fuse3, "
            "or mount inside `unshare --user --map-root-user --mount`"
        )
    return path


def _mount_with_helper(target: bytes, options: MountOptions) -> int:
    """Let fusermount3 mount (protocol: libfuse's _FUSE_COMMFD, SCM_RIGHTS)."""
    if not options.nosuid or not options.nodev:
        raise UsageError("options suid and dev need root")
    helper = _helper()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        result = subprocess.Popen(
            [helper, "-o", options.helper_options(), "--", target],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
        )
        theirs.close()
        with result:
            fd = _receive(ours)
            _, complaint = result.communicate()
    if fd is None:
        raise _explain_helper(complaint.decode("utf-8", "replace"), target)
    if result.returncode:
        os.close(fd)
        raise _explain_helper(complaint.decode("utf-8", "replace"), target)
    return fd


def _receive(ours: socket.socket) -> int | None:
    """Return the descriptor the helper sends; None when it ends without one."""
    room = socket.CMSG_LEN(array.array("i").itemsize)
    _, control, _, _ = ours.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: numbers.itemsize])
            return numbers[0]
    return None


def _explain_helper(complaint: str, target: bytes) -> UnionfsError:
    line = complaint.strip().splitlines()[-1] if complaint.strip() else "no reason given"
    line = show(line.removeprefix("fusermount3: "))
    if "user_allow_other" in line:
        return UnsupportedError(
            "option allow_other needs a line user_allow_other in /etc/fuse.conf (root can add it)"
        )
    if "no write access" in line or "not owned" in line:
        return UsageError(
            f"mounting on {show(target)} needs a directory of your own: it is not writable for you"
        )
    if "is not a directory" in line:
        return UsageError(f"{show(target)} is not a directory; a union is mounted on one")
    if "Operation not permitted" in line:
        return UnsupportedError(
            "fusermount3 may not mount here (not set-uid root, or a container forbids it): "
            "try inside `unshare --user --map-root-user --mount`"
        )
    if "too many" in line:
        return UnsupportedError(f"fusermount3: {line}: see mount_max in /etc/fuse.conf")
    return UnsupportedError(f"fusermount3 cannot mount on {show(target)}: {line}")


def unmount(target: bytes, *, lazy: bool = False) -> None:
    """Unmount what lies on `target` (absolute, not followed); `lazy` detaches it if in use.

    Works on a dead mount too. BusyError when in use, NotFoundError when nothing is mounted.
    """
    try:
        _sys.umount(target, _UMOUNT_NOFOLLOW | (_sys.MNT_DETACH if lazy else 0))
    except OSError as exc:
        if exc.errno not in _NO_RIGHT:
            raise _explain_unmount(exc, target) from exc
    else:
        return
    _unmount_with_helper(target, lazy=lazy)


def _explain_unmount(exc: OSError, target: bytes) -> UnionfsError:
    if exc.errno == errno.EBUSY:
        return BusyError(f"{show(target)} is in use; stop the users or unmount with --lazy")
    if exc.errno in (errno.EINVAL, errno.ENOENT):
        return NotFoundError(f"nothing is mounted on {show(target)}")
    return UnionfsError(f"cannot unmount {show(target)}: {exc.strerror}")


def _unmount_with_helper(target: bytes, *, lazy: bool) -> None:
    command: list[str | bytes] = [_helper(), "-u", *(["-z"] if lazy else []), "--", target]
    result = subprocess.run(
        command,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        check=False,
    )
    if result.returncode == 0:
        return
    complaint = result.stderr.decode("utf-8", "replace").strip()
    if "busy" in complaint:
        raise BusyError(f"{show(target)} is in use; stop the users or unmount with --lazy")
    if "not found in" in complaint or "Invalid argument" in complaint:
        raise NotFoundError(f"nothing of yours is mounted on {show(target)}")
    with contextlib.suppress(IndexError):
        complaint = complaint.splitlines()[-1]
    raise UnionfsError(f"cannot unmount {show(target)}: {show(complaint)}")
