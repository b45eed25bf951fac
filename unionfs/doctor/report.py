"""The whole examination: back ends first, then what they rest on.

Invariant: as of `unionfs.doctor`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs

from unionfs.doctor.checks import Check, nearest_directory, scratch
from unionfs.doctor.handshake import read_init
from unionfs.doctor.machine import ask_inner, check_fuse, check_kernel, check_user_namespace
from unionfs.doctor.places import check_place
from unionfs.errors import UnionfsError
from unionfs.kernel.probe import BackendStatus, probe_all

__all__ = ["Check", "Report", "examine"]

_FUSE_INSIDE: Final = "fuse-userns"


@attrs.frozen
class Report:
    """`backends` fastest first; those named `...-userns` serve `unionfs run` and `shell` only."""

    backends: tuple[BackendStatus, ...]
    checks: tuple[Check, ...]

    @property
    def usable(self) -> bool:
        """Tell whether there is any way to have a union."""
        return any(status.usable for status in self.backends)

    def document(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {
            "usable": self.usable,
            "backends": [attrs.asdict(status) for status in self.backends],
            "checks": [attrs.asdict(check) for check in self.checks],
        }


def examine(store: bytes, branches: Sequence[bytes] = ()) -> Report:
    """Examine this machine for a store at `store` and writable branches at `branches`.

    None of the directories need exist, and none is made.
    """
    base = _scratch_base(store)
    inner = ask_inner(base)
    statuses = [*probe_all(base), _fuse_inside(inner)]
    return Report(tuple(statuses), tuple(_checks(store, branches, base, inner)))


def _scratch_base(store: bytes) -> bytes:
    """Return where unions are tried: by the store if that can be written, else TMPDIR."""
    nearest = nearest_directory(store)
    if os.access(nearest, os.W_OK | os.X_OK):
        return nearest
    return os.fsencode(tempfile.gettempdir())


def _fuse_inside(inner: dict[str, Any]) -> BackendStatus:
    if not inner["entered"]:
        return BackendStatus(_FUSE_INSIDE, usable=False, reason=str(inner["why"]))
    said = inner.get("fuse") or {"ok": False, "why": "no mount namespace"}
    if said["ok"]:
        return BackendStatus(
            _FUSE_INSIDE, usable=True, reason="mounted the device in a user namespace"
        )
    return BackendStatus(
        _FUSE_INSIDE,
        usable=False,
        reason=str(said["why"]),
        remedy="Linux 4.18 or later and a /dev/fuse that you may open",
    )


def _checks(
    store: bytes, branches: Sequence[bytes], base: bytes, inner: dict[str, Any]
) -> Iterator[Check]:
    yield from check_kernel()
    yield from check_user_namespace(inner)
    handshake: dict[str, Any] | str
    try:
        with scratch(base) as place:
            handshake = read_init(place)
    except UnionfsError as exc:
        handshake = str(exc)
    except OSError as exc:
        handshake = exc.strerror or str(exc)
    yield from check_fuse(inner, handshake)
    yield from check_place("store", store)
    for branch in branches:
        yield from check_place(f"branch {os.fsdecode(branch)}", branch)
