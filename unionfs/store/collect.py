"""Which entries something needs, which nothing does, and which are damaged.

Invariant: an entry is garbage only if it is proven that no tag, no image, no mount and no
import reaches it; what cannot be read is a problem to report and never garbage.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

import attrs

from unionfs.errors import BusyError, ConflictError, NotFoundError, StoreError, show
from unionfs.store.ids import short_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unionfs.store.entry import Image
    from unionfs.store.graph import Graph
    from unionfs.store.ids import ImageId

__all__ = [
    "Problem",
    "check_independent",
    "check_unused",
    "is_id",
    "on_cycles",
    "problems",
    "unreferenced",
]

#: Names in `graph/` that are no entries: ours, and Docker's `:garbage:` (0.1) and checksums (0.4).
_KNOWN: Final = (".lock", ":tmp:", ":garbage:", "checksums")
#: How many ids a message names.
_SHOWN: Final = 5
_ID: Final = re.compile(r"[0-9a-f]{8,64}")


@attrs.frozen
class Problem:
    """Something wrong with `name` (an entry's id, a file of the store); `message` is one line."""

    name: str
    message: str


def is_id(name: str) -> bool:
    """Tell whether a name in `graph/` is that of an entry."""
    return _ID.fullmatch(name) is not None


def _load(graph: Graph) -> tuple[dict[ImageId, Image], list[Problem]]:
    images, damaged = {}, []
    for image_id in graph.ids():
        try:
            images[image_id] = graph.get_exact(image_id)
        except NotFoundError:
            continue
        except (StoreError, OSError) as error:
            damaged.append(Problem(image_id, str(error)))
    return images, damaged


def _names(ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > _SHOWN else ""
    return ", ".join(short_id(image_id) for image_id in ids[:_SHOWN]) + more


def check_unused(graph: Graph, image_id: ImageId) -> None:
    """Raise `BusyError` if a mount or an import holds the entry or anything that stands on it."""
    children: dict[ImageId | None, list[ImageId]] = {}
    for image in graph.all():
        children.setdefault(image.parent, []).append(image.id)
    held = graph.in_use()
    pending = [image_id]
    seen: set[ImageId] = set()
    while pending:
        current = pending.pop()
        if current in held:
            what = "is" if current == image_id else f"is below {short_id(current)}, which is"
            raise BusyError(
                f"image {short_id(image_id)} {what} in use by a mount or an import; unmount"
                " first (--force does not help)"
            )
        seen.add(current)
        pending += [child for child in children.get(current, []) if child not in seen]


def check_independent(
    graph: Graph, image_id: ImageId, children: Sequence[ImageId], tags: Sequence[str]
) -> None:
    """Raise `ConflictError` saying what removing the entry would break, if anything."""
    reasons = []
    if children:
        reasons.append(
            f"it is the base of {_names(children)} (--force leaves them without it, unusable)"
        )
    if tags:
        reasons.append(f"it is tagged {', '.join(tags)} (--force removes the tags)")
    try:
        graph.get_exact(image_id)
    except StoreError as error:
        reasons.append(f"it is damaged: {error} (--force removes what is left)")
    if reasons:
        raise ConflictError(f"image {short_id(image_id)} not removed: {'; '.join(reasons)}")


def unreferenced(graph: Graph, *, all_images: bool) -> list[Image]:
    """Return the entries that `Graph.gc` removes, children before their parents."""
    images, damaged = _load(graph)
    if damaged:
        names = _names([problem.name for problem in damaged])
        raise StoreError(
            f"{len(damaged)} damaged entries ({names}) may need layers that look unused;"
            " repair them by importing again, or remove them with --force, before collecting"
        )
    roots = set(graph.tags.referenced()) | graph.in_use()
    if not all_images:
        roots |= {
            image.id for image in images.values() if image.facts is None or image.metadata_only
        }
    needed: set[ImageId] = set()
    for root in roots:
        current: ImageId | None = root
        while current is not None and current not in needed and current in images:
            needed.add(current)
            current = images[current].parent
    garbage = {image_id: image for image_id, image in images.items() if image_id not in needed}
    return _children_first(garbage)


def _children_first(images: dict[ImageId, Image]) -> list[Image]:
    """Order entries so that a crash between two removals leaves no child without its parent."""
    depth: dict[ImageId, int] = {}
    for image_id in images:
        chain: list[ImageId] = []
        current: ImageId | None = image_id
        while current in images and current not in depth and current not in chain[-1:]:
            if len(chain) > len(images):
                break  # a cycle has no order
            chain.append(current)
            current = images[current].parent
        base = depth.get(current, 0) if current is not None else 0
        for above, member in enumerate(reversed(chain), 1):
            depth[member] = base + above
    return sorted(images.values(), key=lambda image: (-depth[image.id], image.id))


def problems(graph: Graph) -> list[Problem]:
    """Return damaged entries, bad parents, strangers, open rights and ignored tags."""
    images, found = _load(graph)
    damaged = {problem.name for problem in found}
    for image_id, image in images.items():
        if image.parent is not None and image.parent not in images:
            state = "damaged" if image.parent in damaged else "missing"
            found.append(Problem(image_id, f"image {image_id}: parent {image.parent} is {state}"))
        if not os.access(image.layer_path, os.R_OK | os.X_OK, effective_ids=True):
            where = show(image.layer_path)
            found.append(Problem(image_id, f"{where} cannot be read by you, so not be mounted"))
    found += [
        Problem(image_id, f"image {image_id}: its parents lead back to itself")
        for image_id in on_cycles(images)
    ]
    for name in sorted(os.listdir(graph.fd)):
        if not is_id(name) and name not in _KNOWN:
            found.append(Problem(show(name), f"graph/{show(name)} is no image; it is ignored"))
    mode = stat.S_IMODE(os.fstat(graph.fd).st_mode)
    if mode & 0o077:
        where = show(graph.path)
        found.append(
            Problem(
                where,
                f"{where} has mode {mode:04o}: other users reach setuid files of images;"
                " chmod 700 it",
            )
        )
    try:
        found += [Problem("repositories", line) for line in graph.tags.problems()]
        for reference, target in graph.tags.all().items():
            if target not in images:
                state = "damaged" if target in damaged else "missing"
                found.append(Problem(str(reference), f"tag {reference}: image {target} is {state}"))
    except StoreError as error:
        found.append(Problem("repositories", str(error)))
    return found


def on_cycles(images: dict[ImageId, Image]) -> list[ImageId]:
    """Return the ids that are members of a cycle of parents."""
    state: dict[ImageId, int] = {}  # number of the walk that met the id
    members: list[ImageId] = []
    for walk, image_id in enumerate(images):
        path: list[ImageId] = []
        current: ImageId | None = image_id
        while current is not None and current in images and current not in state:
            state[current] = walk
            path.append(current)
            current = images[current].parent
        if current is not None and state.get(current) == walk and current in path:
            members += path[path.index(current) :]
    return sorted(members)
