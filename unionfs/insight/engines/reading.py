"""Reading what an engine shows: a directory of this machine, or our own engine in this process.

Invariant: no link is followed; a name that is listed but cannot be looked at is told as such and
never left out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Hashable, Iterator
from typing import Final

from unionfs.branch.branch import proc_path
from unionfs.errors import show
from unionfs.fuse.idmap import IdMap, map_acl
from unionfs.insight.engines.seen import Seen, Shown, kept_xattrs
from unionfs.insight.engines.workplace import LeftOutError, RefusedError
from unionfs.insight.probe import join
from unionfs.kernel.trees import open_inner
from unionfs.union import Attr, Engine

__all__ = ["Ids", "read_directory", "read_engine"]

_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
_CHUNK: Final = 1 << 20
_DENIED: Final = (errno.EACCES, errno.EPERM)


class Ids:
    """From the numbers that the kernel names back to those of the image."""

    def __init__(self, users: IdMap | None = None, groups: IdMap | None = None) -> None:
        self._users = users or IdMap()
        self._groups = groups or IdMap()

    @classmethod
    def of_own_mount(cls) -> Ids:
        """Return those of a FUSE mount that the caller made: a plain user stands for root."""
        return cls(IdMap.bijective(os.geteuid()), IdMap.bijective(os.getegid()))

    def owner(self, st: os.stat_result) -> tuple[int, int]:
        """Return user and group of an entry."""
        return self._users.stored(st.st_uid), self._groups.stored(st.st_gid)

    def xattr(self, name: str, value: bytes) -> bytes:
        """Return an attribute with the ids in it mapped."""
        if not name.startswith("system.posix_acl_"):
            return value
        return map_acl(value, self._users, self._groups, show=False)


def read_directory(root: bytes, ids: Ids) -> Iterator[Shown]:
    """Yield everything at and below a directory, the root first."""
    pending = [b""]
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield b"", _entry(top, b".", os.stat(b".", dir_fd=top), ids), None
        while pending:
            path = pending.pop()
            fd, names = _listed(top, path)
            try:
                for name in names:
                    inner = join(path, name)
                    try:
                        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    except OSError as error:
                        yield inner, Seen(0, error=errno.errorcode.get(error.errno or 0, "?")), None
                        continue
                    if stat.S_ISDIR(st.st_mode):
                        pending.append(inner)
                    yield inner, _entry(fd, name, st, ids), _key(st)
            finally:
                os.close(fd)
    finally:
        os.close(top)


def _listed(top: int, path: bytes) -> tuple[int, list[bytes]]:
    """Open and list a directory."""
    try:
        fd = open_inner(top, path)
        try:
            return fd, [os.fsencode(name) for name in os.listdir(b"/proc/self/fd/%d" % fd)]
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        shown = show(b"/" + path)
        if error.errno in _DENIED:
            raise LeftOutError(f"you may not read {shown} there") from error
        raise RefusedError(f"{shown} cannot be listed: {error.strerror}") from error


def _key(st: os.stat_result) -> Hashable:
    if stat.S_ISDIR(st.st_mode) or st.st_nlink < 2:  # noqa: PLR2004  # one name
        return None
    return st.st_dev, st.st_ino


def _entry(fd: int, name: bytes, st: os.stat_result, ids: Ids) -> Seen:
    fmt = stat.S_IFMT(st.st_mode)
    content = b""
    try:
        if fmt == stat.S_IFLNK:
            content = os.readlink(name, dir_fd=fd)
        elif fmt == stat.S_IFREG:
            with open(os.open(name, _FILE, dir_fd=fd), "rb", buffering=0) as file:
                content = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        if error.errno not in _DENIED:
            return Seen(fmt, error=errno.errorcode.get(error.errno or 0, "?"))
    return _seen(
        fmt,
        stat.S_IMODE(st.st_mode),
        ids.owner(st),
        st.st_rdev,
        st.st_size,
        st.st_mtime_ns,
        content,
        lambda: _xattrs(proc_path(fd, name), ids),
    )


def _seen(
    fmt: int,
    mode: int,
    owner: tuple[int, int],
    rdev: int,
    size: int,
    mtime_ns: int,
    content: bytes,
    xattrs: Callable[[], dict[str, bytes]],
) -> Seen:
    return Seen(
        fmt,
        mode,
        *owner,
        rdev if fmt in _DEVICES else 0,
        size if fmt == stat.S_IFREG else 0,
        mtime_ns,
        content,
        kept_xattrs(xattrs()),
    )


def _xattrs(path: bytes, ids: Ids) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return found
    for name in names:
        try:
            found[name] = ids.xattr(name, os.getxattr(path, name, follow_symlinks=False))
        except OSError:
            continue  # trusted.* is listed in a user namespace, but not given
    return found


# -- our engine --------------------------------------------------------------------


def read_engine(engine: Engine) -> Iterator[Shown]:
    """Yield everything that an engine shows, the root first."""
    yield b"", _engine_entry(engine, engine.root, engine.getattr(engine.root)), None
    # References are held only for the directories that wait.
    pending = [(b"", engine.root)]
    while pending:
        path, ino = pending.pop()
        fh = engine.opendir(ino)
        try:
            for item in engine.readdir(fh, 0):
                attr = engine.lookup(ino, item.name)
                inner = join(path, item.name)
                is_dir = stat.S_ISDIR(attr.mode)
                key = None if is_dir or attr.nlink < 2 else attr.ino  # noqa: PLR2004  # one name
                yield inner, _engine_entry(engine, attr.ino, attr), key
                if is_dir:
                    pending.append((inner, attr.ino))
                else:
                    engine.forget(attr.ino, 1)
        finally:
            engine.releasedir(fh)
        if ino != engine.root:
            engine.forget(ino, 1)


def _engine_entry(engine: Engine, ino: int, attr: Attr) -> Seen:
    fmt = stat.S_IFMT(attr.mode)
    content = b""
    if fmt == stat.S_IFLNK:
        content = engine.readlink(ino)
    elif fmt == stat.S_IFREG:
        content = _engine_content(engine, ino)
    return _seen(
        fmt,
        stat.S_IMODE(attr.mode),
        (attr.uid, attr.gid),
        attr.rdev,
        attr.size,
        attr.mtime_ns,
        content,
        lambda: {name: engine.getxattr(ino, name) for name in engine.listxattr(ino)},
    )


def _engine_content(engine: Engine, ino: int) -> bytes:
    digest = hashlib.sha256()
    try:
        fh = engine.open(ino, os.O_RDONLY)
    except PermissionError:
        return b""
    try:
        at = 0
        while data := engine.read(fh, at, _CHUNK):
            digest.update(data)
            at += len(data)
    finally:
        engine.release(fh)
    return digest.digest()
