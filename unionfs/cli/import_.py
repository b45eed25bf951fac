"""`unionfs import`: images from archives and directories into the store.

Invariant: a name that belongs to another image is noticed before anything is read.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Final

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE, NAME
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.cli.progress import progress
from unionfs.errors import ConflictError, InvalidNameError, UsageError, show

if TYPE_CHECKING:
    from unionfs.archive.image import Source, SourceImage
    from unionfs.store.graph import Graph
    from unionfs.store.references import Reference

__all__ = ["command"]

_NAMELESS: Final = "without a name; `unionfs tag` gives it one"


class _Source(click.ParamType[str]):
    """A transport and a path."""

    name = "source"


@click.command("import")
@click.argument("source", type=_Source())
@click.option("-t", "--tag", "tags", type=NAME, multiple=True, help="Name it so (not as it says).")
@click.option("--parent", type=IMAGE, help="Put a root filesystem as a layer on top of this image.")
@click.option("--platform", metavar="OS/ARCH", help="Choose in an image for several platforms.")
@click.option("--limit", "limits", metavar="NAME=N", multiple=True, help="Raise a safety limit.")
@click.option("-f", "--force", is_flag=True, help="Take names from other images.")
@root_option
@verbose_option
def command(
    *,
    source: str,
    tags: tuple[str, ...],
    parent: str | None,
    platform: str | None,
    limits: tuple[str, ...],
    force: bool,
) -> None:
    """Read an image from an archive or directory into the store.

    \b
    SOURCE is
      docker-archive:FILE[:NAME]   what `docker save` and `podman save` write
      oci:DIRECTORY[:TAG]          an OCI image layout
      oci-archive:FILE[:TAG]       a tar of one
      rootfs:FILE-OR-DIRECTORY     a root filesystem
      FILE or DIRECTORY            any of these, found out
      -                            standard input

    Compressed or not. Prints the id of the image (of each, when there are several).
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    from unionfs.archive.limits import DEFAULT  # noqa: PLC0415  # help stays fast
    from unionfs.archive.source import open_source  # noqa: PLC0415  # see above
    from unionfs.store.ingest import import_image  # noqa: PLC0415  # see above
    from unionfs.store.references import parse_reference  # noqa: PLC0415  # see above

    wanted = [parse_reference(tag) for tag in tags]
    bounds = DEFAULT.with_options(limits)
    with open_source(source, platform=platform, limits=bounds) as found:
        if wanted and len(found.images) > 1:
            raise UsageError(_too_many(found))
        with state().graph(create=True) as graph:
            base = None if parent is None else graph.tags.resolve(graph, parent)
            plan = [(image, wanted or _own_names(image)) for image in found.images]
            if not force:
                for image, names in plan:
                    _refuse_taken(graph, image, names)
            for image, names in plan:
                with progress("reading") as report:
                    image_id, warnings = import_image(
                        graph,
                        image,
                        transport=found.transport,
                        parent=base,
                        limits=bounds,
                        progress=report,
                    )
                for warning in warnings:
                    output.note(f"unionfs: note: {show(warning)}")
                for name in names:
                    graph.tags.set(name, image_id, force=force)
                output.note("named " + ", ".join(map(str, names)) if names else _NAMELESS)
                output.result(image_id)


def _too_many(found: Source) -> str:
    names = [reference for image in found.images for reference in image.references]
    return (
        f"the source holds {len(found.images)} images ({', '.join(map(show, names))});"
        " choose one with docker-archive:FILE:NAME, or import all without --tag"
    )


def _own_names(image: SourceImage) -> list[Reference]:
    """Return the names the source gives, as docker shows them (`docker.io/` left out).

    A mere tag, as OCI layouts have, says nothing about the repository: it is no name.
    """
    from unionfs.store.references import parse_reference  # noqa: PLC0415  # help stays fast

    names = []
    for text in image.references:
        if "/" in text or ":" in text:
            short = text.removeprefix("docker.io/").removeprefix("library/")
            with contextlib.suppress(InvalidNameError):
                names.append(parse_reference(short if text.startswith("docker.io/") else text))
    return names


def _refuse_taken(graph: Graph, image: SourceImage, names: list[Reference]) -> None:
    """Raise `ConflictError` if a name belongs to an image other than this one."""
    expected = None if image.config is None else hashlib.sha256(image.config).hexdigest()
    for name in names:
        present = graph.tags.get(name)
        if present is not None and present != expected:
            raise ConflictError(
                f"the name {name} belongs to image {present[:12]}; choose another with --tag, or"
                " take it with --force"
            )
