"""The recorded results shown in docs/benchmark.rst and README.rst, drawn from their files.

`python -m support.benchpage` (with `tests` on the path) writes what the program says into both.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import Final

from support.commands import CHECKOUT, child_env
from support.readme import README, steps

__all__ = ["PAGE", "SHORT", "in_readme", "play", "shown"]

PAGE: Final = CHECKOUT / "docs" / "benchmark.rst"
#: What the table in the README is.
SHORT: Final = "unionfs bench show --brief bench/results/user.json"
_BLOCK: Final = re.compile(
    r"(?<=^    \$ " + re.escape(SHORT) + r"\n)(?:    .*\n|\n)*(?=\n\S)", re.MULTILINE
)


def play(command: str) -> list[str]:
    """Run one command in the checkout, and return what it prints."""
    program, *words = shlex.split(command)
    if program != "unionfs":
        raise ValueError(f"{command}: only unionfs is run here")
    done = subprocess.run(
        [sys.executable, "-m", "unionfs", *words],
        cwd=CHECKOUT,
        env=child_env(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [line.rstrip() for line in done.stdout.rstrip().splitlines()]


def shown() -> list[tuple[str, list[str], list[str]]]:
    """Return the commands of the page, what it shows, and what they print."""
    found = [(step.command, list(step.expected)) for step in steps(PAGE.read_text())]
    return [(command, expected, play(command)) for command, expected in found]


def in_readme() -> list[str] | None:
    """Return the table that the README shows; None if there is none."""
    match = _BLOCK.search(README.read_text())
    return None if match is None else [line[4:] for line in match[0].rstrip().splitlines()]


def _update() -> None:
    lines = PAGE.read_text().splitlines()
    for step in reversed(list(steps(PAGE.read_text()))):
        output = play(step.command)
        lines[step.first + 1 : step.end] = [f"    {line}".rstrip() for line in output]
    PAGE.write_text("\n".join(lines) + "\n")
    table = "".join(f"    {line}".rstrip() + "\n" for line in play(SHORT))
    README.write_text(_BLOCK.sub(lambda _: table, README.read_text(), count=1))


if __name__ == "__main__":
    _update()
