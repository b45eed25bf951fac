"""Where the default store is, and how the store's lock behaves."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.crash import fork, run_child
from support.rootless import run_as_nobody, runtime

from unionfs.errors import BusyError, StoreError, UsageError
from unionfs.store import paths
from unionfs.store._fs import directory
from unionfs.store.locks import hold_image, store_lock, try_exclusive
from unionfs.store.store import Store


def test_the_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIONFS_ROOT", "/srv/a/../images/")
    assert paths.default_root() == b"/srv/images"
    monkeypatch.setenv("UNIONFS_ROOT", "images")
    with pytest.raises(UsageError, match="absolute"):
        paths.default_root()


def test_root_and_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UNIONFS_ROOT", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert paths.default_root() == os.fsencode(tmp_path / "unionfs")
    assert not (tmp_path / "unionfs").exists()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(paths, "SYSTEM_ROOT", os.fsencode(tmp_path / "var/lib/unionfs"))
    assert paths.default_root() == os.fsencode(tmp_path / "var/lib/unionfs")
    # Root of a user namespace that may not write there.
    monkeypatch.setattr(os, "access", lambda *_args, **_kwargs: False)
    assert paths.default_root() == os.fsencode(tmp_path / "unionfs")


def test_the_store_loads_neither_fuse_nor_terminal_libraries() -> None:
    code = (
        "import sys, unionfs.store.graph, unionfs.store.paths;"
        "print(sorted({'trio', 'pyfuse3', 'rich', 'click', 'platformdirs', 'asyncio'}"
        " & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.stdout == "[]\n"


def lock_is_free(graph: Path, *, exclusive: bool) -> bool:
    """Ask another process whether it could take the lock now."""

    def child() -> None:
        fd = os.open(graph / ".lock", os.O_RDWR)
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)

    return run_child(lambda: _quiet(child)) == 0


def _quiet(action: object) -> None:
    try:
        action()  # type: ignore[operator]  # a function
    except BlockingIOError:
        os._exit(9)


def test_store_lock_shuts_others_out_and_is_reentrant(tmp_path: Path) -> None:
    with directory(os.fsencode(tmp_path)) as fd:
        with store_lock(fd, exclusive=True):
            with store_lock(fd, exclusive=False), store_lock(fd, exclusive=True):
                assert not lock_is_free(tmp_path, exclusive=False)
            assert not lock_is_free(tmp_path, exclusive=False)
        assert lock_is_free(tmp_path, exclusive=True)
        with store_lock(fd, exclusive=False):
            assert lock_is_free(tmp_path, exclusive=False)
            assert not lock_is_free(tmp_path, exclusive=True)
            with pytest.raises(RuntimeError), store_lock(fd, exclusive=True):
                pass
        assert lock_is_free(tmp_path, exclusive=True)


def test_store_lock_waits(tmp_path: Path) -> None:
    ready, go = os.pipe(), os.pipe()

    def child() -> None:
        with directory(os.fsencode(tmp_path)) as fd, store_lock(fd, exclusive=True):
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            (tmp_path / "done").touch()

    pid = fork(child)
    os.read(ready[0], 1)
    os.write(go[1], b"x")
    with directory(os.fsencode(tmp_path)) as fd, store_lock(fd, exclusive=True):
        assert (tmp_path / "done").exists()
    assert os.waitpid(pid, 0)[1] == 0
    for end in (*ready, *go):
        os.close(end)


def test_a_linked_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with (
        directory(os.fsencode(tmp_path)) as fd,
        pytest.raises(StoreError, match="symbolic link"),
        store_lock(fd, exclusive=True),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_holders_and_removers(tmp_path: Path) -> None:
    with directory(os.fsencode(tmp_path)) as first, directory(os.fsencode(tmp_path)) as second:
        held = [hold_image(first), hold_image(second)]
        assert all(not os.get_inheritable(fd) for fd in held)
        assert not try_exclusive(second)
        os.close(held[0])
        assert not try_exclusive(second)
        os.close(held[1])
        assert try_exclusive(second)
        with pytest.raises(BusyError):
            hold_image(first)


@pytest.mark.usefixtures("as_root")
def test_changing_a_store_of_somebody_else_is_one_clear_line(open_tmp: Path) -> None:
    with Store.open(os.fsencode(open_tmp / "store")) as store:
        store.graph.create()
    for path in (open_tmp / "store", open_tmp / "store/graph"):
        path.chmod(0o755)
    argv = [*runtime().argv, "-m", "unionfs", "--root", str(open_tmp / "store"), "untag", "a:1"]
    done = run_as_nobody(argv)
    assert done.returncode == 1
    assert done.stderr.startswith(b"unionfs: the image store ")
    assert b"cannot be written by you" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.usefixtures("as_root")
def test_an_unreadable_branch_is_named(open_tmp: Path) -> None:
    layer = open_tmp / "layer"
    layer.mkdir(mode=0o700)
    code = f"from unionfs.branch import Branch; Branch.open({os.fsencode(layer)!r})"
    done = run_as_nobody([*runtime().argv, "-c", code])
    assert b"UnsupportedError: you may not read %b;" % os.fsencode(layer) in done.stderr
