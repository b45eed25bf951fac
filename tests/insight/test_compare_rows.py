"""`compare`: every row of the merge table, through every engine that is here, with the reasons.

What differs was measured once and written down in the table of cases; the engines here are the
real ones, and the reference must show what the row expects.
"""

from __future__ import annotations

import os
import stat

import pytest
from support.insight import empty_markers
from support.layers import image_of
from support.rows import ROWS, Node, Row, show_tree

from unionfs.insight.engines.contest import Verdict, contest
from unionfs.insight.engines.layers import imported
from unionfs.insight.engines.reasons import reasons_for
from unionfs.insight.engines.seen import Seen
from unionfs.insight.engines.workplace import workplace
from unionfs.insight.lint import Finding, lint_layers
from unionfs.insight.shipped import archive_branches, read_archive_layer

pytestmark = pytest.mark.usefixtures("as_root")

#: All but the FUSE mount, which needs a second per row and shows what the engine shows.
ENGINES = ("oci", "unionfs", "overlay", "overlay-naive", "fuse-overlayfs", "umoci")
K, F, U = "overlay-naive", "fuse-overlayfs", "umoci"

#: Row -> (what differs, why). `ENGINE PATH`: absent there, `+PATH`: there besides, `~PATH`: it is
#: something else; `ENGINE error`: it refuses the layers. Of a directory's content only the
#: directory is named. Rows that are not here: all agree.
DIFFER = {
    4: (f"{K} ~d, {F} ~d", {"implied-directory"}),
    5: (f"{F} x", {"whiteout-beside-entry"}),
    6: (f"{K} error, {F} x", {"whiteout-beside-entry"}),
    7: (f"{K} +d/old, {F} d", {"whiteout-beside-entry"}),
    8: (f"{K} error, {F} d", {"whiteout-beside-entry"}),
    9: (f"{K} error, {F} d", {"whiteout-beside-entry"}),
    10: (f"{F} d", {"whiteout-beside-entry"}),
    13: (f"{U} error", {"parent-is-file"}),
    20: (f"{K} ~l, {K} +l/x, {F} ~l, {U} r/x", {"parent-is-link"}),
    21: (f"{U} ~l, {U} l/y, {U} +r/y", {"parent-is-link"}),
    24: (f"{K} +p, {F} +p", {"whiteout-makes-directory"}),
    33: (f"{K} +a, {K} +d", {"opaque-root"}),
    34: (f"{K} +d/x", {"whiteout-in-opaque"}),
    35: (f"{K} error, {F} d/x", {"whiteout-beside-entry"}),
    40: (f"{F} d", {"whiteout-beside-entry"}),
    50: (f"{K} +.wh..wh.plnk, {U} +.wh..wh.plnk", {"aufs-metadata"}),
    62: (f"{F} error", {"name-over-251"}),
    65: (f"{K} error, {F} error", {"hardlink-to-lower"}),
    71: (f"{K} x, {F} x", {"device-zero"}),
    73: (f"{K} +.bay, {K} +bar, {K} +foo", {"opaque-root"}),
}
#: The store refuses these layers, and so does the reference; who does not, shows this.
INVALID = {41: {}, 42: {b"d": "d", b"d/x": "f"}, 43: {b"d": "d", b"d/x": "f"}, 54: {}}


def findings_of(row: Row) -> list[Finding]:
    image = image_of(empty_markers(row).tars())
    named = archive_branches(image)
    return lint_layers(
        read_archive_layer(branch, layer.open())
        for branch, layer in zip(reversed(named), image.layers, strict=True)
    )


def compared(row: Row) -> Verdict:
    image = image_of(row.tars())
    with workplace() as place, imported(image, place) as (sources, refusal):
        return contest(sources, place, ENGINES, refusal=refusal)


def differences(verdict: Verdict) -> set[str]:
    found = {f"{name} error" for name in verdict.refused}
    for item in verdict.paths():
        for name, (seen, what) in item.others.items():
            sign = {"absent": "", "extra": "+"}.get(what[0], "~")
            assert (seen is None) == (sign == "")
            found.add(f"{name} {sign}{os.fsdecode(item.path)}")
    return found


def node_of(seen: Seen, bodies: dict[bytes, bytes]) -> Node:
    if seen.fmt == stat.S_IFDIR:
        return "d", b"%o" % seen.mode
    if seen.fmt == stat.S_IFLNK:
        return "l", seen.content
    if seen.fmt == stat.S_IFREG:
        return "f", bodies[seen.content]
    return "c", b"%d:%d" % (os.major(seen.rdev), os.minor(seen.rdev))


def check_reference(row: Row, verdict: Verdict) -> None:
    import hashlib

    bodies = {
        hashlib.sha256(member.data).digest(): member.data
        for layer in row.layers
        for member in layer
    }
    shown = {path: node_of(seen, bodies) for path, seen in verdict.tree.items() if path}
    assert verdict.first == "oci"
    assert show_tree(shown) == show_tree(row.tree)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.error], ids=lambda row: row.id)
def test_row(row: Row) -> None:
    verdict = compared(row)
    check_reference(row, verdict)
    text, rules = DIFFER.get(row.number, ("", set()))
    assert differences(verdict) == set(filter(None, text.split(", ")))
    assert verdict.agree == (not text)
    left_out = {name for name, item in verdict.outcomes.items() if item.status.state == "left out"}
    # The kernel cannot be told that a device 0/0 is one; our mount refuses it with the reason.
    assert left_out == ({"overlay"} if row.number == 71 else set())
    if text:
        findings = findings_of(row)
        for item in verdict.paths():
            reasons = reasons_for(findings, item.path, item.others)
            assert {reason.engine for reason in reasons} == set(item.others), item.path
            assert {reason.finding.rule.id for reason in reasons} <= rules
        for name in verdict.refused:
            (reason,) = reasons_for(findings, None, [name])
            assert reason.finding.rule.id in rules


@pytest.mark.parametrize("row", [row for row in ROWS if row.error], ids=lambda row: row.id)
def test_refused_row(row: Row) -> None:
    verdict = compared(row)
    assert set(verdict.refused) >= {"oci", "unionfs", "overlay"}
    assert not verdict.agree
    assert F in verdict.worked
    assert all("wh" in verdict.outcomes[name].status.reason for name in verdict.refused)
    if row.number != 54:
        # Version 0.4.7 deletes directories for it; nobody should find that out here.
        assert "0.4.8" in verdict.outcomes[U].status.reason
        tree = {
            path: "d" if item.fmt == stat.S_IFDIR else "f" for path, item in verdict.tree.items()
        }
        assert {path: kind for path, kind in tree.items() if path} == INVALID[row.number]
    else:
        assert differences(verdict) >= {f"{F} .wh.x"}
    rules = {finding.rule.id for finding in findings_of(row)}
    assert rules & {"bare-whiteout", "entry-below-whiteout"}
