"""One entry of the graph, `graph/<id>/`: its record, our facts and its layer directory.

Invariant: an `Image` that exists has an id equal to its directory's name, a readable record and
a real (not symbolically linked) layer directory; everything else is a `StoreError`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

import attrs

from unionfs.errors import NotFoundError, StoreError, show
from unionfs.store._fs import directory, read_file
from unionfs.store._json import MAX_JSON
from unionfs.store.facts import FACTS_NAME, MAX_FACTS, Facts, decode_facts
from unionfs.store.image import ImageRecord

if TYPE_CHECKING:
    from unionfs.store.ids import ImageId

__all__ = ["JSON_NAME", "LAYER_NAME", "Image", "load_entry", "load_image"]

JSON_NAME: Final = b"json"
LAYER_NAME: Final = b"layer"


@attrs.frozen
class Image:
    """An entry of the graph; `path` is the absolute path of its directory.

    `facts` is None for entries that early Docker wrote.
    """

    id: ImageId
    record: ImageRecord
    facts: Facts | None
    path: bytes

    @property
    def parent(self) -> ImageId | None:
        """Return the id of the entry below, None for a base."""
        return self.record.parent

    @property
    def layer_path(self) -> bytes:
        """Return the absolute path of the layer directory."""
        return self.path + b"/" + LAYER_NAME

    @property
    def metadata_only(self) -> bool:
        """Tell whether the layer is empty by construction and may be left out of a mount."""
        return self.facts is not None and self.facts.metadata_only


def load_entry(fd: int, path: bytes, image_id: ImageId) -> Image:
    """Load the entry whose directory is open as `fd`; counterpart of the original's LoadImage.

    Raises `StoreError` for a missing or damaged part (semantics of the original, but symbolic
    links are not followed and the id must equal the directory's name).
    """
    at = f"image {image_id}"
    try:
        raw = read_file(JSON_NAME, fd, MAX_JSON, f"`json` of {at}")
    except FileNotFoundError as error:
        raise StoreError(f"couldn't load {at}: no `json` in {show(path)}") from error
    record = ImageRecord.decode(raw, f"`json` of {at}")
    if record.id != image_id:
        raise StoreError(f"image stored at {show(path)} has wrong id `{record.id}`")
    try:
        info = os.stat(LAYER_NAME, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError as error:
        raise StoreError(f"couldn't load {at}: no filesystem layer") from error
    if not stat.S_ISDIR(info.st_mode):
        raise StoreError(f"couldn't load {at}: {show(path)}/layer is not a directory")
    try:
        raw = read_file(FACTS_NAME, fd, MAX_FACTS, f"`unionfs.json` of {at}")
    except FileNotFoundError:
        facts = None
    else:
        facts = decode_facts(raw, f"`unionfs.json` of {at}")
    return Image(image_id, record, facts, path)


def load_image(graph_fd: int, graph_path: bytes, image_id: ImageId) -> Image:
    """Load `graph/<image_id>`; `NotFoundError` if there is none, else like `load_entry`."""
    path = graph_path + b"/" + image_id.encode()
    try:
        with directory(image_id.encode(), graph_fd) as fd:
            return load_entry(fd, path, image_id)
    except FileNotFoundError as error:
        raise NotFoundError(f"no image with the id {image_id}") from error
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise StoreError(f"couldn't load image {image_id}: not a directory") from error
        raise StoreError(f"couldn't load image {image_id}: {error.strerror}") from error
