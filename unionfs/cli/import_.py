"""`unionfs import`: images from archives and directories into the store.

Invariant: the names an image gets are those that were asked for, else the source's own in the
short form that docker shows.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE, NAME
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.cli.progress import progress
from unionfs.cli.signals import orderly_end
from unionfs.errors import InvalidNameError, UsageError, show

if TYPE_CHECKING:
    from unionfs.archive.image import Source, SourceImage
    from unionfs.store.store import Added

__all__ = ["command", "tell"]


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

    bounds = DEFAULT.with_options(limits)
    with open_source(source, platform=platform, limits=bounds) as found:
        if tags and len(found.images) > 1:
            raise UsageError(_too_many(found))
        with state().store(create=True) as store:
            base = None if parent is None else store.resolve(parent)
            for image in found.images:
                with orderly_end(), progress("reading") as report:
                    added = store.import_image(
                        image,
                        transport=found.transport,
                        references=tags or _own_names(image),
                        parent=base,
                        force=force,
                        limits=bounds,
                        progress=report,
                    )
                tell(added)


def _too_many(found: Source) -> str:
    names = [reference for image in found.images for reference in image.references]
    return (
        f"the source holds {len(found.images)} images ({', '.join(map(show, names))});"
        " choose one with docker-archive:FILE:NAME, or import all without --tag"
    )


def _own_names(image: SourceImage) -> list[str]:
    """Return the names the source gives, as docker shows them (`docker.io/` left out).

    A mere tag, as OCI layouts have, says nothing about the repository: it is no name.
    """
    from unionfs.store.references import parse_reference  # noqa: PLC0415  # help stays fast

    names = []
    for text in image.references:
        if "/" in text or ":" in text:
            if text.startswith("docker.io/"):
                text = text.removeprefix("docker.io/").removeprefix("library/")  # noqa: PLW2901  # the name goes on in its short form
            with contextlib.suppress(InvalidNameError):
                names.append(str(parse_reference(text)))
    return names


def tell(added: Added) -> None:
    """Say what a new image is called and what was left out of it; print its id."""
    for warning in added.warnings:
        output.note(f"unionfs: note: {show(warning)}")
    names = ", ".join(map(str, added.references))
    output.note(f"named {names}" if names else "without a name; `unionfs tag` gives it one")
    output.result(added.id)
