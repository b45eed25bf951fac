"""Paths on an engine: what a test says as `fs.unlink("d/f")`, and whole trees as values.

Invariant: every reference that a call takes by lookup is given back, so that a test
also sees nodes being forgotten and made again.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from unionfs.union import Attr, Caller, Engine, SetAttr

__all__ = ["OLD", "EngineFs", "build", "disk_form", "disk_state", "fingerprint", "snapshot"]

#: The time every entry of a built tree has, ns.
OLD = 1_000_000_000 * 10**9

ROOT = Caller(0, 0)
_OWN = (".unionfs.ino", ".override_stat")


class EngineFs:
    """Path operations on an engine; paths are relative to its root."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextlib.contextmanager
    def at(self, path: str) -> Iterator[int]:
        """Look a path up and give every reference back afterwards."""
        taken: list[int] = []
        ino = self.engine.root
        try:
            for name in [part for part in path.split("/") if part]:
                ino = self.engine.lookup(ino, os.fsencode(name)).ino
                taken.append(ino)
            yield ino
        finally:
            for item in reversed(taken):
                self.engine.forget(item, 1)

    @contextlib.contextmanager
    def above(self, path: str) -> Iterator[tuple[int, bytes]]:
        """Give the parent's number and the last name."""
        parent, _, name = path.rpartition("/")
        with self.at(parent) as ino:
            yield ino, os.fsencode(name)

    def attr(self, path: str) -> Attr:
        with self.at(path) as ino:
            return self.engine.getattr(ino)

    def exists(self, path: str) -> bool:
        try:
            self.attr(path)
        except FileNotFoundError:
            return False
        return True

    def names(self, path: str = "") -> list[str]:
        return sorted(os.fsdecode(item) for item in self.items(path))

    def items(self, path: str = "") -> dict[bytes, Attr]:
        with self.at(path) as ino:
            fh = self.engine.opendir(ino)
            try:
                return {item.name: item.attr for item in self.engine.readdir(fh, 0)}
            finally:
                self.engine.releasedir(fh)

    def create(self, path: str, data: bytes = b"", mode: int = 0o644, caller: Caller = ROOT) -> int:
        with self.above(path) as (parent, name):
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
            fh, attr, _ = self.engine.create(parent, name, mode, flags, caller)
            self.engine.write(fh, 0, data)
            self.engine.release(fh)
            self.engine.forget(attr.ino, 1)
            return attr.ino

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        with self.at(path) as ino:
            return self.engine.open(ino, flags)

    def write(self, path: str, data: bytes, offset: int = 0, flags: int = os.O_WRONLY) -> None:
        fh = self.open(path, flags)
        try:
            self.engine.write(fh, offset, data)
        finally:
            self.engine.release(fh)

    def read(self, path: str) -> bytes:
        fh = self.open(path)
        try:
            return self.engine.read(fh, 0, 1 << 24)
        finally:
            self.engine.release(fh)

    def mkdir(self, path: str, mode: int = 0o755, caller: Caller = ROOT) -> None:
        with self.above(path) as (parent, name):
            self.engine.forget(self.engine.mkdir(parent, name, mode, caller).ino, 1)

    def symlink(self, path: str, target: str) -> None:
        with self.above(path) as (parent, name):
            attr = self.engine.symlink(parent, name, os.fsencode(target), ROOT)
            self.engine.forget(attr.ino, 1)

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        with self.above(path) as (parent, name):
            self.engine.forget(self.engine.mknod(parent, name, mode, rdev, ROOT).ino, 1)

    def readlink(self, path: str) -> str:
        with self.at(path) as ino:
            return os.fsdecode(self.engine.readlink(ino))

    def link(self, path: str, new: str) -> None:
        with self.at(path) as ino, self.above(new) as (parent, name):
            self.engine.forget(self.engine.link(ino, parent, name).ino, 1)

    def unlink(self, path: str) -> None:
        with self.above(path) as (parent, name), self.at(path):
            self.engine.unlink(parent, name)

    def rmdir(self, path: str) -> None:
        with self.above(path) as (parent, name), self.at(path):
            self.engine.rmdir(parent, name)

    def rmtree(self, path: str) -> None:
        """Do what `rm -r` does."""
        if not stat.S_ISDIR(self.attr(path).mode):
            self.unlink(path)
            return
        for name in self.names(path):
            self.rmtree(f"{path}/{name}")
        self.rmdir(path)

    def rename(self, path: str, new: str, flags: int = 0) -> None:
        with contextlib.ExitStack() as stack:
            parent, name = stack.enter_context(self.above(path))
            new_parent, new_name = stack.enter_context(self.above(new))
            stack.enter_context(self.at(path))
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(self.at(new))
            self.engine.rename(parent, name, new_parent, new_name, flags)

    def setattr(self, path: str, **changes: int) -> Attr:
        with self.at(path) as ino:
            return self.engine.setattr(ino, SetAttr(**changes))

    def chmod(self, path: str, mode: int) -> None:
        self.setattr(path, mode=mode)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        with self.at(path) as ino:
            self.engine.setxattr(ino, name, value)

    def xattrs(self, path: str) -> dict[str, bytes]:
        with self.at(path) as ino:
            engine = self.engine
            return {name: engine.getxattr(ino, name) for name in engine.listxattr(ino)}

    def walk(self, path: str = "") -> Iterator[tuple[str, Attr]]:
        for name, attr in sorted(self.items(path).items()):
            inner = f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)
            yield inner, attr
            if stat.S_ISDIR(attr.mode):
                yield from self.walk(inner)

    def tree(self) -> dict[str, str]:
        """Return every visible path with its content, target or type."""
        found = {}
        for path, attr in self.walk():
            fmt = stat.S_IFMT(attr.mode)
            if fmt == stat.S_IFREG:
                found[path] = self.read(path).decode()
            elif fmt == stat.S_IFLNK:
                found[path] = "->" + self.readlink(path)
            else:
                found[path + "/" if fmt == stat.S_IFDIR else path] = {
                    stat.S_IFDIR: "",
                    stat.S_IFIFO: "fifo",
                    stat.S_IFSOCK: "socket",
                }.get(fmt, f"dev {attr.rdev}")
        return found


def build(root: Path, tree: Mapping[str, str]) -> None:
    """Make a directory tree: `d/` a directory, `->t` a link, `=p` a hard link, else a file.

    Every entry gets the same old times.
    """
    root.mkdir(exist_ok=True)
    for path, body in tree.items():
        where = root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            where.mkdir(exist_ok=True)
        elif body.startswith("->"):
            where.symlink_to(body[2:])
        elif body.startswith("="):
            where.hardlink_to(root / body[1:])
        else:
            where.write_text(body)
    for directory, _, names in os.walk(root, topdown=False):
        for name in [*names, "."]:
            os.utime(os.path.join(directory, name), ns=(OLD, OLD), follow_symlinks=False)
        for name in os.listdir(directory):
            where = Path(directory, name)
            if where.is_symlink():
                os.utime(where, ns=(OLD, OLD), follow_symlinks=False)
    os.utime(root, ns=(OLD, OLD))


def disk_state(root: Path) -> dict[str, str]:
    """Return what a rw branch literally holds, the work area included."""
    found = {}
    for directory, dirs, names in os.walk(root):
        for name in dirs + names:
            where = Path(directory, name)
            key = str(where.relative_to(root))
            if where.is_symlink():
                found[key] = "->" + str(where.readlink())
            elif where.is_dir():
                found[key + "/"] = ""
            elif where.is_file():
                found[key] = where.read_text(errors="surrogateescape")
            else:
                found[key] = "special"
    return found


def disk_form(root: Path) -> dict[str, tuple[object, ...]]:
    """Return the form of a rw branch: all that two unions that did the same must agree on.

    Not what is the single file's own: its inode number, its times, how many links a marker has.
    A plain user's branch may record an owner and mode or have them real; trees tell that.
    """
    found: dict[str, tuple[object, ...]] = {}
    for path, facts in fingerprint(root).items():
        mode, _, nlink, uid, gid, rdev, size, _, _, attributes, content = facts
        name = os.path.relpath(path, root)
        plain = isinstance(mode, int) and stat.S_ISREG(mode)
        if os.path.basename(name).startswith(".wh."):
            nlink = None
        assert isinstance(attributes, tuple)
        kept = tuple(item for item in attributes if not item[0].endswith(_OWN))
        ids = (mode, uid, gid, rdev)
        found[name] = (*ids, *((nlink, size) if plain else ()), kept, content)
    return found


def fingerprint(root: Path) -> dict[str, tuple[object, ...]]:
    """Return everything about a directory tree but access times: to prove that nothing changed."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, dirs, names in os.walk(root):
        for name in [".", *dirs, *names]:
            where = os.path.join(directory, name)
            st = os.lstat(where)
            attributes = tuple(
                (item, os.getxattr(where, item, follow_symlinks=False))
                for item in sorted(os.listxattr(where, follow_symlinks=False))
            )
            content: object = None
            if stat.S_ISREG(st.st_mode):
                content = Path(where).read_bytes()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(where)
            numbers = (st.st_mode, st.st_ino, st.st_nlink, st.st_uid, st.st_gid, st.st_rdev)
            times = (st.st_size, st.st_mtime_ns, st.st_ctime_ns)
            found[where] = (*numbers, *times, attributes, content)
    return found


def snapshot(fs: EngineFs) -> dict[str, tuple[object, ...]]:
    """Return the visible tree in full: attributes but inode numbers and directory times."""
    found: dict[str, tuple[object, ...]] = {}
    for path, attr in fs.walk():
        fmt = stat.S_IFMT(attr.mode)
        content: object = None
        if fmt == stat.S_IFREG:
            content = fs.read(path)
        elif fmt == stat.S_IFLNK:
            content = fs.readlink(path)
        nlink = 0 if fmt == stat.S_IFDIR else attr.nlink
        size = 0 if fmt == stat.S_IFDIR else attr.size
        attributes = tuple(sorted(fs.xattrs(path).items()))
        found[path] = (attr.mode, nlink, attr.uid, attr.gid, attr.rdev, size, attributes, content)
    return found
