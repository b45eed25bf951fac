"""Opening the branches of an engine: checks, the rw branch's lock, first attributes.

Invariant: either everything is open and consistent, or nothing is held and the rw
branch is as it was (but for the work of a finished journal).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence

from unionfs.branch import Branch, Writer, place_of
from unionfs.branch.branch import proc_path
from unionfs.errors import BusyError, NotFoundError, UnsupportedError, UsageError, show
from unionfs.union.inodes import ROOT_INO
from unionfs.union.options import EngineOptions
from unionfs.union.tree import Tree
from unionfs.union.workarea import quiet

__all__ = ["check_paths", "lock", "make_root", "open_branch", "open_layer", "open_writer"]


def open_branch(path: bytes) -> Branch:
    """Open a branch, with errors that name it."""
    try:
        return Branch.open(path)
    except FileNotFoundError:
        raise NotFoundError(f"{show(path)}: no such directory") from None
    except NotADirectoryError:
        raise UsageError(f"{show(path)}: not a directory") from None


def open_layer(path: bytes) -> Branch:
    """Open a lower branch; in one without marks a plain user's own files are the image root's."""
    branch = open_branch(path)
    if not branch.marked and os.geteuid() != 0:
        branch.owner = (os.geteuid(), os.getegid())
    return branch


def check_paths(lowers: Sequence[bytes], rw: bytes | None) -> None:
    """Refuse a branch given twice, and a rw branch inside a layer or around one."""
    seen: dict[tuple[int, int], bytes] = {}
    for path in [*lowers, *([rw] if rw is not None else [])]:
        with contextlib.suppress(OSError):
            st = os.stat(path)
            first = seen.setdefault((st.st_dev, st.st_ino), path)
            if first is not path:
                raise UsageError(f"{show(path)}: given twice as a branch (also {show(first)})")
    if rw is None:
        return
    if place_of(rw).path != rw:
        raise BusyError(f"{show(rw)}: kernel overlayfs has the rw branch; unmount it first")
    upper = os.path.realpath(rw) + b"/"
    for path in lowers:
        lower = os.path.realpath(path) + b"/"
        if upper.startswith(lower):
            raise UsageError(f"{show(rw)}: the rw branch lies inside the layer {show(path)}")
        if lower.startswith(upper):
            raise UsageError(f"{show(path)}: the layer lies inside the rw branch {show(rw)}")


def lock(branch: Branch) -> int:
    """Take the rw branch for this engine alone; return the fd that holds the lock."""
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=branch.fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise BusyError(
            f"{show(branch.path)}: the rw branch is in use by another mount; unmount that first"
        ) from None
    except OSError:
        os.close(fd)
        raise
    return fd


def open_writer(branch: Branch, options: EngineOptions) -> Writer:
    """Return the writer of a rw branch; UnsupportedError when it cannot keep ownership."""
    try:
        with quiet(branch.fd):
            if options.native is None:
                return Writer.probe(branch)
            writer = Writer(branch, native=options.native)
            if not options.native and branch.owner is None:
                writer.mark()
            return writer
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            raise UnsupportedError(
                f"{show(branch.path)}: the filesystem keeps no user extended attributes, which"
                " a rw branch needs without root; use a directory on another filesystem"
            ) from None
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UnsupportedError(
                f"{show(branch.path)}: cannot write to the rw branch: {os.strerror(exc.errno)}"
            ) from None
        raise


def make_root(tree: Tree, writer: Writer) -> None:
    """Give a rw branch that is used for the first time the attributes of the layers' root.

    The number xattr, set last, marks a branch as used, so that a mode somebody gave the
    root is kept even if nothing else was changed.
    """
    upper = writer.branch
    path = proc_path(upper.fd, b".")
    with contextlib.suppress(OSError):
        os.getxattr(path, tree.ino_xattr)
        return
    fresh = not tree.scan(tree.root).entries and not tree.scan(tree.root).whiteouts
    if fresh and tree.root.lower:
        lower = tree.branches[tree.root.lower[0]]
        status = lower.status(lower.fd, b".")
        mode = stat.S_IMODE(tree.root_mode(status.mode))
        writer.set_attributes(upper.fd, b".", stat.S_IFDIR | mode, status.uid, status.gid)
        writer.set_xattrs(upper.fd, b".", lower.all_xattrs(lower.fd, b"."))
        writer.set_times(upper.fd, b".", status.atime_ns, status.mtime_ns)
    with contextlib.suppress(OSError):
        os.setxattr(path, tree.ino_xattr, b"%d" % ROOT_INO)
