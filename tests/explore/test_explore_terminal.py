"""The command on a real terminal of 80 columns and 24 rows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.commands import child_env
from support.insight import parse
from support.literal import lay_out_all
from support.rootless import as_nobody_argv, runtime
from support.tty import Tty, on_tty
from support.workspace import workspace

_LAYERS = r"etc/a#hello etc/b usr/x/y k\x1b]0;own\x07 ‖ etc/a etc/.wh.b etc/n ‖ w"
_COLOUR = re.compile(rb"\x1b\[[0-9;:]*?(?:(?<=[\[;])(?:3[0-8]|4[0-8]|9[0-7]|10[0-7]))[;:m]")


@pytest.fixture
def layers(tmp_path: Path) -> list[str]:
    paths = lay_out_all(parse(_LAYERS).layers, tmp_path)
    return [word for path in paths for word in ("--layer", os.fsdecode(path))]


def _argv(*words: str) -> list[str]:
    return [sys.executable, "-m", "unionfs", "explore", *words]


def _patched(code: str, *words: str) -> list[str]:
    """Return the words of the command with something changed in it."""
    main = "from unionfs.cli import main; main()"
    return [sys.executable, "-c", f"{code}\n{main}", "explore", *words]


def _env(**more: str) -> dict[str, str]:
    env = child_env(**{"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **more})
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        if name not in more:
            env.pop(name, None)
    return env


@contextmanager
def exploring(words: list[str], **env: str) -> Iterator[Tty]:
    with on_tty(_argv(*words), _env(**env)) as terminal:
        modes = terminal.modes()
        yield terminal
        # However it ended, the shell gets its terminal back: lines, echo, cursor, main screen.
        assert terminal.modes() == modes
        assert terminal.raw.rindex(b"\x1b[?1049l") > terminal.raw.rindex(b"\x1b[?1049h")
        assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")
        assert b"Traceback" not in terminal.raw


def test_a_session(layers: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with exploring(layers) as tty:
        tty.until("score")
        assert len(tty.lines) == 24
        assert tty.line("Layers").endswith("╮")
        assert "+ " in tty.line("  w")
        # A name that is an escape sequence is shown as characters.
        tty.line(r"k\x1b]0;own\x07")
        tty.press("down", "right")
        tty.until(" n ")
        tty.press("[")
        tty.until("Layer 2 ·")
        assert "- " in tty.line(" b ")
        tty.press("down", "down", "e")
        tty.until("layer 1    hidden by layer 2")
        tty.line("/etc/b: hidden by the whiteout")
        tty.press("escape")
        tty.until(lambda: "hidden by the whiteout" not in tty.text)
        tty.press("/")
        tty.until("Filter paths (text)")
        tty.press("x/y", "enter")
        tty.until("“x/y”")
        tty.line(" y ")
        assert "motd" not in tty.text
        tty.press("escape")
        tty.until("changes of the layer")
        tty.press("w")
        tty.until("Wasted: 6B of")
        tty.line("/etc/a")
        tty.press("escape")
        tty.until(lambda: "Wasted:" not in tty.text)
        tty.press("g")
        tty.until("Go to path")
        tty.press("/etc/b", "enter")
        tty.until("· /etc/b")
        tty.press("x")
        tty.until("Extract /etc/b into the directory")
        tty.press(str(out), "enter")
        tty.until((out / "b").exists)
        assert (out / "b").read_text() == "0"
        tty.press("?")
        tty.until("Keys and marks")
        tty.press("escape")
        tty.until(lambda: "Keys and marks" not in tty.text)
        tty.press("q")
        assert tty.wait() == 0
        assert b"\x1b]0;own" not in tty.raw


@pytest.mark.fuse
def test_a_live_mount_of_a_plain_user() -> None:
    with workspace() as place:
        for line in (
            "mkdir base top mnt out; echo one > base/one; echo two > base/two; touch top/.wh.one",
            "unionfs mount --layer top --layer base mnt --rw rw",
            "rm mnt/two; echo new > mnt/new",
        ):
            done = place.sh(line)
            assert done.returncode == 0, done.stderr
        env = _env(**{**place.env, **runtime().env})
        argv = as_nobody_argv(["unionfs", "explore", "mnt"])
        with on_tty(argv, env, cwd=place.path) as tty:
            tty.until("score")
            tty.line(" rw ")
            assert "+ " in tty.line("new")
            assert "- " in tty.line("two")
            assert "one" not in tty.text
            tty.press("h")
            tty.until(" one")
            assert "! " in tty.line(" one")
            # The mount goes on changing meanwhile.
            assert place.sh("echo late > mnt/late").returncode == 0
            tty.press("r")
            tty.until(" late")
            tty.press("end", "x")
            tty.until("Extract /two")
            tty.press("out", "enter")
            tty.until(lambda: place.sh("cat out/two").stdout == b"two\n")
            tty.press("q")
            assert tty.wait() == 0


def test_narrow_wide_and_back(layers: list[str]) -> None:
    with exploring(layers) as tty:
        tty.until("score")
        assert "drwx" not in tty.text
        tty.resize(120, 30)
        tty.until("drwxr-xr-x")
        tty.resize(40, 12)
        tty.until(lambda: "drwx" not in tty.text)
        tty.press("q")
        assert tty.wait() == 0


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (None, 0)]
)
def test_every_end_leaves_the_terminal_as_it_was(
    layers: list[str], number: signal.Signals | None, status: int
) -> None:
    with exploring(layers) as tty:
        tty.until("score")
        if number is None:
            tty.press("ctrl+c")
        else:
            os.kill(tty.pid, number)
        assert tty.wait() == status


_SLOW = """
import time
from unionfs.explore import extract
entry = extract._Copy._entry
def slow(self, *arguments):
    time.sleep(0.1)
    entry(self, *arguments)
extract._Copy._entry = slow
"""


@pytest.mark.parametrize("ending", [signal.SIGTERM, "\x11"])
def test_ending_amid_an_extraction_leaves_nothing(
    tmp_path: Path, ending: signal.Signals | str
) -> None:
    layer, out = tmp_path / "layer", tmp_path / "out"
    layer.mkdir()
    out.mkdir()
    for number in range(1000):
        (layer / f"{number:03}").touch()
    with on_tty(_patched(_SLOW, "--layer", str(layer)), _env()) as tty:
        tty.until("score")
        tty.press("x")
        tty.until("Extract /")
        tty.press(str(out), "enter")
        tty.until(lambda: any((inner / "002").exists() for inner in out.iterdir()))
        if isinstance(ending, str):
            tty.press(ending)  # ctrl-q works everywhere
        else:
            os.kill(tty.pid, ending)
        assert tty.wait() == (0 if isinstance(ending, str) else 143)
    assert list(out.iterdir()) == []


def test_without_colour_everything_can_be_told(layers: list[str]) -> None:
    with exploring(layers, NO_COLOR="1") as tty:
        tty.until("score")
        assert "+ " in tty.line("  w")
        tty.press("q")
        assert tty.wait() == 0
        assert not _COLOUR.search(tty.raw)
    with exploring(layers) as tty:
        tty.until("score")
        tty.press("q")
        tty.wait()
        assert _COLOUR.search(tty.raw)


_BROKEN = """
from unionfs.explore import app
def action_read(self): raise RuntimeError("made for the test")
app.ExploreApp.action_read = action_read
"""


def test_a_defect_is_one_line_and_the_terminal_comes_back(
    layers: list[str], tmp_path: Path
) -> None:
    with on_tty(_patched(_BROKEN, *layers), _env(XDG_STATE_HOME=str(tmp_path))) as tty:
        modes = tty.modes()
        tty.until("score")
        tty.press("r")
        assert tty.wait() == 70
        assert tty.modes() == modes
        assert b"Traceback" not in tty.raw
        after = tty.raw[tty.raw.rindex(b"\x1b[?1049l") :]
        assert b"unionfs: internal error (RuntimeError: made for the test)" in after
    assert "made for the test" in next(tmp_path.rglob("*.traceback")).read_text()


def test_stopping_and_going_on(layers: list[str]) -> None:
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with on_tty(shell, _env(PS1="host> ", HISTFILE="")) as tty:
        tty.until("host>")
        cooked = tty.modes() & termios.ICANON
        command = " ".join(f"'{word}'" for word in _argv(*layers))
        tty.press(f"clear; {command}", "enter")
        tty.until("score")
        tty.press("ctrl+z")
        tty.until("Stopped")
        # The shell says so before it makes the terminal its own again.
        tty.until(lambda: tty.modes() & termios.ICANON == cooked)
        tty.press("clear; fg", "enter")
        tty.until("score")
        tty.press("q")
        # pyte has one screen only, so what was drawn stays.
        tty.until(lambda: b"host> " in b"".join(tty.raw.split(b"\x1b[?1049l")[2:]))
        tty.press("exit 3", "enter")
        assert tty.wait() == 3


@pytest.mark.parametrize("missing", ["input", "output", "capable terminal"])
def test_without_a_terminal_it_says_what_to_use(layers: list[str], missing: str) -> None:
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            _argv(*layers),
            stdin=subprocess.DEVNULL if missing == "input" else theirs,
            stdout=subprocess.DEVNULL if missing == "output" else theirs,
            stderr=subprocess.PIPE,
            env=_env(TERM="dumb" if missing == "capable terminal" else "xterm"),
            check=False,
            timeout=60,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("unionfs: explore needs a terminal; `unionfs explain` and ")
    assert "--json" in line


def test_help_does_not_wait_for_textual() -> None:
    code = (
        "import sys; from unionfs.cli.boundary import run; status = run(['explore', '--help']);"
        "sys.exit(status or 'textual' in sys.modules or 'rich' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=_env(), capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert b"Browse layers" in done.stdout


def test_wrong_words_are_said_before_anything_is_drawn(tmp_path: Path) -> None:
    with on_tty(_argv("no/such"), _env(UNIONFS_ROOT=str(tmp_path / "none"))) as tty:
        assert tty.wait() in {1, 2}
        assert b"\x1b[?1049h" not in tty.raw
        assert b"unionfs: " in tty.raw
        assert b"Traceback" not in tty.raw
