"""Where the details of a defect of unionfs go: `unionfs/` in the user's XDG state directory.

Invariant: there are never more than a few such files, and none outside that directory.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import traceback
from pathlib import Path
from typing import Final

__all__ = ["keep_traceback"]

_KEPT: Final = 10
_SUFFIX: Final = ".traceback"


def keep_traceback(error: BaseException) -> Path:
    """Write the traceback of `error` to a new file and return its path; the oldest files go.

    Raises `OSError` where the user has no place for it.
    """
    import platformdirs  # noqa: PLC0415  # only needed when something is broken

    directory = Path(platformdirs.user_state_dir("unionfs", appauthor=False))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(suffix=_SUFFIX, dir=directory)
    with os.fdopen(fd, "w", errors="backslashreplace") as file:
        traceback.print_exception(error, file=file)
    _forget_old(directory)
    return Path(name)


def _forget_old(directory: Path) -> None:
    with contextlib.suppress(OSError):  # another process may clean up at the same moment
        files = sorted(directory.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-_KEPT]:
            path.unlink(missing_ok=True)
