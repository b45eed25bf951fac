"""The store as the commands see it: graph, tags, and what moves images in and out.

Invariant: a tag is only set to an image that is already in the graph, and an image that came
in is held until its tag is set, so that no collector takes it in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Self

import attrs

from unionfs.archive.image import SourceImage
from unionfs.archive.limits import DEFAULT, Limits
from unionfs.branch import Dialect
from unionfs.closing import Closing
from unionfs.errors import ConflictError, InvalidNameError
from unionfs.store.changes import Change, changes
from unionfs.store.commit import commit
from unionfs.store.export import export_image
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId, short_id
from unionfs.store.ingest import Progress, import_image
from unionfs.store.paths import default_root
from unionfs.store.references import Reference, parse_reference
from unionfs.store.tags import TagStore

__all__ = ["Added", "Store"]


@attrs.frozen
class Added:
    """A new image: its id, the tags it got, and what ingest changed or left out."""

    id: ImageId
    references: tuple[Reference, ...]
    warnings: tuple[str, ...]


class Store(Closing):
    """An open store; close it, or use it in a `with` block."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @classmethod
    def open(cls, root: bytes | str | None = None, *, create: bool = True) -> Self:
        """Open the store at `root` (None: the default), making it when absent unless told not to.

        Errors as of `Graph`.
        """
        return cls(Graph(default_root() if root is None else root, create))

    @property
    def tags(self) -> TagStore:
        """The names of images."""
        return self.graph.tags

    def close(self) -> None:
        """Close the store."""
        self.graph.close()

    def resolve(self, name: str) -> ImageId:
        """Return the image that a full id, `repo:tag` or beginning of an id means."""
        return self.tags.resolve(self.graph, name)

    def import_image(
        self,
        image: SourceImage,
        *,
        transport: str,
        references: Sequence[str] | None = None,
        parent: ImageId | None = None,
        force: bool = False,
        limits: Limits = DEFAULT,
        progress: Progress | None = None,
    ) -> Added:
        """Store an image of a source and tag it.

        `references` None means those of the source, as far as they are names of ours. A tag that
        another image has is an error before anything is read, unless `force`.
        """
        wanted = _own_names(image.references) if references is None else _names(references)
        new_id = None if image.config is None else hashlib.sha256(image.config).hexdigest()
        self._check_free(wanted, new_id, force=force)
        image_id, warnings = import_image(
            self.graph,
            image,
            transport=transport,
            parent=parent,
            limits=limits,
            progress=progress,
            stored=partial(self._tag, wanted, force=force),
        )
        return Added(image_id, tuple(wanted), tuple(warnings))

    def commit(
        self,
        parent: ImageId,
        rw: bytes,
        *,
        references: Sequence[str] = (),
        force: bool = False,
        author: str = "",
        comment: str = "",
        changes: Sequence[str] = (),
        dialect: Dialect | None = None,
        progress: Progress | None = None,
    ) -> Added:
        """Store `parent` with the rw branch on top and tag it; see `unionfs.store.commit`."""
        wanted = _names(references)
        self._check_free(wanted, None, force=force)
        image_id, warnings = commit(
            self.graph,
            parent,
            rw,
            author=author,
            comment=comment,
            changes=changes,
            dialect=dialect,
            progress=progress,
            stored=partial(self._tag, wanted, force=force),
        )
        return Added(image_id, tuple(wanted), tuple(warnings))

    def export(
        self,
        image_id: ImageId,
        spec: str | bytes,
        *,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> str:
        """Write an image; its tags become its names in a docker-archive."""
        names = self.tags.by_id().get(image_id, [])
        return export_image(
            self.graph, image_id, spec, references=names, replace=replace, progress=progress
        )

    def changes(self, image_id: ImageId, rw: bytes, dialect: Dialect | None = None) -> list[Change]:
        """Return what a rw branch changes in an image."""
        return changes(self.graph.layer_dirs(image_id), rw, dialect)

    def _check_free(
        self, references: Sequence[Reference], new_id: str | None, *, force: bool
    ) -> None:
        """Refuse a taken tag before the work is done and not after it."""
        if force:
            return
        for reference in references:
            old = self.tags.get(reference)
            if old is not None and old != new_id:
                raise ConflictError(
                    f"tag {reference} is already set to {short_id(old)}; use --force to move it"
                )

    def _tag(self, references: Sequence[Reference], image_id: ImageId, *, force: bool) -> None:
        for reference in references:
            self.tags.set(reference, image_id, force=force)


def _names(texts: Sequence[str]) -> list[Reference]:
    return list(dict.fromkeys(parse_reference(text) for text in texts))


def _own_names(texts: Sequence[str]) -> list[Reference]:
    """Return those names of a source that are names here.

    Others are passed over; so is a bare `v2`, which in an OCI layout is a tag of nothing.
    """
    found = []
    for text in texts:
        if ":" not in text.rpartition("/")[2]:
            continue
        try:
            found.append(parse_reference(text))
        except InvalidNameError:
            continue
    return list(dict.fromkeys(found))
