"""Tags: the file `repositories` of early Docker, `{"Repositories":{repo:{tag:id}}}`.

Invariant: the file is always a complete old or a complete new version (written beside, synced,
renamed, under the store's exclusive lock), and what we do not understand in it is kept. Names
and ids from the file are used only after they pass the grammar.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from unionfs.errors import ConflictError, InvalidNameError, NotFoundError, StoreError, show
from unionfs.store._fs import directory, open_dir, read_file, write_file
from unionfs.store._json import dump_compact, load_object
from unionfs.store.ids import ImageId, excerpt, short_id, validate_stored_id
from unionfs.store.locks import store_lock
from unionfs.store.references import Reference, parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.store.graph import Graph

__all__ = ["FILE_NAME", "MAX_FILE", "TagStore"]

FILE_NAME: Final = b"repositories"
#: Largest `repositories` file that is read, in bytes.
MAX_FILE: Final = 16 << 20
_TEMPORARY: Final = b".repositories.tmp"
_KEY: Final = "Repositories"


@attrs.frozen
class _Row:
    """One line of the file; `reference` or `image_id` is None where it breaks the grammar."""

    repository: str
    tag: str
    reference: Reference | None
    image_id: ImageId | None
    problem: str


def _row(repository: str, tag: str, value: object) -> _Row:
    reference = image_id = None
    problem = ""
    try:
        image_id = validate_stored_id(value if isinstance(value, str) else "")
        reference = Reference(repository, tag)
    except InvalidNameError as error:
        problem = f"tag `{excerpt(f'{repository}:{tag}')}` is ignored: {error}"
    return _Row(repository, tag, reference, image_id, problem)


def _repositories(document: dict[str, Any]) -> dict[str, Any]:
    """Return the table inside the document, putting an empty one there when it is missing."""
    for key, value in document.items():
        if key.casefold() == _KEY.casefold() and value is not None:
            if not isinstance(value, dict):
                raise StoreError("`repositories` of the store is damaged: no table of names")
            return value
    table: dict[str, Any] = {}
    document[_KEY] = table
    return table


class TagStore:
    """The tags of the store at `root`; holds no state, so other processes' changes are seen."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.path = root + b"/" + FILE_NAME

    @contextlib.contextmanager
    def _locked(self, *, exclusive: bool) -> Iterator[int]:
        """Hold the store's lock; yields a descriptor of the root directory."""
        root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with directory(b"graph", root_fd) as graph_fd, store_lock(graph_fd, exclusive):
                yield root_fd
        finally:
            os.close(root_fd)

    def _read(self, root_fd: int) -> dict[str, Any]:
        try:
            raw = read_file(FILE_NAME, root_fd, MAX_FILE, f"{show(self.path)}")
        except FileNotFoundError:
            return {}
        # Early Docker truncated and wrote in place: an empty file is one of its crashes.
        return load_object(raw, show(self.path), MAX_FILE) if raw else {}

    def _write(self, root_fd: int, document: dict[str, Any]) -> None:
        table = _repositories(document)
        ordered = {
            repo: dict(sorted(tags.items())) if isinstance(tags, dict) else tags
            for repo, tags in sorted(table.items())
        }
        key = next(key for key, value in document.items() if value is table)
        data = dump_compact({**document, key: ordered})
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_TEMPORARY, dir_fd=root_fd)  # of a crash; we have the lock
        try:
            write_file(_TEMPORARY, data, root_fd, sync=True)
            os.rename(_TEMPORARY, FILE_NAME, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(_TEMPORARY, dir_fd=root_fd)
            raise
        os.fsync(root_fd)

    def _rows(self) -> list[_Row]:
        with self._locked(exclusive=False) as root_fd:
            table = _repositories(self._read(root_fd))
        rows = []
        for repository, tags in sorted(table.items()):
            if isinstance(tags, dict):
                rows += [_row(repository, tag, value) for tag, value in sorted(tags.items())]
            elif tags is not None:
                problem = f"repository `{excerpt(repository)}` is ignored: no table of tags"
                rows.append(_Row(repository, "", None, None, problem))
        return rows

    def all(self) -> dict[Reference, ImageId]:
        """Return every valid tag and its target, sorted."""
        return {
            row.reference: row.image_id
            for row in self._rows()
            if row.reference is not None and row.image_id is not None
        }

    def problems(self) -> list[str]:
        """Return one line for each entry of the file that is ignored."""
        return [row.problem for row in self._rows() if row.problem]

    def referenced(self) -> frozenset[ImageId]:
        """Return all ids that anything in the file points to, even under an invalid name."""
        return frozenset(row.image_id for row in self._rows() if row.image_id is not None)

    def get(self, reference: Reference) -> ImageId | None:
        """Return the target of a tag, or None."""
        return self.all().get(reference)

    def by_id(self) -> dict[ImageId, list[str]]:
        """Return the sorted `repository:tag` names of every tagged id."""
        result: dict[ImageId, list[str]] = {}
        for reference, image_id in self.all().items():
            result.setdefault(image_id, []).append(str(reference))
        return result

    def image_name(self, image_id: ImageId) -> str:
        """Return the first name of an image, or its short id when it has none."""
        names = self.by_id().get(image_id)
        return names[0] if names else short_id(image_id)

    def set(
        self, reference: Reference, image_id: ImageId, *, force: bool = False
    ) -> ImageId | None:
        """Make `reference` name `image_id`; return what it named before.

        Raises `ConflictError` if it names another image and `force` is not given, and
        `NotFoundError` if the graph has no such image.
        """
        validate_stored_id(image_id)
        with self._locked(exclusive=True) as root_fd:
            try:
                os.close(open_dir(b"graph/" + image_id.encode(), root_fd))
            except FileNotFoundError as error:
                raise NotFoundError(f"no image with the id {image_id}") from error
            document = self._read(root_fd)
            table = _repositories(document)
            tags = table.get(reference.repository)
            if not isinstance(tags, dict):
                tags = table[reference.repository] = {}
            current = tags.get(reference.tag)
            if current == image_id:
                return image_id
            old = _row(reference.repository, reference.tag, current).image_id
            if old is not None and not force:
                raise ConflictError(
                    f"tag {reference} is already set to {short_id(old)}; use --force to move it"
                    f" to {short_id(image_id)}"
                )
            tags[reference.tag] = image_id
            self._write(root_fd, document)
            return old

    def remove(self, reference: Reference) -> ImageId:
        """Remove a tag and return the id it named; `NotFoundError` if there is no such tag."""
        with self._locked(exclusive=True) as root_fd:
            document = self._read(root_fd)
            table = _repositories(document)
            tags = table.get(reference.repository)
            image_id = tags.get(reference.tag) if isinstance(tags, dict) else None
            if not isinstance(tags, dict) or not isinstance(image_id, str):
                raise NotFoundError(f"no tag {reference}")
            del tags[reference.tag]
            if not tags:
                del table[reference.repository]
            self._write(root_fd, document)
            return ImageId(image_id)

    def remove_id(self, image_id: ImageId) -> list[str]:
        """Remove all names of an image, also invalid ones; return them."""
        with self._locked(exclusive=True) as root_fd:
            document = self._read(root_fd)
            table = _repositories(document)
            removed = []
            for repository, tags in list(table.items()):
                if not isinstance(tags, dict):
                    continue
                for tag in [tag for tag, value in tags.items() if value == image_id]:
                    removed.append(f"{repository}:{tag}")
                    del tags[tag]
                    if not tags:
                        del table[repository]
            if removed:
                self._write(root_fd, document)
            return sorted(removed)

    def resolve(self, graph: Graph, name: str) -> ImageId:
        """Return the image that `name` means: full id, then `repo:tag`, then beginning of an id.

        A tag therefore wins over an id that merely begins with it: nobody can squat a name by
        an id. `sha256:` before an id is allowed. Raises `InvalidNameError`, `NotFoundError`,
        `AmbiguousError`; `StoreError` if the tag's target is missing or damaged.
        """
        plain = name.removeprefix("sha256:")
        if plain in graph.index():
            return ImageId(plain)
        invalid: InvalidNameError | None = None
        try:
            target = self.get(parse_reference(name))
        except InvalidNameError as error:
            target, invalid = None, error
        if target is not None:
            try:
                return graph.get_exact(target).id
            except NotFoundError as error:
                raise StoreError(
                    f"tag {excerpt(name)} names image {short_id(target)}, which is not in the"
                    " store; remove the tag or import the image again"
                ) from error
        try:
            return graph.index().get(plain)
        except InvalidNameError as error:
            if invalid is not None:
                raise invalid from error
        except NotFoundError:
            pass
        raise NotFoundError(f"no image named `{excerpt(name)}`; `unionfs images` lists them")
