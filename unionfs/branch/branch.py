"""One branch: a directory tree on disk and how to read what it means.

Invariant: nothing here follows a symbolic link inside the branch or leaves it: every
access names one component relative to a directory fd. What is returned is always the
*presented* truth (whiteouts interpreted, overrides applied), never raw disk state.

Directory fds are O_PATH; `b"."` names the directory itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import NamedTuple, Self

from unionfs.branch import whiteout, xattrs
from unionfs.branch.override import OWNER_XATTR, STAT_XATTR, Override
from unionfs.branch.whiteout import Dialect, Meaning
from unionfs.closing import Closing
from unionfs.errors import UnsupportedError, show

__all__ = ["Branch", "DirScan", "Status", "proc_path"]

_DIR_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ATTRIBUTE = (errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES)
_MAX_LINK = 4096
#: As S_IFMT (stat(2)), without a call.
_FORMAT = 0o170000
#: Makes a named tuple in half of the time that its class takes.
_new = tuple.__new__
_MARKERS = (Meaning.WHITEOUT, Meaning.OPAQUE, Meaning.LONG_WHITEOUT)


class Status(NamedTuple):
    """What stat(2) on the union shows for an entry, before id mapping.

    `mode` includes the file type; times are ns. `dev` and `ino` are the backing file's own.
    `placeholder` is true when the backing file is a stand-in of another type.
    """

    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    nlink: int
    dev: int
    ino: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    blocks: int
    placeholder: bool

    @property
    def fmt(self) -> int:
        """The file type, an S_IF* constant."""
        return self.mode & _FORMAT


class DirScan:
    """One directory of one branch, listed once.

    `entries` maps names to the on-disk type as the listing told it (S_IFDIR, S_IFREG,
    S_IFLNK, or 0 for anything else; a placeholder counts as its stand-in). `whiteouts` are
    the names hidden in branches below; `opaque` says that all of them are.
    """

    __slots__ = ("entries", "opaque", "whiteouts")

    def __init__(self) -> None:
        self.entries: dict[bytes, int] = {}
        self.whiteouts: set[bytes] = set()
        self.opaque = False


def proc_path(dirfd: int, name: bytes) -> bytes:
    """Return a path for calls without an *at form; use it only without following links."""
    return b"/proc/self/fd/%d/%b" % (dirfd, name)


def _located(exc: OSError, dirfd: int, name: bytes) -> OSError:
    """Return the error with the whole path: a name in some directory says little to people."""
    at = os.readlink(b"/proc/self/fd/%d" % dirfd)
    return OSError(exc.errno, exc.strerror, at if name == b"." else at + b"/" + name)


def _entry_type(entry: os.DirEntry[str]) -> int:
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFLNK if entry.is_symlink() else 0


class Branch(Closing):
    """An open branch. `path` is kept for messages only; `fd` is its root.

    `marked` branches carry overrides (see `unionfs.branch.override`); `owner` are the real
    ids that stand for image ids 0:0 where an entry has none, or None for identity.
    """

    def __init__(self, path: bytes, fd: int, dialect: Dialect = Dialect.AUFS) -> None:
        self.path = path
        self.fd = fd
        self.dialect = dialect
        self.marked = False
        self._noatime = os.O_NOATIME
        self.owner: tuple[int, int] | None = None
        #: Whether `scan` counts whiteouts and opaque markers as entries besides.
        self.show_markers = False
        self.device = os.fstat(fd).st_dev
        self.read_mark()

    @classmethod
    def open(cls, path: bytes, dialect: Dialect = Dialect.AUFS) -> Self:
        """Open the directory `path` as a branch; OSError when it is not one.

        Raises UnsupportedError when the caller may not read it.
        """
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # An O_PATH descriptor asks for no rights; what fails later could not say where.
        if not os.access(b".", os.R_OK | os.X_OK, dir_fd=fd, effective_ids=True):
            os.close(fd)
            raise UnsupportedError(
                f"you may not read {show(path)}; give its owner the rights (chmod u+rx), or use"
                " one of your own"
            )
        return cls(path, fd, dialect)

    def close(self) -> None:
        """Release the root fd."""
        os.close(self.fd)

    def read_mark(self) -> None:
        """Learn from the root directory's xattrs whether entries carry overrides."""
        self.marked = self._raw_xattr(self.fd, b".", STAT_XATTR) is not None
        self.owner = None
        if not self.marked:
            return
        if self._raw_xattr(self.fd, b".", OWNER_XATTR) is not None:
            # The root's own ids and not those written down: a user namespace and a copy made
            # by somebody else show other numbers, on the root and below alike.
            st = os.stat(b".", dir_fd=self.fd)
            self.owner = (st.st_uid, st.st_gid)

    # -- walking -----------------------------------------------------------------

    def open_dir(self, dirfd: int, name: bytes) -> int:
        """Open the subdirectory `name`; ENOTDIR or ELOOP for anything but a real directory."""
        try:
            return os.open(name, _DIR_FLAGS, dir_fd=dirfd)
        except PermissionError as exc:
            raise _located(exc, dirfd, name) from None

    def open_path(self, path: bytes) -> int:
        """Open the directory at the relative `path` component by component."""
        fd = os.dup(self.fd)
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            try:
                inner = self.open_dir(fd, name)
            finally:
                os.close(fd)
            fd = inner
        return fd

    def scan(self, dirfd: int) -> DirScan:
        """List a directory and sort its names into entries, whiteouts and the opaque marker."""
        scan = DirScan()
        fd = self._open_listing(dirfd)
        try:
            with os.scandir(fd) as listing:
                if self.dialect is Dialect.AUFS:
                    self._scan_aufs(listing, scan, fd)
                else:
                    self._scan_overlay(listing, scan, fd)
        finally:
            os.close(fd)
        return scan

    def _open_listing(self, dirfd: int) -> int:
        """Open a directory for reading, without touching its access time if allowed."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            try:
                return os.open(b".", flags | self._noatime, dir_fd=dirfd)
            except PermissionError:
                if not self._noatime:
                    raise
                self._noatime = 0  # only the owner and root may
                return os.open(b".", flags, dir_fd=dirfd)
        except PermissionError as exc:
            raise _located(exc, dirfd, b".") from None

    def raw_names(self, dirfd: int) -> list[bytes]:
        """Return the names in a directory as they are on disk, whatever they mean."""
        fd = self._open_listing(dirfd)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def _scan_aufs(
        self, listing: contextlib.AbstractContextManager[object], scan: DirScan, fd: int
    ) -> None:
        entries, prefix = scan.entries, os.fsdecode(whiteout.PREFIX)
        encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
        # Written out: what is done for every name of a directory counts.
        for entry in listing:  # type: ignore[attr-defined]  # typeshed hides ScandirIterator
            name = entry.name.encode(encoding, errors)
            if not entry.name.startswith(prefix):
                regular = entry.is_file(follow_symlinks=False)  # what most are
                entries[name] = stat.S_IFREG if regular else _entry_type(entry)
                continue
            marker = whiteout.classify(name)
            if marker.meaning is Meaning.WHITEOUT:
                scan.whiteouts.add(marker.target)
            elif marker.meaning is Meaning.OPAQUE:
                scan.opaque = True
            elif marker.meaning is Meaning.LONG_WHITEOUT:
                target = self._read_long(fd, name)
                if target:
                    scan.whiteouts.add(target)
            if self.show_markers and marker.meaning in _MARKERS:
                entries[name] = _entry_type(entry)

    def _scan_overlay(
        self, listing: contextlib.AbstractContextManager[object], scan: DirScan, fd: int
    ) -> None:
        for entry in listing:  # type: ignore[attr-defined]  # typeshed hides ScandirIterator
            name = os.fsencode(entry.name)
            if whiteout.is_reserved(name):
                continue  # overlayfs lets people make them; the union does not show them
            kind = _entry_type(entry)
            if kind == 0:
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
                    scan.whiteouts.add(name)
                    continue
            scan.entries[name] = kind
        attribute = whiteout.opaque_xattr(self.dialect)
        scan.opaque = attribute is not None and self._raw_xattr(fd, b".", attribute) == b"y"

    def _read_long(self, fd: int, name: bytes) -> bytes:
        """Return the name hidden by a long whiteout; empty when the file is not one."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(name, flags, dir_fd=fd)
        except OSError:
            return b""
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return b""
            target = os.read(file, whiteout.NAME_MAX + 1)
        finally:
            os.close(file)
        return target if whiteout.marker_for(target)[0] == name else b""

    # -- attributes --------------------------------------------------------------

    def status(self, dirfd: int, name: bytes) -> Status:
        """Return the presented attributes of an entry, links not followed."""
        try:
            st = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        except PermissionError as exc:
            raise _located(exc, dirfd, name) from None
        return self._present(st, dirfd, name) if self.marked else self._build(st, None)

    def new_status(self, fd: int) -> Status:
        """Return the presented attributes of an open file that was just made, with no override."""
        return self._build(os.fstat(fd), None)

    def times(self, dirfd: int, name: bytes) -> tuple[int, int]:
        """Return an entry's times of access and modification in ns; no override has others."""
        st = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        return st.st_atime_ns, st.st_mtime_ns

    def override(self, dirfd: int, name: bytes) -> Override | None:
        """Return the override recorded on an entry, if there is a valid one."""
        value = self._raw_xattr(dirfd, name, STAT_XATTR)
        return None if value is None else Override.parse(value)

    def _present(self, st: os.stat_result, dirfd: int, name: bytes) -> Status:
        override = None
        # Only files and directories can carry user xattrs (xattr(7)).
        if self.marked and (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
            override = self.override(dirfd, name)
        return self._build(st, override)

    def _build(self, st: os.stat_result, override: Override | None) -> Status:
        mode, uid, gid, size, rdev = st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_rdev
        real = stat.S_IFMT(mode)
        placeholder = False
        if override is not None:
            fmt = override.fmt or real
            # Only a regular file may stand for something else, and nothing stands for a
            # directory: a listing must be able to tell directories by their d_type.
            if fmt != real and (real != stat.S_IFREG or fmt == stat.S_IFDIR):
                fmt = real
            placeholder = fmt != real
            mode, uid, gid = fmt | override.mode, override.uid, override.gid
            if placeholder:
                rdev = override.rdev
                size = size if fmt == stat.S_IFLNK else 0
                mode = mode | 0o777 if fmt == stat.S_IFLNK else mode
        elif self.owner is not None:
            uid = 0 if uid == self.owner[0] else uid
            gid = 0 if gid == self.owner[1] else gid
        fields = (
            mode,
            uid,
            gid,
            rdev,
            size,
            st.st_nlink,
            st.st_dev,
            st.st_ino,
            st.st_atime_ns,
            st.st_mtime_ns,
            st.st_ctime_ns,
            st.st_blocks,
            placeholder,
        )
        return _new(Status, fields)

    # -- content -----------------------------------------------------------------

    def readlink(self, dirfd: int, name: bytes) -> bytes:
        """Return a symbolic link's target, real or kept in a placeholder."""
        try:
            return os.readlink(name, dir_fd=dirfd)
        except OSError as exc:
            if exc.errno != errno.EINVAL or not self.marked:
                raise
        override = self.override(dirfd, name)
        if override is None or override.fmt != stat.S_IFLNK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        fd = self.open_file(dirfd, name, os.O_RDONLY)
        try:
            return os.read(fd, _MAX_LINK)
        finally:
            os.close(fd)

    def open_file(self, dirfd: int, name: bytes, flags: int) -> int:
        """Open the backing regular file of an entry without following links or blocking."""
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=dirfd)
        except PermissionError as exc:
            raise _located(exc, dirfd, name) from None
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", name)

    def get_xattr(self, dirfd: int, name: bytes, attribute: str) -> bytes:
        """Return a presented attribute's value; ENODATA for bookkeeping and absent ones."""
        if xattrs.is_hidden(attribute):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), name)
        path = proc_path(dirfd, name)
        stored = xattrs.encode(attribute)
        if self.marked and stored != attribute:
            with contextlib.suppress(OSError):
                return os.getxattr(path, stored, follow_symlinks=False)
        return os.getxattr(path, attribute, follow_symlinks=False)

    def list_xattrs(self, dirfd: int, name: bytes) -> list[str]:
        """Return the presented attribute names, sorted."""
        try:
            stored = os.listxattr(proc_path(dirfd, name), follow_symlinks=False)
        except OSError as exc:
            if exc.errno == errno.ENOTSUP:
                return []
            raise
        names = {xattrs.decode(item) for item in stored} if self.marked else set(stored)
        return sorted(item for item in names if not xattrs.is_hidden(item))

    def all_xattrs(self, dirfd: int, name: bytes) -> dict[str, bytes]:
        """Return every presented attribute with its value."""
        found: dict[str, bytes] = {}
        for attribute in self.list_xattrs(dirfd, name):
            # trusted.* is listed for root of a user namespace but cannot be read there.
            with contextlib.suppress(OSError):
                found[attribute] = self.get_xattr(dirfd, name, attribute)
        return found

    @staticmethod
    def _raw_xattr(dirfd: int, name: bytes, attribute: str) -> bytes | None:
        try:
            return os.getxattr(proc_path(dirfd, name), attribute, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in _NO_ATTRIBUTE:
                return None
            raise
