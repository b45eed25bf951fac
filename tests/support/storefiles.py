"""Entries of a graph written by hand, as another program (or an attacker) would leave them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def make_id(number: int) -> str:
    """Return a 64-digit id that begins with `number`, so that short prefixes differ."""
    return f"{number:08x}".ljust(64, "a")


def write_entry(
    root: Path, name: str, raw: bytes | None = None, *, layer: bool = True, **fields: Any
) -> Path:
    """Make `graph/<name>/` with `json` (`raw`, else `fields` over `{"id": name}`) and `layer/`."""
    path = root / "graph" / name
    path.mkdir(mode=0o700, parents=True)
    if raw is None:
        raw = json.dumps({"id": name, **fields}).encode()
    (path / "json").write_bytes(raw)
    if layer:
        (path / "layer").mkdir()
    return path


def chain(root: Path, length: int) -> list[str]:
    """Make `length` entries, each the parent of the next; return their ids, top-most first."""
    ids = [make_id(number) for number in range(length)]
    for number, name in enumerate(ids):
        raw = {"id": name, "parent": ids[number - 1] if number else ""}
        write_entry(root, name, json.dumps(raw).encode())
    return ids[::-1]


def tmp_names(root: Path) -> list[str]:
    """Return what is in the staging directory."""
    tmp = root / "graph" / ":tmp:"
    return sorted(os.listdir(tmp)) if tmp.exists() else []
