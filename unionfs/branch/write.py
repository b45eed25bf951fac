"""Making entries in a branch with the attributes they should present.

Invariant: after a call the entry presents exactly what was asked for, or the call
raised and the entry is not there (creation) or unchanged (attributes). Whether that
truth is real or an override is decided once per branch by trying (`Writer.probe`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from typing import Final

from unionfs.branch import xattrs
from unionfs.branch.branch import Branch, proc_path
from unionfs.branch.override import MAX_ID, OWNER_XATTR, STAT_XATTR, Override

__all__ = ["Writer", "has_native_rights"]

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SETUID_BITS: Final = stat.S_ISUID | stat.S_ISGID
_PROBE: Final = b".wh-probe"  # removed before the call returns; never seen by anyone else


def has_native_rights(dirfd: int) -> bool:
    """Try whether the caller may make devices, give files away and set trusted xattrs there."""
    name = b"%b.%d" % (_PROBE, os.getpid())
    try:
        os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=dirfd)
    except OSError:
        return False
    try:
        os.chown(name, 1, 1, dir_fd=dirfd, follow_symlinks=False)
        os.setxattr(proc_path(dirfd, name), xattrs.INO_NATIVE, b"1", follow_symlinks=False)
    except OSError:
        return False
    finally:
        os.unlink(name, dir_fd=dirfd)
    return True


def _chmod(dirfd: int, name: bytes, mode: int) -> None:
    """Change a mode without following a link: chmod(2) has no such form, O_PATH fds do."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)


class Writer:
    """Creates and changes entries of one branch.

    `native` says that ownership, devices and privileged xattrs are made real.
    """

    def __init__(self, branch: Branch, *, native: bool) -> None:
        self.branch = branch
        self.native = native

    @classmethod
    def probe(cls, branch: Branch) -> Writer:
        """Find out by trying what the caller may do in `branch`, and mark it if need be."""
        native = has_native_rights(branch.fd)
        writer = cls(branch, native=native)
        if not native and branch.owner is None:
            writer.mark()
        return writer

    def mark(self) -> None:
        """Make the branch root say that entries carry overrides."""
        root = self.branch.fd
        st = os.stat(b".", dir_fd=root)
        status = self.branch.status(root, b".")
        uid, gid = (status.uid, status.gid) if self.branch.marked else (0, 0)
        if self.native:
            uid, gid = status.uid, status.gid
        value = Override(uid, gid, stat.S_IMODE(status.mode), stat.S_IFDIR).encode()
        path = proc_path(root, b".")
        if not self.native:
            os.setxattr(path, OWNER_XATTR, b"%d:%d" % (st.st_uid, st.st_gid))
        os.setxattr(path, STAT_XATTR, value)
        self.branch.read_mark()

    # -- creation ----------------------------------------------------------------

    def create_file(self, dirfd: int, name: bytes, mode: int, uid: int, gid: int) -> int:
        """Create an empty regular file and return it open for reading and writing."""
        fd = os.open(name, _CREATE, 0o600, dir_fd=dirfd)
        try:
            self._own(dirfd, name, stat.S_IFREG | stat.S_IMODE(mode), uid, gid, 0)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=dirfd)
            raise
        return fd

    def create(
        self,
        dirfd: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> None:
        """Create an entry of the type in `mode`; `target` is a symbolic link's text."""
        fmt = stat.S_IFMT(mode)
        if fmt == stat.S_IFREG:
            os.close(self.create_file(dirfd, name, mode, uid, gid))
            return
        if fmt == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=dirfd)
        elif self._needs_placeholder(mode, uid, gid, rdev):
            self._create_placeholder(dirfd, name, mode, uid, gid, rdev, target)
            return
        elif fmt == stat.S_IFLNK:
            os.symlink(target, name, dir_fd=dirfd)
        else:
            os.mknod(name, fmt | 0o600, rdev, dir_fd=dirfd)
        try:
            self._own(dirfd, name, mode, uid, gid, rdev)
        except BaseException:
            (os.rmdir if fmt == stat.S_IFDIR else os.unlink)(name, dir_fd=dirfd)
            raise

    def _needs_placeholder(self, mode: int, uid: int, gid: int, rdev: int) -> bool:
        fmt = stat.S_IFMT(mode)
        if fmt == stat.S_IFCHR and rdev == 0:
            return True  # real ones mean "deleted" to overlayfs
        if self.native:
            return False
        if fmt in (stat.S_IFCHR, stat.S_IFBLK) or (uid, gid) != (0, 0):
            return True
        return fmt != stat.S_IFLNK and bool(mode & _SETUID_BITS)

    def _create_placeholder(
        self, dirfd: int, name: bytes, mode: int, uid: int, gid: int, rdev: int, target: bytes
    ) -> None:
        if not self.branch.marked:
            self.mark()
        fd = os.open(name, _CREATE, 0o600, dir_fd=dirfd)
        try:
            if target:
                os.write(fd, target)
            if self.native:
                os.fchown(fd, uid, gid)
            value = Override(uid, gid, stat.S_IMODE(mode), stat.S_IFMT(mode), rdev).encode()
            os.setxattr(fd, STAT_XATTR, value)
        except BaseException:
            os.unlink(name, dir_fd=dirfd)
            raise
        finally:
            os.close(fd)

    # -- attributes --------------------------------------------------------------

    def set_attributes(
        self, dirfd: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0
    ) -> None:
        """Set owner and permission bits of an existing entry at once; `mode` has its type."""
        self._own(dirfd, name, mode, uid, gid, rdev)

    def set_file_attributes(self, fd: int, mode: int, uid: int, gid: int) -> None:
        """Do the same for a regular file that this writer has made and holds open."""
        perm = stat.S_IMODE(mode)
        if self.native and not self.branch.marked:
            os.fchown(fd, uid, gid)
            os.fchmod(fd, perm)
            return
        if self.native:
            os.fchown(fd, uid, gid)
        os.setxattr(fd, STAT_XATTR, Override(uid, gid, perm, stat.S_IFREG).encode())
        os.fchmod(fd, (perm & 0o777) | 0o600)

    def set_owner(self, dirfd: int, name: bytes, uid: int, gid: int) -> None:
        """Give the entry to `uid` and `gid`; -1 keeps one as it is (chown(2))."""
        st = self.branch.status(dirfd, name)
        uid = st.uid if uid == -1 else uid
        gid = st.gid if gid == -1 else gid
        if max(uid, gid) > MAX_ID:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        plain = st.fmt == stat.S_IFDIR or not st.mode & _SETUID_BITS
        if not self.native and plain and (uid, gid) == (st.uid, st.gid):
            return
        # A real chown(2) clears these for everybody on executables; overrides must as well.
        mode = st.mode
        if st.fmt != stat.S_IFDIR and mode & _SETUID_BITS:
            mode &= ~stat.S_ISUID
            mode &= ~stat.S_ISGID if mode & stat.S_IXGRP else ~0
        self._own(dirfd, name, mode, uid, gid, st.rdev)

    def set_mode(self, dirfd: int, name: bytes, mode: int) -> None:
        """Set the permission bits `mode` (07777)."""
        st = self.branch.status(dirfd, name)
        if self.native and not self._recorded(dirfd, name):
            # Not by way of _own: even a chown to the same ids clears security.capability.
            _chmod(dirfd, name, stat.S_IMODE(mode))
            return
        self._own(dirfd, name, st.fmt | stat.S_IMODE(mode), st.uid, st.gid, st.rdev)

    def set_times(self, dirfd: int, name: bytes, atime_ns: int, mtime_ns: int) -> None:
        """Set both times, ns since the epoch, without following a link."""
        os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=dirfd, follow_symlinks=False)

    def set_xattr(
        self, dirfd: int, name: bytes, attribute: str, value: bytes, flags: int = 0
    ) -> None:
        """Set a presented attribute; EPERM for bookkeeping names."""
        os.setxattr(
            proc_path(dirfd, name),
            self._stored_name(name, attribute),
            value,
            flags,
            follow_symlinks=False,
        )

    def remove_xattr(self, dirfd: int, name: bytes, attribute: str) -> None:
        """Remove a presented attribute; ENODATA when it is not there."""
        stored = self._stored_name(name, attribute)
        os.removexattr(proc_path(dirfd, name), stored, follow_symlinks=False)

    def set_xattrs(self, dirfd: int, name: bytes, attributes: Mapping[str, bytes]) -> list[str]:
        """Set several attributes; return the names this entry or filesystem cannot hold."""
        lost = []
        for attribute, value in attributes.items():
            try:
                self.set_xattr(dirfd, name, attribute, value)
            except OSError as exc:
                if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.EINVAL):
                    raise
                lost.append(attribute)
        return lost

    def _stored_name(self, name: bytes, attribute: str) -> str:
        if xattrs.is_hidden(attribute):
            raise OSError(errno.EPERM, "reserved for the union", name)
        return attribute if self.native else xattrs.encode(attribute)

    def _recorded(self, dirfd: int, name: bytes) -> bool:
        return self.branch.marked and self.branch.override(dirfd, name) is not None

    def _own(self, dirfd: int, name: bytes, mode: int, uid: int, gid: int, rdev: int) -> None:
        """Make owner and mode of an existing entry present as given."""
        fmt = stat.S_IFMT(mode)
        perm = stat.S_IMODE(mode)
        recorded = self._recorded(dirfd, name)
        if self.native:
            os.chown(name, uid, gid, dir_fd=dirfd, follow_symlinks=False)
            if not recorded:
                if fmt != stat.S_IFLNK:
                    _chmod(dirfd, name, perm)  # after chown, which clears setuid bits
                return
        elif fmt not in (stat.S_IFREG, stat.S_IFDIR) and not recorded:
            # A real link, fifo or socket: it holds a mode (links do not), no other owner.
            if (uid, gid) != (0, 0):
                raise OSError(errno.EPERM, "cannot own this type of file without root", name)
            if fmt != stat.S_IFLNK:
                _chmod(dirfd, name, perm & ~_SETUID_BITS)
            return
        value = Override(uid, gid, perm, fmt, rdev).encode()
        os.setxattr(proc_path(dirfd, name), STAT_XATTR, value, follow_symlinks=False)
        if fmt in (stat.S_IFREG, stat.S_IFDIR):
            floor = 0o700 if fmt == stat.S_IFDIR else 0o600
            _chmod(dirfd, name, (perm & 0o777) | floor)

    def copy_attributes(
        self, source: Branch, source_fd: int, source_name: bytes, dirfd: int, name: bytes
    ) -> None:
        """Copy presented xattrs and times from an entry of another branch to an existing one."""
        attributes = source.all_xattrs(source_fd, source_name)
        self.set_xattrs(dirfd, name, attributes)
        st = source.status(source_fd, source_name)
        with contextlib.suppress(FileNotFoundError):
            self.set_times(dirfd, name, st.atime_ns, st.mtime_ns)
