"""Long copy-ups run aside: other requests go on, and one file is copied once."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pyfuse3
import pytest
import trio
import trio.testing

from unionfs.fuse.idmap import IdMap
from unionfs.fuse.lift import Lift
from unionfs.fuse.ops import Operations
from unionfs.fuse.options import MountOptions
from unionfs.union import Attr

BIG = 1 << 30
pytestmark = pytest.mark.timeout(20)


class Plan:
    def __init__(self, engine: Engine, ino: int) -> None:
        self.engine = engine
        self.ino = ino

    def copy(self) -> None:
        engine = self.engine
        engine.log.append(("copy", self.ino))
        engine.threads.add(threading.get_ident())
        engine.started.release()
        assert engine.go.wait(10)
        if engine.failure is not None:
            raise engine.failure

    def abandon(self) -> None:
        self.engine.log.append(("abandon", self.ino))


class Engine:
    """As much of an engine as a copy-up needs; copying waits until the test lets it go."""

    def __init__(self, *, size: int = BIG) -> None:
        self.size = size
        self.go = threading.Event()
        self.started = threading.Semaphore(0)
        self.threads: set[int] = set()
        self.log: list[tuple[str, int]] = []
        self.up: set[int] = set()
        self.failure: OSError | None = None

    def copy_up_size(self, ino: int) -> int:
        return 0 if ino in self.up else self.size

    def plan_copy_up(self, ino: int) -> Plan | None:
        return None if ino in self.up else Plan(self, ino)

    def finish_copy_up(self, plan: Plan) -> None:
        self.up.add(plan.ino)
        self.log.append(("finish", plan.ino))

    def write(self, fh: int, _offset: int, data: bytes) -> int:
        self.log.append(("write", fh))
        return len(data)

    def open(self, ino: int, _flags: int) -> int:
        return ino + 100

    def getattr(self, ino: int) -> Attr:
        self.log.append(("getattr", ino))
        return Attr(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0)

    async def wait_started(self) -> None:
        await trio.to_thread.run_sync(self.started.acquire)


def _operations(engine: Engine) -> Operations:
    options = MountOptions().settled(uid=0, writable=True)
    return Operations(engine, options, (IdMap(), IdMap()), lambda: None)  # type: ignore[arg-type]  # a stand-in


@pytest.fixture
def engine() -> Engine:
    return Engine()


async def test_other_requests_go_on_while_a_copy_runs(engine: Engine) -> None:
    operations = _operations(engine)
    context = pyfuse3.RequestContext
    async with trio.open_nursery() as nursery:
        info = await operations.open(7, 1, context)  # type: ignore[arg-type]  # not looked at
        nursery.start_soon(operations.write, info.fh, 0, b"x")
        await engine.wait_started()
        for _ in range(50):
            await operations.getattr(8, context)  # type: ignore[arg-type]  # not looked at
        assert ("finish", 7) not in engine.log
        assert engine.log.count(("getattr", 8)) == 50
        engine.go.set()
    assert engine.log[-2:] == [("finish", 7), ("write", 107)]
    assert threading.get_ident() not in engine.threads


async def test_concurrent_copies_of_one_file_happen_once(engine: Engine) -> None:
    lift = Lift(engine)  # type: ignore[arg-type]  # a stand-in
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(lift.up, 7)
        await engine.wait_started()
        await trio.testing.wait_all_tasks_blocked()
        engine.go.set()
    assert engine.log == [("copy", 7), ("finish", 7)]
    assert lift._locks == {}


async def test_different_files_are_copied_side_by_side(engine: Engine) -> None:
    lift = Lift(engine)  # type: ignore[arg-type]  # a stand-in
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lift.up, 7)
        nursery.start_soon(lift.up, 8)
        await engine.wait_started()
        await engine.wait_started()  # the second one started before the first ended
        engine.go.set()
    assert engine.up == {7, 8}


async def test_a_failed_copy_leaves_nothing_and_can_be_tried_again(engine: Engine) -> None:
    lift = Lift(engine)  # type: ignore[arg-type]  # a stand-in
    engine.go.set()
    engine.failure = OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match="full"):
        await lift.up(7)
    assert engine.log == [("copy", 7), ("abandon", 7)]
    assert lift._locks == {}
    engine.failure = None
    await lift.up(7)
    assert engine.up == {7}


async def test_small_files_are_left_to_the_engine() -> None:
    small = Engine(size=10)
    await Lift(small).up(7)  # type: ignore[arg-type]  # a stand-in
    assert small.log == []


async def test_a_write_handle_asks_once(engine: Engine) -> None:
    engine.go.set()
    operations = _operations(engine)
    info = await operations.open(7, 1, pyfuse3.RequestContext)  # type: ignore[arg-type]  # not looked at
    asked: list[int] = []
    original: Callable[[int], int] = engine.copy_up_size

    def count(ino: int) -> int:
        asked.append(ino)
        return original(ino)

    engine.copy_up_size = count  # type: ignore[method-assign]  # counts the questions
    await operations.write(info.fh, 0, b"x")
    assert set(asked) == {7}
    asked.clear()
    await operations.write(info.fh, 1, b"x")
    assert asked == []
