"""`python -m support.vm`: what `make test-vm` runs."""

from __future__ import annotations

import argparse
import contextlib
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
#: One run of pytest each: a kernel that hangs in one area still shows the others. What only an
#: AUFS kernel can tell comes first.
_AREAS: Final = ("aufs", "kernel", "doctor", "run", "fuse", "union")
#: What emulation has the time for: the back ends (with FUSE x both tables of conformance), and
#: real programs in a run.
_SLOW_AREAS: Final = ("aufs", "kernel", "doctor", "run/test_run_image.py")
#: What the area `aufs`, which only a kernel with AUFS can do, consists of.
_AUFS: Final = (
    *("tests/kernel/test_aufs_live.py", "tests/kernel/test_aufs_options.py"),
    *("tests/kernel/test_conformance.py", "-k", "aufs"),
)
#: How much slower emulation is than KVM, roughly; only for limits of time.
_SLOW: Final = 8
_JOB_SECONDS: Final = 900
#: With KVM a machine that runs says so within this.
_KVM_BOOT: Final = 60
#: For booting, and for the machine to end its jobs.
_GRACE: Final = 120
_TEST_SECONDS, _SLOW_TEST_SECONDS = 120, 900


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def plan(areas: list[str], bench: list[str], *, kvm: bool, minutes: float = 40) -> dict[str, Any]:
    """Return what guest.py shall do; without `areas`, what this way of running has time for."""
    python = str(_CHECKOUT / ".venv" / "bin" / "python")
    out = "/tmp/unionfs-vm-results"  # inside the machine; see guest.py
    factor = 1 if kvm else _SLOW
    areas = areas or list(_AREAS if kvm else _SLOW_AREAS)
    jobs = []
    for area in areas:
        name = area.removesuffix(".py").replace("/", "-")
        argv = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        argv += ["-o", f"timeout={_TEST_SECONDS if kvm else _SLOW_TEST_SECONDS}"]
        argv += [f"--junitxml={out}/{name}.xml"]
        argv += _AUFS if area == "aufs" else [f"tests/{area}"]
        jobs.append(_job(name, argv, factor, "aufs" if area == "aufs" else None))
    if bench != ["none"]:
        argv = [python, "-m", "bench", "--dir", "/tmp"]  # inside the machine
        against = ["--backends", "plain,aufs,overlay,fuse,fuse-nolane", "--baseline", "aufs"]
        against += ["--no-scale", "-o", f"{out}/bench-aufs"]
        jobs.insert(1, _job("bench-aufs", [*argv, *against, *bench], factor, "aufs"))
        jobs.append(_job("bench", [*argv, "-o", f"{out}/bench", *bench], factor))
    return {
        "checkout": str(_CHECKOUT),
        "seconds": minutes * 60 * factor,
        "jobs": jobs,
        "environment": {
            "HOME": "/tmp/home",  # inside the machine
            "PATH": "/usr/sbin:/usr/bin",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "UNIONFS_TEST_PATIENCE": str(factor),
            "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",  # inside the machine
        },
    }


def _job(name: str, argv: list[str], factor: int, needs: str | None = None) -> dict[str, Any]:
    return {"name": name, "argv": argv, "seconds": _JOB_SECONDS * factor, "needs": needs}


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
    busybox = kernel.busybox(_CACHE)
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
    jobs: dict[str, int | str | None] = {job["name"]: None for job in wanted["jobs"]}

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "end":
            jobs[event["job"]] = event["status"]
        elif event["event"] == "skip":
            jobs[event["job"]] = event["reason"]
        words = [f"{key} {value}" for key, value in event.items() if key != "event"]
        _say(f"  {event['event']}: {', '.join(words)}")

    out = Path(arguments.output)
    out.mkdir(parents=True, exist_ok=True)
    # The machine itself ends its jobs in time; this is for one that hangs.
    seconds = wanted["seconds"] + _GRACE * (1 if kvm else _SLOW)
    log = out / "console.txt"
    good = False
    try:
        qemu.run(qemu.command(machine), log, seconds, tell, _KVM_BOOT if kvm else None)
    except qemu.KvmError:
        raise
    except BaseException:
        # Hung, broken or interrupted: what there is by now is worth having.
        with contextlib.suppress(VmError, OSError):
            _show(scratch, out, jobs)
        raise
    else:
        good = _show(scratch, out, jobs)
    if not arguments.tests and not kvm:
        left_out = [area for area in _AREAS if area not in _SLOW_AREAS]
        _say(f"left out, emulation is slow: most of {', '.join(left_out)} (see --tests)")
    return good


def _show(scratch: list[Path], out: Path, jobs: dict[str, int | str | None]) -> bool:
    """Take the results off the disks and tell them; return whether all is well."""
    lines, good = report.summary(disks.results(scratch, out / "results"), jobs)
    text = "\n".join(lines) + "\n"
    (out / "summary.txt").write_text(text)
    _say(text.rstrip("\n"))
    _say(f"summary, console and results: {out}")
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
    parser.add_argument("--tests", default="", help="what of tests/ (default: as fits)")
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
