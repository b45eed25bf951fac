"""Where the content of a rw branch is: in its directory, or lent to kernel overlayfs.

While overlayfs writes a branch RW, the content lies in `upper/` of a hidden directory of RW,
and a symbolic link beside it says `PHASE:KIND:BOOT-ID` (`unionfs.kernel.form` makes both).

Invariant: whoever reads a branch where `place_of` says reads all of it, in that dialect.
"""

from __future__ import annotations

import os
from typing import Final

import attrs

from unionfs.branch import whiteout
from unionfs.branch.whiteout import Dialect
from unionfs.errors import BusyError, show

__all__ = ["FORM", "LIVE", "UPPER", "Place", "place_of"]

FORM: Final = b"form"
UPPER: Final = b"upper"
#: The phase in which the content is wholly overlayfs's.
LIVE: Final = "live"
_DIALECTS: Final = {"trusted": Dialect.OVERLAY, "user": Dialect.OVERLAY_USER}


@attrs.frozen
class Place:
    """The directory to read and the dialect that it speaks."""

    path: bytes
    dialect: Dialect


def place_of(rw: bytes) -> Place:
    """Return where to read the branch `rw`.

    BusyError when a crash left it half-way between two forms: its next mount, or
    `unionfs.kernel.mounted.settle_branch`, finishes that.
    """
    home = rw + b"/" + whiteout.OVERLAY_DIR
    try:
        form = os.readlink(home + b"/" + FORM)
    except FileNotFoundError:
        return Place(rw, Dialect.AUFS)
    phase, _, rest = form.decode("ascii", "replace").partition(":")
    dialect = _DIALECTS.get(rest.partition(":")[0])
    if phase != LIVE or dialect is None:
        raise BusyError(
            f"{show(rw)} is on its way between the forms of overlayfs and AUFS;"
            " mount and unmount it once to finish that"
        )
    return Place(home + b"/" + UPPER, dialect)
