"""One thing that was tried, and the scratch directory to try things in.

Invariant: a scratch directory is gone when its context ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator

import attrs

__all__ = ["Check", "nearest_directory", "scratch"]


@attrs.frozen
class Check:
    """`ok` None is for plain information; `remedy` says how to get it, if there is a way."""

    area: str
    name: str
    ok: bool | None
    detail: str = ""
    remedy: str = ""


def nearest_directory(path: bytes) -> bytes:
    """Return `path`, or the directory above it that exists."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


@contextlib.contextmanager
def scratch(parent: bytes) -> Iterator[bytes]:
    """Make a directory in `parent` and remove it with all that is in it."""
    path = os.path.join(parent, b".unionfs-doctor-" + secrets.token_hex(8).encode())
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
