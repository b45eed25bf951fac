"""AUFS's pseudo-links, made real: what auplink(8) does, by us.

AUFS keeps a copied-up file with several names as `INO.HINO` in a hidden directory of the
rw branch (its own inode number and the copy's), and links further names to it only when
they are used. Unless all are linked before the mount is gone, the other names show the
old file afterwards.

Invariant: a name is only linked to a copy that the union showed as the same inode, and
what is left of AUFS in the branch afterwards are its whiteouts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Final

from unionfs import mountinfo
from unionfs.branch import whiteout
from unionfs.errors import BusyError, show
from unionfs.kernel import trees
from unionfs.union.workarea import quiet

__all__ = [
    "flush_pseudo_links",
    "pseudo_links",
    "refuse_live_branch",
    "touch_names",
    "touch_paths",
]

_SYSFS: Final = b"/sys/fs/aufs"
_BRANCH: Final = re.compile(rb"br\d+")

_ENTRY: Final = re.compile(rb"(\d+)\.(\d+)")
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def refuse_live_branch(rw: bytes) -> None:
    """Raise BusyError while an AUFS mount uses the branch, whoever made it.

    AUFS lists the branches of every mount of the machine in sysfs.
    """
    if whiteout.AUFS_BASE not in map(os.fsencode, os.listdir(rw)):
        return  # AUFS makes it at mount
    if any(_same(path, rw) for path in _live_branches()):
        raise BusyError(f"{show(rw)} is mounted with AUFS; unmount it first")


def _live_branches() -> Iterator[bytes]:
    """Yield the branches of all AUFS mounts: from sysfs, or (`brs=0`) from the mount tables."""
    with contextlib.suppress(FileNotFoundError):  # no AUFS in this kernel
        for mount in os.listdir(_SYSFS):
            place = _SYSFS + b"/" + mount
            with contextlib.suppress(NotADirectoryError, FileNotFoundError):
                for entry in filter(_BRANCH.fullmatch, os.listdir(place)):
                    with open(place + b"/" + entry, "rb") as file:
                        yield _path_of(file.read().rstrip(b"\n"))
    for union in mountinfo.kernel_unions():
        for option in union.options.split(b",") if union.fstype == "aufs" else ():
            if option.startswith(b"br:"):
                yield from map(_path_of, option[3:].split(b":"))


def _path_of(shown: bytes) -> bytes:
    return mountinfo.unescape(shown.rpartition(b"=")[0])


def _same(path: bytes, rw: bytes) -> bool:
    try:
        return os.path.samefile(path, rw)
    except OSError:
        return path == rw


def pseudo_links(rw: bytes) -> dict[int, bytes]:
    """Return the pseudo-links of a branch: AUFS's inode number -> name of the copy."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for text in os.listdir(rw + b"/" + whiteout.AUFS_LINKS):
            match = _ENTRY.fullmatch(text)
            if match is not None:
                found[int(match[1])] = text
    return found


def touch_names(target: bytes, links: Mapping[int, bytes]) -> dict[bytes, list[bytes]]:
    """Use every name of a pseudo-link through the live mount; return them by copy.

    Setting the times that a file has already makes AUFS link the name in the rw branch.
    """
    names: dict[bytes, list[bytes]] = {}
    if not links:
        return names
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, fd, entries in trees.walk_directories(root):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) or entry.inode() not in links:
                    continue
                name = os.fsencode(entry.name)
                inode = _touch(fd, name, links)
                if inode is not None:
                    names.setdefault(links[inode], []).append(trees.child(path, name))
    finally:
        os.close(root)
    return names


def touch_paths(target: bytes, paths: Iterable[bytes]) -> None:
    """Use each of `paths` through the live mount, so that the union links it."""
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            directory, _, name = path.rpartition(b"/")
            try:
                fd = trees.open_inner(root, directory)
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone meanwhile
            try:
                _touch(fd, name)
            finally:
                os.close(fd)
    finally:
        os.close(root)


def _touch(fd: int, name: bytes, wanted: Container[int] | None = None) -> int | None:
    """Set the times that an entry has; return its inode number, None where nothing was done."""
    try:
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if wanted is not None and st.st_ino not in wanted:
            return None
        os.utime(name, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=fd, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return None  # gone meanwhile, or listed but out of AUFS's reach
        if exc.errno not in (errno.EPERM, errno.EROFS):
            raise
        # Immutable, or a mount that became read-only: the link is made afterwards, if it can be.
    return st.st_ino


def flush_pseudo_links(rw: bytes, names: Mapping[bytes, list[bytes]]) -> None:
    """Link what is still missing and remove AUFS's housekeeping from an unmounted branch.

    `names` is what `touch_names` returned; without it (after a crash) names that AUFS had not
    linked by then stay as they are. The caller holds the branch's lock.
    """
    root = os.open(rw, _FLAGS)
    try:
        present = {os.fsencode(text) for text in os.listdir(root)}
        ours = present.intersection(
            (whiteout.AUFS_BASE, whiteout.AUFS_LINKS, whiteout.AUFS_ORPHANS)
        )
        if not ours:
            return
        if whiteout.AUFS_LINKS in ours:
            copies = os.open(whiteout.AUFS_LINKS, _FLAGS, dir_fd=root)
            try:
                for copy, paths in names.items():
                    for path in paths:
                        _link(root, copies, copy, path)
            finally:
                os.close(copies)
        with quiet(root):
            for name in ours:
                trees.remove_tree(root, name)
    finally:
        os.close(root)


def _link(root: int, copies: int, copy: bytes, path: bytes) -> None:
    parent_path, _, name = path.rpartition(b"/")
    try:
        parent = trees.open_inner(root, parent_path)
    except (FileNotFoundError, NotADirectoryError):
        return  # the touch did not reach the branch: the directory went away meanwhile
    try:
        st = os.stat(copy, dir_fd=copies, follow_symlinks=False)
        if not stat.S_ISDIR(st.st_mode):
            with quiet(parent), contextlib.suppress(FileExistsError):
                os.link(copy, name, src_dir_fd=copies, dst_dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    finally:
        os.close(parent)
