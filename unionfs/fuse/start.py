"""Starting a mount: in a daemon that reports back, or in this process.

Invariant: `start_mount()` returns when the mount works, or raises one clear error and
has removed whatever it had made (writable branch, throw-away branch, log).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs

from unionfs import errors
from unionfs.errors import UnionfsError, UsageError, show
from unionfs.fuse.plan import Plan
from unionfs.fuse.registry import MountRecord, decode, encode, runtime_dir
from unionfs.fuse.request import MountRequest, check

__all__ = ["EPHEMERAL", "run_foreground", "start_mount"]

#: Name of the directory that holds throw-away writable branches.
EPHEMERAL: Final = b"ephemeral"
_LOG_LINES: Final = 5
_PACKAGE_PARENT: Final = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def start_mount(request: MountRequest) -> MountRecord:
    """Mount in the background and return when the mount works.

    Raises `UnionfsError` for whatever speaks against it (see `unionfs.fuse.request.check`)
    and for what the daemon met, `OSError` for what a system call said.
    """
    with _reporting(request.ready_fd), _prepared(request) as (settled, runtime, stem):
        log = os.path.join(runtime, stem.encode() + b".log")
        try:
            return _spawn(settled, runtime, stem, log)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(log)
            raise


def run_foreground(request: MountRequest, on_ready: Callable[[MountRecord], None]) -> None:
    """Mount and serve in this process until unmounted; log to standard error.

    Raises as `start_mount`. For supervisors: SIGTERM unmounts and returns.
    """
    from unionfs.fuse.daemon import configure_logging, serve  # noqa: PLC0415  # rarely needed

    works = False
    late: BaseException | None = None

    def ready(record: MountRecord) -> None:
        nonlocal works
        works = True
        _tell(request.ready_fd, b"s")
        on_ready(record)

    try:
        with _prepared(request) as (settled, runtime, stem):
            configure_logging()
            try:
                serve(Plan(settled, stem, runtime, None), ready)
            except BaseException as exc:
                if not works:
                    raise
                # By now the branch holds somebody's work: it is not unmade.
                late = exc
    except BaseException:
        _tell(request.ready_fd, b"f")
        raise
    if late is not None:
        raise late


def _tell(fd: int | None, word: bytes) -> None:
    if fd is not None:
        with contextlib.suppress(OSError):
            os.write(fd, word)


@contextlib.contextmanager
def _reporting(ready_fd: int | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _tell(ready_fd, b"f")
        raise
    _tell(ready_fd, b"s")


@contextlib.contextmanager
def _prepared(request: MountRequest) -> Iterator[tuple[MountRequest, bytes, str]]:
    """Check the request and make its writable branch; unmake it if the body fails."""
    request = check(request)
    runtime = runtime_dir(create=True)
    stem = f"mount-{secrets.token_hex(8)}"
    made: bytes | None = None
    if request.ephemeral:
        made = _make_ephemeral(request, stem)
        request = attrs.evolve(request, rw=made)
    elif request.rw is not None:
        try:
            os.mkdir(request.rw, 0o755)
            made = request.rw
        except FileExistsError:
            pass
        except OSError as exc:
            raise UsageError(
                f"cannot make the writable branch {show(request.rw)}: {exc.strerror}"
            ) from exc
    try:
        yield request, runtime, stem
    except BaseException:
        if made is not None:
            # Ours a moment ago and never mounted: at most the engine's own marks are in it.
            shutil.rmtree(made, ignore_errors=True)
        raise


def _make_ephemeral(request: MountRequest, stem: str) -> bytes:
    """Make a throw-away branch beside the store: runtime directories are small and in memory."""
    scratch = request.scratch
    if scratch is None:
        from unionfs.store.paths import default_root  # noqa: PLC0415  # may load platformdirs

        scratch = default_root()
    base = os.path.join(scratch, EPHEMERAL)
    os.makedirs(base, 0o700, exist_ok=True)
    path = os.path.join(base, stem.encode())
    os.mkdir(path, 0o755)
    return path


def _spawn(request: MountRequest, runtime: bytes, stem: str, log: bytes) -> MountRecord:
    plan = Plan(request, stem, runtime, log)
    config = os.memfd_create("unionfs-mount")
    reading, writing = os.pipe()
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(config, encode(plan))
        os.lseek(config, 0, os.SEEK_SET)
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-m", "unionfs.fuse", str(config), str(writing)],
            env={**os.environ, "PYTHONPATH": _python_path()},
            pass_fds=(config, writing),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log_fd,
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        for fd in (config, writing, log_fd):
            os.close(fd)
    try:
        with open(reading, "rb") as pipe:
            answer = pipe.read()
        return _understand(answer, daemon, log)
    except BaseException:
        daemon.terminate()
        daemon.wait()
        raise


def _python_path() -> str:
    """Let the daemon find this very package, wherever it was imported from."""
    inherited = os.environ.get("PYTHONPATH")
    return _PACKAGE_PARENT + (os.pathsep + inherited if inherited else "")


def _understand(answer: bytes, daemon: subprocess.Popen[bytes], log: bytes) -> MountRecord:
    if not answer:
        raise UnionfsError(_obituary(daemon, log))
    said: dict[str, Any] = json.loads(answer)
    if "record" in said:
        # The daemon outlives us on purpose; Popen would warn about that.
        daemon.returncode = 0
        return decode(MountRecord, json.dumps(said["record"]).encode())
    kind = getattr(errors, said["kind"], UnionfsError)
    raise kind(said["message"])


def _obituary(daemon: subprocess.Popen[bytes], log: bytes) -> str:
    status = daemon.wait()
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    with open(log, "rb") as file:
        lines = file.read().decode("utf-8", "replace").splitlines()[-_LOG_LINES:]
    detail = "; ".join(show(line.strip()) for line in lines if line.strip())
    return f"the mount daemon {how} before the mount worked" + (f": {detail}" if detail else "")
