"""Names that people give to images: `repository:tag`, with an optional registry host.

The grammar is that of the distribution project (`host:port/path/name:tag`). Nothing is
normalised: like the first Docker, the store keeps what the user wrote, so `busybox` stays
`busybox` and is not the same name as `docker.io/library/busybox`.

Invariant: every `Reference` obeys the grammar, and `parse_reference(str(r)) == r`.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from unionfs.errors import InvalidNameError, show
from unionfs.store.ids import excerpt

__all__ = ["DEFAULT_TAG", "Reference", "parse_reference", "validate_repository", "validate_tag"]

DEFAULT_TAG: Final = "latest"
_MAX_REPOSITORY: Final = 255

_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?")
_LOOKS_LIKE_ID: Final = re.compile(r"[0-9a-f]{64}")


def _bad(text: str, reason: str) -> InvalidNameError:
    return InvalidNameError(f"`{excerpt(text)}` is not an image name: {reason}")


def _is_host(component: str) -> bool:
    """Tell whether the first part of a name is a registry host and not part of the path."""
    return (
        any(char in component for char in ".:[")
        or component == "localhost"
        or component != component.lower()
    )


def validate_repository(text: str) -> str:
    """Return `text` if it is `[host[:port]/]component[/component...]`, else `InvalidNameError`."""
    if not text:
        raise _bad(text, "the name is empty")
    if len(text) > _MAX_REPOSITORY:
        raise _bad(text, f"it is longer than {_MAX_REPOSITORY} characters")
    if _LOOKS_LIKE_ID.fullmatch(text):
        raise _bad(text, "64 hexadecimal digits would be taken for an image id")
    parts = text.split("/")
    # What is a path component as well (`0.0_0/x`) needs not be a host.
    if len(parts) > 1 and _is_host(parts[0]) and not _COMPONENT.fullmatch(parts[0]):
        if not _HOST.fullmatch(parts[0]):
            raise _bad(text, f"`{show(parts[0])}` is not a host or host:port")
        parts = parts[1:]
    for part in parts:
        if _COMPONENT.fullmatch(part):
            continue
        if part != part.lower() and _COMPONENT.fullmatch(part.lower()):
            raise _bad(text, "it must be lower case")
        raise _bad(
            text,
            f"`{show(part)}` must be lower-case letters and digits, separated by"
            " one `.`, one or two `_`, or any number of `-`",
        )
    return text


def validate_tag(text: str) -> str:
    """Return `text` if it is a tag (1 to 128 of `A-Za-z0-9_.-`, not beginning with `.` or `-`)."""
    if not _TAG.fullmatch(text):
        raise _bad(
            text,
            "a tag is 1 to 128 letters, digits, `_`, `.`, `-`, and begins with neither `.` nor `-`",
        )
    return text


@attrs.frozen(order=True)
class Reference:
    """A `repository` (possibly with host and port) and a `tag` in it."""

    repository: str = attrs.field(converter=validate_repository)
    tag: str = attrs.field(default=DEFAULT_TAG, converter=validate_tag)

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"


def parse_reference(text: str, default_tag: str = DEFAULT_TAG) -> Reference:
    """Return the reference written as `repository[:tag]`.

    Only a colon behind the last slash begins a tag, so `host:5000/name` has a port. A digest
    (`name@sha256:...`) is refused: it names one fixed content and can be neither set nor moved.
    Raises `InvalidNameError` saying which rule is broken.
    """
    if "@" in text:
        raise _bad(
            text,
            "a digest (`@sha256:...`) names fixed content and cannot be a tag;"
            " write repository:tag, or the image id alone",
        )
    head, slash, last = text.rpartition("/")
    name, colon, tag = last.partition(":")
    return Reference(head + slash + name, tag if colon else default_tag)
