"""Every handler answers, whatever happens inside, and looks as pyfuse3 expects."""

from __future__ import annotations

import errno
import inspect
import logging
from collections.abc import Callable
from typing import Any

import pyfuse3
import pytest
import trio

from unionfs.fuse.boundary import handler
from unionfs.fuse.ops import Operations

#: Called outside of any request: pyfuse3 expects that they never raise.
NEVER_RAISE = {"init", "forget", "stacktrace"}
OURS = sorted(
    name
    for name, value in vars(Operations).items()
    if callable(value) and name in vars(pyfuse3.Operations)
)


def test_the_usual_handlers_are_there() -> None:
    theirs = {
        name
        for name, value in vars(pyfuse3.Operations).items()
        if callable(value) and not name.startswith("_")
    }
    assert theirs - set(OURS) == {"poll", "stacktrace"}


@pytest.mark.parametrize("name", OURS)
def test_signature_is_pyfuse3s(name: str) -> None:
    ours = inspect.signature(getattr(Operations, name))
    theirs = inspect.signature(getattr(pyfuse3.Operations, name))
    assert list(ours.parameters) == list(theirs.parameters)


@pytest.mark.parametrize("name", sorted(set(OURS) - NEVER_RAISE - {"__init__"}))
def test_handler_is_wrapped(name: str) -> None:
    # Only `handler` names its inner function so, and functools.wraps keeps the code object.
    assert getattr(Operations, name).__code__.co_name == "guarded"


class Subject:
    def __init__(self, problem: BaseException) -> None:
        self.problem = problem

    @handler
    async def work(self) -> int:
        raise self.problem


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (OSError(errno.ENOTEMPTY, "x"), errno.ENOTEMPTY),
        (FileNotFoundError(errno.ENOENT, "x"), errno.ENOENT),
        (OSError("no errno"), errno.EIO),
        (pyfuse3.FUSEError(errno.EXDEV), errno.EXDEV),
    ],
)
async def test_errors_with_a_number_keep_it(problem: Exception, code: int) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Subject(problem).work()
    assert caught.value.errno == code


@pytest.mark.logs_warnings
@pytest.mark.parametrize("problem", [KeyError("k"), RecursionError(), MemoryError(), TypeError()])
async def test_defects_cost_one_eio_and_are_logged(
    problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Subject(problem).work()
    assert caught.value.errno == errno.EIO
    (record,) = [item for item in caplog.records if item.levelno == logging.ERROR]
    assert "work" in record.getMessage()
    assert record.exc_info is not None


async def test_cancellation_passes() -> None:
    class Slow:
        @handler
        async def work(self) -> None:
            await trio.sleep_forever()

    with trio.move_on_after(0) as scope:
        await Slow().work()
    assert scope.cancelled_caught


@pytest.mark.logs_warnings
async def test_forget_and_init_never_raise() -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    operations = _operations(fail)
    operations.init()
    await operations.forget([(5, 1), (6, 2)])


def _operations(fail: Callable[..., None]) -> Operations:
    from unionfs.fuse.idmap import IdMap
    from unionfs.fuse.options import MountOptions

    class Broken:
        forget = staticmethod(fail)

    options = MountOptions().settled(uid=0, writable=True)
    return Operations(Broken(), options, (IdMap(), IdMap()), fail)  # type: ignore[arg-type]  # a stand-in that fails
