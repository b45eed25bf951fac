"""Progress: plain lines into files, bars on a terminal, never on standard output."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from support.commands import child_env

from unionfs.cli.progress import progress

_SNIPPET = """
from unionfs.cli.progress import progress
with progress("reading") as report:
    for done in range(0, 1001, 100):
        report("layer a", done, 1000)
    report("layer\\x1b b", 5, None)
"""


def test_one_plain_line_for_each_part(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("reading") as report:
        for done in range(0, 1000, 100):
            report("layer a", done, 1000)
        report("layer\x1b b", 1, None)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "reading layer a\nreading layer\\x1b b\n"


def test_a_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SNIPPET],
            stderr=theirs,
            stdout=subprocess.PIPE,
            check=True,
            env=child_env(TERM="xterm", COLUMNS="100"),
        )
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stdout == b""
    assert "reading layer a" in shown
    assert "reading layer\\x1b b" in shown


def test_no_colour_for_those_who_say_so() -> None:
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", _SNIPPET],
            stderr=theirs,
            check=True,
            env=child_env(TERM="xterm", COLUMNS="100", NO_COLOR="1"),
        )
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "reading layer a" in shown
    # SGR sequences that set a colour are 3X, 9X or 38;...
    assert "\x1b[3" not in shown.replace("\x1b[3A", "")
