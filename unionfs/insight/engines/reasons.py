"""Why engines differ at a path: the rules of `lint` that the layers break there.

Invariant: a rule is named only if its table says that the engine in question does something else
than OCI says, so a finding that has nothing to do with a difference is no reason for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from unionfs.branch import whiteout
from unionfs.branch.whiteout import Meaning
from unionfs.insight.lint import Finding
from unionfs.insight.probe import join
from unionfs.insight.rules import Rule

__all__ = ["Reason", "reasons_for"]

#: Engine -> the name under which rules speak of it.
_SPOKEN: Final = {
    "aufs": "AUFS",
    "fuse-overlayfs": "fuse-overlayfs",
    "overlay-naive": "kernel overlayfs",
    "umoci": "umoci",
}
#: What other engines of ours, and the reference itself, can be explained by: any rule.
_SAME: Final = "as OCI"


@attrs.frozen
class Reason:
    """A broken rule, and what it says about one engine (empty: nothing in particular)."""

    finding: Finding
    engine: str
    says: str


def reasons_for(
    findings: Sequence[Finding], path: bytes | None, engines: Iterable[str]
) -> list[Reason]:
    """Return the reasons for differences of `engines` at `path` (None: they refuse the layers)."""
    found: list[Reason] = []
    for engine in engines:
        ranked = sorted(
            (
                (_distance(finding, path), number, finding)
                for number, finding in enumerate(findings)
                if _concerns(finding.rule, engine) and _distance(finding, path) is not None
            ),
            key=lambda item: (item[0], -item[2].rule.severity, item[1]),
        )
        if ranked:
            finding = ranked[0][2]
            says = finding.rule.shows.get(_SPOKEN.get(engine, ""), "")
            found.append(Reason(finding, engine, says))
    return found


def _concerns(rule: Rule, engine: str) -> bool:
    spoken = _SPOKEN.get(engine)
    if spoken is None:
        return True
    shows = rule.shows
    return shows[spoken] not in (_SAME, shows["OCI"])


def _distance(finding: Finding, path: bytes | None) -> int | None:
    """Tell how far a finding is from a path: components between them; None: elsewhere."""
    if path is None:
        return 0
    best: int | None = None
    for subject in _subjects(finding):
        gap: int | None = None
        if subject == path:
            gap = 0
        elif not subject or path.startswith(subject + b"/"):
            gap = path[len(subject) :].strip(b"/").count(b"/") + 1
        elif not path or subject.startswith(path + b"/"):
            gap = subject[len(path) :].strip(b"/").count(b"/") + 1
        if gap is not None and (best is None or gap < best):
            best = gap
    return best


def _subjects(finding: Finding) -> list[bytes]:
    """Return the paths that a finding is about: what a marker hides, and its directory."""
    parent, _, name = finding.path.rpartition(b"/")
    marker = whiteout.classify(name)
    if marker.meaning is Meaning.WHITEOUT:
        return [join(parent, marker.target)]
    if marker.meaning is Meaning.OPAQUE:
        return [parent]
    return [finding.path, *([] if finding.leads_to is None else [finding.leads_to])]
