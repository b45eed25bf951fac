"""Entries whose layers the kernel has mounted although no process holds their lock.

A mount of the kernel's own unions goes on when the process beside it was killed. Then only the
mount tables, AUFS's list of branches and the records of mounts tell that an image is used.

Invariant: an entry that shows in one of them counts as used, whoever mounted it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from unionfs import mountinfo
from unionfs.branch import place_of
from unionfs.errors import BusyError, UsageError
from unionfs.store.ids import ImageId

if TYPE_CHECKING:
    from unionfs.fuse.registry import MountRecord
    from unionfs.mountinfo import KernelUnion

__all__ = ["mounted_entries"]

_AUFS: Final = b"/sys/fs/aufs"
_ID: Final = rb"/([0-9a-f]{8,64})/"


def mounted_entries(graph: bytes) -> frozenset[ImageId]:
    """Return the ids of entries in the directory `graph` of which something is mounted."""
    unions = list(mountinfo.kernel_unions())
    spellings = {graph, os.path.realpath(graph)}
    roots = b"|".join(map(re.escape, sorted(spellings)))
    pattern = re.compile(b"(?<![^=:,])(?:" + roots + b")" + _ID)
    # Overlayfs shows its directories with `:`, `,` and `\` escaped once more.
    texts = [re.sub(rb"\\(.)", rb"\1", union.options) for union in unions]
    texts += _aufs_branches()
    found = {ImageId(match[1].decode()) for text in texts for match in pattern.finditer(text)}
    for record in _records(unions):
        entries = [os.path.split(os.path.dirname(path)) for path in record.layers]
        with contextlib.suppress(OSError, ValueError):
            mine = [name for place, name in entries if os.path.samefile(place, graph)]
            found.update(ImageId(name.decode("ascii")) for name in mine)
            if mine and record.image_id is not None:
                found.add(ImageId(record.image_id))
    return frozenset(found)


def _aufs_branches() -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        for mount in os.listdir(_AUFS):
            with contextlib.suppress(OSError):
                for name in os.listdir(_AUFS + b"/" + mount):
                    if re.fullmatch(rb"br\d+", name):
                        with open(_AUFS + b"/" + mount + b"/" + name, "rb") as file:
                            yield mountinfo.unescape(file.read())


def _records(unions: list[KernelUnion]) -> Iterator[MountRecord]:
    """Yield kernel mounts that are there, or whose branch is not yet in order.

    They know the image, and the layers where the kernel shows numbers instead of directories.
    """
    # Upwards on purpose: nothing else in the store knows of mounts, and only removals come here.
    from unionfs.fuse import registry  # noqa: PLC0415  # see above

    try:
        directory = registry.runtime_dir()
    except UsageError:
        return
    live = {(union.device, union.fstype) for union in unions}
    for record in registry.read_records(directory):
        if record.backend == "fuse":
            continue  # it ends with its process, and that holds the lock
        if (record.device, record.backend) in live or _is_unsettled(record.rw):
            yield record


def _is_unsettled(rw: bytes | None) -> bool:
    """Tell whether a branch is still in overlayfs's form, which is ended by asking its layers."""
    if rw is None:
        return False
    try:
        return place_of(rw).path != rw
    except BusyError:
        return True
    except OSError:
        return False
