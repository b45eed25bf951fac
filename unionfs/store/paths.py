"""Where a store lies when nobody says so.

Invariant: `$UNIONFS_ROOT` always wins; nothing here touches the file system but to ask.
"""

from __future__ import annotations

import os
from typing import Final

from unionfs.errors import UsageError

__all__ = ["ENVIRONMENT", "SYSTEM_ROOT", "default_root"]

ENVIRONMENT: Final = "UNIONFS_ROOT"
SYSTEM_ROOT: Final = b"/var/lib/unionfs"


def _may_make(path: bytes) -> bool:
    """Tell whether the caller can write to `path`, or make it in its nearest existing parent."""
    while not os.path.lexists(path) and path != b"/":
        path = os.path.dirname(path)
    return os.access(path, os.W_OK | os.X_OK)


def default_root() -> bytes:
    """Return the absolute path of the default store (it need not exist).

    `$UNIONFS_ROOT`; else `/var/lib/unionfs` for root; else `unionfs` in the user's XDG data
    directory. Root of a user namespace that may not write to `/var/lib` counts as a user.
    Raises `UsageError` if the variable holds a relative path: its meaning would change with the
    working directory of each command.
    """
    chosen = os.environb.get(ENVIRONMENT.encode(), b"")
    if chosen:
        if not chosen.startswith(b"/"):
            raise UsageError(f"{ENVIRONMENT} must be an absolute path")
        return os.path.normpath(chosen)
    if os.geteuid() == 0 and _may_make(SYSTEM_ROOT):
        return SYSTEM_ROOT
    import platformdirs  # noqa: PLC0415  # only users without $UNIONFS_ROOT pay for it

    return os.fsencode(platformdirs.user_data_dir("unionfs", appauthor=False))
