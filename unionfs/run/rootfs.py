"""Making a union the root of a mount namespace: /dev, /proc, /sys and pivot_root.

Invariant: nothing is mounted outside the union, whatever links the image holds: fixed
places are opened without following links, others with the union as the root of every
link, and mounts go onto the opened descriptor. Afterwards no mount of the host is
reachable but those that `build()` put in on purpose.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from unionfs import _sys
from unionfs.closing import opened
from unionfs.errors import UnionfsError, show

__all__ = ["Plan", "build"]

_MS_NOEXEC: Final = 0x8
_MS_MOVE: Final = 0x2000
_SAFE: Final = _sys.MS_NOSUID | _sys.MS_NODEV | _MS_NOEXEC
_DEVICES: Final = (b"null", b"zero", b"full", b"random", b"urandom", b"tty")
_LINKS: Final = {
    b"fd": b"/proc/self/fd",
    b"stdin": b"/proc/self/fd/0",
    b"stdout": b"/proc/self/fd/1",
    b"stderr": b"/proc/self/fd/2",
    b"ptmx": b"pts/ptmx",
}
#: As in the OCI runtime specification: switches of the whole machine that root must not turn.
_READ_ONLY: Final = (b"bus", b"fs", b"irq", b"sys", b"sysrq-trigger")
_MASKED: Final = (b"kcore", b"keys", b"latency_stats", b"timer_list", b"sched_debug")
_SCRATCH: Final = (
    (b"/tmp", b"1777"),
    (b"/run", b"755"),
    (b"/var/tmp", b"1777"),
)  # inside


@attrs.frozen
class Plan:
    """How the root is to be built.

    `read_only` roots get memory file systems at /tmp, /run and /var/tmp. `throw_away` roots
    may be given missing files. `own_network` tells that there is a network namespace;
    `host_root` that root in here is root of the machine. `terminal` is the path of the
    caller's terminal, or None. `note` is told what could not be had.
    """

    read_only: bool
    throw_away: bool
    own_network: bool
    host_root: bool
    terminal: bytes | None
    note: Callable[[str], None]


def _fd_path(fd: int, name: bytes = b"") -> bytes:
    return b"/proc/self/fd/%d" % fd + (b"/" + name if name else b"")


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise UnionfsError(f"cannot set up {what}: {exc.strerror or exc}") from exc


def build(target: bytes, plan: Plan) -> None:
    """Furnish the union mounted on `target` and make it the root of this mount namespace."""
    with opened(os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        for name, furnish in ((b"dev", _make_dev), (b"proc", _make_proc), (b"sys", _make_sys)):
            with _step(f"/{name.decode()}"):
                fd = _fixed_place(root, name, plan)
                if fd is not None:
                    with opened(fd):
                        furnish(root, fd, plan)
        if plan.read_only:
            for path, mode in _SCRATCH:
                with _step(show(path)):
                    _make_scratch(root, path, mode)
        if not plan.own_network:
            for path in (b"/etc/resolv.conf", b"/etc/hosts"):
                with _step(show(path)):
                    _lend_file(root, path, plan)
        with _step("the root directory"):
            _enter(root, plan)
    if plan.host_root:
        _protect_proc()


def _fixed_place(root: int, name: bytes, plan: Plan) -> int | None:
    """Open a directory of the image's root that something is to be mounted on."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=root)
    except FileNotFoundError:
        if plan.read_only:
            plan.note(f"the image has no /{name.decode()}, so there is none")
            return None
        os.mkdir(name, 0o755, dir_fd=root)
        return os.open(name, flags, dir_fd=root)
    except OSError as exc:
        if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        plan.note(f"/{name.decode()} of the image is not a directory, so it is left as it is")
        return None


def _make_dev(root: int, fd: int, plan: Plan) -> None:
    _sys.mount(b"tmpfs", _fd_path(fd), b"tmpfs", _sys.MS_NOSUID | _MS_NOEXEC, b"mode=755,size=64m")
    with opened(os.open(b"dev", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)) as dev:
        for name in _DEVICES:
            _lend_device(dev, name, b"/dev/" + name, plan)
        if plan.terminal is not None:
            _lend_device(dev, b"console", plan.terminal, plan)
        for name, target in _LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        for name in (b"pts", b"shm", b"mqueue"):
            os.mkdir(name, 0o755, dir_fd=dev)
        flags = _sys.MS_NOSUID | _MS_NOEXEC
        base = b"newinstance,ptmxmode=0666,mode=0620"
        try:  # group tty is 5 wherever it matters; a small user namespace does not have it
            _sys.mount(b"devpts", _fd_path(dev, b"pts"), b"devpts", flags, base + b",gid=5")
        except OSError:
            _sys.mount(b"devpts", _fd_path(dev, b"pts"), b"devpts", flags, base)
        _sys.mount(b"shm", _fd_path(dev, b"shm"), b"tmpfs", _SAFE, b"mode=1777")
        with contextlib.suppress(OSError):  # kernels without message queues
            _sys.mount(b"mqueue", _fd_path(dev, b"mqueue"), b"mqueue", _SAFE, b"")


def _lend_device(dev: int, name: bytes, source: bytes, plan: Plan) -> None:
    """Bind a device of the host: nobody in a user namespace may make one."""
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=dev))
    try:
        _sys.mount(source, _fd_path(dev, name), b"", _sys.MS_BIND, b"")
    except OSError as exc:
        os.unlink(name, dir_fd=dev)
        plan.note(f"no /dev/{name.decode()}: {exc.strerror}")


def _make_proc(_root: int, fd: int, plan: Plan) -> None:
    try:
        _sys.mount(b"proc", _fd_path(fd), b"proc", _SAFE, b"")
    except OSError as exc:
        if exc.errno != errno.EPERM:
            raise
        # Where parts of /proc are hidden from us (in many containers) the kernel allows no
        # other instance. Most programs need one more than they need it to be their own.
        _sys.mount(b"/proc", _fd_path(fd), b"", _sys.MS_BIND | _sys.MS_REC, b"")
        plan.note("a /proc of its own is not allowed here: the command sees that of the host")


def _make_sys(root: int, fd: int, plan: Plan) -> None:
    try:
        _sys.mount(b"sysfs", _fd_path(fd), b"sysfs", _SAFE | _sys.MS_RDONLY, b"")
    except OSError:
        pass
    else:
        return
    try:  # the network is the host's, so only the host's /sys may be had
        _sys.mount(b"/sys", _fd_path(fd), b"", _sys.MS_BIND | _sys.MS_REC, b"")
        with opened(os.open(b"sys", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)) as top:
            _sys.make_read_only(_fd_path(top))
    except OSError as exc:
        plan.note(f"no read-only /sys: {exc.strerror}")


def _make_scratch(root: int, path: bytes, mode: bytes) -> None:
    try:
        fd = _sys.open_in_root(root, path, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return  # nothing that could be written to either way
    with opened(fd):
        _sys.mount(
            b"tmpfs", _fd_path(fd), b"tmpfs", _sys.MS_NOSUID | _sys.MS_NODEV, b"mode=" + mode
        )


def _lend_file(root: int, path: bytes, plan: Plan) -> None:
    """Bind a file of the host's /etc, read-only: the network is the host's."""
    source = os.path.realpath(path)
    if not os.path.isfile(source):
        return
    try:
        fd = _sys.open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        made = _make_file(root, path) if plan.throw_away else None
        if made is None:
            return
        fd = made
    except OSError:
        return
    with opened(fd):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return
        _sys.mount(source, _fd_path(fd), b"", _sys.MS_BIND, b"")
    with opened(_sys.open_in_root(root, path, os.O_PATH)) as lent:
        _sys.make_read_only(_fd_path(lent))


def _make_file(root: int, path: bytes) -> int | None:
    head, _, tail = path.rpartition(b"/")
    try:
        with opened(_sys.open_in_root(root, head, os.O_PATH | os.O_DIRECTORY)) as parent:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return os.open(tail, flags, 0o644, dir_fd=parent)
    except OSError:
        return None


def _enter(root: int, plan: Plan) -> None:
    os.fchdir(root)
    try:
        _sys.pivot_root(b".", b".")
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # An initial RAM file system cannot be pivoted away from, only covered.
        _sys.mount(b".", b"/", b"", _MS_MOVE, b"")
        os.chroot(b".")
        plan.note("the root is an initial RAM file system: it stays mounted under the image")
    else:
        _sys.umount(b".", _sys.MNT_DETACH)
    os.chdir(b"/")


def _protect_proc() -> None:
    for name in _READ_ONLY:
        path = b"/proc/" + name
        with contextlib.suppress(FileNotFoundError):
            _sys.mount(path, path, b"", _sys.MS_BIND | _sys.MS_REC, b"")
            _sys.make_read_only(path)
    for name in _MASKED:
        with contextlib.suppress(FileNotFoundError):
            _sys.mount(b"/dev/null", b"/proc/" + name, b"", _sys.MS_BIND, b"")
