"""Which rw branch a command means: that of a mount, or one that is given with its layers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import click

from unionfs.cli.group import state
from unionfs.errors import NotFoundError, show

if TYPE_CHECKING:
    from unionfs.mounts import LiveMount

__all__ = ["ChosenBranch", "branch_of", "mount_at"]


class ChosenBranch(NamedTuple):
    """`layers` top first; `rw` None for a read-only mount; `image` is an id where known.

    `complete` is False when names of changed files are missing in the branch (`mounts.link_names`).
    """

    layers: tuple[bytes, ...]
    rw: bytes | None
    image: str | None
    complete: bool = True


def mount_at(mountpoint: str) -> LiveMount:
    """Return the union that is mounted on a directory, or that it lies in."""
    from unionfs.mounts import find  # noqa: PLC0415  # help stays fast

    path = os.path.abspath(os.fsencode(mountpoint))
    mount = find(path)
    if mount is None:
        raise NotFoundError(f"no union is mounted on {show(path)}; `unionfs mounts` lists them")
    if mount.record is None:
        raise NotFoundError(
            f"{show(path)} is a union, but its record is gone; name its image and branch with"
            " --image and --rw"
        )
    return mount


def branch_of(
    mountpoint: str | None, image: str | None, layers: tuple[str, ...], rw: str | None
) -> ChosenBranch:
    """Return the branch that the arguments of a command mean.

    Either a mountpoint alone, or `rw` with an image or with layers (top-most first). A kernel
    union that is mounted is made to write down everything that belongs to the branch.
    """
    chosen = _chosen(mountpoint, image, layers, rw)
    if chosen.rw is None:
        return chosen
    from unionfs.mounts import link_names  # noqa: PLC0415  # help stays fast

    return chosen._replace(complete=link_names(chosen.rw))


def _chosen(
    mountpoint: str | None, image: str | None, layers: tuple[str, ...], rw: str | None
) -> ChosenBranch:
    context = click.get_current_context()
    if mountpoint is not None:
        if rw is not None or image is not None or layers:
            raise click.UsageError("give a MOUNT, or --rw with what is below it", context)
        record = mount_at(mountpoint).record
        assert record is not None  # noqa: S101  # mount_at() has seen to it
        return ChosenBranch(record.layers, record.rw, record.image_id)
    if rw is None or (image is None) == (not layers):
        raise click.UsageError("give a MOUNT, or --rw DIR with --image or --layer", context)
    branch = os.path.abspath(os.fsencode(rw))
    if not os.path.isdir(branch):
        raise NotFoundError(f"branch {show(branch)} is not a directory")
    if image is None:
        below = tuple(os.path.abspath(os.fsencode(layer)) for layer in layers)
        return ChosenBranch(below, branch, None)
    with state().graph() as graph:
        image_id = graph.tags.resolve(graph, image)
        return ChosenBranch(tuple(graph.layer_dirs(image_id)), branch, image_id)
