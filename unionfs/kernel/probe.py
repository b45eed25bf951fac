"""Which back ends work here for this caller, found by mounting a small union in a scratch place.

Invariant: a probe leaves nothing behind, and says "usable" only when a deletion in a layer
was honoured and a deletion through the mount came out as a whiteout.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from unionfs import _sys
from unionfs.branch import whiteout
from unionfs.errors import UnionfsError
from unionfs.fuse.device import mount_device, unmount
from unionfs.fuse.options import MountOptions
from unionfs.kernel import trees
from unionfs.kernel.aufs_union import mount_aufs
from unionfs.kernel.mounted import KernelMount, KernelRequest, Layer
from unionfs.kernel.overlay_union import mount_overlay

__all__ = ["BackendStatus", "probe_all", "probe_aufs", "probe_fuse", "probe_overlay"]

_SECONDS: Final = 60


@attrs.frozen
class BackendStatus:
    """What a probe found: `reason` says why not, or how; `remedy` what would make it usable."""

    name: str
    usable: bool
    reason: str
    remedy: str = ""


def probe_all(scratch: bytes | None = None) -> list[BackendStatus]:
    """Try every back end, fastest first, in `scratch` (an existing directory; default: TMPDIR).

    Names: aufs, overlay, overlay-userns (what `unionfs run` uses), fuse.
    """
    return [
        probe_aufs(scratch),
        probe_overlay(scratch),
        probe_userns_overlay(scratch),
        probe_fuse(scratch),
    ]


@contextlib.contextmanager
def _place(scratch: bytes | None) -> Iterator[bytes]:
    parent = os.fsencode(tempfile.gettempdir()) if scratch is None else scratch
    path = parent + b"/unionfs-probe-" + secrets.token_hex(8).encode()
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            trees.remove_tree(fd, os.path.basename(path))
        finally:
            os.close(fd)


def _try_union(mount: Callable[[KernelRequest], KernelMount], place: bytes) -> None:
    for name in (b"/base", b"/top", b"/rw", b"/target", b"/scratch"):
        os.mkdir(place + name, 0o755)
    for path in (b"/base/hidden", b"/base/shown", b"/top/" + whiteout.marker_for(b"hidden")[0]):
        os.close(os.open(place + path, os.O_WRONLY | os.O_CREAT, 0o444))
    layers = (Layer(place + b"/top"), Layer(place + b"/base"))
    target = place + b"/target"
    live = mount(KernelRequest(layers, target, place + b"/scratch", place + b"/rw"))
    try:
        names = os.listdir(target)
        if names != [b"shown"]:
            raise UnionfsError(f"whiteouts are not honoured: the mount shows {names}")
        os.unlink(target + b"/shown")
    finally:
        live.unmount(lazy=True)
    if os.listdir(place + b"/rw") != [whiteout.marker_for(b"shown")[0]]:
        raise UnionfsError("a deletion did not come out as a whiteout")


def _outcome(action: Callable[[bytes], None], scratch: bytes | None) -> str:
    """Return why `action` failed in a scratch place; empty when it did not."""
    try:
        with _place(scratch) as place:
            action(place)
    except UnionfsError as exc:
        return str(exc).partition(": ")[2] or str(exc)
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def probe_aufs(scratch: bytes | None = None) -> BackendStatus:
    """Try AUFS."""
    failed = _outcome(lambda place: _try_union(mount_aufs, place), scratch)
    if not failed:
        return BackendStatus("aufs", True, "mounted a union")
    return BackendStatus(
        "aufs",
        False,
        failed,
        "boot a kernel with AUFS (aufs-dkms, or a patched one) and mount as root",
    )


def probe_overlay(scratch: bytes | None = None) -> BackendStatus:
    """Try overlayfs with the caller's rights in the present namespaces."""
    failed = _outcome(lambda place: _try_union(mount_overlay, place), scratch)
    if not failed:
        return BackendStatus("overlay", True, "mounted a union")
    if not _sys.has_capability(_sys.CAP_SYS_ADMIN):
        remedy = "use `unionfs run` or `unionfs shell`, or mount as root"
    else:
        remedy = "load the module (`modprobe overlay`); use ext4, xfs or btrfs and not overlayfs"
    return BackendStatus("overlay", False, failed, remedy)


def probe_userns_overlay(scratch: bytes | None = None) -> BackendStatus:
    """Try overlayfs in a new user namespace, in a child process."""
    name = "overlay-userns"
    place = tempfile.gettempdir() if scratch is None else os.fsdecode(scratch)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "unionfs.kernel.probe", place],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
        said = json.loads(child.stdout)
        failed = str(said["failed"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as exc:
        failed = f"the probe died: {exc}"
    if not failed:
        return BackendStatus(name, True, "mounted a union in a user namespace")
    return BackendStatus(
        name,
        False,
        failed,
        "allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone,"
        " kernel.apparmor_restrict_unprivileged_userns) on Linux 5.11 or later",
    )


def probe_fuse(scratch: bytes | None = None) -> BackendStatus:
    """Mount the FUSE device, by ourselves or with fusermount3, and unmount it at once."""

    def action(place: bytes) -> None:
        options = MountOptions().settled(uid=os.geteuid(), writable=True)
        os.close(mount_device(place, options))
        with contextlib.suppress(UnionfsError):
            unmount(place, lazy=True)

    failed = _outcome(action, scratch)
    if not failed:
        return BackendStatus("fuse", True, "mounted the device")
    if not os.path.exists("/dev/fuse") or not stat.S_ISCHR(os.stat("/dev/fuse").st_mode):
        remedy = "load the module (`modprobe fuse`); in a container pass --device /dev/fuse"
    else:
        remedy = "install fuse3 (fusermount3 must be setuid root), or use `unionfs run`"
    return BackendStatus("fuse", False, failed, remedy)


def enter_user_namespace() -> None:
    """Become root of new user and mount namespaces; OSError when the machine refuses."""
    uid, gid = os.geteuid(), os.getegid()
    _sys.unshare(_sys.CLONE_NEWUSER | _sys.CLONE_NEWNS)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _main() -> None:
    try:
        enter_user_namespace()
    except OSError as exc:
        text = exc.strerror or "refused"
        if exc.errno in (errno.ENOSPC, errno.EPERM, errno.EACCES):
            text = f"user namespaces are not allowed here ({text})"
        failed = text
    else:
        place = os.fsencode(sys.argv[1])
        failed = _outcome(lambda inner: _try_union(mount_overlay, inner), place)
    sys.stdout.write(json.dumps({"failed": failed}))


if __name__ == "__main__":
    _main()
