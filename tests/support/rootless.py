"""Run the program as a user without rights: uid and gid 65534 when the tests run as root.

Invariant: the child has no capabilities and no groups of root, and runs this checkout's
code. Where that user cannot reach the checkout or its interpreter (a home directory of
mode 0700), the package and its dependencies are copied once to a place it can reach.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

__all__ = [
    "NOBODY",
    "Runtime",
    "as_nobody_argv",
    "popen_as_nobody",
    "run_as_nobody",
    "runtime",
]

NOBODY: Final = 65534
_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_SYSTEM_PYTHON: Final = "/usr/bin/python3"
_DROP: Final = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=-all",
)
_PROBE: Final = "import unionfs, click, trio, pyfuse3, attrs, msgspec"


@attrs.frozen
class Runtime:
    """How to start Python with unionfs for an unprivileged user: `argv` plus `env`."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def _drop() -> tuple[str, ...]:
    return _DROP if os.geteuid() == 0 else ()


def as_nobody_argv(argv: Sequence[str]) -> list[str]:
    """Return the words that start a program as that user, for those who start it themselves."""
    return [*_drop(), *argv]


@functools.cache
def runtime() -> Runtime:
    """Return the interpreter and environment that work for that user, found by trying."""
    in_place = Runtime((sys.executable,), {"PYTHONPATH": str(_CHECKOUT)})
    if _works(in_place):
        return in_place
    copy = Path(tempfile.gettempdir()) / f"unionfs-rootless-{os.getpid()}"
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    _copy_readable(_CHECKOUT / "unionfs", copy / "unionfs")
    for key in ("purelib", "platlib"):
        _copy_readable(Path(sysconfig.get_path(key)), copy / "site-packages")
    paths = f"{copy}:{copy / 'site-packages'}"
    copied = Runtime((_SYSTEM_PYTHON,), {"PYTHONPATH": paths})
    if not _works(copied):
        raise RuntimeError(f"uid {NOBODY} can run neither {sys.executable} nor a copy in {copy}")
    return copied


def _copy_readable(source: Path, target: Path) -> None:
    shutil.copytree(
        source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    for path in (target.parent, target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))


def _works(candidate: Runtime) -> bool:
    argv = [*_drop(), *candidate.argv, "-B", "-c", _PROBE]
    env = {"PATH": os.environ["PATH"], **candidate.env}
    return subprocess.run(argv, env=env, cwd="/", capture_output=True, check=False).returncode == 0


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    """Return a clean environment: nothing of root's home or runtime directory leaks in."""
    return {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        **runtime().env,
        **(env or {}),
    }


def run_as_nobody(
    argv: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] = "/",
    **options: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Run any program as that user (as the caller when the caller is not root).

    `env` is added to a clean environment. Output is captured as bytes unless `options`, which
    go to `subprocess.run`, say otherwise. Python itself is `runtime().argv`.
    """
    options.setdefault("capture_output", True)
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([*_drop(), *argv], env=_environment(env), cwd=cwd, check=False, **options)


def popen_as_nobody(
    argv: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] = "/",
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a program as `run_as_nobody` does; the caller waits for it."""
    return subprocess.Popen([*_drop(), *argv], env=_environment(env), cwd=cwd, **options)
