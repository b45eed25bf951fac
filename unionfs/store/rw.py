"""Opening a rw branch to read it: for `changes` and `commit`.

Invariant: a rw branch is read in the form it is in (ours or one of overlayfs's), and never while
it says that an operation on it is half done.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from unionfs.branch import Branch, Dialect, place_of, whiteout
from unionfs.branch.branch import proc_path
from unionfs.errors import BusyError, ConflictError, UnsupportedError, show

__all__ = ["check_journal", "check_names", "detect_dialect", "open_rw"]

_OVERLAY: Final = "trusted.overlay."
_OVERLAY_USER: Final = "user.overlay."
#: Features of overlayfs that keep a file's data or a directory's content somewhere else.
_ELSEWHERE: Final = ("redirect", "metacopy")


def _xattr_names(dirfd: int, name: bytes) -> list[str]:
    try:
        return os.listxattr(proc_path(dirfd, name), follow_symlinks=False)
    except OSError:
        return []


def detect_dialect(path: bytes) -> Dialect:
    """Find out which union wrote the directory tree at `path`.

    Any `.wh.` name means ours (AUFS's); a device 0/0 or an attribute of overlayfs means that.
    A tree without any of them reads the same either way. Raises `UnsupportedError` for trees that
    overlayfs wrote with `redirect_dir` or `metacopy`: they are not complete in themselves.
    """
    overlay: Dialect | None = None
    pending = [b""]
    with Branch.open(path) as tree:
        while pending:
            at = pending.pop()
            root = tree.open_path(at)
            try:
                found = _look(tree, root, at, pending)
            finally:
                os.close(root)
            if found is Dialect.AUFS:
                return found
            overlay = found or overlay
    return overlay or Dialect.AUFS


def _look(tree: Branch, dirfd: int, at: bytes, pending: list[bytes]) -> Dialect | None:
    """Examine one directory; the paths of its subdirectories are appended to `pending`."""
    found = _overlay_attributes(_xattr_names(dirfd, b"."), tree.path)
    for name in tree.raw_names(dirfd):
        if whiteout.is_reserved(name):
            return Dialect.AUFS
        st = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        if stat.S_ISDIR(st.st_mode):
            pending.append(at + b"/" + name)
        elif stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
            found = found or Dialect.OVERLAY
        else:
            found = _overlay_attributes(_xattr_names(dirfd, name), tree.path) or found
    return found


def _overlay_attributes(names: list[str], path: bytes) -> Dialect | None:
    for prefix, dialect in ((_OVERLAY, Dialect.OVERLAY), (_OVERLAY_USER, Dialect.OVERLAY_USER)):
        mine = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        for feature in _ELSEWHERE:
            if feature in mine:
                raise UnsupportedError(
                    f"{show(path)} was written by overlayfs with {feature}; its files are not all"
                    " here. Mount it with redirect_dir=off,metacopy=off and write it again"
                )
        if mine:
            return dialect
    return None


def open_rw(path: bytes, dialect: Dialect | None = None) -> Branch | None:
    """Open a rw branch for reading in `dialect` (None: detect it); None when it does not exist.

    A branch that kernel overlayfs writes at the moment is read where overlayfs has it. In a tree
    without override marks a plain user's own files count as the image root's.
    """
    try:
        place = place_of(path)
        if place.path != path:
            path, dialect = place.path, place.dialect
        branch = Branch.open(path, detect_dialect(path) if dialect is None else dialect)
    except FileNotFoundError:
        return None
    if not branch.marked and os.geteuid() != 0:
        branch.owner = (os.geteuid(), os.getegid())
    return branch


def check_journal(branch: Branch) -> None:
    """Raise `BusyError` while an operation on the branch is half done.

    Each such operation has its intent, a symbolic link, in the work directory (written first,
    removed last).
    """
    pending = [whiteout.WORK_DIR]
    while pending:
        path = pending.pop()
        try:
            fd = branch.open_path(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        try:
            for raw in os.listdir(b"/proc/self/fd/%d" % fd):
                name = os.fsencode(raw)
                try:
                    mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                except FileNotFoundError:
                    continue
                if stat.S_ISLNK(mode):
                    raise BusyError(
                        f"{show(branch.path)}: an operation on it is not finished; if it is not"
                        " mounted, mount it once so that it is repaired"
                    )
        finally:
            os.close(fd)


def check_names(branch: Branch) -> None:
    """Raise `ConflictError` for names that overlayfs lets programs make and a layer cannot hold."""
    if branch.dialect is Dialect.AUFS:
        return
    pending = [b""]
    while pending:
        at = pending.pop()
        fd = branch.open_path(at)
        try:
            with os.scandir(b"/proc/self/fd/%d" % fd) as listing:
                for entry in listing:
                    path = at + b"/" + entry.name
                    if whiteout.is_reserved(entry.name):
                        raise ConflictError(
                            f"{show(path)}: such a name means a deletion in a layer; give it"
                            " another one, or unmount, which takes its first dot away"
                        )
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
        finally:
            os.close(fd)
