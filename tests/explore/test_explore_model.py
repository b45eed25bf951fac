"""What the explorer knows, without any terminal: kinds, rows, filters, paths."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.layers import image_of
from support.looking import Look, everything, nothing, opened, seen
from support.rows import ROWS, Row

from unionfs.errors import NotFoundError, UsageError, show
from unionfs.explore.model import ALL_KINDS, Cancelled, Explorer, Kind, up_to
from unionfs.explore.rows import build
from unionfs.explore.search import matcher, search, shown_name
from unionfs.explore.visit import add_up, find, first_bytes, unshow, verdict
from unionfs.explore.words import content, status_line
from unionfs.insight.explain import explain
from unionfs.insight.explanation import Verdict
from unionfs.insight.where import Where, of_directories, of_image
from unionfs.insight.wording import lines
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image

VALID = [row for row in ROWS if not row.error]

#: Layers, number of the one looked at, whether all changes since the base; rows.
TABLE = [
    ("a b ‖ c", 2, False, [" a 1", " b 1", "+c 2"]),
    ("a b ‖ c", 1, False, ["+a 1", "+b 1"]),
    ("a b ‖ c", 1, True, [" a 1", " b 1"]),
    ("a ‖ a", 2, False, ["~a 2"]),
    ("a b ‖ .wh.a", 2, False, ["-a 1", " b 1"]),
    ("a b ‖ .wh.a ‖ c", 3, False, ["!a 1", " b 1", "+c 3"]),
    ("a b ‖ .wh.a ‖ c", 3, True, ["-a 1", " b 1", "+c 3"]),
    ("b ‖ a ‖ .wh.a", 3, True, ["!a 2", " b 1"]),
    ("a ‖ .wh.a ‖ a", 3, False, ["+a 3"]),
    ("a ‖ .wh.a ‖ a", 3, True, ["~a 3"]),
    ("d/x ‖ d/y", 2, False, ["~d/ 2", " d/x 1", "+d/y 2"]),
    ("d/x e/z ‖ d/y", 2, False, ["~d/ 2", " d/x 1", "+d/y 2", " e/ 1", " e/z 1"]),
    ("d/x ‖ d/y d/.wh..wh..opq", 2, False, ["~d/ 2", "-d/x 1", "+d/y 2"]),
    ("d/x ‖ .wh.d", 2, False, ["-d/ 1", "-d/x 1"]),
    ("d/x ‖ .wh.d ‖ d/y", 3, False, ["+d/ 3", "!d/x 1", "+d/y 3"]),
    ("d/x ‖ .wh.d ‖ k", 3, False, ["!d/ 1", "!d/x 1", "+k 3"]),
    ("d/x ‖ d", 2, False, ["~d 2", "-d/x 1"]),
    ("d ‖ d/x", 2, False, ["~d/ 2", "+d/x 2"]),
    ("a ‖ a .wh.a", 2, False, ["~a 2"]),
    ("l>a ‖ l>b", 2, False, ["~l 2"]),
]


@pytest.mark.parametrize(("layers", "top", "aggregated", "rows"), TABLE)
def test_kinds(look: Look, layers: str, top: int, rows: list[str], *, aggregated: bool) -> None:
    explorer = look(layers)
    assert seen(explorer, top, aggregated=aggregated) == rows
    assert opened(everything(explorer, top, aggregated=aggregated)) == rows


@pytest.mark.parametrize("row", VALID, ids=lambda row: row.id)
def test_agrees_with_every_conformance_case(row: Row, tmp_path: Path) -> None:
    with Graph(os.fsencode(tmp_path / "store")) as graph:
        image_id, _ = import_image(graph, image_of(row.tars()), transport="test")
        where = of_image(graph, image_id)
    with Explorer(where) as explorer:
        rows = everything(explorer, explorer.top)
        kinds = {
            row.path: row.folder.kind(row.name)
            for row in map(rows.__getitem__, range(1, len(rows)))
        }
    gone = {Kind.DELETED, Kind.HIDDEN}
    assert {path for path, kind in kinds.items() if kind not in gone} == set(row.tree)
    expected = {line[3:]: line[:1] for line in row.changes}
    added = {path for path, kind in kinds.items() if kind is Kind.ADDED}
    assert added == {path for path, kind in expected.items() if kind == b"A"}
    # A deleted directory stands for all in it, as does a directory that became something else.
    directories = {b"", *(path for path, node in row.tree.items() if node[0] == "d")}
    deleted = {
        path
        for path, kind in kinds.items()
        if kind is Kind.DELETED and os.path.dirname(path) in directories
    }
    assert deleted == {path for path, kind in expected.items() if kind == b"D"}
    for path in (path for path, kind in expected.items() if kind == b"C"):
        assert kinds[path] is Kind.CHANGED


#: Whether a name shows now, and whether it did before.
_SIDES = {
    Kind.ADDED: (True, False),
    Kind.CHANGED: (True, True),
    Kind.SAME: (True, True),
    Kind.DELETED: (False, True),
    Kind.HIDDEN: (False, False),
}


def _shown(where: Where, number: int, path: bytes) -> int | None:
    """Return the layer that shows a path in the layers up to a number."""
    if number == 0:
        return None
    found = explain(up_to(where, number), path)
    return found.layer if found.verdict is Verdict.VISIBLE else None


_PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)
_LAYER = st.lists(st.tuples(_PATHS, st.sampled_from(["entry", "whiteout", "opaque"])), max_size=5)


@given(layers=st.lists(_LAYER, min_size=1, max_size=4), aggregated=st.booleans())
@settings(max_examples=60, deadline=None)
def test_agrees_with_explain_whatever_the_layers(
    layers: list[list[tuple[list[str], str]]], *, aggregated: bool
) -> None:
    with TemporaryDirectory() as place:
        paths = []
        for number, layer in enumerate(layers):
            root = Path(place, str(number))
            root.mkdir()
            paths.append(os.fsencode(root))
            for parts, kind in layer:
                name = {
                    "entry": parts[-1],
                    "whiteout": f".wh.{parts[-1]}",
                    "opaque": ".wh..wh..opq",
                }
                path = root.joinpath(*parts[:-1], name[kind])
                with contextlib.suppress(OSError):  # a file is in the way of a directory, or back
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
        where = of_directories(paths[::-1])
        with Explorer(where) as explorer:
            for top in range(1, explorer.top + 1):
                lens = explorer.lens(top, aggregated=aggregated)
                rows = everything(explorer, top, aggregated=aggregated)
                for row in map(rows.__getitem__, range(1, len(rows))):
                    now, before = (
                        _shown(where, number, row.path) for number in (lens.top, lens.below)
                    )
                    entry = row.folder.entry(row.name)
                    assert (now is not None, before is not None) == _SIDES[entry.kind]
                    if now is not None:
                        assert entry.number == now


def test_rows_are_numbered_as_they_stand(look: Look) -> None:
    explorer = look("a/b/c a/d b/x/y/z c ‖ a/b/e d/x .wh.c")
    rows = everything(explorer, 2)
    listed = [rows[at] for at in range(len(rows))]
    assert [row.path for row in listed] == [
        *(b"", b"a", b"a/b", b"a/b/c", b"a/b/e", b"a/d", b"b", b"b/x", b"b/x/y", b"b/x/y/z"),
        *(b"c", b"d", b"d/x"),
    ]
    assert [rows.index(row.path) for row in listed] == list(range(len(rows)))
    assert rows.index(b"a/b/nope") is None
    assert rows.nearest(b"a/b/nope/more") == rows.index(b"a/b")
    with pytest.raises(IndexError):
        rows[len(rows)]


@given(
    st.sets(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4).map("/".join), max_size=30),
    st.data(),
)
@settings(max_examples=50, deadline=None)
def test_rows_of_any_open_directories(paths: set[str], data: st.DataObject) -> None:
    with TemporaryDirectory() as place:
        for path in paths:
            Path(place, path).mkdir(parents=True, exist_ok=True)
        with Explorer(of_directories([os.fsencode(place)])) as explorer:
            wanted = data.draw(st.sets(st.sampled_from(sorted(paths)))) if paths else set()
            opened_paths = {os.fsencode(path) for path in wanted}
            rows = build(
                explorer, explorer.lens(1, aggregated=False), ALL_KINDS, opened_paths, None, nothing
            )
            listed = [rows[at].path for at in range(len(rows))]
            assert listed == sorted(set(listed), key=lambda path: path.split(b"/"))
            assert [rows.index(path) for path in listed] == list(range(len(rows)))
            assert {
                row.path for row in map(rows.__getitem__, range(1, len(rows))) if row.is_open
            } == {path for path in opened_paths if _all_open(path, opened_paths)}


def _all_open(path: bytes, opened_paths: set[bytes]) -> bool:
    parts = path.split(b"/")
    return all(b"/".join(parts[:depth]) in opened_paths for depth in range(1, len(parts)))


def test_only_what_is_opened_is_read(look: Look) -> None:
    explorer = look("a/b/c b/x/y ‖ a/b/e d/x")
    lens = explorer.lens(2, aggregated=False)
    rows = build(explorer, lens, ALL_KINDS, set(), None, nothing)
    assert explorer.reads == 2  # the root of each layer
    rows = build(explorer, lens, ALL_KINDS, {b"b"}, rows, nothing)
    assert explorer.reads == 3  # layer 1 alone has it
    build(explorer, lens, ALL_KINDS, {b"a", b"b"}, rows, nothing)
    assert explorer.reads == 5
    # Another lens looks at the same directories.
    build(explorer, explorer.lens(1, aggregated=False), ALL_KINDS, {b"a", b"b"}, None, nothing)
    assert explorer.reads == 5
    explorer.forget()
    build(explorer, lens, ALL_KINDS, {b"b"}, None, nothing)
    assert explorer.reads == 8


@pytest.mark.parametrize(
    ("kinds", "rows"),
    [
        ({Kind.ADDED}, ["~d/ 2", "+d/new 2"]),
        ({Kind.CHANGED}, ["~d/ 2", "~d/x 2"]),
        ({Kind.DELETED}, ["~d/ 2", "-d/old 1", "-e/ 1", "-e/f 1"]),
        ({Kind.SAME}, ["~d/ 2", " d/y 1", " k/ 1", " k/z 1"]),
        (set(), []),
    ],
)
def test_filter_by_kind(look: Look, kinds: set[Kind], rows: list[str]) -> None:
    explorer = look("d/x d/y d/old e/f k/z ‖ d/x d/new d/.wh.old .wh.e")
    assert opened(everything(explorer, 2, kinds=frozenset(kinds))) == rows


def test_a_filter_by_change_reads_only_where_something_changed(look: Look) -> None:
    explorer = look("a/b/c k/l/m k/n/o ‖ a/b/d")
    everything(explorer, 2, kinds=frozenset({Kind.ADDED}))
    assert explorer.reads == 2 + 2 + 2  # /, /a, /a/b, and nothing of /k


@pytest.mark.parametrize(
    ("text", "is_regex", "rows"),
    [
        ("b/c", False, ["a/", "a/b/", "a/b/c", "a/b/cc"]),
        ("B/C", False, []),
        ("UP", False, ["UPPER"]),
        ("up", False, ["UPPER"]),
        ("c$", True, ["a/", "a/b/", "a/b/c", "a/b/cc"]),
        ("/cc?$", True, ["a/", "a/b/", "a/b/c", "a/b/cc"]),
        ("c?$", False, []),
        (r"\\xff", True, [r"odd\xff"]),
        (r"\xff", False, [r"odd\xff"]),
    ],
)
def test_filter_by_text(look: Look, text: str, rows: list[str], *, is_regex: bool) -> None:
    explorer = look(r"a/b/c a/b/cc a/d UPPER odd\xff")
    lens = explorer.lens(1, aggregated=False)
    found = search(explorer, lens, ALL_KINDS, matcher(text, is_regex=is_regex), nothing)
    shown = [found[at] for at in range(1, len(found))]
    assert [show(row.path) + "/" * row.folder.entry(row.name).is_dir for row in shown] == rows


def test_a_bad_expression_is_an_error_for_people() -> None:
    with pytest.raises(UsageError, match="not a regular expression: missing"):
        matcher("(", is_regex=True)


@example("\x85\xa0\xad\u200b".encode())
@example(b"\x85\xa0\xad")
@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_names_are_shown_and_read_back(name: bytes) -> None:
    text = shown_name(name)
    assert text == show(name)
    assert text.isprintable()
    assert unshow(text) == name


def test_work_can_be_given_up(look: Look) -> None:
    explorer = look("a/b/c")
    lens = explorer.lens(1, aggregated=False)

    def tick() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        search(explorer, lens, ALL_KINDS, lambda _: True, tick)
    with pytest.raises(Cancelled):
        build(explorer, lens, ALL_KINDS, {b"a"}, None, tick)
    assert explorer.reads <= 1


def test_finding_a_path(look: Look) -> None:
    explorer = look("usr/bin/sh bin>usr/bin gone/x loop>loop ‖ .wh.gone")
    lens = explorer.lens(2, aggregated=False)
    assert find(explorer, lens, b"usr/bin/sh") == (b"usr/bin/sh", frozenset({Kind.SAME}))
    assert find(explorer, lens, b"bin/sh")[0] == b"usr/bin/sh"
    assert find(explorer, lens, b"bin")[0] == b"bin"
    assert find(explorer, lens, b"gone/x") == (b"gone/x", frozenset({Kind.DELETED}))
    assert find(explorer, lens, b"") == (b"", frozenset())
    with pytest.raises(NotFoundError, match="never existed; nearest: /usr/bin/sh"):
        find(explorer, lens, b"usr/bin/shh")
    with pytest.raises(NotFoundError, match="too many links"):
        find(explorer, lens, b"loop/x")


def test_the_explanation_is_that_of_explain(look: Look) -> None:
    explorer = look("etc/motd ‖ etc/.wh.motd ‖ x")
    words = list(lines(explain(explorer.where, b"etc/motd")))
    told = [line for line, _ in verdict(explorer.where, 3, b"etc/motd")]
    assert told[: len(words)] == words
    assert any("remove" in line for line in told)
    # Below the deletion the file is there, and what becomes of it is told as well.
    told = [line for line, _ in verdict(explorer.where, 1, b"etc/motd")]
    assert told[0].startswith("/etc/motd: visible, from layer 1")
    assert told[-1].startswith("With all layers: hidden by the whiteout /etc/.wh.motd in layer 2")


def test_attributes_and_content(look: Look) -> None:
    explorer = look("f#hello l>f d/x ‖ .wh.f")
    folder = explorer.folder(explorer.lens(2, aggregated=False), b"")
    assert folder is not None
    status = explorer.status(folder, b"f")
    assert not isinstance(status, str)
    assert stat.S_ISREG(status.mode)
    assert first_bytes(explorer, folder, b"f") == b"hello"
    assert explorer.target(folder, b"l") == b"f"
    owner = f"{status.uid}:{status.gid}"
    assert status_line(Kind.DELETED, 1, status) == f"deleted · layer 1 · file 0644 {owner} 5B"
    with pytest.raises(OSError, match="not a regular file"):
        first_bytes(explorer, folder, b"d")


def test_bytes_of_a_directory(look: Look) -> None:
    explorer = look("d/a#12345 d/s/b#12 d/h&d/a k#1 gone/x#1234 l>k ‖ d/a#1 .wh.gone")
    lens = explorer.lens(2, aggregated=False)
    root = explorer.root(lens)
    assert add_up(explorer, root, b"d", nothing) == (3, 1 + 2 + 5)
    assert add_up(explorer, root, b"gone", nothing) == (1, 4)
    assert add_up(explorer, root, b"", nothing) == (5, 1 + 2 + 5 + 1)
    assert root.sums == {b"d": 8, b"gone": 4, b"": 9}
    below = explorer.root(explorer.lens(1, aggregated=False))
    assert add_up(explorer, below, b"d", nothing) == (3, 5 + 2)  # two names of one file


def test_what_went_away_meanwhile_is_said(look: Look, tmp_path: Path) -> None:
    explorer = look("d/x")
    folder = explorer.folder(explorer.lens(1, aggregated=False), b"d")
    assert folder is not None
    (tmp_path / "layer1" / "d" / "x").unlink()
    assert explorer.status(folder, b"x") == "No such file or directory"
    (tmp_path / "layer1" / "d").rmdir()
    assert explorer.target(folder, b"x") == b""
    rows = build(explorer, folder.lens, ALL_KINDS, {b"d"}, None, nothing)
    assert [row.path for row in map(rows.__getitem__, range(len(rows)))] == [b"", b"d", b"d/x"]
    explorer.forget()
    assert explorer.folder(folder.lens, b"d") is None


def test_no_byte_of_content_reaches_the_terminal() -> None:
    assert content(b"one\ttwo\nesc\x1b[31m\xff") == ["one     two", r"esc\x1b[31m\xff"]
    assert content(b"\0\x1bAB\xff" + b"x" * 12) == [
        "00000000  00 1b 41 42 ff 78 78 78 78 78 78 78 78 78 78 78  ..AB.xxxxxxxxxxx",
        "00000010  78                                               x",
    ]
