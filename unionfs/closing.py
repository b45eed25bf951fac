"""What is used in a `with` block and closed at its end."""

from __future__ import annotations

from typing import Self

__all__ = ["Closing"]


class Closing:
    """Gives `with` to a class that has `close`."""

    def close(self) -> None:
        """Release everything."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
