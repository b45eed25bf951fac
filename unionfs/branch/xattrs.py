"""Which extended attributes belong to people and which to the machinery.

Invariant: an attribute that carries our (or another union's) bookkeeping is never
shown, set or removed through the union, and never enters or leaves with an archive:
whoever could set `trusted.overlay.opaque` or an override could hide or fake files.
"""

from __future__ import annotations

from typing import Final

from unionfs.branch.override import ENCODED_PREFIX

__all__ = ["INO_NATIVE", "INO_OVERRIDE", "decode", "encode", "is_hidden"]

#: Inode number that a copied-up file keeps from its lower original (decimal).
INO_NATIVE: Final = "trusted.unionfs.ino"
INO_OVERRIDE: Final = "user.unionfs.ino"

_HIDDEN: Final = (
    ENCODED_PREFIX,
    "user.unionfs.",
    "system.unionfs.",
    "trusted.unionfs.",
    "user.overlay.",
    "trusted.overlay.",
    "user.fuseoverlayfs.",
    "security.fuseoverlayfs.",
)


def is_hidden(name: str) -> bool:
    """Tell whether `name` is bookkeeping that people may neither see nor touch."""
    return name.startswith(_HIDDEN)


def encode(name: str) -> str:
    """Return the name under which a plain user's branch stores attribute `name`."""
    return name if name.startswith("user.") else ENCODED_PREFIX + name


def decode(stored: str) -> str:
    """Return the presented name of a stored attribute (inverse of `encode`)."""
    if stored.startswith(ENCODED_PREFIX) and "." in stored[len(ENCODED_PREFIX) :]:
        return stored[len(ENCODED_PREFIX) :]
    return stored
