"""The least that anything readable here offers.

Invariant: nothing in `unionfs.archive` that takes a `Reader` seeks or closes it.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Reader"]


class Reader(Protocol):
    """Anything with `read(n)`: b"" means the end, fewer than n bytes do not."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""
        ...
