"""`unionfs commit`: the changes of a rw branch become one more layer, a new image.

Invariant: the branch itself is never changed, so one can go on with it.
"""

from __future__ import annotations

import click

from unionfs.cli.arguments import DIRECTORY, IMAGE, NAME
from unionfs.cli.branches import branch_of
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.cli.import_ import tell
from unionfs.cli.progress import progress
from unionfs.cli.signals import orderly_end
from unionfs.errors import BusyError, UsageError, show

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
    if not branch.complete:
        raise BusyError(
            f"{show(branch.rw)} is mounted out of reach, and some names of files that were changed"
            " there are not linked yet; unmount it first"
        )
    with state().store() as store, orderly_end(), progress("archiving") as report:
        added = store.commit(
            store.graph.get_exact(branch.image).id,
            branch.rw,
            references=tags,
            force=force,
            author=author,
            comment=message,
            changes=changes,
            progress=report,
        )
    tell(added)
