"""Reading JSON that a stranger may have written, with the tolerance of Go's decoder.

Invariant: whatever the bytes are, the answer is a dict of finite numbers and strings
without surrogates, or a `StoreError` of one line; never a crash, never unbounded work.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from unionfs.errors import StoreError

__all__ = ["MAX_JSON", "MAX_NESTING", "dump_compact", "load_object"]

#: Largest `json` of an image that is read, in bytes; Docker's are some hundred bytes.
MAX_JSON: Final = 1 << 20
#: Deepest nesting of arrays and objects; an image's configuration needs four levels.
MAX_NESTING: Final = 100

# Possessive, and matching unterminated strings too, so that no text makes it try twice.
_STRING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET: Final = re.compile(r"[\[\]{}]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _text(raw: bytes, what: str) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:4]:
        raise StoreError(f"{what} is not UTF-8 text (it looks like UTF-16 or binary data)")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise StoreError(f"{what} begins with a byte order mark, which JSON does not allow")
    # Go puts one U+FFFD for every byte that is not part of valid UTF-8.
    return _SURROGATE.sub("\ufffd", raw.decode("utf-8", "surrogateescape"))


def _check_nesting(text: str, what: str) -> None:
    depth = 0
    for match in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if match[0] in "[{" else -1
        if depth > MAX_NESTING:
            raise StoreError(f"{what} is nested more than {MAX_NESTING} levels deep")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON value")


def _clean(value: Any) -> Any:
    r"""Replace what `\ud800`-like escapes leave behind; Go does the same."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def load_object(raw: bytes, what: str, limit: int = MAX_JSON) -> dict[str, Any]:
    """Return the JSON object in `raw`; of a key given twice the last one counts.

    `what` begins the message of the `StoreError` that is raised for more than `limit` bytes,
    deep nesting, another encoding, bad syntax, NaN, numbers beyond a double, or no object.
    """
    if len(raw) > limit:
        raise StoreError(f"{what} is larger than {limit} bytes")
    text = _text(raw, what)
    _check_nesting(text, what)
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_no_constant)
    except ValueError as error:
        raise StoreError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{what} is not a JSON object")
    cleaned: dict[str, Any] = _clean(value) if "\\u" in text else value
    return cleaned


def dump_compact(value: Any) -> bytes:
    r"""Return compact JSON spelled as Go's encoder does: `<`, `>`, `&` as `\u003c`..."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # These characters occur nowhere outside strings.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()
