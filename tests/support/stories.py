"""The sessions of the pages of docs/ and the rule list of docs/lint.rst, made from the program.

`python -m support.stories` (with `tests` on the path) writes the real output into the files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from support.commands import CHECKOUT
from support.readme import Step, steps
from support.workspace import Workspace, workspace
from unionfs.insight.rules import RULES

__all__ = ["LIVE", "PROVENANCE", "RULE_PAGE", "STORIES", "play", "rule_page", "shown"]

STORIES: Final = CHECKOUT / "docs" / "whiteouts.rst"
PROVENANCE: Final = CHECKOUT / "docs" / "provenance.rst"
LIVE: Final = CHECKOUT / "docs" / "live.rst"
RULE_PAGE: Final = CHECKOUT / "docs" / "lint.rst"
_HOME: Final = "/home/me"
_INTRODUCTION: Final = """\
Rules of ``unionfs lint``
=========================

Made from the rules themselves; ``unionfs lint --rules`` prints the same. An *error* is a layer of
which implementations lose or invent files; a *warning* one on which some of them differ; an *info*
is useless or unportable. Examples are the layers, base first, separated by ``‖``: ``d/`` a
directory (``@700`` its mode), ``f`` a file (``#text`` its content), ``l>t`` a symbolic link,
``h&t`` a hard link, ``x!`` a device 0/0, ``n*243`` a name of 243 letters.
"""


def play(place: Workspace, step: Step) -> list[str]:
    """Run one command; return both its outputs in the order in which they were written."""
    done = place.sh(f"exec 2>&1; {step.command}")
    text = bytes(done.stdout).decode().replace(str(place.path), _HOME)
    return [line.rstrip() for line in text.splitlines()]


def shown(page: Path) -> list[tuple[Step, list[str]]]:
    """Run all stories of a page as one session; return what each command of it says."""
    with workspace() as place:
        return [(step, play(place, step)) for step in steps(page.read_text())]


def rule_page() -> str:
    """Return the text of the page of rules."""
    parts = [_INTRODUCTION]
    for rule in RULES.values():
        parts.append(f"\n{rule.id}\n{'-' * len(rule.id)}\n\n")
        parts.append(f"*{rule.severity.name.lower()}*: {rule.title}. {rule.why}\n\n")
        if rule.example:
            parts.append(f"Example: ``{rule.example}``\n\n")
        parts += [f":{who}: {what}\n" for who, what in rule.shows.items()]
        fixable = " (``--fix`` does it)" if rule.fixable else ""
        parts.append(f":fix: {rule.fix}{fixable}\n")
    return re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", "".join(parts))


def _update() -> None:
    for page in (STORIES, PROVENANCE, LIVE):
        lines = page.read_text().splitlines()
        for step, output in reversed(shown(page)):
            lines[step.first + 1 : step.end] = [f"    {line}".rstrip() for line in output]
        page.write_text("\n".join(lines) + "\n")
    RULE_PAGE.write_text(rule_page())


if __name__ == "__main__":
    _update()
    print("docs updated", file=sys.stderr)  # noqa: T201  # run by hand
