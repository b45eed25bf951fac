"""Hard links and inode numbers that overlayfs knows and the AUFS form must be told.

With `index=on`, overlayfs copies a file with several names up once and links further
names to the copy only when they are used; until then it knows them by the file handle of
the original, kept as a name in its index directory. `flush_index` links those names in a branch
that is not mounted any more, `pending_names` says which they are in one that is.

Invariant: only names that the union shows as the original are linked, and only to a copy
whose recorded handle is the original's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs import _sys
from unionfs.branch import Branch, Stack, xattrs
from unionfs.branch.branch import proc_path
from unionfs.kernel import trees
from unionfs.kernel.form import WORK
from unionfs.union.workarea import quiet

__all__ = ["Origin", "flush_index", "keep_number", "pending_names", "upper_parent"]

_INDEX: Final = b"index"
# struct ovl_fb: version, magic, length, flags, handle type, 16 bytes of uuid, handle.
_HEADER: Final = 21
_TYPE: Final = 4
_MAGIC: Final = 0xFB
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Origin(NamedTuple):
    """The file handle of a lower file, as overlayfs writes it down."""

    handle_type: int
    handle: bytes

    @classmethod
    def parse(cls, value: bytes) -> Origin | None:
        """Decode an `overlay.origin` value; None when it is not one."""
        if len(value) <= _HEADER or value[1] != _MAGIC or value[2] != len(value):
            return None
        return cls(value[_TYPE], value[_HEADER:])

    @classmethod
    def of(cls, dirfd: int, name: bytes) -> Origin | None:
        """Return the handle of an entry; None where the filesystem has none."""
        try:
            return cls(*_sys.file_handle(dirfd, name))
        except OSError:
            return None


def keep_number(fd: int, name: bytes, stored: list[str], lower: Branch, lower_fd: int) -> None:
    """Record on a copy the inode number of its original, which overlayfs showed.

    Only with both on one filesystem, where the number is the original's own.
    """
    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    original = os.stat(name, dir_fd=lower_fd, follow_symlinks=False)
    if stat.S_IFMT(st.st_mode) != stat.S_IFMT(original.st_mode) or st.st_dev != lower.device:
        return
    trusted = "trusted.overlay.origin" in stored
    recorded = xattrs.INO_NATIVE if trusted else xattrs.INO_OVERRIDE
    if recorded in stored:
        return
    if not stat.S_ISDIR(st.st_mode):
        source = "trusted.overlay.origin" if trusted else "user.overlay.origin"
        if source not in stored:
            return
        origin = Origin.parse(os.getxattr(proc_path(fd, name), source, follow_symlinks=False))
        if origin is None or origin != Origin.of(lower_fd, name):
            return
    with contextlib.suppress(OSError):
        value = b"%d" % original.st_ino
        os.setxattr(proc_path(fd, name), recorded, value, follow_symlinks=False)


def _read_index(index: int, device: int) -> dict[Origin, bytes]:
    found = {}
    with os.scandir(index) as listing:
        for entry in listing:
            name = os.fsencode(entry.name)
            st = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode) or st.st_dev != device or len(name) % 2:
                continue
            try:
                origin = Origin.parse(bytes.fromhex(entry.name))
            except ValueError:
                continue  # overlayfs's temporary files: `#...`
            if origin is not None:
                found[origin] = name
    return found


def flush_index(state_fd: int, upper: int, lower: Stack) -> None:
    """Link every visible name of a copied-up file with several names to the copy."""
    with _opened_index(state_fd) as index:
        if index is not None:
            for copy, path, name in _names(index, upper, lower):
                _link(index, copy, upper, lower, path, name)


def pending_names(state_fd: int, upper: int, lower: Stack) -> list[bytes]:
    """Return the paths that `flush_index` would link, and change nothing."""
    with _opened_index(state_fd) as index:
        if index is None:
            return []
        return [
            trees.child(path, name)
            for _, path, name in _names(index, upper, lower)
            if _shows_lower(upper, path, name)
        ]


@contextlib.contextmanager
def _opened_index(state_fd: int) -> Iterator[int | None]:
    try:
        work = os.open(WORK, _FLAGS, dir_fd=state_fd)
    except FileNotFoundError:
        yield None
        return
    try:
        index = os.open(_INDEX, _FLAGS, dir_fd=work)
    except FileNotFoundError:
        yield None
        return
    finally:
        os.close(work)
    try:
        yield index
    finally:
        os.close(index)


def _names(index: int, upper: int, lower: Stack) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield (copy, directory, name) of the names that `lower` shows of copied-up originals."""
    device = os.fstat(upper).st_dev
    copies = _read_index(index, device)
    if not copies:
        return
    for position, branch in enumerate(lower.branches):
        if branch.device == device:
            yield from _names_in(copies, lower, position)


def _names_in(
    copies: dict[Origin, bytes], lower: Stack, position: int
) -> Iterator[tuple[bytes, bytes, bytes]]:
    for path, fd, entries in trees.walk_directories(lower.branches[position].fd):
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_nlink == 1:
                continue
            name = os.fsencode(entry.name)
            origin = Origin.of(fd, name)
            if origin is None or origin not in copies:
                continue
            view = lower.view(path)
            if view is None or name not in view.listing:
                continue
            if view.listing[name].branches == (position,):
                yield copies[origin], path, name


def _shows_lower(upper: int, path: bytes, name: bytes) -> bool:
    """Tell whether nothing in the upper hides or replaces what the lower has at a path."""
    fd = os.open(b".", _FLAGS, dir_fd=upper)
    try:
        for part in filter(None, path.split(b"/")):
            try:
                inner = os.open(part, _FLAGS, dir_fd=fd)
            except FileNotFoundError:
                return True
            except OSError as exc:
                if exc.errno in (errno.ENOTDIR, errno.ELOOP):
                    return False
                raise
            os.close(fd)
            fd = inner
            if _is_opaque(fd):
                return False
        try:
            os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False
    finally:
        os.close(fd)


def _is_opaque(fd: int) -> bool:
    return any(name.endswith(".overlay.opaque") for name in trees.raw_xattrs(fd, b"."))


def _link(index: int, copy: bytes, upper: int, lower: Stack, path: bytes, name: bytes) -> None:
    parent = upper_parent(upper, lower, path)
    if parent is None:
        return
    try:
        # Whatever is there already, a whiteout too, is what the union shows instead.
        with quiet(parent), contextlib.suppress(FileExistsError):
            os.link(copy, name, src_dir_fd=index, dst_dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)


def upper_parent(upper: int, lower: Stack, path: bytes) -> int | None:
    """Open the upper directory `path`, copying missing parts of it up from the lower view.

    None when the upper hides that directory of the lower.
    """
    fd = os.open(b".", _FLAGS, dir_fd=upper)
    done = b""
    for name in filter(None, path.split(b"/")):
        done = trees.child(done, name)
        try:
            inner = _enter_or_copy(fd, name, lower, done)
        except NotADirectoryError:
            inner = None
        finally:
            os.close(fd)
        if inner is None:
            return None
        if _is_opaque(inner):
            os.close(inner)
            return None
        fd = inner
    return fd


def _enter_or_copy(fd: int, name: bytes, lower: Stack, path: bytes) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, _FLAGS, dir_fd=fd)
    view = lower.view(path)
    if view is None:
        return None
    source = next(iter(view.fds.values()))
    with quiet(fd):
        os.mkdir(name, 0o700, dir_fd=fd)
        trees.copy_directory_attributes(source, fd, name)
    return os.open(name, _FLAGS, dir_fd=fd)
