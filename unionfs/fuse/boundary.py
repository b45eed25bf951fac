"""The one place where an exception becomes the answer to a system call.

Invariant: a handler wrapped by `handler` ends with its result, a `FUSEError` or a
cancellation. Anything else would leave the request unanswered and end the session
for everybody (pyfuse3 answers only `FUSEError`), so a defect of ours costs one EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3

__all__ = ["handler"]

_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def handler(
    function: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Wrap a request handler: OSError to its errno, any other `Exception` to EIO and the log."""

    @functools.wraps(function)
    async def guarded(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await function(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from None
        except Exception:  # noqa: BLE001  # this is the boundary
            # trio.Cancelled is a BaseException and passes.
            _log.exception("%s failed; the caller got EIO", function.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, R]]", guarded)
