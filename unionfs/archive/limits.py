"""How much an archive may ask of this machine before it is refused.

Invariant: everything in `unionfs.archive` that grows with its input (memory, disk,
entries, nesting) is checked against one field of `Limits` while it streams, before
the resource is spent; the error names the field and the option that raises it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from unionfs.errors import LimitError, UsageError

__all__ = ["DEFAULT", "Limits"]

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_GIB: Final = 1024 * _MIB


@attrs.frozen
class Limits:
    """Upper bounds for one import. All sizes are bytes.

    `component` is NAME_MAX; a whiteout may be longer by its prefix, since the name that it
    hides is what a filesystem has to hold.
    """

    #: Members in one layer. The largest real images have some hundred thousand.
    entries: int = 1_000_000
    #: Uncompressed tar stream of one layer, and the sum of its files with their holes.
    layer_bytes: int = 64 * _GIB
    #: Length of one file, holes included.
    file_bytes: int = 32 * _GIB
    #: A whole archive file (docker-archive, oci-archive) after decompression.
    archive_bytes: int = 256 * _GIB
    #: Output per input byte, looked at once `ratio_after` bytes came out. gzip cannot exceed 1032.
    ratio: int = 500
    ratio_after: int = 64 * _MIB
    #: Extended headers (PAX records, GNU long names, sparse maps) of one entry.
    header_bytes: int = 1 * _MIB
    path: int = 4096
    component: int = 255
    #: Components of one name.
    depth: int = 1024
    #: Extended attributes of one entry, names and values.
    xattr_bytes: int = 512 * _KIB
    #: One JSON document: manifest, index, configuration.
    json_bytes: int = 4 * _MIB
    json_depth: int = 64
    #: Whatever follows the end-of-archive marker of a tar, and padding after compressed data.
    trailing_bytes: int = 64 * _MIB

    def check(self, name: str, value: int, where: str) -> None:
        """Raise LimitError when `value` is above the limit `name`; `where` is for the message."""
        limit: int = getattr(self, name)
        if value > limit:
            what = name.replace("_", " ")
            # A stream is stopped long before its end, so the value seen would not be enough.
            raise LimitError(
                f"{where}: {what} is {value}, more than the limit of {limit}; "
                f"if you trust the source, raise it, say with --limit {name}={2 * value}"
            )

    def with_options(self, options: Iterable[str]) -> Limits:
        """Return a copy changed by `NAME=NUMBER` texts (the `--limit` option).

        Raises UsageError for an unknown name or something that is no positive number.
        """
        names = [field.name for field in attrs.fields(Limits)]
        changes: dict[str, int] = {}
        for option in options:
            name, _, number = option.partition("=")
            name = name.replace("-", "_")
            if name not in names:
                raise UsageError(f"--limit {option}: no such limit; known are {', '.join(names)}")
            if not (number.isascii() and number.isdigit()) or int(number) == 0:
                raise UsageError(f"--limit {option}: give a positive whole number after '='")
            changes[name] = int(number)
        return attrs.evolve(self, **changes)


DEFAULT: Final = Limits()
