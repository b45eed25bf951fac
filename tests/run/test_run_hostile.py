"""Images made to lead the host's side of a run astray: links, FIFOs, huge tables, odd types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.rootless import runtime
from support.runner import Runner

from unionfs.errors import UsageError
from unionfs.run.users import MAX_TABLE, User, find_user


def _user(root: Path, text: bytes) -> User:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        return find_user(fd, text)
    finally:
        os.close(fd)


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """Return the directory `etc` of an image."""
    directory = tmp_path / "root/etc"
    directory.mkdir(parents=True)
    return directory


def test_names_and_numbers(etc: Path) -> None:
    root = etc.parent
    (etc / "passwd").write_bytes(
        b"#bad\nroot:x:0:0::/root:/bin/sh\nbad:x:-1:0::/:\nal:x:1000:1001::/home/al:\n1000:x:7:7::/seven:\n"
    )
    (etc / "group").write_bytes(b"g:x:44:root,al\nh:x:45:al\ng2:x:44:al\nbig:x:99999999999:al\n")
    assert _user(root, b"") == User(0, 0, (44,), b"/root")
    assert _user(root, b"al") == User(1000, 1001, (44, 45), b"/home/al")
    assert _user(root, b"al:g") == User(1000, 44, (), b"/home/al")
    assert _user(root, b"al:77") == User(1000, 77, (), b"/home/al")
    # A name wins over the same digits as a number.
    assert _user(root, b"1000") == User(7, 7, (), b"/seven")
    assert _user(root, b"1234") == User(1234, 0, (), b"/")
    for text in (b"bad", b"nobody", b"al:nogroup", b"4294967295", b"-1", b"99999999999", b"0x10"):
        with pytest.raises(UsageError):
            _user(root, text)


def test_no_tables_at_all(tmp_path: Path) -> None:
    assert _user(tmp_path, b"") == User(0, 0, (), b"/root")
    assert _user(tmp_path, b"5:6") == User(5, 6, (), b"/")


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "link to etc", "device"])
def test_a_table_that_is_no_plain_file_is_not_read(etc: Path, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "passwd").write_text("victim:x:1:1::/victim:\n")
    table = etc / "passwd"
    if kind == "link":
        table.symlink_to(secret / "passwd")
    elif kind == "fifo":
        os.mkfifo(table)
    elif kind == "directory":
        table.mkdir()
    elif kind == "device":
        table.symlink_to("/dev/zero")
    else:
        etc.rmdir()
        etc.symlink_to(secret)
    with pytest.raises(UsageError):
        _user(etc.parent, b"victim")


def test_a_table_is_read_up_to_a_limit(etc: Path) -> None:
    line = b"filler:x:5:5::/:\n"
    with (etc / "passwd").open("wb") as file:
        file.write(b"first:x:3:3::/:\n" + line * (MAX_TABLE // len(line)))
        file.write(b"late:x:4:4::/:\n")
        file.truncate(1 << 40)  # sparse: reading it whole would take all memory
    assert _user(etc.parent, b"first").uid == 3
    with pytest.raises(UsageError):
        _user(etc.parent, b"late")


both = pytest.mark.parametrize("inside", ["root-overlay", "user-fuse"], indirect=True)


# -- whole runs ------------------------------------------------------------------


@pytest.mark.parametrize(
    "directory", ["/proc/self/fd/3", "/proc/1/cwd", "/proc/self/cwd", "/proc/1/root/etc", "/link"]
)
@both
def test_no_working_directory_outside(inside: Runner, directory: str) -> None:
    (inside.image / "link").symlink_to("/proc/1/root")
    done = inside.run("--workdir", directory, "--", "pwd", status=125)
    assert "working directory" in done.stderr
    assert done.stdout == ""


@both
def test_a_working_directory_that_climbs_stays_inside(inside: Runner) -> None:
    (inside.image / "up").symlink_to("../../../../../..")
    assert inside.sh("pwd; ls -d bin", "--workdir", "/up") == "/\nbin\n"
    assert inside.sh("pwd", "--workdir", "/up/../etc") == "/etc\n"


@both
def test_a_made_working_directory_stays_inside(inside: Runner) -> None:
    outside = inside.place.path / "outside"
    inside.place.sh("mkdir outside")
    (inside.image / "out").symlink_to(outside)
    # Inside, the link leads to a path of the image that does not exist.
    assert inside.run("--ephemeral", "--workdir", "/out/new", "--", "pwd", status=125)
    assert list(outside.iterdir()) == []


@both
def test_mount_places_that_are_links(inside: Runner) -> None:
    outside = inside.place.path / "outside"
    inside.place.sh("mkdir outside")
    for name in ("dev", "proc", "sys", "tmp"):
        shutil.rmtree(inside.image / name)
        (inside.image / name).symlink_to(outside)
    done = inside.run("--ephemeral", "--", "sh", "-c", "echo ran; ls /", status=0)
    assert done.stdout.startswith("ran\n")
    for name in ("dev", "proc", "sys"):
        assert f"/{name} of the image is not a directory" in done.stderr
    assert list(outside.iterdir()) == []


@both
def test_an_image_without_mount_places(inside: Runner) -> None:
    for name in ("dev", "proc", "sys", "etc", "tmp", "run"):
        shutil.rmtree(inside.image / name)
    done = inside.run("--", "sh", "-c", "echo ran", status=0)
    assert done.stdout == "ran\n"
    assert "no /proc" in done.stderr
    assert inside.sh("ls / /dev/null", "--ephemeral").count("proc") == 1


@pytest.mark.parametrize("target", ["/proc/1/environ", "../../../etc/shadow", "/dev/null"])
@both
def test_lent_files_go_nowhere_else(inside: Runner, target: str) -> None:
    (inside.image / "etc/resolv.conf").unlink()
    (inside.image / "etc/resolv.conf").symlink_to(target)
    assert inside.sh("echo ran") == "ran\n"


@both
def test_modules_of_the_image_are_not_loaded_by_process_1(inside: Runner) -> None:
    """A lazy import after the change of root would run the image's code in process 1."""
    import encodings

    stem = Path(encodings.__file__).parent.parent
    trap = "import os\nos.write(2, b'TRAPPED')\n"
    for base in {str(stem), *filter(None, sys.path)}:
        place = inside.image / base.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        for name in ("traceback", "gettext", "locale", "pwd", "warnings", "linecache"):
            (place / f"{name}.py").write_text(trap)
    for words in (("true",), ("not-there",), ("/etc",)):
        assert "TRAPPED" not in inside.run("--user", "al", "--", *words).stderr


def test_after_the_change_of_root_nothing_can_be_imported() -> None:
    script = (
        "from unionfs.run import init; init._forget_host()\n"
        "try: import colorsys\n"
        "except ImportError: print('refused')"
    )
    argv = [*runtime().argv, "-c", script]
    env = {**os.environ, **runtime().env}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "refused\n"


def test_a_kernel_that_is_too_old_is_said_so(inside: Runner) -> None:
    """Stands in for Linux before 5.12: the call that came with it does not exist."""
    script = """
import errno, os, sys
from unionfs import _sys
def missing(target):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
_sys.make_read_only = missing
from unionfs.cli import main
sys.exit(main())
"""
    argv = (*inside.place.python, "-c", script, "run", "--backend", inside.backend)
    done = inside.place.run(*argv, "--layer", inside.image, "--", "true", check=False)
    assert done.returncode == 125, done.stderr
    assert "needs Linux 5.12 or later" in done.stderr
    assert done.stderr.count("\n") == 1
