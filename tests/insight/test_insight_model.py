"""Random layers: every reader of branches in this package agrees with the merge of the union."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from support.insight import parse
from support.literal import lay_out_all

from unionfs.branch import Dialect, Stack
from unionfs.insight.compare import compare
from unionfs.insight.convert import convert
from unionfs.insight.explain import explain
from unionfs.insight.explanation import Verdict
from unionfs.insight.fix import apply, plan
from unionfs.insight.life import EventKind, life
from unionfs.insight.lint import lint
from unionfs.insight.model import Tree
from unionfs.insight.shipped import read_branch
from unionfs.insight.where import Where, of_directories
from unionfs.store.changes import changes

_NAMES = ("a", "b", "c")


def random_layer(rng: random.Random) -> str:
    """Return a layer without contradictions in itself, but with every kind of marker."""
    words: list[str] = []

    def fill(prefix: str, depth: int) -> None:
        if depth and rng.random() < 0.15:
            words.append(f"{prefix}.wh..wh..opq")
        for name in _NAMES:
            choice = rng.random()
            if choice < 0.25:
                words.append(f"{prefix}{name}")
            elif choice < 0.5 and depth < 3:
                words.append(f"{prefix}{name}/")
                fill(f"{prefix}{name}/", depth + 1)
            elif choice < 0.55:
                words.append(f"{prefix}{name}>x")
            if rng.random() < 0.2:
                words.append(f"{prefix}.wh.{name}")

    fill("", 0)
    return " ".join(words)


def shown_by(where: Where) -> set[bytes]:
    with Stack.open([named.path for named in where.branches]) as stack:
        return {path for path, _, _ in stack.walk()}


def all_paths() -> list[bytes]:
    paths = [b""]
    for _ in range(4):
        paths += [
            path + b"/" + name.encode() if path else name.encode()
            for path in list(paths)
            for name in _NAMES
            if path.count(b"/") < 3
        ]
    return sorted(set(paths) - {b""})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_everybody_agrees(seed: int, count: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # hypothesis chooses the seed
    text = " ‖ ".join(random_layer(rng) for _ in range(count))
    with tempfile.TemporaryDirectory() as root:
        where = of_directories(lay_out_all(parse(text).layers, Path(root)))
        expected = shown_by(where)
        tree = Tree()
        for named in reversed(where.branches):
            tree.apply(read_branch(named))
        assert {path for path, _ in tree.walk()} == expected
        for path in all_paths():
            is_visible = explain(where, path).verdict is Verdict.VISIBLE
            assert is_visible == (path in expected), path
            events = life(where, path)
            assert is_visible == bool(events and events[-1].kind is not EventKind.DELETED), path
        if count > 1:
            below = Where("", where.branches[1:])
            found = [(item.kind, b"/" + item.path) for item in compare(below, where)]
            paths = [named.path for named in where.branches]
            wanted = changes(paths[1:], paths[0], Dialect.AUFS)
            assert found == [(item.kind.value, item.path) for item in wanted]
        made = [
            convert(named.path, Dialect.AUFS, Dialect.OVERLAY_USER, named.path + b".o").path
            for named in where.branches
        ]
        back = [
            convert(path, Dialect.OVERLAY_USER, Dialect.AUFS, path + b".a").path for path in made
        ]
        assert shown_by(of_directories(back)) == expected
        # What a marker covered may hide nothing once that is gone: a few rounds.
        for _ in range(4):
            apply(plan(where, lint(where)))
            assert shown_by(where) == expected
        assert not [item for item in lint(where) if item.rule.fixable]
