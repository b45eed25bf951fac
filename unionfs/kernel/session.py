"""The life of one kernel mount beside its keeper, and what to do when the keeper was killed.

Invariant: a record is there from the moment a mount works until its rw branch is in AUFS form
again and nothing temporary is left; whoever finds one without its keeper can finish the job.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from typing import Final

import attrs

from unionfs import _sys
from unionfs.errors import BusyError, UnionfsError, UnsupportedError, show
from unionfs.fuse import registry
from unionfs.fuse.daemon import LEGACY_ROOT_MODE, held
from unionfs.fuse.options import MountOptions
from unionfs.fuse.plan import Plan
from unionfs.fuse.registry import MountRecord
from unionfs.fuse.request import MountRequest
from unionfs.kernel import convert, plinks, scratch
from unionfs.kernel.choose import Choice, mount_fastest
from unionfs.kernel.keeper import keep
from unionfs.kernel.leftover import settle_if_needed
from unionfs.kernel.mounted import KernelMount, KernelRequest, Layer

__all__ = ["before_unmount", "link_names", "serve", "tidy"]

_MS_NOEXEC: Final = 0x8
_FLAGS: Final = _sys.MS_NOSUID | _sys.MS_NODEV | _MS_NOEXEC
#: Options that a kernel union honours, or that only tune FUSE: everything else needs FUSE.
_HARMLESS: Final = frozenset(
    (
        *("read_only", "nosuid", "nodev", "noexec", "allow_other", "default_permissions"),
        *("nonempty", "volatile", "lane", "fsname"),
    )
)


def serve(plan: Plan, on_ready: Callable[[MountRecord], None]) -> tuple[str, ...] | None:
    """Mount with a kernel union and stay until it is unmounted and its rw branch in order.

    Returns None then. Returns why not, with nothing changed, when the choice falls on FUSE.
    Raises `UnionfsError` or `OSError` when the back end that was asked for cannot mount.
    """
    os.chdir("/")
    os.umask(0)
    request = plan.request
    with contextlib.ExitStack() as stack:
        for path in request.hold:
            stack.enter_context(held(path))
        choice = _mount(plan)
        if choice.mount is None:
            return choice.reasons
        _keep(plan, choice, choice.mount, on_ready)
    return None


def _mount(plan: Plan) -> Choice:
    request = plan.request
    obstacles = _needs_fuse(request)
    if obstacles:
        reason = f"{' and '.join(obstacles)} {'needs' if len(obstacles) == 1 else 'need'} fuse"
        if request.backend != "auto":
            raise UnsupportedError(f"{request.backend}: {reason}")
        return Choice("fuse", None, (f"aufs, overlay: {reason}",))
    writable = request.rw is not None
    options = request.options.settled(uid=os.geteuid(), writable=writable)

    def layer(path: bytes) -> Layer:
        return Layer(path, os.path.dirname(path) + b"/shims" if request.cached else None)

    return mount_fastest(
        KernelRequest(
            layers=tuple(layer(path) for path in request.layers),
            target=request.target,
            scratch=plan.runtime,
            rw=request.rw,
            flags=options.mount_flags() & _FLAGS,
            root_mode=LEGACY_ROOT_MODE,
        ),
        request.backend,
    )


def _needs_fuse(request: MountRequest) -> list[str]:
    """Return what is asked for that only our own union can do."""
    plain = MountOptions()
    names = [
        field.name
        for field in attrs.fields(MountOptions)
        if field.name not in _HARMLESS
        and getattr(request.options, field.name) != getattr(plain, field.name)
    ]
    if "coherent" in names:  # it sets the timeouts
        names = [name for name in names if not name.endswith("_timeout")]
    found = [f"option {'noacl' if name == 'acl' else name}" for name in names]
    if request.options.allow_other is False:
        found.append("option noallow_other")
    if request.options.read_only and request.rw is not None:
        found.append("a read-only view of a writable branch")
    return found


def _keep(
    plan: Plan, choice: Choice, mount: KernelMount, on_ready: Callable[[MountRecord], None]
) -> None:
    record: MountRecord | None = None

    def ready() -> None:
        nonlocal record
        record = _record(plan, choice, mount)
        registry.write_record(plan.runtime, record)
        on_ready(record)

    try:
        keep(mount, ready)
    except BaseException:
        if record is None:
            mount.unmount(lazy=True)
        raise
    if plan.request.ephemeral and plan.request.rw is not None:
        shutil.rmtree(plan.request.rw, ignore_errors=True)
    if record is not None:
        registry.remove_record(plan.runtime, record)


def _record(plan: Plan, choice: Choice, mount: KernelMount) -> MountRecord:
    request = plan.request
    pid = os.getpid()
    return MountRecord(
        stem=plan.stem,
        target=request.target,
        image_id=request.image_id,
        image_name=request.image_name,
        layers=request.layers,
        rw=request.rw,
        ephemeral=request.ephemeral,
        read_only=request.rw is None,
        backend=choice.backend,
        pid=pid,
        start=registry.process_start(pid) or 0,
        device=mount.device,
        namespace=registry.mount_namespace(),
        options=request.option_text,
        log=plan.log,
        created=time.time(),
        wanted=request.backend,
        reasons=choice.reasons,
        losses=mount.losses,
        scratch=mount.temporary,
    )


def link_names(record: MountRecord) -> None:
    """Use every name of copied-up files that have several, so that the union links them.

    Until then the writable branch of a live mount shows the old file under the others.
    """
    if record.rw is None:
        return
    if record.backend == "aufs":
        plinks.touch_names(record.target, plinks.pseudo_links(record.rw))
        return
    pending = convert.pending_names(record.rw)
    if pending:
        plinks.touch_paths(record.target, pending)


def before_unmount(record: MountRecord) -> None:
    """Do for a live mount what must be done while it is mounted (AUFS: whole hard links)."""
    if record.backend == "aufs":
        link_names(record)


def tidy(record: MountRecord) -> None:
    """Do what a keeper that is gone has not done, after the mount is gone.

    BusyError while another namespace or an open file keeps the mount alive.
    """
    settle_if_needed(record.rw)
    if record.scratch is not None:
        if scratch.in_use(record.scratch):
            raise BusyError(f"{show(record.target)} is still in use")
        try:
            shutil.rmtree(record.scratch)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise UnionfsError(f"cannot remove a temporary directory: {exc}") from exc
