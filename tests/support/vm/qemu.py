"""qemu: its command line, and a run that ends by itself or by the watchdog.

Every disk is attached twice, as virtio and as SATA, because the harness does not know which
drivers a kernel has; the guest uses what it sees first.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final

import attrs

from support.vm.errors import VmError

__all__ = ["MARK", "Disk", "KvmError", "Machine", "command", "event_of", "has_kvm", "run"]

MARK: Final = "@unionfs-vm "
_PROGRAM: Final = "qemu-system-x86_64"
_APPEND: Final = "console=ttyS0 panic=-1 loglevel=4 random.trust_cpu=on rdinit=/init"
#: All there is, but for a register that nested KVM offers and then refuses to set.
_CPU: Final = "max,arch-capabilities=off"
_KVM_FAILED: Final = ("KVM internal error", "kvm_buf_set_msrs", "KVM: entry failed")
_CHUNK: Final = 65536


class KvmError(VmError):
    """KVM is there and does not work (nested virtualisation); without it the machine may boot."""


@attrs.frozen
class Disk:
    """An image file for each of the two ways to attach it (the same one if read-only)."""

    virtio: Path
    sata: Path
    read_only: bool


@attrs.frozen
class Machine:
    """What is booted, and how much of this machine it may use."""

    kernel: Path
    initrd: Path
    disks: tuple[Disk, ...]
    kvm: bool
    cpus: int = 2
    megabytes: int = 2560


def has_kvm() -> bool:
    """Tell whether the caller may use KVM here."""
    try:
        with open("/dev/kvm", "r+b", buffering=0):
            return True
    except OSError:
        return False


def command(machine: Machine) -> list[str]:
    """Return qemu's command line."""
    argv = [_PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-machine", "q35", "-cpu", _CPU, "-serial", "stdio", "-device", "virtio-rng-pci"]
    # With both, qemu itself falls back when KVM is there but does not work.
    argv += ["-accel", "kvm"] if machine.kvm else []
    argv += ["-accel", "tcg"]
    argv += ["-smp", str(machine.cpus), "-m", str(machine.megabytes)]
    argv += ["-kernel", str(machine.kernel), "-initrd", str(machine.initrd), "-append", _APPEND]
    for number, disk in enumerate(machine.disks):
        ways = (("virtio-blk-pci", "", disk.virtio), ("ide-hd", f",bus=ide.{number}", disk.sata))
        for device, where, image in ways:
            name = f"{device[:3]}{number}"
            drive = f"if=none,id={name},format=raw,file.filename={str(image).replace(',', ',,')}"
            drive += ",readonly=on,file.locking=off" if disk.read_only else ",cache=unsafe"
            if device == "ide-hd" and disk.read_only:
                drive = drive.replace(",readonly=on", ",snapshot=on")  # SATA disks are writable
            argv += ["-drive", drive, "-device", f"{device},drive={name}{where}"]
    return argv


def event_of(line: str) -> dict[str, Any] | None:
    """Return the event in a line of the console, if it is one."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None  # a message of the kernel came between
    return event if isinstance(event, dict) and "event" in event else None


def run(
    argv: Sequence[str],
    log: Path,
    seconds: float,
    tell: Callable[[dict[str, Any]], None],
    boot_seconds: float | None = None,
) -> None:
    """Run qemu until it ends; VmError when it does not in time, or ends before it is done.

    KvmError when `boot_seconds` pass without an event: nested KVM may also stand still.
    """
    with log.open("wb") as console:
        try:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except FileNotFoundError as exc:
            raise VmError(f"{argv[0]} is missing; install qemu-system-x86") from exc
        try:
            assert child.stdout is not None
            last = _follow(child.stdout, console, seconds, tell, boot_seconds)
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
    if last.get("event") == "kvm":
        raise KvmError(f"KVM does not work here: {last['text']}")
    if last.get("event") == "late":
        raise VmError(f"watchdog: not done after {seconds:.0f} s ({last['doing']}); see {log}")
    if last.get("event") == "trouble":
        raise VmError(f"inside the machine: {last['text']}")
    if last.get("event") != "done":
        lines = log.read_text(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        raise VmError(f"the machine stopped early, saying: {words[-1] if words else 'nothing'}")


def _follow(
    stream: IO[bytes],
    console: IO[bytes],
    seconds: float,
    tell: Callable[[dict[str, Any]], None],
    boot_seconds: float | None,
) -> dict[str, Any]:
    """Copy the console and tell every event; return the last one."""
    last: dict[str, Any] = {}
    rest = b""
    ended = False
    start = time.monotonic()
    while not ended:
        booting = boot_seconds is not None and not last
        left = start + (boot_seconds if booting and boot_seconds else seconds) - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            if booting:
                return {"event": "kvm", "text": f"nothing started within {boot_seconds:.0f} s"}
            return {"event": "late", "doing": last.get("job", "booting")}
        data = os.read(stream.fileno(), _CHUNK)
        ended = not data
        console.write(data)
        console.flush()
        *lines, rest = (rest + (data or b"\n")).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if not last and any(sign in text for sign in _KVM_FAILED):
                return {"event": "kvm", "text": text}
            event = event_of(text)
            if event is not None:
                last = event
                tell(event)
    return last
