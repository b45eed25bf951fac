"""What is sent ahead for which order of reading."""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.fuse import guess
from unionfs.fuse.guess import Guess

FILES = range(1000, 3000)


def _taken(mind: Guess) -> list[int]:
    found: list[int] = []
    while files := mind.take(100):
        found += files
    return found


def _listed(*directories: int) -> Guess:
    mind = Guess(sorted)
    for number in directories or (1,):
        mind.listed(number, [number * 10000 + file for file in FILES], anew=True)
    return mind


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ([0], []),
        ([0, 1], list(range(2, 10))),
        ([5, 6], list(range(7, 15))),
        ([0, 3], list(range(4, 12))),  # left two out
        ([0, 100], []),
        ([7, 3], []),
        ([0, 1, 500], []),
        ([0, 1, 2], list(range(3, 35))),
    ],
)
def test_two_in_a_row_start_it_and_a_jump_ends_it(asked: list[int], sent: list[int]) -> None:
    mind = _listed()
    for index in asked:
        mind.asked(1, 10000 + FILES[index])
    assert _taken(mind) == [10000 + FILES[index] for index in sent]


def _shuffled(count: int, directories: int = 1, *, seed: int = 1) -> tuple[Guess, list[int]]:
    """Return a guess that knows directories listed in no order of names, and the first one's."""
    mind = Guess(sorted)
    chance = random.Random(seed)  # noqa: S311  # to be repeated
    listings = []
    for number in range(1, directories + 1):
        listing = [number * 10000 + index for index in range(count)]
        chance.shuffle(listing)
        mind.listed(number, listing, anew=True)
        listings.append(listing)
    return mind, listings[0]


def test_two_in_a_row_by_name_start_it_as_well() -> None:
    mind, _ = _shuffled(2000)
    mind.asked(1, 10100)
    mind.asked(1, 10101)
    assert _taken(mind) == list(range(10102, 10110))
    mind.asked(1, 10110)
    assert _taken(mind) == list(range(10111, 10143)), "more and more"


def test_who_goes_over_to_the_order_of_the_listing_is_followed() -> None:
    mind, listing = _shuffled(2000)
    mind.asked(1, 10100)
    mind.asked(1, 10101)
    _taken(mind)
    start = (listing.index(10101) + 200) % 1900
    for file in listing[start : start + 2]:
        mind.asked(1, file)
    assert _taken(mind) == listing[start + 2 : start + 10]


def test_one_who_reads_by_name_gets_the_same_in_the_next_directory() -> None:
    mind, _ = _shuffled(200, 3)
    for index in (0, 1, 10, 43):
        mind.asked(1, 10000 + index)
        _taken(mind)
    mind.asked(2, 20000)
    assert _taken(mind) == list(range(20001, 20200))
    mind.asked(3, 30150)  # somewhere else
    mind.asked(3, 30002)
    assert _taken(mind) == []


def test_what_the_last_directory_by_name_was_granted_fades_where_it_helps_nobody() -> None:
    mind, _ = _shuffled(2000, 12)
    front = 0
    for _ in range(6):
        mind.asked(1, 10000 + front)
        front += 1 + len(_taken(mind))
    sent = []
    for number in range(2, 12):
        mind.asked(number, number * 10000)
        sent.append(len(_taken(mind)))
    assert sent == [512, 256, 128, 64, 32, 16, 8, 8, 8, 8]
    mind.asked(12, 120000)
    mind.asked(12, 120000 + 1 + len(_taken(mind)))  # this one goes on
    assert len(_taken(mind)) == 8
    mind.listed(13, range(130000, 132000), anew=True)
    assert _taken(mind) == [], "a listing's order is another one"


def test_one_who_reads_by_name_leaves_nothing_to_those_who_do_not() -> None:
    mind, _ = _shuffled(200, 2)
    for index in (0, 1, 10, 43, 172):
        mind.asked(1, 10000 + index)
        _taken(mind)
    assert mind._orders[1].is_done
    assert mind._orders[1].credit > 400
    listing = [30000 + index for index in range(2000)]
    mind.listed(3, listing, anew=True)
    assert _taken(mind) == [], "it would begin somewhere else"
    sent, front = [], 0
    for _ in range(5):
        mind.asked(3, listing[front])
        sent.append(len(_taken(mind)))
        front += 1 + sent[-1]
    assert sent == [0, 8, 32, 128, 512], "what is left over takes nothing from others"


def test_a_listing_that_goes_on_is_not_known_by_name() -> None:
    mind, listing = _shuffled(100)
    mind.asked(1, 10000)
    mind.asked(1, 10001)
    mind.listed(1, [10200, 10201], anew=False)
    assert _taken(mind) == []
    assert list(mind._orders[1].files) == [*listing, 10200, 10201]


def test_many_in_no_order_bring_as_much_for_each() -> None:
    mind, listing = _shuffled(400)
    sent: list[int] = []
    bought = []
    for count in range(60):
        file = listing[count * 149 % 400]
        if file not in sent:
            mind.asked(1, file)
            files = _taken(mind)
            bought.append(len(files))
            sent += files
    few = bought.index(8)
    assert 24 <= few < 30, "one file in 16, and some that came where they were expected"
    assert bought == [0] * few + [8] * (len(bought) - few)
    assert len(sent) == len(set(sent))


def test_each_file_met_where_it_was_expected_buys_more_up_to_a_limit() -> None:
    mind = _listed()
    mind.asked(1, 10000 + FILES[0])
    sent, front = [], 1
    for _ in range(6):
        mind.asked(1, 10000 + FILES[front])
        sent.append(len(_taken(mind)))
        front += 1 + sent[-1]
    assert sent == [8, 32, 128, 512, 512, 512]


def test_what_is_left_goes_into_the_next_directory_that_is_listed() -> None:
    mind = Guess(sorted)
    mind.listed(1, [11, 12, 13], anew=True)
    mind.asked(1, 11)
    mind.asked(1, 12)
    assert _taken(mind) == [13]
    mind.listed(2, range(20, 40), anew=True)
    assert _taken(mind) == list(range(20, 27))  # eight were bought
    mind.listed(3, range(50, 60), anew=True)
    assert _taken(mind) == []


def test_files_sent_already_may_be_asked_for_all_the_same() -> None:
    """They were too large, or asked for before they arrived: no sign of another order."""
    mind = _listed()
    for index in (0, 1):
        mind.asked(1, 10000 + FILES[index])
    assert len(_taken(mind)) == 8
    mind.asked(1, 10000 + FILES[4])
    mind.asked(1, 10000 + FILES[10])
    assert len(_taken(mind)) == 32


def test_a_reader_close_behind_is_left_the_next_few() -> None:
    mind = _listed()
    for index in (0, 1):
        mind.asked(1, 10000 + FILES[index])
    assert mind.take(1) == [10000 + FILES[2]]
    mind.asked(1, 10000 + FILES[2])
    assert mind.take(1) == [10000 + FILES[7]]


def test_listings_that_the_kernel_forgot_and_unknown_ones_cost_nothing() -> None:
    mind = _listed(1, 2)
    mind.asked(1, 11000)
    mind.asked(1, 11001)
    mind.forget(1)
    assert _taken(mind) == []
    mind.asked(1, 11002)
    mind.asked(9, 5)
    assert _taken(mind) == []


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guess, "_DIRECTORIES", 3)
    monkeypatch.setattr(guess, "_ENTRIES", 5000)
    mind = Guess(sorted)
    for number in range(100):
        mind.listed(number, FILES, anew=True)
        mind.listed(number, FILES, anew=False)
        assert len(mind._orders) <= 3
        assert mind._entries == sum(len(order.files) for order in mind._orders.values())
    assert mind._entries <= 5000


def test_directories_that_are_read_at_the_same_time_take_turns() -> None:
    mind = _listed(1, 2, 3)
    for index in (0, 1, 2):
        for number in (1, 2, 3):
            mind.asked(number, number * 10000 + FILES[index])
    first = [mind.take(10)[0] // 10000 for _ in range(4)]
    assert first == [1, 2, 3, 1]
    mind.asked(2, 20000 + FILES[900])  # that one has gone elsewhere
    assert {file // 10000 for file in _taken(mind)} == {1, 3}


def test_many_readers_get_no_more_together_than_one_alone() -> None:
    numbers = range(1, 21)
    mind = _listed(*numbers)
    for index in range(6):
        for number in numbers:
            mind.asked(number, number * 10000 + FILES[index])
            assert len(mind._streams) <= guess._STREAMS
            assert sum(order.credit for order in mind._streams) <= guess._MOST + guess._FIRST * 20


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans()), max_size=60))
def test_a_file_is_sent_once_per_listing_and_never_before_it_is_listed(
    steps: list[tuple[int, int, bool]],
) -> None:
    mind, known, sent = Guess(sorted), set[int](), list[int]()
    for directory, index, listing in steps:
        files = [directory * 100 + number for number in range(30)]
        if listing:
            mind.listed(directory, files, anew=True)
            known.update(files)
            sent = [file for file in sent if file // 100 != directory]
        else:
            mind.asked(directory, directory * 100 + index)
        sent += _taken(mind)
        assert len(sent) == len(set(sent))
        assert set(sent) <= known


def test_names_of_a_large_directory_are_not_sorted() -> None:
    sortings = []

    def by_name(files: Sequence[int]) -> list[int]:
        sortings.append(len(files))
        return sorted(files)

    for count in (4096, 4097):
        mind = Guess(by_name)
        mind.listed(1, range(count), anew=True)
        for file in range(count, 0, -50):
            mind.asked(1, file)
    assert sortings == [4096]


class _Counting(array):  # type: ignore[type-arg]  # not generic at run time
    """Counts the numbers that are looked at."""

    looked = 0

    def index(self, value: int, start: int = 0, stop: int = sys.maxsize) -> int:
        end = min(stop, len(self))
        try:
            end = super().index(value, start, stop)
        finally:
            _Counting.looked += max(end - start, 0)
        return end


def test_reading_a_big_directory_in_no_order_costs_no_search_for_each_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guess, "array", _Counting)
    monkeypatch.setattr(_Counting, "looked", 0)
    mind = Guess(sorted)
    count = 50_000
    mind.listed(1, range(count), anew=True)
    for number in range(2000):
        mind.asked(1, number * 7919 % count)
    assert _Counting.looked < 2_000_000, "50 million without a limit"
    assert not _taken(mind)
    mind.listed(1, range(4096), anew=True)
    _Counting.looked = 0
    for number in range(4000):
        mind.asked(1, number * 1231 % 4096)
    assert _Counting.looked < 1_000_000, "twelve million without a limit"
    mind.listed(1, range(count), anew=True)
    mind.asked(1, 30_000)
    mind.asked(1, 30_001)
    assert _taken(mind)[0] == 30_002
