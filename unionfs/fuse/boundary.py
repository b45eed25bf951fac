"""The one place where an exception becomes the answer to a system call.

Invariant: a handler wrapped by `handler` ends with its result, a `FUSEError` or a
cancellation. Anything else would leave the request unanswered and end the session
for everybody (pyfuse3 answers only `FUSEError`), so a defect of ours costs one EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3

from unionfs.fuse.meter import Recorder

__all__ = ["handler"]

_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def _answer(op: str, exc: Exception) -> pyfuse3.FUSEError:
    """Return what the kernel is told; trio.Cancelled is no `Exception` and passes."""
    if isinstance(exc, pyfuse3.FUSEError):
        return exc
    if isinstance(exc, OSError):
        return pyfuse3.FUSEError(exc.errno or errno.EIO)
    _log.error("%s failed; the caller got EIO", op, exc_info=exc)
    return pyfuse3.FUSEError(errno.EIO)


def handler(
    function: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Wrap a request handler: OSError to its errno, any other `Exception` to EIO and the log.

    Requests are counted by the recorder that the object has as `recorder`, if any.
    """
    op = function.__name__

    @functools.wraps(function)
    async def guarded(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        recorder: Recorder | None = getattr(self, "recorder", None)
        if recorder is not None:
            return await counted(recorder, self, *args, **kwargs)
        try:
            return await function(self, *args, **kwargs)
        except Exception as exc:  # noqa: BLE001  # this is the boundary
            raise _answer(op, exc) from None

    async def counted(recorder: Recorder, self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        begin = time.perf_counter_ns()
        event = recorder.tracing.event(op, args) if recorder.tracing is not None else None
        code, result = 0, None
        try:
            result = await function(self, *args, **kwargs)
        except Exception as exc:  # noqa: BLE001  # this is the boundary
            failure = _answer(op, exc)
            code = failure.errno
            raise failure from None
        finally:
            timing = recorder.timing(op)
            timing.add(time.perf_counter_ns() - begin, code)
            if op == "read" and result is not None:
                timing.bytes += len(cast("bytes", result))
            elif op == "write" and result is not None:
                timing.bytes += cast("int", result)
            if event is not None and recorder.tracing is not None:
                recorder.tracing.end(event, result, code)
        return result

    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, R]]", guarded)
