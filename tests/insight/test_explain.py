"""`explain`: every row of the merge table has its verdict; what it says and what it costs."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Run
from support.insight import MakeImage, MakeLayers
from support.layers import image_of
from support.literal import lay_out_all
from support.rows import ROWS, Row

from unionfs.branch import whiteout
from unionfs.branch.branch import Branch
from unionfs.insight.explain import explain
from unionfs.insight.explanation import Explanation, Role, Verdict
from unionfs.insight.where import Where, of_directories, of_image
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image

VALID = [row for row in ROWS if not row.error]

#: Row -> what hides each path that some layer ships and the union does not show, as
#: `PATH KIND AT LAYER` (w whiteout, o opaque, n non-directory); `-` for what never existed.
#: After `|` what differs when the layers lie there as they were spelled.
CAUSES = {
    2: "d/x w d/x 2",
    3: "d w d 2, d/s w d 2, d/s/z w d 2, d/x w d 2",
    4: "d/x w d/x 2",
    7: "d/old o d 2 | d/old w d 2",
    8: "d/old o d 2 | d/old w d 2",
    9: "d/old o d 2 | d/old w d 2",
    10: "d/old n d 2 | d/old w d 2",
    11: "d/old n d 2",
    14: "d/x o d 3 | d/x n d 2",
    15: "d/x w d 2",
    16: "d/x o d 3 | d/x n d 2",
    17: "l w l 2",
    19: "l/old n l 2",
    20: "l/x -",
    23: "nope -",
    24: "p -, p/q -, p/q/nope - | p/q/nope -",
    27: "x w x 2 | x w x 3",
    28: "d/s o d 2, d/s/z o d 2, d/x o d 2",
    29: "d/x o d 2",
    30: "d/x o d 2",
    31: "a/b/c/bar o a 2",
    32: "a/b/c/bar o a 2",
    33: "a o / 2, d o / 2, d/x o / 2",
    34: "d/x o d 2, d/y o d 2",
    37: "d/x o d 2",
    39: "d/x o d 2",
    40: "d/x o d 2 | d/x w d 2",
    44: "... w ... 2",
    45: ".baz w .baz 2",
    46: "d/.opq w d/.opq 2",
    52: "x w x 2, z w z 2",
    53: "x w x 2",
    55: "x w x 2",
    56: "x w x 2",
    58: r"a\nb w a\nb 2",
    59: r"a\xff\xfe w a\xff\xfe 2",
    60: "a* w a* 2",
    61: "n*251 w n*251 2",
    62: "n*252 w n*252 2",
    66: "a w a 2",
    73: ", ".join(
        f"{path} o / 4"
        for path in (
            *(".bay", ".baz", "bar", "bar/bax", "bar/bay", "baz", "foo", "foo/.abc", "foo/.bcd"),
            *("foo/.bcd/a", "foo/.bce", "foo/cde", "foo/cde/def", "foo/cde/efg", "foo/fgh"),
        )
    ),
}
_KINDS = {"w": "whiteout", "o": "opaque", "n": "not a directory"}


def causes(row: Row, *, literal: bool) -> dict[bytes, str]:
    from support.rows import _bytes

    stored, bar, spelled = CAUSES.get(row.number, "").partition(" | ")
    text = spelled if literal and bar else stored
    found = {}
    for item in filter(None, text.split(", ")):
        path, _, cause = item.partition(" ")
        words = cause.split()
        found[_bytes(path)] = (
            "never" if words == ["-"] else _cause(_KINDS[words[0]], _bytes(words[1]), words[2])
        )
    return found


def _cause(kind: str, at: bytes, layer: object) -> str:
    return f"{kind} {at!r} {layer}"


def shipped_paths(row: Row) -> set[bytes]:
    """Return every path that a layer ships or hides, with all parents, but no marker."""
    found: set[bytes] = set()
    for member in (member for layer in row.layers for member in layer):
        path = os.path.normpath(member.name.strip(b"/"))
        directory, name = os.path.split(path)
        marker = whiteout.classify(name)
        if marker.meaning is whiteout.Meaning.WHITEOUT:
            path = os.path.join(directory, marker.target)
        while path:
            found.add(path)
            path = os.path.dirname(path)
    return {path for path in found - {b"."} if b"/.wh." not in b"/" + path}


def check(row: Row, where: Where, *, literal: bool) -> None:
    expected = causes(row, literal=literal)
    for path in shipped_paths(row):
        answer = explain(where, path)
        if path in expected:
            assert actual_cause(answer) == expected.pop(path), path
            continue
        assert answer.verdict is Verdict.VISIBLE, (path, answer.words)
        if row.tree.get(path, ("", b""))[0] == "f" and row.number != 65:
            body = row.tree[path][1]
            assert answer.layer == int(body) + 1, (path, answer.words)
    assert not expected


def actual_cause(answer: Explanation) -> str:
    if answer.verdict is Verdict.NEVER:
        return "never"
    assert answer.verdict is Verdict.HIDDEN
    assert answer.barrier is not None
    return _cause(answer.barrier.kind.value, answer.barrier.at or b"/", answer.layer)


@pytest.mark.parametrize("row", VALID, ids=lambda row: row.id)
def test_row_as_stored(row: Row, tmp_path: Path) -> None:
    with Graph(os.fsencode(tmp_path / "store")) as graph:
        image_id, _ = import_image(graph, image_of(row.tars()), transport="test")
        check(row, of_image(graph, image_id), literal=False)


@pytest.mark.parametrize("row", [row for row in VALID if row.number != 62], ids=lambda row: row.id)
@pytest.mark.usefixtures("as_root")
def test_row_as_spelled(row: Row, tmp_path: Path) -> None:
    """Without normal form, as plain directories; row 62 cannot be spelled on a disk."""
    check(row, of_directories(lay_out_all(row.layers, tmp_path)), literal=True)


@pytest.mark.parametrize("row", [row for row in ROWS if row.error], ids=lambda row: row.id)
def test_refused_row_is_explained_all_the_same(row: Row, tmp_path: Path) -> None:
    """The store refuses such layers; as directories they are explained."""
    where = of_directories(lay_out_all(row.layers, tmp_path))
    answer = explain(where, row.layers[1][-1].name)
    assert answer.verdict is Verdict.RESERVED
    assert "layer 2" in answer.words
    below = explain(where, row.layers[0][-1].name)
    assert below.verdict is (Verdict.HIDDEN if row.number == 54 else Verdict.VISIBLE)


def test_all_rows_have_a_verdict() -> None:
    assert len(VALID) + 4 == 73


# -- words -------------------------------------------------------------------------


def test_opaque_ancestor_in_words(image: MakeImage, run: Run) -> None:
    image("usr/ usr/share/ usr/share/doc ‖ usr/ usr/.wh..wh..opq usr/new")
    done = run("explain", "demo/app:v1", "/usr/share/doc")
    assert done.status == 0
    first = done.out.splitlines()[0]
    assert first.startswith(
        "/usr/share/doc: hidden by `.wh..wh..opq` in /usr of layer 2 (demo/app:v1, "
    )
    assert "by `layer 1`" in first
    assert first.endswith("; layer 1 has it")
    assert "use the image as it was below layer 2" in done.err


def test_branches_and_their_entries_are_listed(layers: MakeLayers) -> None:
    where = layers("etc/ etc/motd#hello ‖ etc/ etc/.wh.motd ‖ other")
    answer = explain(where, b"etc//./motd")
    assert answer.path == b"/etc/motd"
    assert [facts.role for facts in answer.branches] == [Role.ABSENT, Role.MARKER, Role.HIDDEN]
    entry = answer.branches[2].entry
    assert entry is not None
    assert (entry.fmt, entry.size) == (stat.S_IFREG, 5)
    assert answer.branches[2].hidden_by == 2
    assert answer.words.startswith("hidden by the whiteout /etc/.wh.motd in layer 2 (")


def test_restoring_advice_works(layers: MakeLayers) -> None:
    where = layers("etc/ etc/motd ‖ etc/ etc/.wh.motd")
    answer = explain(where, b"/etc/motd")
    marker = os.path.join(where.branches[0].path, b"etc", b".wh.motd")
    assert os.fsdecode(marker) in answer.advice[0]
    os.unlink(marker)
    assert explain(where, b"/etc/motd").verdict is Verdict.VISIBLE


def test_directory_shows_its_merge(layers: MakeLayers) -> None:
    where = layers(
        "d/ d/gone d/kept d/both/ d/both/x d/covered ‖ d/ d/.wh.gone d/covered d/both/ d/new ‖ e"
    )
    children = {child.name: child for child in explain(where, b"/d").children}
    assert {name: child.given_by for name, child in children.items()} == {
        b"both": (2, 1),
        b"covered": (2,),
        b"gone": (),
        b"kept": (1,),
        b"new": (2,),
    }
    assert children[b"gone"].why == "whiteout in layer 2"
    assert children[b"covered"].hidden_in == (1,)
    assert children[b"covered"].why == "covered by layer 2"


def test_opaque_directory_shows_what_it_hides(layers: MakeLayers) -> None:
    where = layers("d/ d/old ‖ d/ d/.wh..wh..opq d/new")
    children = {child.name: child for child in explain(where, b"/d").children}
    assert children[b"old"].given_by == ()
    assert children[b"old"].why == "opaque directory in layer 2"
    assert children[b"new"].given_by == (2,)


def test_never_existed_names_the_nearest(layers: MakeLayers) -> None:
    answer = explain(layers("etc/ etc/nsswitch.conf etc/hosts"), b"/etc/nswitch.conf")
    assert answer.verdict is Verdict.NEVER
    assert answer.nearest == (b"/etc/nsswitch.conf",)


def test_nearest_names_may_be_hidden(layers: MakeLayers) -> None:
    answer = explain(layers("etc/ etc/app.conf ‖ etc/ etc/.wh.app.conf"), b"/etc/app.cnf")
    assert answer.verdict is Verdict.NEVER
    assert answer.words == "never existed; nearest: /etc/app.conf (hidden)"


def test_link_on_the_way_is_named(layers: MakeLayers) -> None:
    where = layers("usr/ usr/lib/ usr/lib/x lib>usr/lib a/ a/b>../usr")
    assert explain(where, b"/lib/x").see == b"/usr/lib/x"
    assert explain(where, b"/a/b/lib/x").see == b"/usr/lib/x"
    assert explain(where, b"/usr/lib/x").see is None


def test_entry_beside_its_whiteout_warns(layers: MakeLayers) -> None:
    answer = explain(layers("x ‖ x .wh.x"), b"/x")
    assert answer.verdict is Verdict.VISIBLE
    assert "AUFS" in answer.advice[0]


def test_reserved_and_too_long_names(layers: MakeLayers) -> None:
    where = layers("x ‖ .wh.x")
    reserved = explain(where, b"/.wh.x")
    assert reserved.verdict is Verdict.RESERVED
    assert reserved.advice == ("ask for the path that it hides: /x",)
    assert explain(where, b"/" + b"n" * 256).verdict is Verdict.TOO_LONG


@pytest.mark.parametrize(
    ("length", "said"), [(242, ()), (243, ("AUFS lists it",)), (252, ("no `.wh.` file can hide",))]
)
def test_long_names_are_told(length: int, said: tuple[str, ...], layers: MakeLayers) -> None:
    answer = explain(layers(f"d/ d/n*{length}"), b"/d/" + b"n" * length)
    assert answer.verdict is Verdict.VISIBLE
    assert len(answer.advice) == len(said)
    assert all(part in text for part, text in zip(said, answer.advice, strict=True))


def test_odd_bytes_survive_json_and_text(layers: MakeLayers, run: Run, tmp_path: Path) -> None:
    layers(r"a\n\xff ‖ .wh.a\n\xff")
    name = os.fsdecode(b"/a\n\xff")
    options = ("--layer", tmp_path / "layer2", "--layer", tmp_path / "layer1")
    document = run("explain", *options, "--json", name).json()
    assert os.fsencode(document["path"]) == b"/a\n\xff"
    assert document["verdict"] == "hidden"
    assert document["cause"]["kind"] == "whiteout"
    lines = run("explain", *options, name).out.splitlines()
    assert lines[0].startswith(r"/a\n\xff: hidden by the whiteout /.wh.a\n\xff in layer 2")
    assert len(lines) == 3


def test_rw_branch_over_an_image(image: MakeImage, run: Run, tmp_path: Path) -> None:
    image("etc/ etc/motd")
    rw = tmp_path / "rw"
    (rw / "etc").mkdir(parents=True)
    (rw / "etc" / ".wh.motd").touch()
    done = run("explain", "demo/app:v1", "--rw", rw, "/etc/motd")
    assert "hidden by the whiteout /etc/.wh.motd in rw branch" in done.out
    assert f"`unionfs undelete --image demo/app:v1 --rw {rw} /etc/motd`" in done.err
    assert run("undelete", "--image", "demo/app:v1", "--rw", rw, "/etc/motd").status == 0
    assert "visible, from layer 1" in run("explain", "demo/app:v1", "--rw", rw, "/etc/motd").out
    (rw / "etc" / "motd").write_text("mine")
    covered = run("explain", "demo/app:v1", "--rw", rw, "/etc/motd").err
    assert f"`unionfs revert --image demo/app:v1 --rw {rw} /etc/motd`" in covered


@pytest.mark.usefixtures("as_root")
def test_overlay_directories(tmp_path: Path) -> None:
    from unionfs.branch import Dialect

    for name in ("base", "top"):
        (tmp_path / name / "d").mkdir(parents=True)
    (tmp_path / "base" / "d" / "x").touch()
    (tmp_path / "base" / "y").touch()
    os.mknod(tmp_path / "top" / "y", stat.S_IFCHR, 0)
    os.setxattr(tmp_path / "top" / "d", "trusted.overlay.opaque", b"y")
    paths = [os.fsencode(tmp_path / name) for name in ("top", "base")]
    where = of_directories(paths, dialect=Dialect.OVERLAY)
    assert actual_cause(explain(where, b"y")) == _cause("whiteout", b"y", 2)
    assert actual_cause(explain(where, b"d/x")) == _cause("opaque", b"d", 2)


@pytest.mark.usefixtures("as_root")
def test_rw_branch_while_overlayfs_has_it(layers: MakeLayers, run: Run, tmp_path: Path) -> None:
    """The kernel's back end keeps a branch in overlayfs's form while it is mounted."""
    from unionfs.kernel.convert import enter, settle
    from unionfs.kernel.survey import Kind

    below = layers("d/ d/x y")
    rw = tmp_path / "rw"
    (rw / "d").mkdir(parents=True)
    for name in (".wh.y", "d/.wh..wh..opq"):
        (rw / name).touch()
    enter(os.fsencode(rw), [below.branches[0].path], Kind.TRUSTED)
    assert not (rw / ".wh.y").exists()
    options = ("--layer", tmp_path / "layer1", "--rw", rw)
    document = run("explain", *options, "/y", "--json").json()
    assert document["branches"][0]["dialect"] == "overlay"
    assert (document["verdict"], document["cause"]["kind"]) == ("hidden", "whiteout")
    assert run("explain", *options, "/d/x", "--json").json()["cause"]["kind"] == "opaque"
    changed = run("diff", *options, "--json").json()
    assert [(item["kind"], item["path"]) for item in changed] == [("D", "/d/x"), ("D", "/y")]
    assert run("lint", *options, "--fail-on", "info").status == 0
    alone = run("whiteouts", rw, "--json").json()
    assert [marker["path"] for marker in alone["markers"]] == ["/d", "/y"]
    settle(os.fsencode(rw))
    assert run("explain", *options, "/y", "--json").json()["cause"]["marker"] == "/.wh.y"


# -- cost --------------------------------------------------------------------------


def test_cost_grows_with_layers_and_depth_only(
    layers: MakeLayers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No directory is listed to explain a file, so the number of files cannot matter."""
    where = layers("a/ a/b/ a/b/f ‖ a/ a/b/ a/b/g ‖ a/ a/.wh.b")

    def forbidden(*_: object) -> None:
        raise AssertionError("a directory was listed")

    monkeypatch.setattr(Branch, "scan", forbidden)
    monkeypatch.setattr(os, "scandir", forbidden)
    monkeypatch.setattr(os, "listdir", forbidden)
    assert explain(where, b"/a/b/f").verdict is Verdict.HIDDEN
    assert explain(where.without_rw(), b"/a/b/g").layer == 3


def test_many_paths_cost_no_more_than_a_few(
    layers: MakeLayers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call into the kernel is counted: the same with 5 paths and with 5000 more."""
    where = layers("a/ a/b/ a/b/f a/b/gone ‖ a/ a/b/ a/b/.wh.gone ‖ c/")
    known = (b"/a/b/f", b"/a/b/gone", b"/a/b/.wh.x")
    unknown = (b"/a/b/f/x", b"/" + b"n" * 200, b"/a/x")
    small = calls_of(where, known, monkeypatch), calls_of(where, unknown, monkeypatch)
    for folder in range(5):
        inner = tmp_path / "layer1" / "a" / "b" / f"d{folder}"
        inner.mkdir()
        for name in range(1000):
            os.mknod(inner / f"n{name}")
    assert (calls_of(where, known, monkeypatch), calls_of(where, unknown, monkeypatch)) == small
    assert not {"listdir", "scandir"} & small[0].keys()
    # Nearest names are those of one directory in each layer, and of those above it.
    nearest = calls_of(where, (b"/a/b/d4/n99x",), monkeypatch)
    assert nearest["scandir"] <= 3 * 4 + 3
    assert sum(nearest.values()) < 100


def calls_of(
    where: Where, paths: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> dict[str, int]:
    """Return how often `explain` calls each function that asks the kernel."""
    counts: dict[str, int] = {}

    def counting(name: str) -> Callable[..., object]:
        function = getattr(os, name)

        def call(*words: object, **more: object) -> object:
            counts[name] = counts.get(name, 0) + 1
            return function(*words, **more)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "stat", "getxattr", "listxattr", "readlink", "scandir", "listdir"):
            patch.setattr(os, name, counting(name))
        for path in paths:
            explain(where, path)
    return counts


def test_all_that_hides_a_path_is_named(layers: MakeLayers, tmp_path: Path) -> None:
    del layers
    branches = [tmp_path / str(number) for number in range(9)]
    for branch in branches:
        (branch / "d").mkdir(parents=True)
    (branches[0] / "d" / "f").write_text("f")
    (branches[1] / "d" / ".wh.f").touch()
    (branches[8] / "d" / ".wh..wh..opq").touch()
    where = of_directories([bytes(branch) for branch in reversed(branches)])
    answer = explain(where, b"/d/f")
    assert "opq" in answer.words
    assert answer.advice[1].startswith("that alone would not show it: it is also hidden by")
    assert "/d/.wh.f" in answer.advice[1]
    above = explain(where, b"/d").advice
    assert len(above) == 1
    assert above[0].startswith("layer 8, layer 7, layer 6 and 5 more: hidden by")
