"""A rw branch that a kernel union left behind: brought into order before its next use.

Invariant: a branch that no kernel union has touched costs one listing and no import.
"""

from __future__ import annotations

import os
from typing import Final

from unionfs.branch import whiteout

__all__ = ["has_signs", "settle_if_needed"]

_SIGNS: Final = (whiteout.OVERLAY_DIR, whiteout.AUFS_BASE, whiteout.AUFS_LINKS)


def settle_if_needed(rw: bytes | None) -> None:
    """Bring a branch into plain AUFS form; BusyError while a kernel union still has it.

    Call it without holding the branch's lock, before opening the branch for writing.
    """
    if rw is None or not has_signs(rw):
        return
    from unionfs.kernel.mounted import settle_branch  # noqa: PLC0415  # rarely needed

    settle_branch(rw)


def has_signs(rw: bytes) -> bool:
    """Tell whether a kernel union has, or left, something of its own in the branch."""
    try:
        return any(name.startswith(_SIGNS) for name in os.listdir(rw))
    except OSError:
        return False  # whoever opens the branch says what is wrong with it
