"""Whether some overlayfs still writes a directory, asked of the kernel itself.

A mount may outlive every process that knows of it, in a namespace nobody can list. But
overlayfs marks an upper directory in use for as long as its superblock lives, and with
`index=on` refuses a second one with EBUSY before it looks at anything else. So we ask for
a mount that must fail (its work directory is its upper directory): EBUSY says in use,
EINVAL says free, and nothing is written either way.

Invariant: FREE is only said when no mount can be using the directory.
"""

from __future__ import annotations

import enum
import errno
import os
import subprocess
import sys

from unionfs import _sys

__all__ = ["Use", "ask", "boot_id", "upper_use"]


class Use(enum.Enum):
    """FREE and BUSY are certain; UNKNOWN means that the kernel could not be asked."""

    FREE = "free"
    BUSY = "busy"
    UNKNOWN = "unknown"


def boot_id() -> str:
    """Return what tells this boot of this machine from every other; empty when unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def ask(upper_fd: int) -> Use:
    """Ask as the caller is: needs the right to mount in the present namespaces."""
    if not _is_mounted_here(upper_fd):
        return Use.UNKNOWN
    try:
        context = _sys.fsopen(b"overlay")
    except OSError as exc:
        # Without overlayfs in the kernel there is no overlay mount (a module stays loaded
        # for as long as one exists, and fsopen loads it when there is one on disk).
        return Use.FREE if exc.errno == errno.ENODEV else Use.UNKNOWN
    try:
        path = b"/proc/self/fd/%d" % upper_fd
        _sys.fsconfig_set(context, b"index", b"on")
        for key in (b"lowerdir", b"upperdir", b"workdir"):
            _sys.fsconfig_set(context, key, path)
        _sys.fsconfig_create(context)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return Use.BUSY
        return Use.FREE if exc.errno == errno.EINVAL else Use.UNKNOWN
    finally:
        os.close(context)
    return Use.UNKNOWN


def _is_mounted_here(fd: int) -> bool:
    """Tell whether a directory was opened in the present mount namespace.

    The kernel refuses every other with the EINVAL that shall mean "free".
    """
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        ids = [line.split()[1] for line in info if line.startswith("mnt_id:")]
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split(" ", 1)[0] in ids for line in table)


def _reopen(fd: int) -> int:
    """Open a directory anew, in the present mount namespace; OSError if the name lies."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    again = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not os.path.samestat(os.fstat(fd), os.fstat(again)):
        os.close(again)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
    return again


def upper_use(upper_fd: int) -> Use:
    """Say whether an overlay mount anywhere on this machine writes the open directory.

    A plain user asks from a user namespace of its own, in a child process.
    """
    if _sys.has_capability(_sys.CAP_SYS_ADMIN):
        return ask(upper_fd)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        child = subprocess.run(
            [sys.executable, "-m", "unionfs.kernel.liveness", str(upper_fd)],
            pass_fds=[upper_fd],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return Use.UNKNOWN
    try:
        return Use(child.stdout.decode("ascii", "replace").strip())
    except ValueError:
        return Use.UNKNOWN


def _main() -> None:
    _sys.unshare(_sys.CLONE_NEWUSER | _sys.CLONE_NEWNS)
    sys.stdout.write(ask(_reopen(int(sys.argv[1]))).value + "\n")


if __name__ == "__main__":
    _main()
