"""What came out of the machine: JUnit files and texts, as a few lines for a person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import attrs

__all__ = ["Outcome", "outcome", "summary"]

_LONGEST: Final = 160


@attrs.define
class Outcome:
    """Counts of one run of pytest: failed tests with their first line, skips by reason."""

    passed: int = 0
    failed: dict[str, str] = attrs.field(factory=dict)
    skipped: Counter[str] = attrs.field(factory=Counter)


def outcome(junit: str) -> Outcome:
    """Read a JUnit document as pytest writes it; ValueError when it is none."""
    found = Outcome()
    try:
        root = ET.fromstring(junit)  # noqa: S314  # written by our own pytest a moment ago
    except ET.ParseError as exc:
        raise ValueError(f"not a JUnit document: {exc}") from exc
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        bad = case.find("failure") if case.find("error") is None else case.find("error")
        skip = case.find("skipped")
        if bad is not None:
            found.failed[name] = _first(bad.get("message") or bad.text or "")
        elif skip is not None:
            found.skipped[_first(skip.get("message") or "no reason given")] += 1
        else:
            found.passed += 1
    return found


def _first(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return re.sub(r"^Skipped: ", "", line)[:_LONGEST]


def _plain(text: str) -> list[str]:
    """Return the lines that stay on a terminal: what a carriage return overwrites does not."""
    shown = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in shown if line]


def summary(
    files: Mapping[str, Path], jobs: Mapping[str, int | str | None]
) -> tuple[list[str], bool]:
    """Return the lines to show and whether everything passed.

    `jobs` has the exit status of every job that was to run, None for one that hung or was
    never reached, a text with the reason for one that this kernel cannot do. A run of pytest
    that passed nothing is no success.
    """
    lines, good = [], True
    for job, status in jobs.items():
        if isinstance(status, str):
            lines.append(f"{job}: left out: {status}")
            continue
        junit = files.get(f"{job}.xml")
        text = (
            files[f"{job}.txt"].read_bytes().decode("utf-8", "replace")
            if f"{job}.txt" in files
            else ""
        )
        if status != 0:
            good = False
        if junit is None:
            shown = "ok" if status == 0 else f"FAILED, status {status}"
            table = files.get(f"{job}/table.txt")
            words = _plain(text)[-40:] if table is None else table.read_text().splitlines()
            lines += [f"{job}: {shown}", *(f"  {line}" for line in words)]
            continue
        try:
            found = outcome(junit.read_text(errors="replace"))
        except ValueError as exc:
            lines.append(f"{job}: FAILED, {exc}")
            good = False
            continue
        if found.failed or not found.passed:
            good = False
        ending = {0: "", 1: "", None: "; CUT OFF by the watchdog"}
        lines.append(
            f"{job}: {found.passed} passed, {len(found.failed)} failed,"
            f" {found.skipped.total()} skipped{ending.get(status, f'; ended with {status}')}"
        )
        lines += [f"  FAILED {name}: {why}" for name, why in found.failed.items()]
        lines += [f"  skipped {count}: {why}" for why, count in found.skipped.most_common()]
    return lines, good
