"""Read a JSON document of an image: manifest, index, configuration, `repositories`.

Invariant: what comes out has one meaning. Duplicate keys, byte order marks, other encodings
than UTF-8, NaN and infinities are refused (the OCI image-spec asks for I-JSON, RFC 7493), as
are documents that are too long or nested too deeply.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, TypeVar

import msgspec

from unionfs.archive.limits import Limits
from unionfs.archive.reader import Reader
from unionfs.errors import HostileArchiveError, show

__all__ = ["convert", "parse_json", "read_document"]

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_T = TypeVar("_T")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {show(twice[:80])} stands there twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too big")
    return number


def parse_json(raw: bytes, what: str, limits: Limits) -> Any:
    """Decode a document. Raises HostileArchiveError (LimitError); `what` names it there."""
    limits.check("json_bytes", len(raw), what)
    if raw.startswith(_MARKS) or b"\0" in raw[:4]:
        raise HostileArchiveError(f"{what}: is not JSON in UTF-8 without a byte order mark")
    depth = 0
    for match in _BRACKET.finditer(_STRING.sub(b"", raw)):
        if match[0] in b"[{":
            depth += 1
            limits.check("json_depth", depth, what)
        else:
            depth -= 1
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise HostileArchiveError(f"{what}: is no valid JSON: {show(str(error))}") from None


def convert(document: Any, kind: type[_T], what: str) -> _T:
    """Return a decoded document as a typed value; unknown keys are ignored."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise HostileArchiveError(f"{what}: {show(str(error))}") from None


def read_document(reader: Reader, what: str, limits: Limits) -> bytes:
    """Read a whole document, never more than `json_bytes` and a little."""
    parts = []
    size = 0
    while data := reader.read(min(64 * 1024, limits.json_bytes + 1 - size)):
        parts.append(data)
        size += len(data)
        limits.check("json_bytes", size, what)
    return b"".join(parts)
