"""Which directories are worth listing: the guess alone, on a table of directories."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.fuse.sought import Sought


class _Tree:
    """Directories by path; a directory's number is its place, the root's is 0."""

    def __init__(self, paths: dict[str, int]) -> None:
        self.paths = ["", *paths]
        self.counts = [len(paths), *paths.values()]

    def number(self, path: str) -> int:
        return self.paths.index(path)

    def count_names(self, ino: int) -> int:
        return self.counts[ino]

    def parent(self, ino: int) -> int:
        return self.number(self.paths[ino].rpartition("/")[0])

    def path(self, ino: int) -> bytes:
        return self.paths[ino].encode()

    def directories(self, ino: int) -> list[bytes]:
        start = self.paths[ino] + "/" if self.paths[ino] else ""
        inner = (path.removeprefix(start) for path in self.paths if path and path.startswith(start))
        return sorted(name.encode() for name in inner if "/" not in name)


class _Guess:
    """Looks for names in a tree's directories as a program would."""

    def __init__(self, tree: _Tree) -> None:
        self.tree = tree
        self.sought = Sought(tree)

    def look(self, path: str, times: int = 1) -> list[str]:
        number = self.tree.number(path)
        found: list[bytes] = []
        for _ in range(times):
            if self.sought.looked(number):
                found += self.sought.worth(number)
        return [path.decode() for path in found]


def _row(count: int, names: int = 10) -> _Guess:
    return _Guess(_Tree({"t": count} | {f"t/d{n:02}": names for n in range(count)}))


@pytest.mark.parametrize(("names", "looks"), [(3, 2), (64, 2), (96, 3), (3200, 100)])
def test_a_directory_is_named_once_when_a_part_of_its_names_was_looked_for(
    names: int, looks: int
) -> None:
    guess = _Guess(_Tree({"t": 1, "t/d": names}))
    assert guess.look("t/d", looks - 1) == []
    assert guess.look("t/d") == ["t/d"]
    assert guess.look("t/d", names) == []


def test_the_root_is_named_like_others() -> None:
    assert _row(3).look("", 2) == [""]


def test_neighbours_come_with_it_the_more_the_longer_the_row() -> None:
    guess = _row(40)
    assert guess.look("t/d00", 2) == ["t/d00"]
    assert guess.look("t/d01", 2) == ["t/d01", "t/d02", "t/d03"]
    assert guess.look("t/d04") == [f"t/d{n:02}" for n in range(4, 13)], "one name is enough now"
    assert guess.look("t/d13") == [f"t/d{n:02}" for n in range(13, 30)]
    assert guess.look("t/d30") == [f"t/d{n}" for n in range(30, 40)], "there are no more"


def test_what_is_named_already_is_left_out_of_a_row() -> None:
    guess = _row(9)
    assert guess.look("t/d03", 2) == ["t/d03"]
    assert guess.look("t/d01", 2) == ["t/d01"]
    assert guess.look("t/d02") == ["t/d02", "t/d04"]
    assert guess.look("t/d04", 9) == [f"t/d{n:02}" for n in range(4, 9)], "at once, for itself"


def test_a_large_neighbour_has_to_be_worth_it_itself() -> None:
    tree = _Tree({"t": 4, "t/a": 5, "t/b": 5, "t/d": 5, "t/e": 10_000})
    guess = _Guess(tree)
    for name in ("t/a", "t/d"):
        guess.look(name, 2)
    assert guess.look("t/e") == []


def test_a_large_neighbour_is_not_listed_with_others() -> None:
    guess = _Guess(_Tree({"t": 3, "t/a": 5, "t/b": 5, "t/c": 10_000}))
    guess.look("t/a", 2)
    assert guess.look("t/b", 2) == ["t/b", "t/c"], "it has not been looked at"
    small, large = guess.tree.number("t/b"), guess.tree.number("t/c")
    assert not guess.sought.too_large(small)
    assert guess.sought.too_large(large)
    assert guess.look("t/c", 400) == ["t/c"], "it is worth it for itself"
    assert not guess.sought.too_large(large)


def test_what_the_kernel_lists_by_itself_is_not_named() -> None:
    guess = _row(3)
    guess.sought.listed(guess.tree.number("t/d00"))
    assert guess.look("t/d00", 20) == []


def test_what_was_not_listed_after_all_is_named_again() -> None:
    guess = _row(9)
    for name in ("t/d00", "t/d01"):
        guess.look(name, 2)
    guess.sought.listed(guess.tree.number("t/d00"))
    guess.sought.unlisted(guess.tree.number("t/d05"))
    assert guess.look("t/d00", 20) == []
    assert guess.look("t/d01", 2) == ["t/d01"]
    assert guess.look("t/d02", 2) == ["t/d02", "t/d03", "t/d04"]


def test_a_forgotten_directory_is_new() -> None:
    guess = _row(3)
    guess.look("t/d00", 2)
    number = guess.tree.number("t/d00")
    guess.sought.forget(number)
    guess.sought.forget(guess.tree.number("t"))
    assert guess.look("t/d00", 2) == ["t/d00"]


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(1, 40)), max_size=60))
def test_what_is_named_was_asked_for_or_comes_with_it_once(looks: list[tuple[int, int]]) -> None:
    guess = _row(30, names=20)
    named = [guess.look(f"t/d{n:02}", times) for n, times in looks]
    flat = list(itertools.chain.from_iterable(named))
    neighbours = list(itertools.chain.from_iterable(found[1:] for found in named))
    assert len(neighbours) == len(set(neighbours))
    assert all(
        found[:1] in ([], [f"t/d{n:02}"]) for found, (n, _) in zip(named, looks, strict=True)
    )
    assert all(flat.count(path) <= 2 for path in flat)
    assert set(flat) <= {f"t/d{n:02}" for n in range(30)}
    totals = [sum(times for m, times in looks if m == n) for n in range(30)]
    assert {f"t/d{n:02}" for n in range(30) if totals[n] > 1} <= set(flat)
