"""`unionfs commit`: the changes of a rw branch become one more layer, a new image.

Invariant: a name that belongs to another image is noticed before anything is read; the branch
itself is never changed, so one can go on with it.
"""

from __future__ import annotations

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY, IMAGE, NAME
from unionfs.cli.branches import branch_of
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.cli.progress import progress
from unionfs.errors import ConflictError, UsageError, show

__all__ = ["command"]


@click.command("commit")
@click.argument("mountpoint", metavar="[MOUNT]", type=DIRECTORY, required=False)
@click.option("--image", type=IMAGE, help="With --rw: the image below, no mount is needed.")
@click.option("--rw", type=DIRECTORY, help="The branch that holds the changes.")
@click.option("-t", "--tag", "tags", type=NAME, multiple=True, help="Name the new image so.")
@click.option("-m", "--message", default="", help="A comment for the history.")
@click.option("--author", default="", help="Who made it, as `Name <mail>`.")
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="Change the configuration: a line of a Dockerfile such as `CMD /bin/sh`.",
)
@click.option("-f", "--force", is_flag=True, help="Take names from other images.")
@root_option
@verbose_option
def command(
    *,
    mountpoint: str | None,
    image: str | None,
    rw: str | None,
    tags: tuple[str, ...],
    message: str,
    author: str,
    changes: tuple[str, ...],
    force: bool,
) -> None:
    """Make an image of a rw branch.

    \b
    unionfs commit MOUNT -t NAME              of what is mounted (it stays so)
    unionfs commit --image IMAGE --rw DIR     of a branch that is not mounted

    Prints the id of the new image.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    branch = branch_of(mountpoint, image, (), rw)
    if branch.rw is None:
        raise UsageError(
            f"{show(mountpoint or '')} is mounted read-only: there is nothing to commit"
        )
    if branch.image is None:
        raise UsageError(
            f"{show(mountpoint or '')} is a mount of plain directories; only a branch on top of"
            " an image can be committed"
        )
    from unionfs.store.commit import commit  # noqa: PLC0415  # help stays fast
    from unionfs.store.references import parse_reference  # noqa: PLC0415  # see above

    names = [parse_reference(tag) for tag in tags]
    with state().graph() as graph:
        for name in names:
            present = graph.tags.get(name)
            if present is not None and not force:
                raise ConflictError(
                    f"the name {name} belongs to image {present[:12]}; choose another, or take it"
                    " with --force"
                )
        with progress("archiving") as report:
            image_id, warnings = commit(
                graph,
                graph.get_exact(branch.image).id,
                branch.rw,
                author=author,
                comment=message,
                changes=changes,
                progress=report,
            )
        for warning in warnings:
            output.note(f"unionfs: note: {show(warning)}")
        for name in names:
            graph.tags.set(name, image_id, force=force)
    output.note("named " + ", ".join(map(str, names)) if names else "without a name")
    output.result(image_id)
