"""Copy-up in steps: concurrent copies, abandoned and failing ones."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.engine_fs import disk_state, snapshot
from support.union_case import Union, UnionMaker, raises_errno

from unionfs import _sys
from unionfs.union import CopyPlan
from unionfs.union import copyup as copyup_module

BODY = "0123456789" * 100_000


@pytest.fixture
def big(make_union: UnionMaker) -> Union:
    return make_union({f"d/f{number}": f"{number}" + BODY for number in range(6)})


def _work(rw: Path) -> list[str]:
    hidden = rw / ".wh..wh.unionfs"
    return [path for path in os.listdir(hidden) if path != "whiteout"]


def test_plans_of_many_files_side_by_side(big: Union) -> None:
    engine = big.engine
    inos = {
        name: engine.lookup(engine.lookup(1, b"d").ino, name.encode()).ino
        for name in (f"f{number}" for number in range(6))
    }
    plans: list[CopyPlan] = []
    for ino in inos.values():
        for _ in range(4):
            plan = engine.plan_copy_up(ino)
            assert plan is not None
            assert plan.size == engine.copy_up_size(ino) == len(BODY) + 1
            plans.append(plan)
    threads = [threading.Thread(target=plan.copy) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for plan in plans:
        engine.finish_copy_up(plan)
    assert engine.stats.copy_ups == 6 + 1
    assert _work(big.rw) == []
    assert all(engine.plan_copy_up(ino) is None for ino in inos.values())
    assert all(not engine.needs_copy_up(ino) for ino in inos.values())
    for number in range(6):
        assert big.fs.read(f"d/f{number}").decode() == f"{number}" + BODY


def test_a_plan_overtaken_by_a_write_is_discarded(big: Union) -> None:
    with big.fs.at("d/f0") as ino:
        plan = big.engine.plan_copy_up(ino)
        assert plan is not None
        plan.copy()
        big.fs.write("d/f0", b"newer")
        big.engine.finish_copy_up(plan)
        assert big.fs.read("d/f0").startswith(b"newer")
        assert _work(big.rw) == []


def test_a_plan_of_a_deleted_file_is_discarded(big: Union) -> None:
    with big.fs.at("d/f0") as ino:
        plan = big.engine.plan_copy_up(ino)
        assert plan is not None
        plan.copy()
        big.fs.unlink("d/f0")
        big.engine.finish_copy_up(plan)
    assert sorted(big.close()) == ["d/", "d/.wh.f0"]


def test_a_plan_of_a_file_renamed_meanwhile_is_discarded(big: Union) -> None:
    with big.fs.at("d/f0") as ino:
        plan = big.engine.plan_copy_up(ino)
        assert plan is not None
        big.fs.rename("d", "e")
        plan.copy()
        big.engine.finish_copy_up(plan)
        assert _work(big.rw) == []
    assert len(big.fs.names("e")) == 6


def test_an_abandoned_plan_leaves_nothing(big: Union) -> None:
    with big.fs.at("d/f0") as ino:
        for copied in (True, False):
            plan = big.engine.plan_copy_up(ino)
            assert plan is not None
            if copied:
                plan.copy()
            plan.abandon()
            plan.abandon()
    assert big.close() == {}


def test_a_full_disk_leaves_nothing(big: Union, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(big.fs)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(copyup_module, "_copy_range", full)
    monkeypatch.setattr(_sys, "clone_file", full)
    changes: list[Callable[[], object]] = [
        lambda: big.fs.write("d/f0", b"x"),
        lambda: big.fs.chmod("d/f0", 0o600),
        lambda: big.fs.rename("d/f0", "g"),
        lambda: big.fs.rename("d", "e"),
    ]
    for change in changes:
        with raises_errno(errno.ENOSPC):
            change()
        assert _work(big.rw) == []
    assert snapshot(big.fs) == before
    assert [path for path in disk_state(big.rw) if "f0" in path] == []


def test_files_that_a_directory_rename_copies(big: Union) -> None:
    big.fs.unlink("d/f5")
    big.fs.write("d/f4", b"up")
    inos = big.engine.plan_rename_copies(big.engine.root, b"d")
    assert len(inos) == 4
    for ino in inos:
        plan = big.engine.plan_copy_up(ino)
        assert plan is not None
        plan.copy()
        big.engine.finish_copy_up(plan)
    done = big.engine.stats.copy_ups
    big.fs.rename("d", "e")
    assert big.engine.stats.copy_ups == done
    assert big.fs.names() == ["e"]
    assert set(big.engine._tree.inodes.by_ino) == {big.engine.root}


@pytest.mark.parametrize("planned", [True, False])
def test_a_directory_is_renamed_that_nobody_has_looked_up(big: Union, *, planned: bool) -> None:
    engine = big.engine
    if planned:
        assert len(engine.plan_rename_copies(engine.root, b"d")) == 6
    engine.rename(engine.root, b"d", engine.root, b"e")
    assert engine.names(engine.root) == [b"e"]
    assert set(engine._tree.inodes.by_ino) == {engine.root}
    assert big.fs.read("e/f3").decode() == "3" + BODY


def test_without_copy_file_range(big: Union, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    big.fs.write("d/f1", b"ONE")
    assert big.fs.read("d/f1").decode() == "ONE" + ("1" + BODY)[3:]


@pytest.mark.parametrize("volatile", [False, True])
def test_data_is_on_disk_before_the_name_appears(
    make_union: UnionMaker,
    monkeypatch: pytest.MonkeyPatch,
    volatile: bool,  # noqa: FBT001  # a parameter
) -> None:
    events: list[str] = []

    def recorded(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def record(*args: object, **kwargs: object) -> object:
            events.append(name)
            return call(*args, **kwargs)

        return record

    monkeypatch.setattr(copyup_module, "settler", lambda _: recorded("sync", os.fdatasync))
    union = make_union({"f": "data", "p": "pair", "q": "=p"}, volatile=volatile)
    monkeypatch.setattr(os, "rename", recorded("appear", os.rename))
    monkeypatch.setattr(_sys, "renameat2", recorded("appear", _sys.renameat2))
    union.fs.write("f", b"new")
    union.fs.write("q", b"new")
    assert events == (["appear"] * 2 if volatile else ["sync", "appear"] * 2)
