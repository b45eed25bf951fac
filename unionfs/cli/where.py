"""The words and options by which the debugging verbs are told what to look at.

WHERE is the mountpoint of a union, a directory, or the name of an image; `--layer` and `--rw` give
directories. A mountpoint wins over an image of the same spelling only if it is one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from unionfs.cli.arguments import DIRECTORY, IMAGE
from unionfs.cli.group import state
from unionfs.cli.upto import cut, wanted_layer
from unionfs.errors import InvalidNameError, NotFoundError, UsageError, show

if TYPE_CHECKING:
    import contextlib

    from unionfs.archive.image import SourceImage
    from unionfs.insight.where import Where
    from unionfs.mounts import LiveMount

__all__ = [
    "WHERE",
    "Options",
    "archived_image",
    "inside_mount",
    "locate",
    "mounted_on",
    "split_words",
    "where_options",
]

_F = TypeVar("_F", bound="Callable[..., Any] | click.Command")
_DIALECTS: Final = ("aufs", "overlay", "overlay-userxattr")


class _Where(click.ParamType[str]):
    """An image, a directory or a mountpoint."""

    name = "where"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found = DIRECTORY.shell_complete(ctx, param, incomplete)
        return IMAGE.shell_complete(ctx, param, incomplete) + found


WHERE: Final = _Where()


class Options:
    """What `--layer`, `--rw` and `--dialect` say."""

    def __init__(self, layers: tuple[str, ...], rw: str | None, dialect: str) -> None:
        self.layers = tuple(os.path.abspath(os.fsencode(layer)) for layer in layers)
        self.rw = None if rw is None else os.path.abspath(os.fsencode(rw))
        self.dialect = dialect


def where_options(function: _F) -> _F:
    """Add `--layer`, `--rw` and `--dialect`; they arrive as `layers`, `rw`, `dialect`."""
    for option in (
        click.option(
            "--dialect",
            type=click.Choice(_DIALECTS),
            default="aufs",
            show_default=True,
            help="How the directories of --layer mark deletions.",
        ),
        click.option(
            "--rw", type=DIRECTORY, help="A rw branch on top of the image or directories."
        ),
        click.option(
            "--layer",
            "layers",
            multiple=True,
            type=DIRECTORY,
            help="A directory instead of an image; again for more, the top-most first.",
        ),
    ):
        function = option(function)
    return function


def split_words(
    words: tuple[str, ...], options: Options, rest: int, form: str
) -> tuple[str | None, tuple[str, ...]]:
    """Split the words of a command into WHERE (None with `--layer`) and `rest` others."""
    expected = rest if options.layers else rest + 1
    if len(words) != expected:
        shown = f"--layer DIR {form}" if options.layers else f"WHERE {form}"
        raise click.UsageError(f"give exactly {shown.strip()}", click.get_current_context())
    return (None, words) if options.layers else (words[0], words[1:])


def inside_mount(word: str) -> LiveMount | None:
    """Return the union that is mounted on or above a path."""
    from unionfs.mounts import find  # noqa: PLC0415  # help stays fast

    mount = find(os.path.abspath(os.fsencode(word)))
    return mount if mount is not None and mount.record is not None else None


def locate(word: str | None, options: Options) -> Where:
    """Return the branches that WHERE and the options mean."""
    from unionfs.branch import Dialect  # noqa: PLC0415  # help stays fast
    from unionfs.insight import where  # noqa: PLC0415  # help stays fast

    if options.rw is not None and wanted_layer() is not None:
        raise UsageError("--upto leaves out the rw branch; give it or --rw, not both")
    if word is None:
        return cut(where.of_directories(options.layers, options.rw, Dialect(options.dialect)))
    if options.layers:
        raise UsageError("give WHERE or --layer, not both")
    found = cut(_named(word, options))
    return found if options.rw is None else where.with_rw(found, options.rw)


def _named(word: str, options: Options) -> Where:
    from unionfs.branch import Dialect, place_of  # noqa: PLC0415  # help stays fast
    from unionfs.insight import where  # noqa: PLC0415  # help stays fast

    path = os.path.abspath(os.fsencode(word))
    # A mount whose daemon was killed is no directory any more; its branches can still be read.
    mount = mounted_on(word)
    if mount is not None and mount.record is not None:
        if options.rw is not None:
            raise UsageError(f"{show(path)} is a mount and has its own branches; leave out --rw")
        return where.of_mount(mount.record)
    try:
        with state().graph() as graph:
            return where.of_image(graph, word)
    except (NotFoundError, InvalidNameError):
        if not os.path.isdir(path):
            raise
    if place_of(path).path != path:  # a rw branch that kernel overlayfs has at the moment
        return where.of_directories([], path)
    return where.of_directories([path], None, Dialect(options.dialect))


def mounted_on(word: str) -> LiveMount | None:
    """Return the union whose mountpoint a path is."""
    path = os.path.abspath(os.fsencode(word))
    mount = inside_mount(word)
    return mount if mount is not None and mount.target in (path, os.path.realpath(path)) else None


def archived_image(stack: contextlib.ExitStack, word: str) -> SourceImage | None:
    """Open the image of an archive or layout, until `stack` ends; None if the word means none."""
    from unionfs.archive.source import open_source, split_spec  # noqa: PLC0415  # help stays fast

    transport, path, _ = split_spec(os.fsencode(word))
    is_layout = os.path.isfile(os.path.join(path, b"oci-layout"))
    if transport is None and not os.path.isfile(path) and not is_layout:
        return None
    source = stack.enter_context(open_source(word))
    if len(source.images) != 1:
        raise NotFoundError(
            f"{show(word)} holds {len(source.images)} images; name one, as for import"
        )
    return source.images[0]
