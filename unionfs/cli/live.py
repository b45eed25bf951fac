"""Reaching the process of a live mount by its mountpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unionfs.cli.branches import mount_at
from unionfs.errors import UnsupportedError, UsageError, show

if TYPE_CHECKING:
    from unionfs.control.client import Client
    from unionfs.mounts import LiveMount, MountRecord

__all__ = ["client_at", "client_of"]


@contextlib.contextmanager
def client_at(mountpoint: str) -> Iterator[Client]:
    """Give a client of the union mounted exactly on a directory."""
    path = os.path.abspath(os.fsencode(mountpoint))
    mount = mount_at(mountpoint)
    if mount.target not in (path, os.path.realpath(path)):
        raise UsageError(f"{show(path)} is in the mount {show(mount.target)}; name that")
    with client_of(mount) as client:
        yield client


@contextlib.contextmanager
def client_of(mount: LiveMount) -> Iterator[Client]:
    """Give a client of a mount; UnsupportedError for those that the kernel serves."""
    record = mount.record
    if record is None or record.control is None:
        raise UnsupportedError(_why_not(mount, record))
    from unionfs.control.client import connected  # noqa: PLC0415  # help stays fast

    with connected(record.control) as client:
        yield client


def _why_not(mount: LiveMount, record: MountRecord | None) -> str:
    shown = show(mount.target)
    if record is not None and record.backend != "fuse":
        return (
            f"{shown} is served by the kernel ({record.backend}), which tells nothing of its"
            " requests; mount with --backend fuse for that"
        )
    return f"{shown} has no control socket; unmount it and mount it again"
