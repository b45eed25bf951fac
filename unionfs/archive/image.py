"""An image in a source: its configuration and its layers, nothing unpacked yet.

Invariant: a `SourceImage` was checked as far as its documents go (digests are well-formed,
diff_ids and layers match in number); content is checked when it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

import attrs

__all__ = ["DOCKER_TAR", "OCI_TAR", "Source", "SourceImage", "SourceLayer"]

OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
DOCKER_TAR = "application/vnd.docker.image.rootfs.diff.tar"


@attrs.frozen
class SourceLayer:
    """One layer.

    `diff_id` is the promised digest of the uncompressed tar, None when the format promises none.
    `size` is the stored length in bytes, None when unknown. `open` gives the stored, possibly
    compressed bytes from the start, any number of times; reading to the end verifies what the
    source promises about them (DigestMismatchError).
    """

    diff_id: str | None
    media_type: str
    size: int | None
    open: Callable[[], BinaryIO]


@attrs.frozen
class SourceImage:
    """One image: `layers` base first, `references` as the source spells them.

    `config` is the raw configuration document; None for what has none (a root filesystem,
    Docker's v1 layout). `platform` is `os/architecture[/variant]` if known. `v1_json` holds
    the `json` documents of the v1 layout, base first, else it is empty.
    """

    references: tuple[str, ...]
    config: bytes | None
    layers: tuple[SourceLayer, ...]
    platform: str | None
    v1_json: tuple[bytes, ...] = ()


@attrs.frozen
class Source:
    """What `open_source` found; valid until its context ends."""

    images: tuple[SourceImage, ...]
    transport: str
