"""Initial RAM filesystems: `newc` cpio archives as the kernel unpacks them.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Nothing is
compressed, because every kernel can unpack that.
"""

from __future__ import annotations

import io
import stat
from typing import Final

__all__ = ["Cpio"]

_END: Final = b"TRAILER!!!"
_ALIGN: Final = 4


class Cpio:
    """An archive in the making; everything belongs to root and has no date."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._count = 0
        self._directories: set[str] = set()

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file; directories above it are added as needed."""
        self._parents(path)
        self._member(path.encode(), stat.S_IFREG | mode, content)

    def directory(self, path: str) -> None:
        """Add a directory, with those above it, once."""
        if path in self._directories:
            return
        self._parents(path)
        self._directories.add(path)
        self._member(path.encode(), stat.S_IFDIR | 0o755, b"")

    def device(self, path: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._parents(path)
        self._member(path.encode(), stat.S_IFCHR | 0o600, b"", (major, minor))

    def finish(self) -> bytes:
        """Return the archive."""
        self._member(_END, 0, b"")
        return self._out.getvalue()

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self.directory(parent)

    def _member(
        self, name: bytes, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._count += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._count, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        self._out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0")
        self._pad()
        self._out.write(content)
        self._pad()

    def _pad(self) -> None:
        self._out.write(bytes(-self._out.tell() % _ALIGN))
