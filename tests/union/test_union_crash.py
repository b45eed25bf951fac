"""Killing the engine before every single change it makes to the rw branch.

After each kill the branch is opened again and must show the old or the new tree, in
full; nothing of the work may be left, nor a name beside its own whiteout. The same where
the disk is full instead: then it is the old tree, and at once.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.engine_fs import EngineFs, fingerprint, snapshot
from support.steps import run_killed_at_change
from support.union_case import Union, UnionMaker, start

from unionfs import _sys
from unionfs.union import Caller

LONG = "n" * 253
LOWER = {
    "f": "lower f",
    "g": "lower g",
    "p": "pair",
    "deep/q": "=p",
    "d/a": "a",
    "d/b": "b",
    "d/sub/c": "c",
    "d/sub/link": "->c",
    "e/only": "x",
    LONG: "long",
}

#: Those that may need space on the disk.
_GROWING = ("mkdir", "mknod", "symlink", "link", "rename", "setxattr", "write", "copy_file_range")

_Call = Callable[..., Any]


def _nothing(_: EngineFs) -> None:
    pass


def _remove_f(fs: EngineFs) -> None:
    fs.unlink("f")


def _write_f(fs: EngineFs) -> None:
    fs.write("f", b"UPPER")


def _write_both(fs: EngineFs) -> None:
    fs.write("f", b"UPPER")
    fs.write("g", b"OTHER")


def _remove_d(fs: EngineFs) -> None:
    fs.rmtree("d")


def _empty_d(fs: EngineFs) -> None:
    fs.rmtree("d/sub")
    fs.unlink("d/a")
    fs.unlink("d/b")


def _empty_d_and_make_n(fs: EngineFs) -> None:
    _empty_d(fs)
    fs.mkdir("n")
    fs.create("n/x", b"x")


def _hide_some(fs: EngineFs) -> None:
    fs.unlink("d/a")
    fs.write("d/b", b"B")
    fs.unlink("d/sub/c")
    fs.mkdir("d/sub/new")


def _make_opaque(fs: EngineFs) -> None:
    fs.rmtree("d")
    fs.mkdir("d")
    fs.create("d/x", b"x")


def _make_opaque_and_empty(fs: EngineFs) -> None:
    _make_opaque(fs)
    fs.unlink("d/x")


def _open_replaced(fs: EngineFs) -> None:
    fs.write("g", b"OTHER")
    fs.open("g")


_Step = Callable[[EngineFs], None]

CASES: dict[str, tuple[_Step, _Step]] = {
    "unlink a lower file": (_nothing, _remove_f),
    "unlink a copy": (_write_f, _remove_f),
    "unlink a long name": (_nothing, lambda fs: fs.unlink(LONG)),
    "unlink in a directory": (_nothing, lambda fs: fs.unlink("d/sub/c")),
    "create over a whiteout": (_remove_f, lambda fs: _create(fs, "f")),
    "create for somebody else": (_nothing, lambda fs: _create(fs, "d/new")),
    "mkdir for somebody else": (_nothing, lambda fs: fs.mkdir("new", 0o2750, Caller(3, 4))),
    "mkdir over a whiteout": (_remove_d, lambda fs: fs.mkdir("d", 0o750)),
    "symlink over a whiteout": (_remove_f, lambda fs: fs.symlink("f", "target")),
    "fifo over a whiteout": (_remove_f, lambda fs: fs.mknod("f", stat.S_IFIFO | 0o640)),
    "link over a whiteout": (_remove_f, lambda fs: fs.link("g", "f")),
    "link of a hard link": (_nothing, lambda fs: fs.link("p", "d/new")),
    "rmdir of a merged directory": (_empty_d, lambda fs: fs.rmdir("d")),
    "rmdir of an opaque directory": (_make_opaque_and_empty, lambda fs: fs.rmdir("d")),
    "rename a lower file": (_nothing, lambda fs: fs.rename("f", "d/new")),
    "rename over a lower file": (_nothing, lambda fs: fs.rename("f", "d/a")),
    "rename over a copy": (_write_both, lambda fs: fs.rename("f", "g")),
    "rename over an open file": (_open_replaced, lambda fs: fs.rename("f", "g")),
    "rename onto a whiteout": (_remove_f, lambda fs: fs.rename("g", "f")),
    "rename a hard link": (_nothing, lambda fs: fs.rename("p", "d/p")),
    "rename a long name": (_nothing, lambda fs: fs.rename(LONG, "short")),
    "rename a lower directory": (_nothing, lambda fs: fs.rename("d", "new")),
    "rename a merged directory": (_hide_some, lambda fs: fs.rename("d", "e/new")),
    "rename a directory over an empty one": (_empty_d_and_make_n, lambda fs: fs.rename("n", "d")),
    "rename an opaque directory away": (_make_opaque, lambda fs: fs.rename("d", "new")),
    "exchange files": (
        _write_f,
        lambda fs: fs.rename("f", "d/a", _sys.RENAME_EXCHANGE),
    ),
    "exchange file and directory": (
        _hide_some,
        lambda fs: fs.rename("f", "d", _sys.RENAME_EXCHANGE),
    ),
    "exchange a lower directory and a new one": (
        lambda fs: fs.mkdir("n"),
        lambda fs: fs.rename("d", "n", _sys.RENAME_EXCHANGE),
    ),
    "chmod": (_nothing, lambda fs: fs.chmod("d/sub/c", 0o600)),
    "chmod of a directory": (_nothing, lambda fs: fs.chmod("d/sub", 0o700)),
    "chmod of a hard link": (_nothing, lambda fs: fs.chmod("deep/q", 0o600)),
    "truncate": (_nothing, lambda fs: _truncate(fs, "f")),
    "setxattr": (_nothing, lambda fs: fs.setxattr("d/a", "user.x", b"1")),
}


def _create(fs: EngineFs, path: str) -> None:
    with fs.above(path) as (parent, name):
        fs.engine.create(parent, name, 0o4640, os.O_EXCL | os.O_WRONLY, Caller(3, 4))


def _truncate(fs: EngineFs, path: str) -> None:
    fs.setattr(path, size=3)


def _check_disk(rw: Path) -> None:
    """Check that no work is left and no name stands beside its own whiteout."""
    for path in rw.rglob("*"):
        name = path.name
        assert not name.startswith(".wh..wh.unionfs"), path
        if name.startswith(".wh.") and not name.startswith(".wh..wh."):
            assert not os.path.lexists(path.with_name(name[4:])), f"{path} beside its entry"


@pytest.mark.parametrize("case", CASES)
def test_killed_anywhere(make_union: UnionMaker, case: str) -> None:
    prepare, operation = CASES[case]
    union = make_union(LOWER)
    prepare(union.fs)
    union.close()
    old = _tree(union)
    saved = union.base / "saved"
    _restore(union.rw, saved)
    new = _after(union, operation)
    kills = 0
    while True:
        _restore(saved, union.rw)
        if run_killed_at_change(kills + 1, lambda: _attempt(union, prepare, operation)):
            break
        kills += 1
        _killed_again(union, old, new)
        seen = _tree(union)
        assert seen in (old, new), f"kill {kills}: {_difference(seen, old, new)}"
        _check_disk(union.rw)
    assert kills >= 1
    assert _tree(union) == new
    _check_disk(union.rw)
    for layer in union.layers:
        assert fingerprint(layer) == union.before[layer]


def _refuse(patch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Have the `step`-th call that needs space meet a full disk; return its name once it has."""
    refused: list[str] = []
    left = step

    def watched(name: str, call: _Call, counts: Callable[..., bool]) -> _Call:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if counts(*args, **kwargs):
                left -= 1
                if left == 0:
                    refused.append(name)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        return replacement

    for name in _GROWING:
        patch.setattr(os, name, watched(name, getattr(os, name), lambda *_, **__: True))
    creates = watched("open", os.open, lambda _, flags, *__, **___: bool(flags & os.O_CREAT))
    patch.setattr(os, "open", creates)
    renames = watched("renameat2", _sys.renameat2, lambda *_, **__: True)
    patch.setattr(_sys, "renameat2", renames)
    return refused


@pytest.mark.parametrize("case", CASES)
def test_disk_full_anywhere(
    make_union: UnionMaker, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, operation = CASES[case]
    for step in range(1, 1000):
        union = make_union(LOWER)
        prepare(union.fs)
        old = union.fs.tree()
        with monkeypatch.context() as patch:
            refused = _refuse(patch, step)
            code: int | None = 0
            try:
                operation(union.fs)
            except OSError as exc:
                code = exc.errno
        assert code in (0, errno.ENOSPC)
        new = union.fs.tree()
        assert new == old or not code, f"{refused} at step {step}"
        if code:
            work = os.listdir(union.rw / ".wh..wh.unionfs")
            assert set(work) <= {"whiteout"}, f"{refused} at step {step}"
        union.reopen()
        assert union.fs.tree() == new, f"{refused} at step {step}"
        union.close()
        _check_disk(union.rw)
        if not refused:
            break
    assert step > 1


def _attempt(union: Union, prepare: _Step, operation: _Step) -> None:
    """Run the operation alone: what `prepare` left open is opened again first."""
    fs = EngineFs(start(union.layers, union.rw, union.options))
    if prepare is _open_replaced:
        fs.open("g")
    operation(fs)


def _killed_again(
    union: Union, old: dict[str, tuple[object, ...]], new: dict[str, tuple[object, ...]]
) -> None:
    """When an intent is left, kill its replay as well, at every step."""
    if not os.path.lexists(union.rw / ".wh..wh.unionfs" / "journal"):
        return
    state = union.base / "crashed"
    _restore(union.rw, state)
    step = 1
    while not run_killed_at_change(step, lambda: start(union.layers, union.rw, union.options)):
        assert _tree(union) in (old, new)
        _restore(state, union.rw)
        step += 1
    _restore(state, union.rw)


def _restore(source: Path, target: Path) -> None:
    """Make `target` a copy of `source` with everything: links, owners, xattrs, times."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def _after(union: Union, operation: _Step) -> dict[str, tuple[object, ...]]:
    with start(union.layers, union.rw, union.options) as engine:
        operation(EngineFs(engine))
    return _tree(union)


def _tree(union: Union) -> dict[str, tuple[object, ...]]:
    with start(union.layers, union.rw, union.options) as engine:
        return snapshot(EngineFs(engine))


def _difference(seen: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> object:
    keys = {key for key in seen | old | new if seen.get(key) not in (old.get(key), new.get(key))}
    mixed = {key for key in seen | old | new if seen.get(key) != old.get(key)}
    return [(key, seen.get(key), old.get(key), new.get(key)) for key in sorted(keys or mixed)]
