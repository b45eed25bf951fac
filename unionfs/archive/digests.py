"""Digests of an image: their grammar, and readers that hold content to its digest.

Invariant: a digest string is matched in full before any part of it becomes a file name
(CVE-2024-3727), and whoever reads a `VerifiedReader` to its end without an exception has read
exactly the promised bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from typing import BinaryIO, Final

from unionfs.errors import DigestMismatchError, HostileArchiveError, show

__all__ = ["VerifiedReader", "check_diff_id", "split_digest"]

_DIGEST: Final = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")


def split_digest(digest: str, what: str) -> tuple[str, str]:
    """Return (algorithm, hex). Raises HostileArchiveError for anything but sha256 or sha512."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise HostileArchiveError(f"{what}: {show(digest[:140])} is no sha256 or sha512 digest")
    return match[1] or match[3], match[2] or match[4]


def check_diff_id(digest: str, what: str) -> str:
    """Return a diff_id if it is a sha256 digest, the only kind that layers have in practice."""
    algorithm, _ = split_digest(digest, what)
    if algorithm != "sha256":
        raise HostileArchiveError(f"{what}: a diff_id must be a sha256 digest, not {algorithm}")
    return digest


class VerifiedReader(io.RawIOBase):
    """Passes bytes through and compares their digest and number when they end.

    `digest` None checks the size only, `size` None the digest only. Raises
    DigestMismatchError from the read that meets the end (or goes beyond `size`).
    """

    def __init__(self, raw: BinaryIO, digest: str | None, size: int | None, what: str) -> None:
        super().__init__()
        self._raw = raw
        self._digest = digest
        self._hash = None if digest is None else hashlib.new(split_digest(digest, what)[0])
        self._size = size
        self._what = what
        self._count = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, target: bytearray | memoryview) -> int:  # type: ignore[override]  # Buffer has no len()
        """Read some bytes, 0 at the end; see the class for errors."""
        data = self._raw.read(len(target))
        target[: len(data)] = data
        self._count += len(data)
        if self._hash is not None:
            self._hash.update(data)
        if self._size is not None and self._count > self._size:
            raise DigestMismatchError(
                f"{self._what}: has more than the {self._size} bytes promised"
            )
        if not data and len(target):
            self._verify()
        return len(data)

    def _verify(self) -> None:
        if self._size is not None and self._count != self._size:
            raise DigestMismatchError(
                f"{self._what}: has {self._count} bytes instead of the promised {self._size}"
            )
        if self._hash is not None and self._digest is not None:
            found = f"{self._digest.partition(':')[0]}:{self._hash.hexdigest()}"
            if found != self._digest:
                raise DigestMismatchError(
                    f"{self._what}: the content has the digest {found}, not {self._digest}; "
                    f"it is damaged, fetch it again"
                )

    def close(self) -> None:
        """Close the file below too."""
        if not self.closed:
            self._raw.close()
        super().close()
