"""Layers as archives, whatever they are: of the store, directories in any dialect, rw branches.

Invariant: `LayerSource.members` gives every layer as an archive would ship it, base first in
`Layers.sources`; `directory` is set only where a program may take the layer's own directory for
the same thing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

import attrs

from unionfs.archive.compression import decompress
from unionfs.archive.image import SourceImage
from unionfs.archive.limits import DEFAULT, Limits
from unionfs.archive.tarstream import TarStream
from unionfs.archive.tree import ChunkReader, tree_tar
from unionfs.branch import Branch, Dialect
from unionfs.errors import HostileArchiveError
from unionfs.insight.convert import convert
from unionfs.insight.where import NamedBranch, Where
from unionfs.store.export import replay_layer
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image
from unionfs.store.layertar import layer_tar

__all__ = ["LIMITS", "LayerSource", "imported", "of_archive", "of_where"]

#: Names that no disk can hold are what an engine is asked about, not an error.
LIMITS: Final = attrs.evolve(DEFAULT, component=DEFAULT.path)
_CHUNK: Final = 256 * 1024


@attrs.frozen
class LayerSource:
    """One layer. `chunks` gives its archive, uncompressed; `size` is about that in bytes.

    `mountable` is a directory in AUFS form for our own engines, None where there is none (an
    archive that the store refuses). `directory` is one that other programs may mount as it is.
    """

    title: str
    chunks: Callable[[], Iterator[bytes]]
    size: int
    mountable: bytes | None
    directory: bytes | None = None

    def stream(self) -> TarStream:
        """Return the members of the archive."""
        return TarStream(ChunkReader(self.chunks()), LIMITS, what=self.title)


def of_where(where: Where, place: bytes) -> list[LayerSource]:
    """Return the layers, base first; what is in an overlayfs dialect is converted in `place`."""
    return [_source(named, place) for named in reversed(where.branches)]


def _source(named: NamedBranch, place: bytes) -> LayerSource:
    entry = named.entry
    if entry is not None:
        size = (entry.facts and entry.facts.tar_size) or tree_size(named.path)
        return LayerSource(named.title, lambda: replay_layer(entry), size, named.path)
    path = named.path
    if named.dialect is not Dialect.AUFS:
        path = os.path.join(place, b"converted-%d" % named.number)
        convert(named.path, named.dialect, Dialect.AUFS, path)
    size = tree_size(path)
    with Branch.open(path) as branch:
        marked = branch.marked
    if named.is_rw or marked:
        return LayerSource(named.title, lambda: _presented(named, path), size, path)
    return LayerSource(named.title, lambda: tree_tar(path), size, path, path)


def _presented(named: NamedBranch, path: bytes) -> Iterator[bytes]:
    """Yield the archive of what a branch presents, as a commit would write it."""
    with attrs.evolve(named, path=path, dialect=Dialect.AUFS).open() as branch:
        yield from layer_tar(branch, root=True)


@contextlib.contextmanager
def imported(image: SourceImage, place: bytes) -> Iterator[tuple[list[LayerSource], str]]:
    """Give the layers of an image in an archive, stored in `place`, and why they could not be.

    What the store refuses has no directories, and a reason (empty otherwise).
    """
    refusal, mountable = "", None
    with Graph(os.path.join(place, b"store")) as graph:
        try:
            image_id, _ = import_image(graph, image, transport="compare")
            mountable = graph.layer_dirs(image_id)[::-1]
        except HostileArchiveError as error:
            refusal = str(error)
        yield of_archive(image, mountable), refusal


def of_archive(image: SourceImage, mountable: list[bytes] | None) -> list[LayerSource]:
    """Return the layers of an image in an archive; `mountable` where it was imported."""
    return [
        LayerSource(
            f"layer {number}",
            lambda layer=layer: _chunks(layer.open, LIMITS),  # type: ignore[misc]  # binds the loop's value
            layer.size or 0,
            None if mountable is None else mountable[number - 1],
        )
        for number, layer in enumerate(image.layers, 1)
    ]


def _chunks(opener: Callable[[], BinaryIO], limits: Limits) -> Iterator[bytes]:
    with opener() as raw:
        reader = decompress(raw, limits)
        while data := reader.read(_CHUNK):
            yield data


def tree_size(path: bytes) -> int:
    """Return the bytes of all files below a directory; what cannot be read counts as nothing."""
    total = 0
    for _, _, names, fd in os.fwalk(path, onerror=None):
        for name in names:
            try:
                total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
            except OSError:
                continue
    return total
