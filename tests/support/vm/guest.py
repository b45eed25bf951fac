"""First process inside the machine: run the jobs of the plan, keep their output, switch off.

It reaps what daemons leave behind, as a first process must. Standard library only: it is
started as a script by the system's interpreter. Events go to the console, one line of JSON
each; everything else goes to files on the scratch disk, which the harness reads afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

MARK: Final = "@unionfs-vm "
_GRACE: Final = 30
_LINE: Final = 120
_BUSYBOX: Final = "/vm/busybox"
_RESULTS: Final = Path("/tmp/unionfs-vm-results")  # the scratch disk of this machine


def say(**event: object) -> None:
    """Tell the harness."""
    sys.stdout.write("\n" + MARK + json.dumps(event) + "\n")
    sys.stdout.flush()


def _prepare(environment: dict[str, str]) -> None:
    os.umask(0o022)
    os.environ.clear()
    os.environ.update(environment)
    _RESULTS.mkdir()
    Path(environment["HOME"]).mkdir()
    if os.path.exists("/dev/fuse"):
        os.chmod("/dev/fuse", 0o666)  # noqa: S103  # as distributions have it
    for setting in (
        "kernel/unprivileged_userns_clone",
        "kernel/apparmor_restrict_unprivileged_userns",
    ):
        path = Path("/proc/sys", setting)
        if path.exists():
            path.write_text("1" if setting.endswith("clone") else "0")


def _wait(pid: int, seconds: float) -> int | None:
    """Reap children until `pid` has ended; its exit status, or None after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)
        if not ended:
            time.sleep(0.05)
    return None


def _filesystems() -> list[str]:
    return Path("/proc/filesystems").read_text(encoding="ascii").split()


def _run(job: dict[str, Any], checkout: str, deadline: float) -> int:
    if job.get("needs") and job["needs"] not in _filesystems():
        say(event="skip", job=job["name"], reason=f"this kernel has no {job['needs']}")
        return 0
    if time.monotonic() >= deadline:
        return 1  # never reached, and reported as such
    say(event="start", job=job["name"])
    start = time.monotonic()
    with (_RESULTS / f"{job['name']}.txt").open("wb") as output:
        child = subprocess.Popen(
            job["argv"],
            cwd=checkout,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status = _wait(child.pid, min(job["seconds"], deadline - time.monotonic()))
        if status is None:
            os.killpg(child.pid, signal.SIGINT)  # pytest then reports what it has
            if _wait(child.pid, _GRACE) is None:
                os.killpg(child.pid, signal.SIGKILL)
    child.returncode = -signal.SIGKILL if status is None else status  # reaped here, not by it
    os.sync()  # should the machine hang later, this can still be read
    seconds = round(time.monotonic() - start, 1)
    say(event="end", job=job["name"], status=status, seconds=seconds, said=_last_line(job["name"]))
    return 0 if status == 0 else 1


def _last_line(name: str) -> str:
    lines = (_RESULTS / f"{name}.txt").read_bytes().decode("utf-8", "replace").split("\n")
    words = [line.rpartition("\r")[2].strip() for line in lines]
    return next((line for line in reversed(words) if line), "")[:_LINE]


def main() -> None:
    """Run all jobs; whatever happens, the machine ends."""
    plan = json.loads(Path("/vm/plan.json").read_text(encoding="utf-8"))
    try:
        _prepare(plan["environment"])
        unions = [name for name in ("aufs", "overlay", "fuse") if name in _filesystems()]
        say(event="boot", kernel=os.uname().release, unions=unions)
        deadline = time.monotonic() + plan["seconds"]
        failed = sum(_run(job, plan["checkout"], deadline) for job in plan["jobs"])
        with (_RESULTS / "dmesg.txt").open("wb") as output:
            subprocess.run([_BUSYBOX, "dmesg"], stdout=output, check=False)
        say(event="done", failed=failed)
    except BaseException as error:  # noqa: BLE001  # nobody else is left to tell it
        say(event="trouble", text=f"{type(error).__name__}: {error}")
    os.sync()
    subprocess.run([_BUSYBOX, "umount", "-r", "/tmp"], check=False)  # see _RESULTS
    subprocess.run([_BUSYBOX, "reboot", "-f"], check=False)


if __name__ == "__main__":
    main()
