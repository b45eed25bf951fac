"""What is used in a `with` block and closed at its end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Self

__all__ = ["Closing", "opened"]


class Closing:
    """Gives `with` to a class that has `close`."""

    def close(self) -> None:
        """Release everything."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)
