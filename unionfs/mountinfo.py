"""What is mounted, in every mount namespace that the caller can look into.

Invariant: what cannot be read is left out and never guessed; a plain user sees the
namespaces of its own processes, root those of all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["KernelUnion", "kernel_unions", "unescape"]

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_TYPES: Final = (b"overlay", b"aufs")
_DEVICE_FIELD: Final = 2
_FIRST_OPTIONAL: Final = 6


class KernelUnion(NamedTuple):
    """A union in a mount table: `MAJOR:MINOR`, type, and its options as the kernel shows them."""

    device: str
    fstype: str
    options: bytes


def unescape(field: bytes) -> bytes:
    """Undo the octal escapes of a field in mountinfo."""
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field)


def kernel_unions() -> Iterator[KernelUnion]:
    """Yield the AUFS and overlayfs mounts of all visible namespaces; some more than once."""
    seen: set[int] = set()
    for process in ("self", *filter(str.isdigit, os.listdir("/proc"))):
        try:
            namespace = os.stat(f"/proc/{process}/ns/mnt").st_ino
            if namespace in seen:
                continue
            with open(f"/proc/{process}/mountinfo", "rb") as table:
                lines = table.readlines()
        except OSError:
            continue  # gone, or somebody else's
        seen.add(namespace)
        for line in lines:
            fields = line.rstrip(b"\n").split(b" ")
            try:
                fstype = fields[fields.index(b"-", _FIRST_OPTIONAL) + 1]
            except (ValueError, IndexError):
                continue  # some filesystem shows an option with a newline in it
            if fstype in _TYPES:
                device = fields[_DEVICE_FIELD].decode()
                yield KernelUnion(device, fstype.decode(), unescape(fields[-1]))
