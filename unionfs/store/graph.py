"""The image graph: the directory `graph/` of a store, one entry per image or layer.

The layout is that of Docker 0.1 to 0.6 and such a store opens as it is. Nothing is cached:
every answer is read from the directory, so what other processes do is seen at once.

Invariant: an entry's parent exists for as long as the entry does (unless somebody forced its
removal), and an entry that a mount, an import or a tag needs is not removed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import attrs

import unionfs
from unionfs.closing import Closing
from unionfs.errors import (
    InvalidNameError,
    MissingParentError,
    NotFoundError,
    ParentCycleError,
    StoreError,
    TooDeepError,
    UnsupportedError,
    show,
)
from unionfs.store import collect
from unionfs.store._fs import directory, open_dir, remove_tree
from unionfs.store.entry import Image, load_image
from unionfs.store.ids import IdIndex, ImageId, generate_id, short_id, validate_stored_id
from unionfs.store.image import ImageRecord, now
from unionfs.store.locks import hold_image, store_lock, try_exclusive
from unionfs.store.mounted import mounted_entries
from unionfs.store.staging import TMP_NAME, Staging, discard, sweep
from unionfs.store.tags import TagStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.store.collect import Problem
    from unionfs.store.facts import Facts

__all__ = ["MAX_DEPTH", "Graph", "Image", "Removal", "Staging"]

#: Longest chain of parents that is followed.
MAX_DEPTH: Final = 4096
_BATCH: Final = 64  # entries collected per turn, each with a descriptor
#: What else a store's root may hold while its `graph/` is not yet made.
_OURS: Final = (b"repositories", b"ephemeral", b"lost+found")


@attrs.frozen
class Removal:
    """What `Graph.delete` did: the entry, tags removed with it, entries left without parent."""

    id: ImageId
    tags: tuple[str, ...] = ()
    orphans: tuple[ImageId, ...] = ()


class Graph(Closing):
    """An open store. `root` is its absolute path, `path` that of `graph/`, `fd` open on it.

    `create` makes a missing store; without it `NotFoundError`. A directory that holds other
    things is refused (`StoreError`). A store the caller may not write opens for reading:
    `writable` is False and what would change it raises `UnsupportedError`.
    """

    def __init__(self, root: bytes | str, create: bool = True) -> None:  # noqa: FBT001, FBT002  # given interface
        self.root = os.path.abspath(os.fsencode(root))
        self.path = self.root + b"/graph"
        self.fd = self._open(create=create)
        self.writable = os.access(b".", os.W_OK | os.X_OK, dir_fd=self.fd, effective_ids=True)
        self.tags = TagStore(self.root)
        try:
            if self.writable:
                sweep(self.fd)
        except BaseException:
            self.close()
            raise

    def _open(self, *, create: bool) -> int:
        try:
            return open_dir(self.path)
        except FileNotFoundError:
            pass
        except NotADirectoryError as error:
            raise StoreError(
                f"{show(self.root)} is not an image store: {show(self.path)} is not a directory"
            ) from error
        except PermissionError as error:
            raise UnsupportedError(
                f"the image store {show(self.root)} belongs to another user; choose one with"
                " --root or $UNIONFS_ROOT"
            ) from error
        try:
            present = os.listdir(self.root)
        except FileNotFoundError:
            present = []
        if any(name not in _OURS and not name.startswith(b".") for name in present):
            raise StoreError(
                f"{show(self.root)} is not an image store: it has no `graph` but holds other files"
            )
        if not create:
            raise NotFoundError(
                f"there is no image store at {show(self.root)}; import an image, or choose another"
                " store with --root"
            )
        os.makedirs(self.root, 0o700, exist_ok=True)
        os.makedirs(self.path, 0o700, exist_ok=True)
        return open_dir(self.path)

    def close(self) -> None:
        """Close the store; images already returned stay valid values."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _need_writable(self) -> None:
        if not self.writable:
            raise UnsupportedError(
                f"the image store {show(self.root)} cannot be written by you; choose another with"
                " --root or $UNIONFS_ROOT"
            )

    # Looking things up

    def ids(self) -> list[ImageId]:
        """Return the sorted ids of all entries, also of damaged ones."""
        return list(self.index())

    def index(self) -> IdIndex:
        """Return an index of the ids that are in the graph now."""
        return IdIndex(name for name in os.listdir(self.fd) if collect.is_id(name))

    def exists(self, image_id: str) -> bool:
        """Tell whether the entry of exactly this id is there and sound."""
        try:
            self.get_exact(image_id)
        except (InvalidNameError, NotFoundError, StoreError):
            return False
        return True

    def get_exact(self, image_id: str) -> Image:
        """Return the entry of exactly this id; `NotFoundError`, or `StoreError` if damaged."""
        return load_image(self.fd, self.path, validate_stored_id(image_id))

    def get(self, name_or_prefix: str) -> Image:
        """Return the entry whose id is, or alone begins with, `name_or_prefix`.

        Errors as of `IdIndex.get` and `get_exact`. Tags are looked up by `TagStore.resolve`.
        """
        return self.get_exact(self.index().get(name_or_prefix.removeprefix("sha256:")))

    def all(self) -> list[Image]:
        """Return all sound entries in the order of their ids; `problems()` tells of the others."""
        images = []
        for image_id in self.ids():
            try:
                images.append(self.get_exact(image_id))
            except (NotFoundError, StoreError):
                continue
        return images

    def map(self) -> dict[ImageId, Image]:
        """Return all sound entries by id."""
        return {image.id: image for image in self.all()}

    def by_parent(self) -> dict[ImageId, list[Image]]:
        """Return the children of each entry; those with no or a missing parent are absent."""
        images = self.map()
        children: dict[ImageId, list[Image]] = {}
        for image in images.values():
            if image.parent is not None and image.parent in images:
                children.setdefault(image.parent, []).append(image)
        return children

    def heads(self) -> dict[ImageId, Image]:
        """Return the entries that are nobody's parent."""
        images = self.map()
        parents = {image.parent for image in images.values()}
        return {image_id: image for image_id, image in images.items() if image_id not in parents}

    def history(self, image_id: str, max_depth: int = MAX_DEPTH) -> list[Image]:
        """Return the entry and its ancestors, top-most first.

        Parents are looked up by exact id. Raises `MissingParentError`, `ParentCycleError`,
        `TooDeepError` (more than `max_depth` entries), `StoreError` for a damaged one.
        """
        images: list[Image] = []
        seen: set[str] = set()
        current: str | None = image_id
        while current is not None:
            if current in seen:
                raise ParentCycleError(
                    f"image {image_id} has no base: the parents of {short_id(current)} lead back"
                    " to itself"
                )
            if len(images) >= max_depth:
                raise TooDeepError(f"image {image_id} stands on more than {max_depth} layers")
            try:
                image = self.get_exact(current)
            except NotFoundError as error:
                if not images:
                    raise
                raise MissingParentError(
                    f"image {images[-1].id} needs the parent {current}, which is not in the store;"
                    " import the image again"
                ) from error
            images.append(image)
            seen.add(current)
            current = image.parent
        return images

    def layer_dirs(self, image_id: str, max_depth: int = MAX_DEPTH) -> list[bytes]:
        """Return the layer directories of an image, top-most first, errors as of `history`.

        Entries without a file system of their own are left out; if the image has no other
        (an image from scratch), its own empty layer is returned, so the list is never empty.
        """
        images = self.history(image_id, max_depth)
        layers = [image.layer_path for image in images if not image.metadata_only]
        return layers or [images[0].layer_path]

    # Holding and changing

    def hold(self, image_id: str) -> int:
        """Return a descriptor that, while open, keeps the entry from being removed.

        Ancestors are kept with it. The descriptor is close-on-exec and survives fork(2).
        Raises what `get_exact` does (a damaged entry is not held, so that it can be replaced),
        or `BusyError` if the entry is being removed right now.
        """
        with store_lock(self.fd, exclusive=False):
            image = self.get_exact(image_id)
            with directory(image.id.encode(), self.fd) as fd:
                return hold_image(fd)

    def in_use(self) -> frozenset[ImageId]:
        """Return the entries that somebody holds (mounts, imports).

        Of a mount that is held by its process ancestors are not included; one whose process was
        killed shows as the layers that it mounts.
        """
        held = set(mounted_entries(self.path))
        with store_lock(self.fd, exclusive=self.writable):
            for image_id in self.ids():
                try:
                    with directory(image_id.encode(), self.fd) as fd:
                        if not try_exclusive(fd):
                            held.add(image_id)
                except (FileNotFoundError, NotADirectoryError, PermissionError):
                    continue
        return frozenset(held)

    def stage(self, prefix: str = "stage") -> Staging:
        """Return a staging area (see `Staging`); `prefix` begins its name, for people."""
        self._need_writable()
        return Staging(self.fd, self.path, prefix)

    def register(
        self,
        record: ImageRecord,
        fill: Callable[[int], object] | None = None,
        *,
        facts: Facts | None = None,
        layer_mode: int = 0o755,
        exists_ok: bool = False,
    ) -> Image:
        """Store an image whose layer `fill(layer_fd)` makes (None: empty); return the entry.

        Counterpart of the original's Register. An error in `fill` leaves nothing behind.
        """
        with self.stage("register") as staging:
            layer_fd = staging.make_layer(0o700)
            try:
                if fill is not None:
                    fill(layer_fd)
                os.fchmod(layer_fd, layer_mode)  # last: it may deny writing
            finally:
                os.close(layer_fd)
            if facts is not None:
                staging.put_facts(facts)
            staging.put_record(record)
            staging.commit(record.id, exists_ok=exists_ok)
            return self.get_exact(record.id)

    def create(
        self,
        fill: Callable[[int], object] | None = None,
        *,
        parent: ImageId | None = None,
        container: str = "",
        container_config: dict[str, Any] | None = None,
        comment: str = "",
        author: str = "",
    ) -> Image:
        """Store a new image under a random id, made now; counterpart of the original's Create."""
        record = ImageRecord(
            id=generate_id(),
            parent=parent,
            comment=comment,
            created=now(),
            container=container,
            container_config=container_config or {},
            docker_version=unionfs.__version__,
            author=author,
        )
        return self.register(record, fill)

    def delete(self, name: str, *, force: bool = False) -> Removal:
        """Remove the entry whose id is, or alone begins with, `name`.

        Refused with `ConflictError` while children or tags depend on it or it is damaged; with
        `force` it goes, its tags with it, and its children are left without their base. While
        a mount or an import uses it or a descendant: `BusyError`, whatever `force` says.
        """
        self._need_writable()
        with store_lock(self.fd, exclusive=True):
            image_id = self.index().get(name.removeprefix("sha256:"))
            collect.check_unused(self, image_id)
            children = [child.id for child in self.all() if child.parent == image_id]
            tags = self.tags.by_id().get(image_id, [])
            if not force:
                collect.check_independent(self, image_id, children, tags)
            if force:
                tags = self.tags.remove_id(image_id)
            trash, fd = discard(self.fd, image_id.encode())
        self._finish_removal([(trash, fd)])
        return Removal(image_id, tuple(tags), tuple(children))

    def _finish_removal(self, removed: list[tuple[bytes, int]]) -> None:
        """Empty what `discard` moved away; the graph is already consistent without it."""
        if not removed:
            return
        try:
            os.fsync(self.fd)
            with directory(TMP_NAME, self.fd) as tmp_fd:
                for trash, _ in removed:
                    remove_tree(trash, tmp_fd)
        finally:
            for _, fd in removed:
                os.close(fd)

    def gc(self, *, dry_run: bool = False, all_images: bool = False) -> list[Image]:
        """Remove (or, with `dry_run`, only find) entries that nothing needs; top-most first.

        Needed are tagged and held entries and everything below them. Untagged images are kept
        too unless `all_images`; so by default only layers whose image is gone are removed.
        Entries of early Docker (without facts) are all images. Damaged entries
        are never removed, and while there are any, `StoreError`: what they stand on is unknown.
        """
        if not dry_run:
            self._need_writable()
        garbage: list[Image] = []
        while True:
            removed: list[tuple[bytes, int]] = []
            try:
                with store_lock(self.fd, exclusive=self.writable):
                    found = collect.unreferenced(self, all_images=all_images)
                    if dry_run:
                        return found
                    for image in found[:_BATCH]:
                        removed.append(discard(self.fd, image.id.encode()))  # kept if one fails
                        garbage.append(image)
            finally:
                self._finish_removal(removed)
            if len(found) <= _BATCH:
                sweep(self.fd)
                return garbage

    def problems(self) -> list[Problem]:
        """Return everything that is wrong in the store and that listings pass over."""
        return collect.problems(self)
