"""The metrics of a mount, read back by the rules of the exposition format."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import pytest

from unionfs.control.prometheus import text

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_SAMPLE = re.compile(rf"({_NAME})\{{(.*)\}} (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(?:,|$)')

STATS: dict[str, Any] = {
    "target": '/m"o\\u\nnt\udcff',
    "since": 1700000000.25,
    "buckets": [1e-06, 2e-06, None],
    "requests": {
        "lookup": {"count": 6, "errors": 1, "seconds": 0.5, "bytes": 0, "buckets": [1, 2, 3]},
        "read": {"count": 1, "errors": 0, "seconds": 1e-07, "bytes": 9, "buckets": [1, 0, 0]},
    },
    "branches": [{"branch": "rw", "path": "/rw", "entries_read": 3}],
    **dict.fromkeys(
        ("lookups", "cache_hits", "entries_read", "directories_read", "copy_ups", "copy_up_bytes",
         "journaled", "live_nodes", "open_files", "watchers"),
        7,
    ),
}  # fmt: skip


def parse(page: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Read a page strictly: every sample is announced, of its family, and told once."""
    assert page.endswith("\n")
    kinds: dict[str, str] = {}
    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    family = ""
    for line in page[:-1].split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in kinds
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family
            assert kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
            continue
        match = _SAMPLE.fullmatch(line)
        assert match, line
        name, inner, value = match.groups()
        labels = dict(_LABEL.findall(inner))
        assert "".join(item[0] for item in _LABEL.finditer(inner)) == inner, inner
        plain = re.sub(r"_(?:bucket|sum|count)$", "", name)
        assert family in (name, plain), line
        assert kinds[family] != "counter" or name.endswith("_total"), line
        assert labels not in [known for known, _ in found[name]], line
        found[name].append((labels, float(value)))
    return found


def test_every_line_follows_the_format() -> None:
    found = parse(text(STATS))
    ((labels, value),) = found["unionfs_lookups_total"]
    assert value == 7
    assert labels["mount"] == '/m\\"o\\\\\\\\u\\\\nnt\\\\xff'
    assert found["unionfs_branch_entries_read_total"][0][0]["branch"] == "rw"


def test_histograms_are_cumulative_and_end_with_everything() -> None:
    found = parse(text(STATS))
    buckets = found["unionfs_request_duration_seconds_bucket"]
    lookup = [(labels["le"], value) for labels, value in buckets if labels["op"] == "lookup"]
    assert lookup == [("1e-06", 1), ("2e-06", 3), ("+Inf", 6)]
    assert [float(le) for le, _ in lookup] == [1e-06, 2e-06, math.inf]
    counts = {
        labels["op"]: value for labels, value in found["unionfs_request_duration_seconds_count"]
    }
    assert counts == {"lookup": 6, "read": 1}


def test_the_reader_would_notice() -> None:
    for page in (
        "x 1\n",
        "# HELP x y\n# TYPE x counter\nx{} 1\n",
        '# HELP a_total y\n# TYPE a_total counter\nb_total{m="1"} 1\n',
        '# HELP a y\n# TYPE a gauge\na{m="1"} 1\na{m="1"} 2\n',
        '# HELP a y\n# TYPE a gauge\na{m="1" 1\n',
    ):
        with pytest.raises(AssertionError):
            parse(page)
