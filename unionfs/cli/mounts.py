"""`unionfs mounts`: what is mounted, by whom, from what.

JSON: a list of `target`, `state` (live, detached, elsewhere, dead, unattended or stale), `image`
(name), `image_id`, `layers` (paths, top-most first), `rw`, `ephemeral`, `read_only`, `backend`,
`pid`, `options`, `log`, `created` (seconds since 1970), `lane` (whether there is a direct one),
`no_lane` (why not), `no_passthrough` (why not, if it was asked for), `wanted` (the back end asked
for), `reasons` (why no faster one), `losses` (what is not shown as FUSE would), `control` (path of
the control socket); what is not known is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option, verbosity

if TYPE_CHECKING:
    from unionfs.mounts import LiveMount, MountRecord

__all__ = ["command", "print_mounts", "reason_of"]

_KEYS = (
    *("image_id", "layers", "rw", "ephemeral", "read_only", "backend", "pid", "options"),
    *("log", "created", "lane", "no_lane", "no_passthrough"),
    *("wanted", "reasons", "losses", "control"),
)


def _document(mount: LiveMount) -> dict[str, Any]:
    record = mount.record
    return {
        "target": mount.target,
        "state": mount.state.value,
        "image": record.image_name if record else None,
        **{key: getattr(record, key) if record else None for key in _KEYS},
    }


def _row(mount: LiveMount) -> tuple[str, ...]:
    from unionfs.errors import show  # noqa: PLC0415  # beside its only use

    record = mount.record
    if record is None:
        return (show(mount.target), "?", "?", "?", "?", mount.state.value)
    count = len(record.layers)
    source = record.image_name or (f"{count} directories" if count > 1 else "1 directory")
    branch = "read-only"
    if record.ephemeral:
        branch = "ephemeral"
    elif record.rw is not None:
        branch = show(record.rw) + (" (ro)" if record.read_only else "")
    pid = str(record.pid)
    return (show(mount.target), source, branch, pid, record.backend, mount.state.value)


def reason_of(record: MountRecord) -> str:
    """Return a line that says which back end a mount has and why."""
    from unionfs.errors import show  # noqa: PLC0415  # beside its only use

    why = "as asked for"
    if record.wanted == "auto":
        why = "; ".join(("chosen by auto", *record.reasons)) if record.reasons else "the fastest"
    elif record.backend == "fuse":
        why = "the default"
    if record.no_lane:
        why += f"; without a direct lane: {record.no_lane}"
    if record.no_passthrough:
        why += f"; without passthrough: {record.no_passthrough}"
    return f"{show(record.target)}: {record.backend}, {why}"


def print_mounts(*, as_json: bool) -> None:
    """Print the list."""
    from unionfs.mounts import list_mounts  # noqa: PLC0415  # help stays fast

    mounts = list_mounts()
    if as_json:
        output.write_json([_document(mount) for mount in mounts])
        return
    heading = ("MOUNTPOINT", "IMAGE", "BRANCH", "PID", "BACKEND", "STATE")
    output.table(heading, [_row(mount) for mount in mounts])
    if not verbosity():
        return
    for mount in mounts:
        if mount.record is not None:
            output.note(reason_of(mount.record))
            for loss in mount.record.losses:
                output.note(f"  {loss}")


@click.command("mounts")
@output.json_option
@root_option
@verbose_option
def command(*, as_json: bool) -> None:
    """List live and dead mounts.

    A dead mount is one whose process was killed; `unionfs umount` cleans it up. An unattended
    one is a kernel mount without its process: it works; `unionfs umount` ends it properly.
    With -v also why each has the back end that it has.
    """
    print_mounts(as_json=as_json)
