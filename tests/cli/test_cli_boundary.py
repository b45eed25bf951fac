"""How a command ends when it cannot do its work: one line, a fitting status, no traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from support.commands import Run, child_env

from unionfs.cli import boundary
from unionfs.cli.group import cli
from unionfs.errors import BusyError, NotFoundError, UsageError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Return a list: `unionfs images` raises its first element."""
    planned: list[BaseException] = []

    @click.command("images")
    def command() -> None:
        raise planned[0]

    monkeypatch.setattr(cli, "get_command", lambda _ctx, _name: command)
    return planned


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (NotFoundError("no image named `x`"), 1, "no image named `x`"),
        (BusyError("in use"), 1, "in use"),
        (UsageError("makes no sense"), 2, "makes no sense"),
        (NotFoundError("two\nlines"), 1, "two lines"),
        (
            OSError(errno.EACCES, "Permission denied", b"a\xffb\n"),
            1,
            r"a\xffb\n: Permission denied",
        ),
        (OSError(errno.EBADF, "Bad file descriptor", 7), 1, "Bad file descriptor"),
        (OSError(errno.EXDEV, "Cross", "a", None, "b"), 1, "a -> b: Cross"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_expected_errors_are_one_line(
    run: Run, failing: list[BaseException], error: BaseException, status: int, text: str
) -> None:
    failing.append(error)
    done = run("images")
    assert (done.status, done.out, done.err) == (status, "", f"unionfs: {text}\n")


def test_full_disk_says_what_to_do(run: Run, failing: list[BaseException]) -> None:
    failing.append(OSError(errno.ENOSPC, "No space left on device"))
    done = run("images")
    assert done.status == 1
    assert "free some space" in done.err


def test_ctrl_c_is_quiet(run: Run, failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    done = run("images")
    assert (done.status, done.out.strip(), done.err.strip()) == (130, "", "")


def test_a_defect_is_one_line_and_a_file(
    run: Run,
    failing: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("UNIONFS_TRACEBACK", raising=False)
    failing.append(KeyError("odd"))
    done = run("images")
    assert done.status == boundary.INTERNAL_ERROR
    assert done.err.count("\n") == 1
    match = re.fullmatch(
        r"unionfs: internal error \(KeyError: 'odd'\); this is a defect of unionfs, please report"
        r" it; details are in (.*)\n",
        done.err,
    )
    assert match
    assert "Traceback" in Path(match[1]).read_text()
    assert Path(match[1]).parent == tmp_path / "unionfs"


def test_details_of_defects_do_not_pile_up(
    run: Run,
    failing: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    failing.append(KeyError("odd"))
    for _ in range(15):
        last = run("images").err.rpartition(" ")[2].strip()
    files = list((tmp_path / "unionfs").iterdir())
    assert len(files) == 10
    assert Path(last) in files


def test_a_defect_without_a_place_for_details(
    run: Run,
    failing: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    failing.append(KeyError("odd"))
    assert run("images").err.endswith("run it again with -v for details\n")


def test_a_defect_shows_its_traceback_to_those_who_ask(
    run: Run, failing: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIONFS_TRACEBACK", "1")
    failing.append(KeyError("odd"))
    done = run("images")
    assert done.status == boundary.INTERNAL_ERROR
    assert "Traceback" in done.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["images", "--nonsense"], "No such option"),
        (["inspect"], "Missing argument 'IMAGE'"),
        (["mount", "--ready-fd", "-1", "a", "b"], "--ready-fd"),
    ],
)
def test_usage_errors_point_to_the_help(run: Run, arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert done.status == 2
    assert done.err.startswith("unionfs: ")
    assert done.err.count("\n") == 1
    assert text in done.err
    assert "--help`)" in done.err


def test_no_arguments_shows_the_help(run: Run) -> None:
    done = run()
    assert done.status == 2
    assert done.err.startswith("Usage: unionfs")


def test_a_closed_pipe_is_quiet(old_store: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "unionfs", "--root", old_store, "images"],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
            env=child_env(),
        )
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode != 0


def _spools(pid: int) -> bool:
    """Tell whether a process has an unnamed temporary file: it copies standard input."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(entry).endswith("(deleted)"):
                return True
    return False


def test_interrupt_of_a_real_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "unionfs", "--root", tmp_path / "store", "import", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_env(TMPDIR=str(tmp_path)),
    ) as child:
        try:
            while not _spools(child.pid):
                assert child.poll() is None
                time.sleep(0.05)
            child.send_signal(signal.SIGINT)
            # Not closed before: an end of input would end the command as well.
            assert child.wait(timeout=120) == 130
        finally:
            child.kill()
        out, err = child.communicate()
    assert (child.returncode, out, err.strip()) == (130, b"", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_nothing_half_made(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import os, sys; from unionfs.store import ingest; from unionfs.cli import main;"
        "finish = ingest.normalise;"
        f"ingest.normalise = lambda *a: (os.kill(os.getpid(), {int(number)}), finish(*a));"
        "main()"
    )
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("x")
    argv = ["--root", str(tmp_path / "store"), "import", str(tmp_path / "tree")]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, check=False, env=child_env()
    )
    assert done.returncode == 128 + number
    assert done.stdout == b""
    assert list((tmp_path / "store/graph/:tmp:").iterdir()) == []
    assert sorted(os.listdir(tmp_path / "store/graph")) == [".lock", ":tmp:"]
