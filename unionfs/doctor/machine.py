"""What the machine has: file systems of the kernel, rights, helpers, user namespaces.

Invariant: reads and tries, changes nothing; what needs other rights happens in a child.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

from unionfs import _sys
from unionfs.doctor.checks import Check
from unionfs.errors import show
from unionfs.run.namespaces import GATES, subordinate_ranges

__all__ = ["ask_inner", "check_fuse", "check_kernel", "check_user_namespace"]

_SECONDS: Final = 60
_FILE_SYSTEMS: Final = ("aufs", "overlay", "fuse")
_CAPABILITIES: Final = {
    "CAP_SYS_ADMIN": _sys.CAP_SYS_ADMIN,
    "CAP_CHOWN": 0,
    "CAP_MKNOD": 27,
    "CAP_SYS_MODULE": _sys.CAP_SYS_MODULE,
}
_FUSE_CONF: Final = "/etc/fuse.conf"
_MAX_CONF: Final = 1 << 16


def ask_inner(directory: bytes) -> dict[str, Any]:
    """Return what `unionfs.doctor.inner` finds in a user namespace."""
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "unionfs.doctor.inner", directory],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
        found = json.loads(child.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        return {"entered": False, "why": f"the probe died: {exc}"}
    return found if isinstance(found, dict) else {"entered": False, "why": "the probe failed"}


def check_kernel() -> Iterator[Check]:
    """Tell which union file systems the kernel has now, has as a module, or has not."""
    with open("/proc/filesystems", encoding="ascii") as table:
        present = {line.split()[-1] for line in table}
    modules = f"/lib/modules/{os.uname().release}/modules.dep"
    names: set[str] = set()
    with contextlib.suppress(OSError), open(modules, encoding="utf-8") as file:
        names = {os.path.basename(line.partition(":")[0]).partition(".")[0] for line in file}
    for name in _FILE_SYSTEMS:
        if name in present:
            yield Check("kernel", f"file system {name}", True, "there")
        elif name in names:
            yield Check(
                "kernel", f"file system {name}", False, "a module, not loaded", f"modprobe {name}"
            )
        else:
            yield Check(
                "kernel",
                f"file system {name}",
                None if name == "aufs" else False,
                "neither in the kernel nor among its modules",
            )
    held = [name for name, number in _CAPABILITIES.items() if _sys.has_capability(number)]
    detail = f"uid {os.geteuid()}, {', '.join(held) if held else 'none of those that matter'}"
    yield Check("rights", "capabilities", None, detail)


def check_user_namespace(inner: dict[str, Any]) -> Iterator[Check]:
    """Judge what the child found, and the switches that may be the reason."""
    area = "user namespace"
    yield Check(
        area, "can be made", bool(inner["entered"]), "" if inner["entered"] else inner["why"]
    )
    for path, bad, remedy in GATES:
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            name = path.removeprefix("/proc/sys/").replace("/", ".")
            value = file.read().strip()
            yield Check(area, name, None, value, remedy if value == bad else "")
    yield from _check_ranges(inner)
    if not inner["entered"]:
        return
    for key, name, remedy in (
        ("whiteout_device", "device 0/0 (overlay's whiteout)", "use ext4, xfs or btrfs"),
        ("mount_namespace", "own mounts", ""),
        ("proc", "own /proc", "in a container: do not mask /proc, or run with --privileged"),
    ):
        said = inner.get(key) or {"ok": False, "why": "not tried"}
        yield Check(area, name, bool(said["ok"]), str(said.get("why") or ""), remedy)


def _check_ranges(inner: dict[str, Any]) -> Iterator[Check]:
    uid = os.geteuid()
    granted = []
    for path in ("/etc/subuid", "/etc/subgid"):
        ranges = subordinate_ranges(path, uid)
        total = sum(item.count for item in ranges)
        granted.append(bool(total))
        yield Check(
            "user namespace",
            path,
            None,
            f"{total} ids" if total else "no range for you",
            ""
            if total or uid == 0
            else f"as root: usermod --add-subuids 100000-165535 "
            f"--add-subgids 100000-165535 $(id -un {uid})",
        )
    if inner["entered"]:
        many = not inner["single"]
        yield Check(
            "user namespace",
            "more than one user inside",
            many if all(granted) else None,
            "yes" if many else str(inner["why"]),
            ""
            if many
            else "install uidmap (newuidmap and newgidmap, set-uid root) and grant ranges",
        )


def check_fuse(inner: dict[str, Any], handshake: dict[str, Any] | str) -> Iterator[Check]:
    """Judge /dev/fuse, fusermount3 and fuse.conf; `handshake` is INIT's content or a reason."""
    area = "fuse"
    try:
        mode = os.stat("/dev/fuse").st_mode
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        yield Check(area, "/dev/fuse", True, f"mode {stat.S_IMODE(mode):04o}")
    except FileNotFoundError:
        yield Check(area, "/dev/fuse", False, "missing", "modprobe fuse, or --device /dev/fuse")
    except OSError as exc:
        yield Check(area, "/dev/fuse", False, exc.strerror or "", "as root: chmod 666 /dev/fuse")
    helper = shutil.which("fusermount3")
    if helper is None:
        yield Check(area, "fusermount3", None, "not installed", "install the package fuse3")
    else:
        status = os.stat(helper)
        good = status.st_uid == 0 and bool(status.st_mode & stat.S_ISUID)
        yield Check(
            area,
            "fusermount3",
            good or os.geteuid() == 0,
            f"{show(helper)}, {'set-uid root' if good else 'not set-uid root'}",
            "" if good else f"as root: chown root {show(helper)} && chmod 4755 {show(helper)}",
        )
    allowed = _allows_others()
    yield Check(
        area,
        "user_allow_other",
        None,
        "yes" if allowed else "no: other users cannot be let into a plain user's mounts",
        "" if allowed else f"add the line user_allow_other to {_FUSE_CONF}",
    )
    inside = inner.get("fuse") or {"ok": False, "why": "no user namespace"}
    yield Check(area, "mount in a user namespace", bool(inside["ok"]), str(inside.get("why") or ""))
    if isinstance(handshake, str):
        if not inside["ok"]:
            yield Check(area, "protocol", False, handshake)
            return
        offer: dict[str, Any] = inside["result"]
    else:
        offer = handshake
    yield Check(
        area,
        "protocol",
        True,
        f"{offer['version']}, read-ahead {offer['max_readahead']} bytes",
    )
    yield Check(area, "features", None, ", ".join(offer["features"]))


def _allows_others() -> bool:
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as file:
            return any(
                line.strip() == "user_allow_other" for line in file.read(_MAX_CONF).split("\n")
            )
    except OSError:
        return False
