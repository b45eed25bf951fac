"""Walking, copying attributes within and removing directory trees that the caller owns.

Invariant: no symbolic link is followed, nothing recurses (a layer may be thousands of
directories deep), and no more than a few descriptors are open at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from unionfs.branch.branch import proc_path

__all__ = [
    "OVERLAY_PREFIXES",
    "child",
    "copy_directory_attributes",
    "open_inner",
    "raw_xattrs",
    "remove_tree",
    "walk_directories",
]

#: What overlayfs writes for itself, as root and in a user namespace.
OVERLAY_PREFIXES: Final = ("trusted.overlay.", "user.overlay.")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED: Final = (errno.ENOTSUP, errno.EPERM, errno.ENODATA, errno.EACCES, errno.EINVAL)


def child(path: bytes, name: bytes) -> bytes:
    """Return the relative path of `name` in the directory `path` (`b""` is the root)."""
    return path + b"/" + name if path else name


def open_inner(root: int, path: bytes) -> int:
    """Open the directory at the relative `path` for reading, one component at a time."""
    fd = os.open(b".", _DIRECTORY, dir_fd=root)
    for name in path.split(b"/"):
        if not name:
            continue
        try:
            inner = os.open(name, _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def walk_directories(root: int) -> Iterator[tuple[bytes, int, list[os.DirEntry[str]]]]:
    """Yield (relative path, fd, entries) of every directory under `root`, parents first.

    The fd is closed when the next one is asked for. Directories that the consumer makes or
    renames while it holds a turn are not entered.
    """
    pending = [b""]
    while pending:
        path = pending.pop()
        fd = open_inner(root, path)
        try:
            with os.scandir(fd) as listing:
                entries = list(listing)
            inner = [
                child(path, os.fsencode(entry.name))
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
            ]
            yield path, fd, entries
        finally:
            os.close(fd)
        pending += reversed(inner)


def raw_xattrs(dirfd: int, name: bytes) -> list[str]:
    """Return the stored xattr names of an entry; none where the filesystem has none."""
    try:
        return os.listxattr(proc_path(dirfd, name), follow_symlinks=False)
    except OSError as exc:
        if exc.errno in _UNSUPPORTED:
            return []
        raise


def copy_directory_attributes(source: int, target: int, target_name: bytes) -> None:
    """Give the directory `target_name` in `target` everything the open directory `source` has.

    Owner, mode, xattrs (as stored, but overlayfs's own) and times; set the times again after
    making entries in it. Attributes that the caller may not set stay out: who needs root's
    attributes works as root.
    """
    st = os.stat(b".", dir_fd=source)
    path = proc_path(target, target_name)
    current = os.stat(target_name, dir_fd=target, follow_symlinks=False)
    if (current.st_uid, current.st_gid) != (st.st_uid, st.st_gid):
        os.chown(target_name, st.st_uid, st.st_gid, dir_fd=target, follow_symlinks=False)
    os.chmod(path, stat.S_IMODE(st.st_mode))
    wanted = raw_xattrs(source, b".")
    for attribute in raw_xattrs(target, target_name):
        if attribute not in wanted and not attribute.startswith(OVERLAY_PREFIXES):
            with contextlib.suppress(OSError):
                os.removexattr(path, attribute)
    for attribute in wanted:
        if attribute.startswith(OVERLAY_PREFIXES):
            continue
        try:
            os.setxattr(path, attribute, os.getxattr(proc_path(source, b"."), attribute))
        except OSError as exc:
            if exc.errno not in _UNSUPPORTED:
                raise
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def remove_tree(dirfd: int, name: bytes) -> None:
    """Remove an entry with all below it; absent is fine. Unreadable directories are opened up."""
    try:
        os.unlink(name, dir_fd=dirfd)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    else:
        return
    os.chmod(proc_path(dirfd, name), 0o700)
    root = os.open(name, _DIRECTORY, dir_fd=dirfd)
    try:
        _empty(root)
    finally:
        os.close(root)
    os.rmdir(name, dir_fd=dirfd)


def _empty(root: int) -> None:
    pending = [b""]
    seen = []
    while pending:
        path = pending.pop()
        seen.append(path)
        fd = open_inner(root, path)
        try:
            with os.scandir(fd) as listing:
                entries = list(listing)
            for entry in entries:
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(proc_path(fd, name), 0o700)
                    pending.append(child(path, name))
                else:
                    os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
    for path in reversed(seen[1:]):
        parent, _, name = path.rpartition(b"/")
        fd = open_inner(root, parent)
        try:
            os.rmdir(name, dir_fd=fd)
        finally:
            os.close(fd)
