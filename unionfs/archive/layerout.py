"""What all writers of images share: a layer to write, and a tar with one time for everything.

Invariant: a layer's bytes are compared with its diff_id as they leave.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import attrs
import msgspec

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.limits import DEFAULT
from unionfs.archive.oci import Configuration, parse_configuration
from unionfs.archive.staging import replacing, source_date_epoch
from unionfs.archive.tarwrite import TarWriter
from unionfs.errors import DigestMismatchError

__all__ = ["ArchiveWriter", "LayerOut", "check", "json_bytes", "output"]


@attrs.frozen
class LayerOut:
    """A layer to write: `open` yields its uncompressed tar, any number of times.

    `size` is the length of that tar in bytes; None makes the docker-archive writer read the
    layer twice.
    """

    diff_id: str
    open: Callable[[], Iterable[bytes]]
    size: int | None = None

    def verified(self) -> Iterator[bytes]:
        """Yield the tar. Raises DigestMismatchError at its end if it is not the diff_id's."""
        digest = hashlib.sha256()
        for chunk in self.open():
            digest.update(chunk)
            yield chunk
        found = f"sha256:{digest.hexdigest()}"
        if found != self.diff_id:
            raise DigestMismatchError(
                f"layer {self.diff_id}: its stored files now give {found}; "
                f"the layer was changed after its import, import the image again"
            )


def check(config: bytes, layers: Sequence[LayerOut]) -> Configuration:
    """Return what an image configuration says; DigestMismatchError if its layers are others."""
    configuration = parse_configuration(config, len(layers), "image configuration", DEFAULT)
    for listed, layer in zip(configuration.diff_ids, layers, strict=True):
        if listed != layer.diff_id:
            raise DigestMismatchError(
                f"the image configuration lists {listed} where the layer is {layer.diff_id}"
            )
    return configuration


def json_bytes(document: Any) -> bytes:
    """Return the compact JSON of a document."""
    return msgspec.json.encode(document)


@contextlib.contextmanager
def output(target: bytes | BinaryIO, *, replace: bool) -> Iterator[BinaryIO]:
    """Give the file to write; a path gets it when the block ends without an error."""
    if isinstance(target, bytes):
        with replacing(target, replace=replace) as file:
            yield file
    else:
        yield target


class ArchiveWriter:
    """A tar whose members all have the same time and owner."""

    def __init__(self, out: BinaryIO) -> None:
        self._tar = TarWriter(out)
        self._mtime_ns = source_date_epoch() * 1_000_000_000

    def directory(self, name: bytes) -> None:
        """Add a directory."""
        self._tar.add(Entry(name, Kind.DIRECTORY, mode=0o755, mtime_ns=self._mtime_ns))

    def file(self, name: bytes, size: int, chunks: Iterable[bytes]) -> None:
        """Add a file of `size` bytes; ValueError when the chunks are not that long."""
        self._tar.add(Entry(name, Kind.FILE, size=size, mtime_ns=self._mtime_ns), chunks)

    def data(self, name: bytes, data: bytes) -> None:
        """Add a file that is in memory."""
        self.file(name, len(data), [data])

    def link(self, name: bytes, target: bytes) -> None:
        """Add a symbolic link."""
        self._tar.add(
            Entry(name, Kind.SYMLINK, mode=0o777, linkname=target, mtime_ns=self._mtime_ns)
        )

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()
