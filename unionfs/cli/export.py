"""`unionfs export`: an image as a file or directory that other tools read.

Invariant: what exists is not overwritten unasked (a tag inside an OCI layout is replaced), and
a failed export leaves nothing that was not there.
"""

from __future__ import annotations

import sys

import click

from unionfs.cli import output
from unionfs.cli.arguments import IMAGE
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.cli.progress import progress
from unionfs.cli.signals import orderly_end
from unionfs.errors import UsageError

__all__ = ["command"]


@click.command("export")
@click.argument("image", type=IMAGE)
@click.argument("destination", metavar="DEST")
@click.option("-f", "--force", is_flag=True, help="Replace a file that exists.")
@root_option
@verbose_option
def command(*, image: str, destination: str, force: bool) -> None:
    """Write an image as an archive or OCI layout.

    \b
    DEST is
      docker-archive:FILE[:NAME]   what `docker load` and `podman load` read
      oci:DIRECTORY[:TAG]          an OCI image layout (made, or added to)
      oci-archive:FILE[:TAG]       a tar of one
      rootfs:FILE                  one tar of the merged tree, without whiteouts

    FILE may be - for standard output. Layers that were imported go out bit for bit as they
    came in. Prints what identifies the result: the manifest digest, the image id or the path.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    to_stdout = destination.partition(":")[2].split(":")[0] == "-"
    if to_stdout and sys.stdout.isatty():
        raise UsageError("an archive on a terminal is of no use; redirect standard output")
    with state().store() as store, orderly_end(), progress("writing") as report:
        image_id = store.resolve(image)
        done = store.export(image_id, destination, replace=force, progress=report)
    if to_stdout:
        output.note(done)
    else:
        output.result(done)
