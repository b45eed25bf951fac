"""What a command looks at: an image, directories, a rw branch or a live mount, as named branches.

Invariant: whatever the source, the result is the same list of branches, top first, numbered
from the base (the base is layer 1; a rw branch has the number above the topmost layer), so
all commands speak of layers alike.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from unionfs.branch import Branch, Dialect, Stack, place_of
from unionfs.errors import NotFoundError, UnionfsError, show
from unionfs.store import config as configs

if TYPE_CHECKING:
    from unionfs.mounts import MountRecord
    from unionfs.store.entry import Image
    from unionfs.store.graph import Graph

__all__ = ["NamedBranch", "Where", "of_directories", "of_image", "of_mount", "with_rw"]

_COMMAND_SHOWN: Final = 60


@attrs.frozen
class NamedBranch:
    """A branch and what people know it by.

    `number` counts from the base (1). `names` are the tags whose image ends with this layer;
    `created` an RFC 3339 time, `command` what made the layer; empty where not known. `notes` are
    what ingest changed. `entry` is the layer's entry in the store, if it has one.
    """

    number: int
    path: bytes
    is_rw: bool = False
    dialect: Dialect = Dialect.AUFS
    names: tuple[str, ...] = ()
    layer_id: str = ""
    diff_id: str = ""
    created: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()
    entry: Image | None = attrs.field(default=None, repr=False, eq=False)

    @property
    def title(self) -> str:
        """The short name: `layer 3`, `rw branch`."""
        return "rw branch" if self.is_rw else f"layer {self.number}"

    @property
    def words(self) -> str:
        """The title with image, time and command, for a sentence."""
        # Times and commands are what an image says of itself: no byte of them may act.
        command = show(self.command)
        if len(command) > _COMMAND_SHOWN:
            command = command[: _COMMAND_SHOWN - 3] + "..."
        details = [
            ", ".join(self.names),
            f"created {show(self.created)}" if self.created else "",
            f"by `{command}`" if command else "",
            "" if self.layer_id else show(self.path),
        ]
        return f"{self.title} ({', '.join(part for part in details if part)})"

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "layer": None if self.is_rw else self.number,
            "rw": self.is_rw,
            "path": self.path,
            "dialect": self.dialect.value,
            "names": list(self.names),
            "id": self.layer_id or None,
            "diff_id": self.diff_id or None,
            "created": self.created or None,
            "command": self.command or None,
        }

    def open(self) -> Branch:
        """Open the branch.

        In what is not of the store and has no override marks, a plain user's own files count as
        those of the image's root.
        """
        branch = Branch.open(self.path, self.dialect)
        if self.entry is None and not branch.marked and os.geteuid() != 0:
            branch.owner = (os.geteuid(), os.getegid())
        return branch


@attrs.frozen
class Where:
    """Named branches, top first; `title` is what the person called it, `mount` where it is."""

    title: str
    branches: tuple[NamedBranch, ...]
    mount: bytes | None = None

    @property
    def rw(self) -> NamedBranch | None:
        """The rw branch, if there is one."""
        return self.branches[0] if self.branches[0].is_rw else None

    def by_number(self, number: int) -> NamedBranch:
        """Return the branch of a number."""
        return self.branches[len(self.branches) - number]

    def without_rw(self) -> Where:
        """Return the layers alone."""
        return attrs.evolve(self, branches=self.branches[self.rw is not None :])

    @contextlib.contextmanager
    def open(self) -> Iterator[list[Branch]]:
        """Open all branches, top first, for the block."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(named.open()) for named in self.branches]

    @contextlib.contextmanager
    def stack(self) -> Iterator[Stack]:
        """Open the merged view for the block."""
        with self.open() as branches:
            yield Stack(branches)


def of_image(graph: Graph, name: str) -> Where:
    """Return the layers of the image `name`; errors as of `TagStore.resolve`, `Graph.history`."""
    return Where(name, _image_branches(graph, graph.tags.resolve(graph, name)))


def _image_branches(graph: Graph, image_id: str) -> tuple[NamedBranch, ...]:
    history = graph.history(image_id)
    layers = [image for image in history if not image.metadata_only] or history[:1]
    diff_ids = [(image.facts and image.facts.diff_id) or "" for image in layers]
    steps = configs.history_of_layers(configs.config_of(graph, history[0].id, diff_ids[::-1]))
    steps = steps[::-1] if len(steps) == len(layers) else [{}] * len(layers)
    names = _layer_names(graph)
    found = []
    for position, (image, step) in enumerate(zip(layers, steps, strict=True)):
        facts = image.facts
        found.append(
            NamedBranch(
                len(layers) - position,
                image.layer_path,
                names=tuple(names.get(image.id, ())),
                layer_id=image.id,
                diff_id=(facts and facts.diff_id) or "",
                created=_text(step, "created"),
                command=_text(step, "created_by"),
                notes=facts.warnings if facts else (),
                entry=image,
            )
        )
    return tuple(found)


def _text(step: dict[str, Any], key: str) -> str:
    value = step.get(key)
    return value if isinstance(value, str) else ""


def _layer_names(graph: Graph) -> dict[str, list[str]]:
    """Return the tags of every layer that is the topmost one of a tagged image."""
    found: dict[str, list[str]] = {}
    for image_id, references in graph.tags.by_id().items():
        try:
            image = graph.get_exact(image_id)
        except UnionfsError:
            continue
        layer = image.parent if image.metadata_only and image.parent else image.id
        found.setdefault(layer, []).extend(map(str, references))
    return {layer: sorted(names) for layer, names in found.items()}


def _plain(paths: Sequence[bytes], dialect: Dialect) -> tuple[NamedBranch, ...]:
    for path in paths:
        if not os.path.isdir(path):
            raise NotFoundError(f"layer {show(path)} is not a directory")
    return tuple(
        NamedBranch(len(paths) - position, os.path.abspath(path), dialect=dialect)
        for position, path in enumerate(paths)
    )


def _with_rw(layers: tuple[NamedBranch, ...], rw: bytes) -> tuple[NamedBranch, ...]:
    """Put the rw branch on top, read where and in which form it is at the moment."""
    if not os.path.isdir(rw):
        raise NotFoundError(f"branch {show(rw)} is not a directory")
    place = place_of(os.path.abspath(rw))
    return (
        NamedBranch(len(layers) + 1, place.path, is_rw=True, dialect=place.dialect),
        *layers,
    )


def of_directories(
    layers: Sequence[bytes], rw: bytes | None = None, dialect: Dialect = Dialect.AUFS
) -> Where:
    """Return plain directories, top first, of one whiteout dialect, under an optional rw branch."""
    found = _plain(layers, dialect)
    return Where("directories", found if rw is None else _with_rw(found, rw))


def with_rw(where: Where, rw: bytes) -> Where:
    """Return `where` with a rw branch on top."""
    return attrs.evolve(where, branches=_with_rw(where.branches, rw))


def of_mount(record: MountRecord) -> Where:
    """Return the branches of a live mount, labelled by its image where the store still has it."""
    layers = _plain(record.layers, Dialect.AUFS)
    labelled = _mounted_image(record)
    if labelled is not None:
        layers = labelled
    found = layers if record.rw is None else _with_rw(layers, record.rw)
    return Where(show(record.target), found, record.target)


def _mounted_image(record: MountRecord) -> tuple[NamedBranch, ...] | None:
    from unionfs.store.graph import Graph  # noqa: PLC0415  # plain mounts need no store

    if record.image_id is None:
        return None
    root = os.path.dirname(os.path.dirname(os.path.dirname(record.layers[0])))
    try:
        with Graph(root, create=False) as graph:
            found = _image_branches(graph, record.image_id)
    except (UnionfsError, OSError):
        return None
    same = tuple(named.path for named in found) == record.layers
    return found if same else None
