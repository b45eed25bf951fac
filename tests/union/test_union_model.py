"""The engine against a plain directory: random layers, random operations, same results.

After every few steps both trees are compared in full, and now and then the engine is
opened anew on the same branches, which must change nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.engine_fs import OLD, EngineFs, build, fingerprint

from unionfs import _sys
from unionfs.branch import Branch, Stack
from unionfs.union import Engine, EngineOptions, SetAttr
from unionfs.union.hardlinks import scan_links

NAMES = ["a", "b", "c"]
names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
bodies = st.sampled_from(["", "x", "some text", "y" * 5000])
flags = st.sampled_from([0, 0, 0, _sys.RENAME_NOREPLACE, _sys.RENAME_EXCHANGE])


@st.composite
def layer_trees(draw: st.DrawFn, index: int) -> dict[str, str]:
    """Draw a layer: files, links, directories, whiteouts and opaque markers."""
    tree: dict[str, str] = {}
    files: list[str] = []
    for path in draw(st.lists(paths, max_size=8, unique=True)):
        parts = path.split("/")
        if any("/".join(parts[:i]) in files for i in range(1, len(parts))):
            continue
        if any(other.startswith(path + "/") for other in tree):
            continue
        kind = draw(st.sampled_from(["file", "file", "dir", "link", "hard", "white", "opaque"]))
        parent, _, name = path.rpartition("/")
        prefix = parent + "/" if parent else ""
        if kind == "white" and index:
            tree[f"{prefix}.wh.{name}"] = ""
            continue
        if kind == "opaque" and index:
            tree[f"{path}/.wh..wh..opq"] = ""
            continue
        regular = [item for item in files if not tree[item].startswith("->")]
        if kind == "dir":
            tree[path + "/"] = ""
            continue
        if kind == "hard" and regular:
            tree[path] = "=" + draw(st.sampled_from(regular))
        elif kind == "link":
            tree[path] = "->" + draw(names)
        else:
            tree[path] = f"layer {index} {path}"
        files.append(path)
    return tree


def _materialise(layers: list[Path], target: Path) -> None:
    """Copy what the layers show into a plain directory, hard links included."""
    target.mkdir()
    known: dict[tuple[int, int], Path] = {}
    with Stack.open(bytes(layer) for layer in layers) as stack:
        for path, view, name in stack.walk():
            where = target / os.fsdecode(path)
            status = view.status(name)
            assert status is not None
            branch, fd = view.top(name)
            if status.fmt == stat.S_IFDIR:
                where.mkdir()
            elif status.fmt == stat.S_IFLNK:
                os.symlink(branch.readlink(fd, name), where)
            elif (id(branch), status.ino) in known:
                where.hardlink_to(known[id(branch), status.ino])
            else:
                file = branch.open_file(fd, name, os.O_RDONLY)
                with os.fdopen(file, "rb") as source:
                    where.write_bytes(source.read())
                where.chmod(stat.S_IMODE(status.mode))
                known[id(branch), status.ino] = where
    for directory, dirs, files in os.walk(target, topdown=False):
        for inner in [*dirs, *files, "."]:
            os.utime(Path(directory, inner), ns=(OLD, OLD), follow_symlinks=False)


def _plain(root: Path) -> dict[str, tuple[object, ...]]:
    """Return the comparable truth about a plain directory."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, dirs, files in os.walk(root):
        for name in dirs + files:
            where = Path(directory, name)
            info = where.lstat()
            content: object = None
            if stat.S_ISREG(info.st_mode):
                content = where.read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(where)
            attributes = tuple(
                (item, os.getxattr(where, item, follow_symlinks=False))
                for item in sorted(os.listxattr(where, follow_symlinks=False))
            )
            found[str(where.relative_to(root))] = (
                info.st_mode,
                info.st_uid,
                info.st_gid,
                0 if stat.S_ISDIR(info.st_mode) else info.st_nlink,
                0 if stat.S_ISDIR(info.st_mode) else info.st_size,
                "old" if info.st_mtime_ns == OLD else "new",
                attributes,
                content,
            )
    return found


def _seen(fs: EngineFs) -> dict[str, tuple[object, ...]]:
    """Return the comparable truth about the union."""
    found: dict[str, tuple[object, ...]] = {}
    for path, attr in fs.walk():
        assert fs.attr(path).ino == attr.ino
        is_dir = stat.S_ISDIR(attr.mode)
        content: object = None
        if stat.S_ISREG(attr.mode):
            content = fs.read(path)
        elif stat.S_ISLNK(attr.mode):
            content = os.fsencode(fs.readlink(path)).decode()
        found[path] = (
            attr.mode,
            attr.uid,
            attr.gid,
            0 if is_dir else attr.nlink,
            0 if is_dir else attr.size,
            "old" if attr.mtime_ns == OLD else "new",
            tuple(sorted(fs.xattrs(path).items())),
            content,
        )
    return found


def on_paths(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a rule that does nothing when a path's parent is not a directory.

    The engine has names only; walking paths and following links is the kernel's part.
    """

    def decorate(method: Callable[..., None]) -> Any:
        def step(self: UnionMachine, **drawn: Any) -> None:
            given = [drawn[key] for key in ("path", "new") if key in drawn]
            if all(self.has_parent(path) for path in given):
                method(self, **drawn)

        step.__name__ = method.__name__
        make_rule: Callable[..., Any] = rule
        return make_rule(**arguments)(step)

    return decorate


class UnionMachine(RuleBasedStateMachine):
    """One engine and one plain directory, changed alike."""

    native = True

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="unionfs-model-"))
        self.steps = 0

    @initialize(top=layer_trees(2), middle=layer_trees(1), bottom=layer_trees(0))
    def open_union(
        self, top: dict[str, str], middle: dict[str, str], bottom: dict[str, str]
    ) -> None:
        self.layers = [self.base / "2", self.base / "1", self.base / "0"]
        for path, tree in zip(self.layers, [top, middle, bottom], strict=True):
            build(path, tree)
        self.rw = self.base / "rw"
        self.rw.mkdir()
        self.plain = self.base / "plain"
        _materialise(self.layers, self.plain)
        tables = {}
        for layer in self.layers:
            with Branch.open(bytes(layer)) as branch:
                tables[bytes(layer)] = self._table(branch)
        self.options = EngineOptions(native=self.native, volatile=True, link_tables=tables)
        self.before = {layer: fingerprint(layer) for layer in self.layers}
        self.handles: list[tuple[int, int]] = []
        self.numbers: dict[str, int] = {}
        self._start()

    @staticmethod
    def _table(branch: Branch) -> Callable[[], Any]:
        table = scan_links(branch)
        return lambda: table

    def _start(self) -> None:
        layers = [bytes(layer) for layer in self.layers]
        self.engine = Engine.start(layers, bytes(self.rw), options=self.options)
        self.fs = EngineFs(self.engine)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self._compare()
            self._close_handles()
            self.engine.close()
            for layer in self.layers:
                assert fingerprint(layer) == self.before[layer]
        shutil.rmtree(self.base)

    def has_parent(self, path: str) -> bool:
        parents = [self.plain / parent for parent in Path(path).parents]
        return parents[0].is_dir() and not any(parent.is_symlink() for parent in parents)

    def _both(self, on_union: Callable[[], object], on_plain: Callable[[], object]) -> None:
        """Do the same to both and expect the same errno."""
        results: list[str | None] = []
        for action in (on_union, on_plain):
            try:
                action()
                results.append(None)
            except OSError as exc:
                results.append(errno.errorcode[exc.errno or 0])
        self.steps += 1
        assert results[0] == results[1], f"union {results[0]}, plain {results[1]}"

    @on_paths(path=paths, body=bodies)
    def create(self, path: str, body: str) -> None:
        def plain() -> None:
            fd = os.open(self.plain / path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, body.encode())
            os.close(fd)

        self._both(lambda: self.fs.create(path, body.encode()), plain)

    @on_paths(path=paths)
    def mkdir(self, path: str) -> None:
        self._both(lambda: self.fs.mkdir(path), lambda: os.mkdir(self.plain / path, 0o755))

    @on_paths(path=paths, text=names)
    def symlink(self, path: str, text: str) -> None:
        self._both(lambda: self.fs.symlink(path, text), lambda: os.symlink(text, self.plain / path))

    @on_paths(path=paths)
    def mkfifo(self, path: str) -> None:
        self._both(
            lambda: self.fs.mknod(path, stat.S_IFIFO | 0o640),
            lambda: os.mknod(self.plain / path, stat.S_IFIFO | 0o640),
        )

    @on_paths(path=paths)
    def unlink(self, path: str) -> None:
        self._both(lambda: self.fs.unlink(path), lambda: os.unlink(self.plain / path))

    @on_paths(path=paths)
    def rmdir(self, path: str) -> None:
        self._both(lambda: self.fs.rmdir(path), lambda: os.rmdir(self.plain / path))

    @on_paths(path=paths)
    def remove_tree(self, path: str) -> None:
        where = self.plain / path
        if where.is_dir() and not where.is_symlink():
            self.fs.rmtree(path)
            shutil.rmtree(where)

    @on_paths(path=paths, new=paths, how=flags)
    def rename(self, path: str, new: str, how: int) -> None:
        def plain() -> None:
            with (
                open_dir((self.plain / path).parent) as one,
                open_dir((self.plain / new).parent) as two,
            ):
                source, target = os.path.basename(path), os.path.basename(new)
                _sys.renameat2(one, source.encode(), two, target.encode(), how)

        self._both(lambda: self.fs.rename(path, new, how), plain)

    @on_paths(path=paths, new=paths)
    def link(self, path: str, new: str) -> None:
        self._both(
            lambda: self.fs.link(path, new),
            lambda: os.link(self.plain / path, self.plain / new, follow_symlinks=False),
        )

    @on_paths(path=paths, mode=st.sampled_from([0o600, 0o755, 0o4711, 0o400, 0o2755]))
    def chmod(self, path: str, mode: int) -> None:
        if not (self.plain / path).is_symlink() and not self._is_linked_special(path):
            self._both(lambda: self.fs.chmod(path, mode), lambda: os.chmod(self.plain / path, mode))

    @on_paths(path=paths, uid=st.sampled_from([0, 7, 1000]), gid=st.sampled_from([0, 8]))
    def chown(self, path: str, uid: int, gid: int) -> None:
        if not self._is_linked_special(path):
            self._both(
                lambda: self.fs.setattr(path, uid=uid, gid=gid),
                lambda: os.chown(self.plain / path, uid, gid, follow_symlinks=False),
            )

    @on_paths(path=paths, size=st.sampled_from([0, 3, 9000]))
    def truncate(self, path: str, size: int) -> None:
        if not (self.plain / path).is_symlink() and not stat.S_ISFIFO(self._type(path)):
            self._both(
                lambda: self.fs.setattr(path, size=size),
                lambda: os.truncate(self.plain / path, size),
            )

    def _is_linked_special(self, path: str) -> bool:
        """Without root a link or fifo with several names keeps owner and setuid bits (EPERM)."""
        if self.native or stat.S_IFMT(self._type(path)) not in (stat.S_IFLNK, stat.S_IFIFO):
            return False
        return (self.plain / path).lstat().st_nlink > 1

    def _type(self, path: str) -> int:
        try:
            return (self.plain / path).lstat().st_mode
        except OSError:
            return 0

    @on_paths(
        path=paths, data=st.sampled_from([b"1", b"long" * 2000]), offset=st.sampled_from([0, 2])
    )
    def write(self, path: str, data: bytes, offset: int) -> None:
        if not stat.S_ISREG(self._type(path)):
            return
        fd = os.open(self.plain / path, os.O_WRONLY)
        os.pwrite(fd, data, offset)
        os.close(fd)
        self.fs.write(path, data, offset)
        self.steps += 1

    @on_paths(path=paths, value=st.sampled_from([b"", b"value"]))
    def setxattr(self, path: str, value: bytes) -> None:
        if stat.S_IFMT(self._type(path)) in (0, stat.S_IFREG, stat.S_IFDIR):
            self._both(
                lambda: self.fs.setxattr(path, "user.test", value),
                lambda: os.setxattr(self.plain / path, "user.test", value),
            )

    @on_paths(path=paths)
    def utime(self, path: str) -> None:
        self._both(
            lambda: self.fs.setattr(path, atime_ns=OLD, mtime_ns=OLD),
            lambda: os.utime(self.plain / path, ns=(OLD, OLD), follow_symlinks=False),
        )

    # -- open files ----------------------------------------------------------------

    @on_paths(path=paths, how=st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC]))
    def open_file(self, path: str, how: int) -> None:
        if stat.S_ISREG(self._type(path)) and len(self.handles) < 4:
            fh = self.fs.open(path, how)
            self.handles.append((fh, os.open(self.plain / path, how)))

    @precondition(lambda self: bool(getattr(self, "handles", None)))
    @rule(index=st.integers(0, 3), size=st.sampled_from([0, 5]))
    def use_handle(self, index: int, size: int) -> None:
        fh, fd = self.handles[index % len(self.handles)]
        ino = self.engine._handles.file(fh).ino
        with contextlib.suppress(OSError):
            os.pwrite(fd, b"by handle", 1)
            self.engine.write(fh, 1, b"by handle")
            if size:
                os.ftruncate(fd, size)
                self.engine.setattr(ino, SetAttr(size=size), fh)
        self._compare_handle(fh, fd)

    def _compare_handle(self, fh: int, fd: int) -> None:
        node = self.engine._handles.file(fh)
        attr, info = self.engine.getattr(node.ino), os.fstat(fd)
        assert self.engine.read(fh, 0, 1 << 20) == os.pread(fd, 1 << 20, 0)
        assert (attr.mode, attr.size) == (info.st_mode, info.st_size)
        assert (attr.nlink, attr.uid, attr.gid) == (info.st_nlink, info.st_uid, info.st_gid)

    @precondition(lambda self: bool(getattr(self, "handles", None)))
    @rule(index=st.integers(0, 3))
    def close_handle(self, index: int) -> None:
        fh, fd = self.handles.pop(index % len(self.handles))
        self._compare_handle(fh, fd)
        self.engine.release(fh)
        os.close(fd)

    def _close_handles(self) -> None:
        while self.handles:
            fh, fd = self.handles.pop()
            self._compare_handle(fh, fd)
            self.engine.release(fh)
            os.close(fd)

    # -- comparing -----------------------------------------------------------------

    def _compare(self) -> None:
        seen, plain = _seen(self.fs), _plain(self.plain)
        differing = {key for key in seen | plain if seen.get(key) != plain.get(key)}
        assert not differing, {key: (seen.get(key), plain.get(key)) for key in differing}
        for fh, fd in self.handles:
            self._compare_handle(fh, fd)
        if not self.handles:
            assert set(self.engine._tree.inodes.by_ino) == {self.engine.root}

    @invariant()
    def same_tree(self) -> None:
        if hasattr(self, "engine") and self.steps % 3 == 0:
            self._compare()

    @rule()
    def reopen(self) -> None:
        self._close_handles()
        before = {path: attr.ino for path, attr in self.fs.walk()}
        self.engine.close()
        left = [path for path in self.rw.rglob("*") if path.name.startswith(".wh..wh.unionfs")]
        assert not left
        for marker in self.rw.rglob(".wh.*"):
            beside = marker.with_name(marker.name[4:])
            assert not os.path.lexists(beside), f"pair {marker}"
        self._start()
        self._compare()
        special = (stat.S_IFIFO, stat.S_IFLNK)
        for path, attr in self.fs.walk():
            if self.native or stat.S_IFMT(attr.mode) not in special:
                assert attr.ino == before[path], path


@contextlib.contextmanager
def open_dir(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


class OverrideMachine(UnionMachine):
    """The same with ownership kept in xattrs."""

    native = False


_SETTINGS = settings(
    max_examples=int(os.environ.get("UNIONFS_MODEL_EXAMPLES", "40")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

TestNative = UnionMachine.TestCase
TestNative.settings = _SETTINGS
TestOverride = OverrideMachine.TestCase
TestOverride.settings = _SETTINGS
