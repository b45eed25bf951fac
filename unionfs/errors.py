"""The errors a person can meet, each with the exit status it ends a command with.

Invariant: whatever goes wrong because of the user's input, the machine or a
damaged store is raised as `UnionfsError` (or a plain `OSError` from a system
call); the command line prints either as one line. Any other exception is a
defect of unionfs.
"""

from __future__ import annotations

import os

__all__ = [
    "AmbiguousError",
    "BusyError",
    "ConflictError",
    "DigestMismatchError",
    "HostileArchiveError",
    "InvalidNameError",
    "LimitError",
    "MissingParentError",
    "NotFoundError",
    "ParentCycleError",
    "StoreError",
    "TooDeepError",
    "UnionfsError",
    "UnsupportedError",
    "UsageError",
    "show",
]


# os.fsdecode() keeps an undecodable byte B as the code point 0xDC00 + B (PEP 383).
_SURROGATE_BASE = 0xDC00


class UnionfsError(Exception):
    """Something the user should read: one line saying what, where and what to do."""

    exit_status = 1


class UsageError(UnionfsError):
    """The request itself makes no sense (bad option, bad combination)."""

    exit_status = 2


class InvalidNameError(UnionfsError):
    """An id, digest, tag or reference that does not follow its grammar."""

    exit_status = 2


class NotFoundError(UnionfsError):
    """No image, layer, tag or mount of that name."""


class AmbiguousError(UnionfsError):
    """An id prefix that fits several images; `candidates` holds their full ids."""

    def __init__(self, message: str, candidates: tuple[str, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates


class ConflictError(UnionfsError):
    """What is asked would replace or break something that exists (`--force` may allow it)."""


class BusyError(UnionfsError):
    """Something is in use: a rw branch by another mount, an image by a live mount."""


class StoreError(UnionfsError):
    """A store entry is missing a part, or two parts contradict each other."""


class MissingParentError(StoreError):
    """An image names a parent that the store does not have."""


class ParentCycleError(StoreError):
    """Following the parents of an image leads back to an image already met."""


class TooDeepError(StoreError):
    """An image stands on more layers than the store is willing to follow."""


class HostileArchiveError(UnionfsError):
    """An archive breaks the rules in a way that no honest tool produces."""


class DigestMismatchError(HostileArchiveError):
    """Content does not have the digest or the size that its descriptor promises."""


class LimitError(HostileArchiveError):
    """An archive exceeds a limit of `unionfs.archive.limits.Limits`."""


class UnsupportedError(UnionfsError):
    """This machine, filesystem or caller cannot do it; the message says what would help."""


def show(name: bytes | str | os.PathLike[str]) -> str:
    r"""Return a file name as printable text for a message.

    Bytes that are not UTF-8, control characters and backslashes become escapes (`\xff`,
    `\n`), so that a hostile name can neither forge a second line nor move the cursor.
    """
    text = os.fsdecode(name) if not isinstance(name, str) else name
    parts: list[str] = []
    for char in text:
        code = ord(char)
        if _SURROGATE_BASE + 0x80 <= code <= _SURROGATE_BASE + 0xFF:
            parts.append(f"\\x{code - _SURROGATE_BASE:02x}")
        elif char == "\\":
            parts.append("\\\\")
        elif char.isprintable():
            parts.append(char)
        elif 0x80 <= code <= 0xFF:  # noqa: PLR2004  # what `\xNN` alone would mean is a byte
            parts.append("".join(f"\\x{byte:02x}" for byte in char.encode()))
        else:
            parts.append(char.encode("unicode_escape", "surrogatepass").decode("ascii"))
    return "".join(parts)
