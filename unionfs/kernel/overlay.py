"""Mounting kernel overlayfs over layers in AUFS form and their shims.

Options, chosen so that the tree behaves as our own union where overlayfs can:
`index=on` keeps hard-link groups whole over copy-up (root only; the kernel drops it in a
user namespace, where handles cannot be decoded); `metacopy=off` and
`redirect_dir=nofollow` because the AUFS form can express neither and because a layer must
not be able to redirect a lookup, so renaming a lower directory is EXDEV and mv(1) copies;
`xino=auto` keeps inode numbers unique over several filesystems.

Invariant: when `mount` raises, nothing is mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from unionfs import _sys
from unionfs.errors import UnsupportedError
from unionfs.kernel.survey import Kind

__all__ = ["MAX_LOWERS", "OverlaySpec", "mount", "options"]

#: OVL_MAX_STACK of the kernel.
MAX_LOWERS: Final = 500
#: What mount(2) passes on: one page less the terminating zero, and room for the label.
_PAGE_DATA: Final = 4000
#: fsconfig(2) takes strings of 256 bytes with their terminating zero.
_MAX_VALUE: Final = 255
_PLAIN: Final = re.compile(rb"[A-Za-z0-9_./+@%-]+")
_SOURCE: Final = b"unionfs"
_LOG: Final = 4096
_TOO_OLD: Final = (errno.EINVAL, errno.ENOSYS)


@attrs.frozen
class OverlaySpec:
    """One overlay mount: absolute directories, `lowers` top first, `upper` with its `work`.

    `flags` are MS_RDONLY, MS_NOSUID, MS_NODEV and MS_NOEXEC bits (the MOUNT_ATTR_* of the same
    meaning have the same values).
    """

    lowers: tuple[bytes, ...]
    kind: Kind
    upper: bytes | None = None
    work: bytes | None = None
    flags: int = 0


def options(spec: OverlaySpec) -> list[tuple[bytes, bytes | None]]:
    """Return the options of a mount but its directories; a value of None makes a flag."""
    chosen: list[tuple[bytes, bytes | None]] = [
        (b"metacopy", b"off"),
        (b"redirect_dir", b"nofollow"),
        (b"xino", b"auto"),
    ]
    if spec.kind is Kind.USER:
        chosen.insert(0, (b"userxattr", None))
    elif spec.upper is not None:
        chosen.append((b"index", b"on"))
    return chosen


def mount(spec: OverlaySpec, target: bytes) -> None:
    """Mount the overlay on `target`; UnsupportedError with the kernel's reason."""
    if len(spec.lowers) > MAX_LOWERS:
        raise UnsupportedError(
            f"overlay: {len(spec.lowers)} directories (layers and their shims), and the kernel"
            f" takes {MAX_LOWERS}"
        )
    try:
        if not _mount_by_context(spec, target):
            _mount_by_page(spec, target)
    except OSError as exc:
        raise UnsupportedError(f"overlay: {_explain(exc)}") from exc


def _explain(exc: OSError) -> str:
    reasons = {
        errno.ENODEV: "this kernel has no overlayfs (module `overlay`)",
        errno.EPERM: "mounting overlayfs is not permitted here (needs root or a user namespace)",
        errno.EBUSY: "the rw branch is in use by another overlay mount",
    }
    base = reasons.get(exc.errno or 0, exc.strerror or "failed")
    notes = getattr(exc, "__notes__", [])
    return base + (f" ({'; '.join(notes)})" if notes else "")


@contextlib.contextmanager
def _log_of(context: int) -> Iterator[None]:
    """Add what the kernel says about a context's failure to the error."""
    try:
        yield
    except OSError as exc:
        with contextlib.suppress(OSError):
            while True:
                line = os.read(context, _LOG).decode("utf-8", "replace").strip()
                exc.add_note(line.removeprefix("e "))
        raise


class _Names:
    """Short names without special characters for directories: `/proc/self/fd/N`."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def fd(self, path: bytes) -> int:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def value(self, path: bytes) -> bytes:
        if len(path) <= _MAX_VALUE and _PLAIN.fullmatch(path):
            return path
        return b"/proc/self/fd/%d" % self.fd(path)


def _only_collects() -> bool:
    """Tell whether contexts of overlayfs accept any word and judge it at the mount.

    Before Linux 6.5 the kernel only gathers the options of a context, into one page, and a
    `lowerdir+` would be refused too late.
    """
    context = _sys.fsopen(b"overlay")
    try:
        _sys.fsconfig_set(context, b"unionfs-unknown", b"x")
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(context)


def _mount_by_context(spec: OverlaySpec, target: bytes) -> bool:
    """Mount with fsopen(2) and one `lowerdir+` per directory; False if the kernel is too old."""
    try:
        if _only_collects():
            return False
        context = _sys.fsopen(b"overlay")
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            return False
        raise
    with contextlib.ExitStack() as stack, _log_of(context):
        stack.callback(os.close, context)
        _sys.fsconfig_set(context, b"source", _SOURCE)
        for position, lower in enumerate(spec.lowers):
            with contextlib.ExitStack() as short:
                value = _Names(short).value(lower)
                try:
                    _sys.fsconfig_set(context, b"lowerdir+", value)
                except OSError as exc:
                    if position == 0 and exc.errno in _TOO_OLD and os.path.isdir(lower):
                        return False
                    raise
        for key, option in options(spec):
            _sys.fsconfig_set(context, key, option)
        if spec.upper is not None and spec.work is not None:
            names = _Names(stack)
            _sys.fsconfig_set(context, b"upperdir", names.value(spec.upper))
            _sys.fsconfig_set(context, b"workdir", names.value(spec.work))
        _sys.fsconfig_create(context)
        detached = _sys.fsmount(context, spec.flags)
        stack.callback(os.close, detached)
        _sys.move_mount(detached, target)
    return True


def _escape(path: bytes) -> bytes:
    return path.replace(b"\\", b"\\\\").replace(b":", b"\\:").replace(b",", b"\\,")


def _page(spec: OverlaySpec, names: Sequence[bytes], upper: tuple[bytes, bytes] | None) -> bytes:
    parts = [key if value is None else key + b"=" + value for key, value in options(spec)]
    parts.append(b"lowerdir=" + b":".join(names))
    if upper is not None:
        parts += [b"upperdir=" + upper[0], b"workdir=" + upper[1]]
    return b",".join(parts)


def _mount_by_page(spec: OverlaySpec, target: bytes) -> None:
    """Mount with mount(2), whose options fit one page: by name if they do, else by fd number."""
    upper = None
    if spec.upper is not None and spec.work is not None:
        upper = (_escape(spec.upper), _escape(spec.work))
    data = _page(spec, [_escape(path) for path in spec.lowers], upper)
    if len(data) <= _PAGE_DATA:
        _sys.mount(_SOURCE, target, b"overlay", spec.flags, data)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_enough_descriptors(len(spec.lowers)))
        names = _Names(stack)
        if spec.upper is not None and spec.work is not None:
            upper = (b"%d" % names.fd(spec.upper), b"%d" % names.fd(spec.work))
        data = _page(spec, [b"%d" % names.fd(path) for path in spec.lowers], upper)
        if len(data) > _PAGE_DATA:
            raise UnsupportedError(
                f"overlay: {len(spec.lowers)} directories do not fit the one page of options that"
                " this kernel takes; Linux 6.7 or later has no such limit"
            )
        absolute = os.path.abspath(target)
        _in_descriptor_directory(
            lambda: _sys.mount(_SOURCE, absolute, b"overlay", spec.flags, data)
        )


@contextlib.contextmanager
def _enough_descriptors(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + len(os.listdir("/proc/self/fd")) + 16
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _in_descriptor_directory(action: Callable[[], None]) -> None:
    """Run `action` with /proc/self/fd as working directory, of one thread only."""
    failures: list[OSError] = []

    def work() -> None:
        try:
            _sys.unshare(_sys.CLONE_FS)
            os.chdir("/proc/self/fd")
            action()
        except OSError as exc:
            failures.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
