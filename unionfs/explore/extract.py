"""Copying a file or tree out of the layers into a directory of the person's choice.

Invariant: everything is made under a fresh name in that directory and appears by one rename, so a
copy is whole or not there; no link is followed on either side; what has the name already is
replaced only when `replace` says so, whoever put it there and when.

Root gets owners, modes with setuid bits, devices and all xattrs; others get files of their own with
the modes that their umask leaves, and hear what could not be made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from unionfs import _sys
from unionfs.branch import Branch, DirView, Stack, Status
from unionfs.branch.branch import proc_path
from unionfs.errors import ConflictError, NotFoundError, show
from unionfs.explore.model import Tick
from unionfs.store._fs import open_dir, remove_tree

__all__ = ["Extracted", "extract"]

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK: Final = 4 << 20
_SETUID: Final = stat.S_ISUID | stat.S_ISGID
_TEMPORARY: Final = b".unionfs-extract-"
#: What renameat2(2) answers where a filesystem does not know its flags.
_NO_FLAGS: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@attrs.define
class Extracted:
    """How far a copy is: entries and bytes made, and what could not be made as it was."""

    path: bytes = b""
    entries: int = 0
    size: int = 0
    losses: dict[str, int] = attrs.field(factory=dict)

    def lose(self, what: str) -> None:
        """Count something that could not be made."""
        self.losses[what] = self.losses.get(what, 0) + 1

    @property
    def notes(self) -> str:
        """The losses in words."""
        return ", ".join(f"{count} {what}" for what, count in self.losses.items())


def extract(
    branches: Sequence[Branch],
    path: bytes,
    directory: bytes,
    *,
    replace: bool,
    tick: Tick,
    done: Extracted | None = None,
) -> Extracted:
    """Copy what `branches`, top first, show at a relative `path` into an existing `directory`.

    The copy has the last name of the path, `root` for the root. `ConflictError` when that is there
    and `replace` is not set. `done` is kept up to date while it goes on.
    """
    found = Extracted() if done is None else done
    name = path.rpartition(b"/")[2] or b"root"
    found.path = os.path.join(directory, name)
    target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not replace and _exists(target, name):
            raise _taken(found.path)
        temporary = _TEMPORARY + secrets.token_hex(8).encode()
        try:
            _Copy(Stack(branches), path, target, temporary, found, tick).run()
            _appear(target, temporary, name, found.path, replace=replace)
        finally:
            with contextlib.suppress(FileNotFoundError):
                remove_tree(temporary, target)
    finally:
        os.close(target)
    return found


def _taken(path: bytes) -> ConflictError:
    return ConflictError(f"{show(path)} is there already")


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _appear(fd: int, temporary: bytes, name: bytes, shown: bytes, *, replace: bool) -> None:
    """Give the finished copy its name; what had it before gets the temporary one."""
    try:
        _sys.renameat2(fd, temporary, fd, name, _sys.RENAME_NOREPLACE)
    except FileExistsError:
        if not replace:
            raise _taken(shown) from None
        _sys.renameat2(fd, temporary, fd, name, _sys.RENAME_EXCHANGE)
    except OSError as exc:
        if exc.errno not in _NO_FLAGS:
            raise
        _appear_by_making(fd, temporary, name, shown, replace=replace)


def _appear_by_making(
    fd: int, temporary: bytes, name: bytes, shown: bytes, *, replace: bool
) -> None:
    """Do so where a rename cannot be told not to replace: make the name, which fails if it is."""
    if replace:
        remove_tree(name, fd)
    try:
        if stat.S_ISDIR(os.stat(temporary, dir_fd=fd, follow_symlinks=False).st_mode):
            os.mkdir(name, 0o700, dir_fd=fd)
            os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        else:
            os.link(temporary, name, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except FileExistsError:
        raise _taken(shown) from None


def _umask() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o077


class _Copy:
    """One copy on its way from a merged view to `name` in the directory `target`."""

    def __init__(
        self, stack: Stack, path: bytes, target: int, name: bytes, done: Extracted, tick: Tick
    ) -> None:
        self._stack = stack
        self._path = path
        self._target = target
        self._name = name
        self._done = done
        self._tick = tick
        self._is_root = os.geteuid() == 0
        self._mask = 0o7777 if self._is_root else 0o777 & ~_umask()
        #: Files with several names -> path of the first copy.
        self._links: dict[tuple[int, int], bytes] = {}
        self._dirs: list[tuple[bytes, Status, dict[str, bytes]]] = []

    def run(self) -> None:
        """Copy everything; directories get their modes and times last."""
        if self._path:
            found = self._stack.find(self._path)
            if found is None:
                raise NotFoundError(f"{show(b'/' + self._path)} is not there any more")
            self._entry(b"", *found)
        else:
            root = self._stack.root()
            position, fd = next(iter(root.fds.items()))
            self._directory(b"", self._stack.branches[position], fd, b".")
        if self._dirs:
            self._inside()
        for inner, status, xattrs in reversed(self._dirs):
            with self._holder(inner) as (fd, name):
                self._attributes(fd, name, status, xattrs)

    def _inside(self) -> None:
        for path, view, name in self._stack.walk(self._path):
            inner = path[len(self._path) :].lstrip(b"/")
            # The directory may lie in a branch: then the copy must not meet itself.
            if self._name not in inner.split(b"/"):
                self._entry(inner, view, name)

    @contextlib.contextmanager
    def _holder(self, inner: bytes) -> Iterator[tuple[int, bytes]]:
        """Open the directory of a copy; give it and the copy's name."""
        if not inner:
            yield self._target, self._name
            return
        parent, _, name = inner.rpartition(b"/")
        fd = open_dir(self._name, self._target)
        try:
            for part in parent.split(b"/") if parent else ():
                below = open_dir(part, fd)
                os.close(fd)
                fd = below
            yield fd, name
        finally:
            os.close(fd)

    def _directory(self, inner: bytes, branch: Branch, fd: int, name: bytes) -> None:
        with self._holder(inner) as (into, leaf):
            os.mkdir(leaf, 0o700, dir_fd=into)
        self._dirs.append((inner, branch.status(fd, name), branch.all_xattrs(fd, name)))
        self._done.entries += 1

    def _entry(self, inner: bytes, view: DirView, name: bytes) -> None:
        self._tick()
        branch, fd = view.top(name)
        status = branch.status(fd, name)
        if status.fmt == stat.S_IFDIR:
            self._directory(inner, branch, fd, name)
            return
        with self._holder(inner) as (into, leaf):
            if self._linked(inner, status, into, leaf) or self._made(
                branch, fd, name, status, into, leaf
            ):
                self._done.entries += 1

    def _linked(self, inner: bytes, status: Status, into: int, leaf: bytes) -> bool:
        """Make one more name of a file that was copied already."""
        if status.nlink < 2:  # noqa: PLR2004  # more than one name
            return False
        first = self._links.setdefault((status.dev, status.ino), inner)
        if first == inner:
            return False
        try:
            with self._holder(first) as (fd, name):
                os.link(name, leaf, src_dir_fd=fd, dst_dir_fd=into, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _made(
        self, branch: Branch, fd: int, name: bytes, status: Status, into: int, leaf: bytes
    ) -> bool:
        fmt = status.fmt
        if fmt == stat.S_IFREG:
            self._file(branch, fd, name, into, leaf)
        elif fmt == stat.S_IFLNK:
            os.symlink(branch.readlink(fd, name), leaf, dir_fd=into)
        elif fmt in (stat.S_IFCHR, stat.S_IFBLK) and not self._is_root:
            self._done.lose("devices left out")
            return False
        else:
            os.mknod(leaf, fmt | 0o600, status.rdev, dir_fd=into)
        self._attributes(into, leaf, status, branch.all_xattrs(fd, name))
        return True

    def _file(self, branch: Branch, fd: int, name: bytes, into: int, leaf: bytes) -> None:
        source = branch.open_file(fd, name, os.O_RDONLY)
        try:
            target = os.open(leaf, _CREATE, 0o600, dir_fd=into)
            try:
                size = os.fstat(source).st_size
                os.ftruncate(target, size)
                for start, end in _extents(source, size):
                    self._range(source, target, start, end)
                self._done.size += size
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _range(self, source: int, target: int, start: int, end: int) -> None:
        while start < end:
            self._tick()
            data = os.pread(source, min(_CHUNK, end - start), start)
            if not data:  # it became shorter meanwhile
                return
            start += os.pwrite(target, data, start)

    def _attributes(self, fd: int, name: bytes, status: Status, xattrs: dict[str, bytes]) -> None:
        """Give a copy what the original presents: owner first, for it clears other things."""
        if self._is_root:
            try:
                os.chown(name, status.uid, status.gid, dir_fd=fd, follow_symlinks=False)
            except OSError:
                self._done.lose("owners not kept")
        elif status.mode & _SETUID and status.fmt == stat.S_IFREG:
            self._done.lose("setuid or setgid bits left out")
        if status.fmt != stat.S_IFLNK:
            _chmod(fd, name, status.mode & self._mask)
        for attribute, value in xattrs.items():
            try:
                os.setxattr(proc_path(fd, name), attribute, value, follow_symlinks=False)
            except OSError:
                self._done.lose("extended attributes left out")
        times = (status.atime_ns, status.mtime_ns)
        with contextlib.suppress(OSError):
            os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where data begins and ends; holes lie between."""
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
            end = os.lseek(fd, offset, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # a hole up to the end
                return
            end = size
        yield offset, min(end, size)
        offset = end


def _chmod(fd: int, name: bytes, mode: int) -> None:
    """Change a mode without following a link (chmod(2) knows no such way, O_PATH does)."""
    pinned = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        os.chmod(b"/proc/self/fd/%d" % pinned, mode)
    finally:
        os.close(pinned)
