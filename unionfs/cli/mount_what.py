"""What `unionfs mount` is to show: an image, an older state of it, or what a live mount hides.

Invariant: a view of a live mount is read-only, and looks again at every access where the
branch of that mount is part of it, because its programs go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from unionfs.cli.group import state
from unionfs.cli.upto import cut, wanted_layer
from unionfs.errors import UnsupportedError, UsageError, show

if TYPE_CHECKING:
    from unionfs.insight.where import Where
    from unionfs.mounts import MountOptions, MountRecord, MountRequest
    from unionfs.store.graph import Graph

__all__ = ["complete"]


def complete(request: MountRequest, word: str | None) -> MountRequest:
    """Return the request with its layers; `word` names an image or a mountpoint, if given."""
    if word is None:
        return _of_layers(request)
    from unionfs.cli.where import mounted_on  # noqa: PLC0415  # loads the words of other verbs

    mount = mounted_on(word)
    if mount is None or mount.record is None:
        return _of_image(request, word)
    if wanted_layer() is None and not request.options.show_whiteouts:
        raise UsageError(
            f"{show(mount.target)} is a mount; a view of it needs --show-whiteouts or --upto LAYER"
        )
    return _of_mount(request, mount.record)


def _of_layers(request: MountRequest) -> MountRequest:
    if wanted_layer() is None:
        return request
    from unionfs.insight.where import of_directories  # noqa: PLC0415  # rarely needed

    return attrs.evolve(request, layers=_paths(cut(of_directories(request.layers))))


def _of_image(request: MountRequest, name: str) -> MountRequest:
    """Complete a request with the layers of an image, or of what it was."""
    with state().graph() as graph:
        image = graph.get_exact(graph.tags.resolve(graph, name))
        layers = tuple(graph.layer_dirs(image.id))
        if wanted_layer() is not None:
            from unionfs.insight.where import of_image  # noqa: PLC0415  # rarely needed

            where = of_image(graph, name)
            older = cut(where)
            if older.branches != where.branches:
                layers = _paths(older)
                image = graph.get_exact(_older_image(graph, older))
        return attrs.evolve(
            request,
            layers=layers,
            image_id=image.id,
            image_name=graph.tags.image_name(image.id),
            hold=(image.path,),
            cached=True,
        )


def _older_image(graph: Graph, older: Where) -> str:
    """Return the image that ends with the topmost layer: a tagged one, else the layer itself.

    A commit in the mount builds on it.
    """
    top = older.branches[0]
    word = wanted_layer()
    for name in top.names:
        if name in (word, f"{word}:latest"):
            return graph.tags.resolve(graph, name)
    return graph.tags.resolve(graph, top.names[0]) if top.names else top.layer_id


def _of_mount(request: MountRequest, record: MountRecord) -> MountRequest:
    """Complete a request with the branches of a live mount, or its layers from one down."""
    if request.rw is not None or request.ephemeral:
        raise UsageError(
            f"{show(record.target)} is a mount with its own branch; a view of it is read-only"
        )
    from unionfs.branch import Dialect  # noqa: PLC0415  # rarely needed
    from unionfs.insight.where import of_mount  # noqa: PLC0415  # rarely needed

    where = cut(of_mount(record))
    layers = where.without_rw()
    if where.rw is not None and where.rw.dialect is not Dialect.AUFS:
        raise UnsupportedError(
            f"overlayfs, which makes {show(record.target)}, has no files for the whiteouts of its"
            " branch; `unionfs whiteouts` lists them, and"
            f" --upto {len(layers.branches)} shows the layers below"
        )
    entry = layers.branches[0].entry
    whole = _paths(layers) == record.layers
    with_rw = where.rw is not None
    return attrs.evolve(
        request,
        layers=_paths(layers),
        rw=record.rw if with_rw else None,
        options=_looking_again(request.options) if with_rw else request.options,
        image_id=record.image_id if whole or entry is None else entry.id,
        image_name=record.image_name if whole or entry is None else entry.id[:12],
        hold=() if entry is None else (entry.path,),
    )


def _looking_again(options: MountOptions) -> MountOptions:
    return attrs.evolve(
        options,
        read_only=True,
        coherent=True,
        entry_timeout=0.0,
        attr_timeout=0.0,
        negative_timeout=0.0,
    )


def _paths(where: Where) -> tuple[bytes, ...]:
    return tuple(named.path for named in where.branches)
