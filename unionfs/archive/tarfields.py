"""Fields of a tar member, from its header and the extended headers before it.

Invariant: where implementations would read different values, or one would be impossible,
there is an error and no choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from unionfs.archive.tarheader import Header, decimal
from unionfs.errors import HostileArchiveError

__all__ = ["Pending", "id_of", "mode_of", "rdev_of"]

#: (uid_t)-1 means "leave alone" to chown(2), so it is no owner.
_MAX_ID: Final = 2**32 - 2
_MAX_RDEV: Final = 2**32 - 1
_WORDS: Final = {b"L": "name", b"K": "link name"}


class Pending:
    """Extended headers that wait for the member they belong to.

    `names` holds GNU's long names by the type of their header, `pax` the records.
    """

    def __init__(self) -> None:
        self.pax: list[tuple[bytes, bytes]] | None = None
        self.names: dict[bytes, bytes] = {}

    def __bool__(self) -> bool:
        return self.pax is not None or bool(self.names)

    def choose(
        self, header: Header, values: Mapping[bytes, bytes], long_type: bytes, keyword: bytes
    ) -> bytes:
        """Return the name (`long_type` L) or link name (K) of the member."""
        gnu = self.names.get(long_type)
        pax = values.get(keyword) or None
        if gnu is not None and pax is not None and gnu != pax:
            # GNU tar, Go and Python each choose differently here.
            raise HostileArchiveError(f"two different {_WORDS[long_type]}s for one member")
        field = header.name if long_type == b"L" else header.linkname
        return gnu or pax or field


def mode_of(header: Header) -> int:
    """Return the permission bits."""
    if header.mode < 0:
        raise HostileArchiveError("a negative mode")
    return header.mode & 0o7777


def id_of(field: int, values: Mapping[bytes, bytes], keyword: bytes) -> int:
    """Return a uid or gid: the record `keyword`, else the header's field."""
    value = decimal(values[keyword], keyword.decode()) if values.get(keyword) else field
    if not 0 <= value <= _MAX_ID:
        raise HostileArchiveError(f"the {keyword.decode()} {value} of a member is impossible")
    return value


def rdev_of(header: Header) -> tuple[int, int]:
    """Return major and minor number of a device."""
    major, minor = header.rdev
    if not (0 <= major <= _MAX_RDEV and 0 <= minor <= _MAX_RDEV):
        raise HostileArchiveError(f"the device number {major}:{minor} is impossible")
    return major, minor
