"""Running a test's action where kernel unions are mounted: as root, or in a user namespace.

Invariant: the action runs in a child process with a mount namespace of its own, so no
mount can be left behind on the machine, whatever the action did.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from support.crash import run_child
from support.rows import Node, read_tree
from unionfs import _sys
from unionfs.errors import UnsupportedError
from unionfs.kernel.mounted import KernelRequest, Layer
from unionfs.kernel.probe import enter_user_namespace

__all__ = ["NOBODY", "WAYS", "enter", "in_way", "request_for", "require_way", "tree_of"]

NOBODY: Final = 65534
#: Overlayfs as root, and as a plain user's root of a user namespace.
WAYS: Final = ("root", "userns")


def enter(way: str) -> None:
    """Take on the rights of a way, in this process for good."""
    if way == "root":
        _sys.unshare(_sys.CLONE_NEWNS)
    else:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            _sys.set_dumpable(True)
        enter_user_namespace()
    _sys.mount(b"none", b"/", b"", _sys.MS_REC | _sys.MS_PRIVATE, b"")


def in_way(way: str, action: Callable[[], object]) -> None:
    """Run `action` with the rights of a way; its exceptions fail the test."""

    def child() -> None:
        os.umask(0o022)
        enter(way)
        action()

    assert run_child(child) == 0, "the action failed; see the captured stderr"


@functools.cache
def _trouble(way: str) -> str:
    if way == "root":
        return "" if os.geteuid() == 0 else "needs uid 0"
    return "" if run_child(lambda: enter(way)) == 0 else "user namespaces are not allowed here"


def require_way(way: str) -> None:
    """Skip the test, with the reason, where the way is closed."""
    reason = _trouble(way)
    if reason:
        pytest.skip(reason)


def request_for(
    place: Path, *layers: Path | Layer, rw: bool = True, **more: object
) -> KernelRequest:
    """Return a request over directories, with `rw`, `target` and `scratch` made in `place`."""
    for name in ("rw", "target", "scratch"):
        (place / name).mkdir(exist_ok=True)
    return KernelRequest(
        tuple(item if isinstance(item, Layer) else Layer(os.fsencode(item)) for item in layers),
        os.fsencode(place / "target"),
        os.fsencode(place / "scratch"),
        os.fsencode(place / "rw") if rw else None,
        **more,  # type: ignore[arg-type]  # the caller names fields of the request
    )


def tree_of(path: bytes) -> dict[bytes, Node]:
    """Return the tree that a mount shows."""
    return read_tree(path)


def unsupported_reason(action: Callable[[], object]) -> str:
    """Return the reason with which `action` is refused."""
    with pytest.raises(UnsupportedError) as caught:
        action()
    return str(caught.value)
