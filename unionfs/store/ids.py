"""Ids of images, digests of layers, and the index that finds an id by its first characters.

Invariant: a text that `validate_id`, `validate_stored_id` or `validate_digest` has
returned holds nothing but lower-case hexadecimal digits (after `sha256:`), so it may
become a file name; an id that has not passed here never does.
"""

from __future__ import annotations

import bisect
import hashlib
import re
import secrets
from typing import TYPE_CHECKING, Final, NewType

from unionfs.errors import AmbiguousError, ConflictError, InvalidNameError, NotFoundError, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "SHORT_LENGTH",
    "ChainId",
    "DiffId",
    "IdIndex",
    "ImageId",
    "chain_id",
    "digest_hex",
    "excerpt",
    "generate_id",
    "image_id_of",
    "short_id",
    "validate_digest",
    "validate_id",
    "validate_stored_id",
]

#: Name of an entry of the graph: lower-case hex, 64 digits (8 to 64 in stores of old Docker).
ImageId = NewType("ImageId", str)
#: `sha256:` and the hex digest of a layer's uncompressed tar bytes.
DiffId = NewType("DiffId", str)
#: `sha256:` and the hex digest that names a layer together with everything below it.
ChainId = NewType("ChainId", str)

#: Characters of an id that people are shown.
SHORT_LENGTH: Final = 12
#: Longest part of a hostile text, and number of candidates, that a message repeats.
_EXCERPT: Final = 80
_CANDIDATES: Final = 5

_NEW_ID: Final = re.compile(r"[0-9a-f]{64}")
_STORED_ID: Final = re.compile(r"[0-9a-f]{8,64}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9a-f]+")


def excerpt(text: str) -> str:
    """Return `text` printable and short enough for a message."""
    return show(text if len(text) <= _EXCERPT else text[: _EXCERPT - 3] + "...")


def validate_id(text: str) -> ImageId:
    """Return `text` as the id of a new image: exactly 64 lower-case hex digits.

    Raises `InvalidNameError` otherwise. Docker's own check let `../x` pass and became
    CVE-2014-9358; this is the rule of its repair.
    """
    if not _NEW_ID.fullmatch(text):
        raise InvalidNameError(
            f"`{excerpt(text)}` is not an image id: 64 hexadecimal digits (0-9, a-f) are needed"
        )
    return ImageId(text)


def validate_stored_id(text: str) -> ImageId:
    """Return `text` as the id of an entry already stored: 8 to 64 lower-case hex digits.

    The first Docker releases made ids of 8 to 16 digits. Upper case is refused: it never
    was written, and two spellings of one id would be two directories.
    """
    if not _STORED_ID.fullmatch(text):
        raise InvalidNameError(
            f"`{excerpt(text)}` is not an image id: 8 to 64 hexadecimal digits (0-9, a-f)"
            " are needed"
        )
    return ImageId(text)


def validate_digest(text: str) -> str:
    """Return `text` if it is `sha256:` and 64 lower-case hex digits, else `InvalidNameError`.

    The result may name a blob's file; an unchecked digest must not (CVE-2024-3727).
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidNameError(
            f"`{excerpt(text)}` is not a digest: `sha256:` and 64 hexadecimal digits are needed"
        )
    return text


def digest_hex(digest: str) -> str:
    """Return the 64 hex digits of a digest, checked by `validate_digest`."""
    return validate_digest(digest).removeprefix("sha256:")


def chain_id(parent: ChainId | None, diff_id: DiffId) -> ChainId:
    """Return the chain id of a layer on top of `parent` (None for a base layer).

    OCI image specification, "Layer ChainID": the base layer's is its diff_id, any other
    is the digest of the parent's chain id, a space and the diff_id.
    """
    validate_digest(diff_id)
    if parent is None:
        return ChainId(diff_id)
    text = f"{validate_digest(parent)} {diff_id}"
    return ChainId("sha256:" + hashlib.sha256(text.encode()).hexdigest())


def image_id_of(chain: ChainId) -> ImageId:
    """Return the graph id under which the layer with this chain id is stored."""
    return ImageId(digest_hex(chain))


def generate_id(source: Callable[[int], bytes] = secrets.token_bytes) -> ImageId:
    """Return a random id of 64 hex digits, from 32 bytes of `source`.

    An id whose first 12 characters are all decimal is drawn again: shown short, it could be
    taken for a number (a container's process id, a host name).
    """
    while True:
        text = source(32).hex()
        if not text[:SHORT_LENGTH].isdecimal():
            return validate_id(text)


def short_id(image_id: str) -> str:
    """Return the first 12 characters of an id, without `sha256:`; for people only."""
    return image_id.removeprefix("sha256:")[:SHORT_LENGTH]


class IdIndex:
    """A set of ids in which any unambiguous beginning finds its id.

    An id that equals the query wins over ids that merely begin with it (the original called
    that ambiguous, so a short id could hide behind a longer one).
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._ids = sorted({validate_stored_id(text) for text in ids})

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self._ids)

    def __contains__(self, text: object) -> bool:
        if not isinstance(text, str):
            return False
        at = self._position(text)
        return at < len(self._ids) and self._ids[at] == text

    def _position(self, text: str) -> int:
        return bisect.bisect_left(self._ids, ImageId(text))

    def add(self, text: str) -> None:
        """Insert an id; `ConflictError` if it is there, `InvalidNameError` if it is none."""
        image_id = validate_stored_id(text)
        if image_id in self:
            raise ConflictError(f"image id {image_id} is already in the index")
        bisect.insort(self._ids, image_id)

    def delete(self, text: str) -> None:
        """Remove exactly this id; `NotFoundError` if it is not there."""
        if text not in self:
            raise NotFoundError(f"no image with the id {excerpt(text)}")
        del self._ids[self._position(text)]

    def get(self, prefix: str) -> ImageId:
        """Return the id that equals `prefix`, else the only one that begins with it.

        Raises `InvalidNameError` for an empty or non-hexadecimal prefix, `NotFoundError`,
        or `AmbiguousError` whose `candidates` are all ids that fit.
        """
        if not prefix:
            raise InvalidNameError("an image id is needed; an empty one fits every image")
        if not _HEX.fullmatch(prefix):
            raise InvalidNameError(
                f"`{excerpt(prefix)}` is not the beginning of an image id"
                " (hexadecimal digits 0-9, a-f)"
            )
        first = self._position(prefix)
        end = first
        while end < len(self._ids) and self._ids[end].startswith(prefix):
            end += 1
        found = self._ids[first:end]
        if not found:
            raise NotFoundError(f"no image whose id begins with `{excerpt(prefix)}`")
        if len(found) == 1 or found[0] == prefix:
            return found[0]
        length = max(SHORT_LENGTH, len(prefix) + 4)
        names = ", ".join(text[:length] for text in found[:_CANDIDATES])
        left = len(found) - _CANDIDATES
        more = f" and {left} more" if left > 0 else ""
        raise AmbiguousError(
            f"`{prefix}` fits {len(found)} images ({names}{more}); give more digits",
            tuple(found),
        )
