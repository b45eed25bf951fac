"""What the daemon is told: the checked request and where its record and log go.

Invariant: everything here survives a trip through JSON.
"""

from __future__ import annotations

import attrs

from unionfs.fuse.request import MountRequest

__all__ = ["Plan"]


@attrs.frozen
class Plan:
    """A checked request; `stem` names its files in the directory `runtime`.

    `log` is None in the foreground: then standard error is the terminal or a supervisor.
    `reasons` tell why the back end is none of those that were tried first.
    """

    request: MountRequest
    stem: str
    runtime: bytes
    log: bytes | None
    reasons: tuple[str, ...] = ()
