"""The efficiency score and its parts against a computation of their own, by dive's definition.

The definition (dive 0.13, dive/filetree/efficiency.go): every leaf of a layer's own tree is an
occurrence of its path with its size; a whiteout is one of the path that it names, of 0 bytes if
that was no directory in the layers below, else of the sum of all that was in it. A path's
cumulative size is the sum of its occurrences; the score is the sum of the smallest ones over the
sum of all; a path with two or more is inefficient.

Invariant: nothing here asks unionfs what a layer shows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unionfs.insight.waste import report
from unionfs.insight.where import of_directories

NAMES = ("a", "b", "c")
PATHS = [
    *NAMES,
    *(f"d/{name}" for name in NAMES),
    *(f"d/e/{name}" for name in NAMES),
    *(f"f/{name}" for name in NAMES),
]
DIRECTORIES = ("d", "d/e", "f")


@attrs.frozen
class Layer:
    """Files with their sizes, and what is removed of the layers below: files or directories."""

    files: dict[str, int]
    removed: frozenset[str]


LAYERS = st.lists(
    st.builds(
        Layer,
        st.dictionaries(st.sampled_from(PATHS), st.integers(0, 50), max_size=6),
        st.frozensets(st.sampled_from([*PATHS, *DIRECTORIES]), max_size=3),
    ),
    min_size=1,
    max_size=5,
)


def effective(layers: list[Layer]) -> list[Layer]:
    """Drop removals of what is not there (dive ends the layer at one) and those inside others."""
    shown: set[str] = set()
    found = []
    for layer in layers:
        removed = {
            path
            for path in layer.removed
            if any(_is_in(file, path) for file in shown)
            and not any(path != other and _is_in(path, other) for other in layer.removed)
        }
        shown = {file for file in shown if not any(_is_in(file, path) for path in removed)}
        shown |= set(layer.files)
        found.append(Layer(layer.files, frozenset(removed)))
    return found


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def occurrences(layers: list[Layer], *, one_by_one: bool) -> dict[str, list[int]]:
    """Return dive's occurrences; `one_by_one` removes the files of a directory each by name."""
    below: dict[str, int] = {}
    found: dict[str, list[int]] = {}
    for layer in layers:
        for path in sorted(layer.removed):
            inside = [file for file in below if _is_in(file, path)]
            if path in below or one_by_one:
                for file in inside:
                    found.setdefault(file, []).append(0)
            else:
                found.setdefault(path, []).append(sum(below[file] for file in inside))
            for file in inside:
                del below[file]
        for path, size in layer.files.items():
            found.setdefault(path, []).append(size)
            below[path] = size
    return found


def score_of(found: dict[str, list[int]]) -> float:
    whole = sum(map(sum, found.values()))
    return sum(map(min, found.values())) / whole if whole else 1.0


def lay_out(layers: list[Layer], root: Path, *, opaque: bool) -> list[bytes]:
    """Make directories of the layers, the top-most first."""
    paths = []
    for number, layer in enumerate(layers):
        top = root / str(number)
        top.mkdir()
        for path, size in layer.files.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(bytes(size))
        for path in layer.removed:
            place = top / path
            if opaque and path in DIRECTORIES:
                place.mkdir(parents=True, exist_ok=True)
                (place / ".wh..wh..opq").touch()
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                (place.parent / f".wh.{place.name}").touch()
        paths.append(str(top).encode())
    return paths[::-1]


@pytest.mark.parametrize("opaque", [False, True])
@settings(max_examples=60, deadline=None)
@given(layers=LAYERS)
def test_numbers_are_those_of_dive(layers: list[Layer], opaque: bool) -> None:  # noqa: FBT001  # a parameter of the test
    layers = effective(layers)
    with tempfile.TemporaryDirectory() as root:
        found = report(of_directories(lay_out(layers, Path(root), opaque=opaque)))
    expected = occurrences(layers, one_by_one=True)
    assert found.score == score_of(expected)
    assert {
        item.path.decode(): (item.count, item.size) for item in found.references if item.count > 1
    } == {path: (len(all_), sum(all_)) for path, all_ in expected.items() if len(all_) > 1}
    assert found.inefficient == sum(sum(all_) for all_ in expected.values() if len(all_) > 1)
    # Where no directory is removed, that is dive to the letter; else dive sees more efficiency.
    plain = occurrences(layers, one_by_one=False)
    if not any(path in DIRECTORIES for layer in layers for path in layer.removed):
        assert plain == expected
    assert found.score <= score_of(plain)
    # Wasted is what is shipped and neither visible in the end nor the copy that shows.
    shown: dict[str, int] = {}
    for layer in layers:
        gone = [file for file in shown if any(_is_in(file, path) for path in layer.removed)]
        for file in gone:
            del shown[file]
        shown.update(layer.files)
    shipped = sum(sum(layer.files.values()) for layer in layers)
    assert (found.size, found.wasted) == (shipped, shipped - sum(shown.values()))


def test_example_of_dive() -> None:
    """The layers of dive's own test: 0.75, and one inefficient path of 7000 bytes."""
    layers = [
        Layer({"etc/nginx/nginx.conf": 2000, "etc/nginx/public": 3000}, frozenset()),
        Layer({"etc/nginx/nginx.conf": 5000, "etc/athing": 10000}, frozenset()),
    ]
    with tempfile.TemporaryDirectory() as root:
        found = report(of_directories(lay_out(layers, Path(root), opaque=False)))
    assert found.score == score_of(occurrences(layers, one_by_one=False)) == 0.75
    assert [(item.path, item.size) for item in found.references if item.count > 1] == [
        (b"etc/nginx/nginx.conf", 7000)
    ]
