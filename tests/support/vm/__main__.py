"""`python -m support.vm`: what `make test-vm` runs."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from support import image_builder
from support.vm import disks, kernel, qemu, report
from support.vm.cpio import Cpio
from support.vm.errors import VmError

_HERE: Final = Path(__file__).resolve().parent
_CHECKOUT: Final = _HERE.parents[2]
_CACHE: Final = _CHECKOUT / ".vm"
#: One run of pytest each: a kernel that hangs in one area still shows the others.
_AREAS: Final = ("kernel", "fuse", "union", "run", "doctor")
#: How much slower emulation is than KVM, roughly; only for limits of time.
_SLOW: Final = 8
_JOB_SECONDS: Final = 900
#: With KVM a machine that runs says so within this.
_KVM_BOOT: Final = 60
#: For booting, and for the machine to end its jobs.
_GRACE: Final = 120
_TEST_SECONDS, _SLOW_TEST_SECONDS = 120, 360


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def plan(areas: list[str], bench: list[str], *, kvm: bool, minutes: float = 40) -> dict[str, Any]:
    """Return what guest.py shall do."""
    python = str(_CHECKOUT / ".venv" / "bin" / "python")
    out = "/tmp/unionfs-vm-results"  # inside the machine; see guest.py
    factor = 1 if kvm else _SLOW
    jobs = [
        {
            "name": area.replace("/", "-"),
            "argv": [
                *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *("-o", f"timeout={_TEST_SECONDS if kvm else _SLOW_TEST_SECONDS}"),
                *(f"--junitxml={out}/{area.replace('/', '-')}.xml", f"tests/{area}"),
            ],
            "seconds": _JOB_SECONDS * factor,
        }
        for area in areas
    ]
    if bench != ["none"]:
        argv = [
            python,
            "-m",
            "bench",
            "--dir",
            "/tmp",
            "-o",
            f"{out}/bench",
            *bench,
        ]  # inside the machine
        jobs.append({"name": "bench", "argv": argv, "seconds": _JOB_SECONDS * factor})
    return {
        "checkout": str(_CHECKOUT),
        "seconds": minutes * 60 * factor,
        "jobs": jobs,
        "environment": {
            "HOME": "/tmp/home",  # inside the machine
            "PATH": "/usr/sbin:/usr/bin",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",  # inside the machine
        },
    }


def initrd(wanted: dict[str, Any], modules: list[kernel.Module], busybox: Path) -> bytes:
    """Return the first filesystem of the machine."""
    archive = Cpio()
    archive.device("dev/console", 5, 1)
    archive.file("busybox", busybox.read_bytes(), 0o755)
    archive.file("init", (_HERE / "init.sh").read_bytes(), 0o755)
    archive.file("checkout", wanted["checkout"].encode())
    archive.file("plan.json", json.dumps(wanted).encode())
    names = [f"{number:02}-{module.name}.ko" for number, module in enumerate(modules)]
    archive.file("modules/order", "".join(f"{name}\n" for name in names).encode())
    for name, module in zip(names, modules, strict=True):
        archive.file(f"modules/{name}", module.content)
    return archive.finish()


def _kernel(arguments: argparse.Namespace) -> kernel.Kernel:
    if not arguments.kernel:
        return kernel.debian_kernel(_CACHE)
    image = Path(arguments.kernel).resolve()
    version = kernel.release(image)
    modules = None
    if arguments.modules:
        modules = kernel.find_modules(Path(arguments.modules).resolve(), version)
    return kernel.Kernel(image, version, modules)


def _boot(arguments: argparse.Namespace, place: Path, *, kvm: bool) -> bool:
    chosen = _kernel(arguments)
    wanted = plan(
        arguments.tests.split(), arguments.bench.split(), kvm=kvm, minutes=arguments.minutes
    )
    busybox = kernel.unpack_package("busybox-static", _CACHE) / "bin" / "busybox"
    modules = [] if chosen.modules is None else kernel.order(chosen.modules)
    (place / "initrd").write_bytes(initrd(wanted, modules, busybox))
    image_builder.build(_CHECKOUT / ".demo")  # some tests use it, and the machine has no network
    system, checkout = disks.system_disk(_CACHE), disks.checkout_disk(_CHECKOUT, place)
    scratch = [disks.scratch_disk(place / f"scratch-{way}.ext4") for way in ("virtio", "sata")]
    machine = qemu.Machine(
        chosen.image,
        place / "initrd",
        (
            qemu.Disk(system, system, read_only=True),
            qemu.Disk(checkout, checkout, read_only=True),
            qemu.Disk(scratch[0], scratch[1], read_only=False),
        ),
        kvm,
    )
    _say(f"booting {chosen.release} ({'KVM' if kvm else 'TCG, slow'})")
    jobs: dict[str, int | None] = {job["name"]: None for job in wanted["jobs"]}

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "end":
            jobs[event["job"]] = event["status"]
        words = [f"{key} {value}" for key, value in event.items() if key != "event"]
        _say(f"  {event['event']}: {', '.join(words)}")

    out = Path(arguments.output)
    out.mkdir(parents=True, exist_ok=True)
    # The machine itself ends its jobs in time; this is for one that hangs.
    seconds = wanted["seconds"] + _GRACE * (1 if kvm else _SLOW)
    trouble = None
    try:
        log = out / "console.txt"
        qemu.run(qemu.command(machine), log, seconds, tell, _KVM_BOOT if kvm else None)
    except qemu.KvmError:
        raise
    except VmError as exc:
        trouble = exc
    lines, good = report.summary(disks.results(scratch, out / "results"), jobs)
    _say("\n".join(lines))
    _say(f"console and results: {out}")
    if trouble is not None:
        raise trouble
    return good


def _boot_somehow(arguments: argparse.Namespace, place: Path) -> bool:
    """Boot with KVM if that works, else without."""
    if qemu.has_kvm() and not arguments.tcg:
        try:
            return _boot(arguments, place, kvm=True)
        except qemu.KvmError as exc:
            _say(f"  {exc}; once more without")
    return _boot(arguments, place, kvm=False)


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Boot, show what happened, return the exit status."""
    parser = argparse.ArgumentParser(prog="make test-vm", description=__doc__)
    parser.add_argument("--kernel", default="", help="bzImage; default: fetch Debian's")
    parser.add_argument("--modules", default="", help="its lib/modules, if it has any")
    parser.add_argument("--tests", default=" ".join(_AREAS), help="directories in tests/")
    parser.add_argument("--bench", default="--quick", help="arguments for bench, or `none`")
    parser.add_argument("--output", default=str(_CACHE / "last"), help="where results go")
    parser.add_argument(
        "--minutes", type=float, default=40, help="watchdog (8 times that with TCG)"
    )
    parser.add_argument("--tcg", action="store_true", help="do not use KVM")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)  # the disks and the machine go with us
    _CACHE.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="run-", dir=_CACHE))
    try:
        return 0 if _boot_somehow(arguments, place) else 1
    except VmError as exc:
        sys.stderr.write(f"test-vm: {exc}\n")
        return 2
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    sys.exit(main())
