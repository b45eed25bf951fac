"""Which number a user or group of the image is shown as, and the way back.

Invariant: whatever `shown()` returns for a mapped id leads back to that id through
`stored()`; ids outside the map are shown as the overflow id and can never be stored,
so a chown to a number nobody meant is an error and not a silent change.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Final, Self

import attrs

from unionfs.errors import UsageError

__all__ = ["OVERFLOW_ID", "IdMap", "map_acl"]

#: What Linux shows for an id without a name in the current namespace (user_namespaces(7)).
OVERFLOW_ID: Final = 65534
_MAX: Final = 2**32 - 1  # one past the last id; 2**32 - 1 itself means "no change" to chown(2)
_ACL_HEADER: Final = 4
_ACL_ENTRY: Final = 8
_ACL_USER: Final = 0x02
_ACL_GROUP: Final = 0x08

Range = tuple[int, int, int]


def _find(ranges: tuple[Range, ...], value: int, source: int, target: int) -> int | None:
    for item in ranges:
        if item[source] <= value < item[source] + item[2]:
            return item[target] + value - item[source]
    return None


@attrs.define
class IdMap:
    """A map of ids. `ranges` are (image id, shown id, count); None means every id as it is.

    With `squash` every entry is shown as that one id, whatever the image says.
    """

    ranges: tuple[Range, ...] | None = None
    squash: int | None = None
    overflow: int = OVERFLOW_ID
    _cache: dict[int, int] = attrs.field(factory=dict, init=False, repr=False, eq=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `IMAGE:SHOWN:COUNT[:IMAGE:SHOWN:COUNT...]`, the syntax of fuse-overlayfs.

        One triple reads like umoci's CONTAINER:HOST:SIZE as well.
        """
        fields = text.split(":")
        if len(fields) % 3 or not all(field.isascii() and field.isdigit() for field in fields):
            raise UsageError(
                f"id map {text!r}: write IMAGE:SHOWN:COUNT triples of numbers, "
                "for instance 0:1000:1:1:100000:65536"
            )
        numbers = [int(field) for field in fields]
        ranges = tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
        for side, what in ((0, "image"), (1, "shown")):
            end = 0
            for item in sorted(ranges, key=lambda item: item[side]):
                if item[2] == 0 or item[side] + item[2] > _MAX:
                    raise UsageError(f"id map {text!r}: a count of 0 or an id beyond {_MAX - 1}")
                if item[side] < end:
                    raise UsageError(f"id map {text!r}: {what} ids overlap")
                end = item[side] + item[2]
        return cls(ranges)

    @classmethod
    def bijective(cls, own: int) -> Self:
        """Return the map of a plain user: image id 0 and `own` change places, nothing is lost."""
        if own == 0:
            return cls()
        return cls(((0, own, 1), (own, 0, 1), (1, 1, own - 1), (own + 1, own + 1, _MAX - own - 1)))

    @classmethod
    def of_namespace(cls, table: str) -> Self:
        """Return the map inside the user namespace whose /proc/self/uid_map is `table`.

        Ids the namespace has are shown as they are. The kernel refuses every change to a
        file whose owner it cannot name, so where not even the overflow id exists the others
        are shown as root's.
        """
        inside = [tuple(int(field) for field in line.split()) for line in table.splitlines()]
        ranges = tuple((first, first, min(count, _MAX - first)) for first, _, count in inside)
        if ranges == ((0, 0, _MAX),):
            return cls()
        known = _find(ranges, OVERFLOW_ID, 0, 1) is not None
        return cls(ranges, overflow=OVERFLOW_ID if known else 0)

    def shown(self, stored: int) -> int:
        """Return what the kernel is told for an id of the image."""
        if self.squash is not None:
            return self.squash
        if self.ranges is None:
            return stored
        value = self._cache.get(stored)
        if value is None:
            found = _find(self.ranges, stored, 0, 1)
            value = self._cache[stored] = self.overflow if found is None else found
        return value

    def stored(self, shown: int) -> int:
        """Return the id of the image for one the kernel names; EOVERFLOW outside the map."""
        if self.squash is not None or self.ranges is None:
            return shown
        found = _find(self.ranges, shown, 1, 0)
        if found is None:
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
        return found

    def caller(self, shown: int) -> int:
        """Return the image id that owns what a process with id `shown` creates.

        Processes outside the map may write where others let them; what they make belongs
        to the overflow id, which is how they are shown too.
        """
        try:
            return self.stored(shown)
        except OSError:
            return self.overflow

    def chown(self, shown: int) -> int | None:
        """Return the id to store when the owner becomes `shown`; None for no change.

        Under squash all entries already are what they are shown as: EPERM for another id.
        """
        if self.squash is None:
            return self.stored(shown)
        if shown != self.squash:
            raise OSError(errno.EPERM, "ownership is squashed on this mount")
        return None


def _map_entry(entry: bytes, users: IdMap, groups: IdMap, *, show: bool) -> bytes:
    tag = int.from_bytes(entry[:2], "little")
    if tag not in (_ACL_USER, _ACL_GROUP):
        return entry
    ids = users if tag == _ACL_USER else groups
    value = int.from_bytes(entry[4:8], "little")
    value = ids.shown(value) if show else ids.stored(value)
    return entry[:4] + value.to_bytes(4, "little")


def map_acl(value: bytes, users: IdMap, groups: IdMap, *, show: bool) -> bytes:
    """Translate the ids within a `system.posix_acl_*` value (layout: acl(5), xattr form).

    `show` goes from image to kernel, else back; values of another shape stay as they are.
    """
    if users.ranges is None and groups.ranges is None:
        return value
    if len(value) < _ACL_HEADER or (len(value) - _ACL_HEADER) % _ACL_ENTRY:
        return value
    entries: Iterable[bytes] = (
        _map_entry(value[start : start + _ACL_ENTRY], users, groups, show=show)
        for start in range(_ACL_HEADER, len(value), _ACL_ENTRY)
    )
    return value[:_ACL_HEADER] + b"".join(entries)
