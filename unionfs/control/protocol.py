"""The protocol of a control socket: one JSON object a line, ASCII, in both directions.

A request is answered by one line, `{"ok": ...}` or `{"error": {"kind", "message"}}`, in the
order in which they came. `trace` alone goes on: after its answer come events, a line each,
until the client closes. File names are text in which bytes that are not UTF-8 are surrogates,
as everywhere in our JSON.

Invariant: a line is at most `MAX_REQUEST` or `MAX_ANSWER` bytes; the version changes when a
request or a key changes its meaning, not when one is added.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

import msgspec

from unionfs.errors import UsageError

__all__ = ["MAX_ANSWER", "MAX_REQUEST", "VERSION", "Request", "decode", "encode", "plain"]

VERSION: Final = 1
MAX_REQUEST: Final = 64 * 1024
MAX_ANSWER: Final = 256 << 20


class Request(msgspec.Struct, omit_defaults=True):
    """What a client asks. `do` names the request, the other fields are for some of them.

    `path` is one inside the image (explain, invalidate, undelete, revert, reset) or the
    beginning of those to trace; `only_plan` says what undoing would do, and `stake` is what that
    answered, to be refused if more would be lost by now; `level` is one of logging's; `on`, `pid`
    and `op` are for tracing.
    """

    do: str
    v: int = VERSION
    path: str | None = None
    only_plan: bool = False
    stake: str | None = None
    level: str | None = None
    pid: int | None = None
    op: str | None = None


def plain(value: Any) -> Any:
    """Return what stands for a value that JSON has not: bytes are file names."""
    if isinstance(value, bytes):
        return os.fsdecode(value)
    raise TypeError(f"{type(value).__name__} in a JSON document")


def encode(value: Any) -> bytes:
    """Return the line of an answer or a request."""
    document = msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
    return json.dumps(document, default=plain, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Request:
    """Read a request; UsageError when it is none or of another version."""
    try:
        request = msgspec.convert(json.loads(line), Request)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"this is no request: {exc}") from None
    if request.v != VERSION:
        raise UsageError(
            f"this mount speaks version {VERSION} of the protocol, not {request.v};"
            " mount again with the unionfs that you use now"
        )
    return request
