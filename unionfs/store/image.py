"""The image record: the file `json` of a graph entry, as Docker 0.1 to 1.9 wrote it.

Reading is as tolerant as Go's decoder (keys in any case, unknown keys, missing fields,
the last of two equal keys, damaged UTF-8); writing is canonical.

Invariant: `encode` is canonical (what it wrote, read and encoded again, is the same bytes),
and `raw` holds the bytes a record was read from, because checksums and ids are made of them.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import time
from typing import Any, Final

import attrs

from unionfs.errors import InvalidNameError, StoreError, show
from unionfs.store._json import MAX_JSON, dump_compact, load_object
from unionfs.store.ids import ImageId, validate_stored_id

__all__ = ["MAX_JSON", "ZERO_TIME", "ImageRecord", "format_time", "now", "parse_time"]

#: What Go writes for a time that was never set.
ZERO_TIME: Final = "0001-01-01T00:00:00Z"

_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001  # offsets are added as numbers
_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?([Zz]|[+-][01]\d:[0-5]\d|[+-]2[0-3]:[0-5]\d)",
    re.ASCII,
)
_NS: Final = 10**9

#: Go's `Config` structs of Docker 0.1 (all fields are always written, in this order).
_CONFIG_ZERO: Final[dict[str, Any]] = {
    "Hostname": "",
    "User": "",
    "Memory": 0,
    "MemorySwap": 0,
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "PortSpecs": None,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": None,
    "Cmd": None,
    "Image": "",
}
_CONFIG_KEYS: Final = {key.casefold(): key for key in _CONFIG_ZERO}


def parse_time(text: str) -> int:
    """Return nanoseconds since 1970 UTC of an RFC 3339 time (negative before).

    Raises `StoreError` if it is none. Digits beyond nanoseconds are dropped.
    """
    match = _RFC3339.fullmatch(text)
    try:
        if match is None:
            raise ValueError("wrong form")  # noqa: TRY301  # one message for both ways to be wrong
        fields = [int(match[i]) for i in range(1, 7)]
        since = dt.datetime(*fields) - _EPOCH  # type: ignore[arg-type]  # noqa: DTZ001  # see _EPOCH
        seconds = since.days * 86400 + since.seconds
        if match[8] not in "Zz":
            offset = int(match[8][1:3]) * 3600 + int(match[8][4:6]) * 60
            seconds -= offset if match[8][0] == "+" else -offset
    except ValueError as error:
        raise StoreError(f"`{show(text[:60])}` is not a time (RFC 3339)") from error
    return seconds * _NS + int((match[7] or "0")[:9].ljust(9, "0"))


def format_time(ns: int) -> str:
    """Return nanoseconds since 1970 as RFC 3339 in UTC, as Go's RFC3339Nano writes them."""
    seconds, fraction = divmod(ns, _NS)
    whole = _EPOCH + dt.timedelta(seconds=seconds)
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{whole.isoformat(timespec='seconds')}{digits}Z"


def now() -> str:
    """Return the present time, or that of `SOURCE_DATE_EPOCH` (seconds) when it is set."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if re.fullmatch(r"\d{1,11}", epoch, re.ASCII):
        return format_time(int(epoch) * _NS)
    return format_time(time.time_ns())


def _sorted_maps(value: Any) -> Any:
    """Return `value` with the keys of all objects sorted, as Go writes its maps."""
    if isinstance(value, dict):
        return {key: _sorted_maps(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted_maps(item) for item in value]
    return value


def _canonical_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a container configuration with all fields of Docker 0.1 first, then the others."""
    result = dict(_CONFIG_ZERO)
    for key, value in config.items():
        known = _CONFIG_KEYS.get(key.casefold(), key)
        if value is not None or known not in result:
            result[known] = _sorted_maps(value)
    return result


def _check_time(_record: object, _attribute: object, text: str) -> None:
    parse_time(text)


@attrs.frozen(kw_only=True)
class ImageRecord:
    """One image: keys and order of Docker's `json`; `id` is the only one without default.

    `created` is RFC 3339 text with its zone and nanoseconds as written (`created_ns` is its
    value); `container_config` and `config` are JSON objects as read, not checked further;
    `size` is in bytes; `extra` holds the keys that are not ours; `raw` the bytes it was read from.
    """

    id: ImageId
    parent: ImageId | None = None
    comment: str = ""
    created: str = attrs.field(default=ZERO_TIME, validator=_check_time)
    container: str = ""
    container_config: dict[str, Any] = attrs.field(factory=dict)
    docker_version: str = ""
    author: str = ""
    config: dict[str, Any] | None = None
    architecture: str = ""
    os: str = ""
    size: int = 0
    extra: dict[str, Any] = attrs.field(factory=dict)
    raw: bytes = attrs.field(default=b"", eq=False, repr=False)

    @property
    def created_ns(self) -> int:
        """Return `created` in nanoseconds since 1970 UTC."""
        return parse_time(self.created)

    @classmethod
    def decode(cls, raw: bytes, what: str = "image record") -> ImageRecord:
        """Read a `json` file; `what` names it in messages.

        Raises `StoreError`: too large, too deep, not JSON, a field of the wrong type, an id or
        parent that is none (ids become file names).
        """
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for key, value in load_object(raw, what).items():
            known = _FIELDS.get(key.casefold())
            if known is None:
                extra[key] = value
            elif value is not None:  # null leaves a Go field as it is
                name, kind = known
                if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                    raise StoreError(f"{what}: `{show(key)}` has a value of the wrong type")
                values[name] = value
        try:
            values["id"] = validate_stored_id(values.get("id", ""))
            parent = values.pop("parent", "")
            if parent:
                values["parent"] = validate_stored_id(parent)
            return cls(**values, extra=extra, raw=raw)
        except (InvalidNameError, StoreError) as error:
            raise StoreError(f"{what}: {error}") from error

    def encode(self) -> bytes:
        """Return canonical compact JSON: Docker's key order, empty fields as Go leaves them out.

        `container_config` is always there (Go's `omitempty` has no effect on a struct).
        """
        config = None if self.config is None else _canonical_config(self.config)
        # Always there, or there when not empty; in Docker's order.
        document = {
            "id": self.id,
            "parent": self.parent or None,
            "comment": self.comment or None,
            "created": self.created,
            "container": self.container or None,
            "container_config": _canonical_config(self.container_config),
            "docker_version": self.docker_version or None,
            "author": self.author or None,
            "config": config,
            "architecture": self.architecture or None,
            "os": self.os or None,
            "Size": self.size or None,
        }
        document = {key: value for key, value in document.items() if value is not None}
        document |= {key: self.extra[key] for key in self.extra if key.casefold() not in _FIELDS}
        return dump_compact(document)

    @property
    def stored_bytes(self) -> bytes:
        """Return what belongs into the `json` file: the bytes it was read from, else `encode()`."""
        return self.raw or self.encode()


_FIELDS: Final[dict[str, tuple[str, type]]] = {
    "id": ("id", str),
    "parent": ("parent", str),
    "comment": ("comment", str),
    "created": ("created", str),
    "container": ("container", str),
    "container_config": ("container_config", dict),
    "docker_version": ("docker_version", str),
    "author": ("author", str),
    "config": ("config", dict),
    "architecture": ("architecture", str),
    "os": ("os", str),
    "size": ("size", int),
}
