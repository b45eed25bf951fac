"""Ids, digests and the prefix index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.errors import (
    AmbiguousError,
    ConflictError,
    InvalidNameError,
    NotFoundError,
    UnionfsError,
)
from unionfs.store.ids import (
    ChainId,
    DiffId,
    IdIndex,
    chain_id,
    digest_hex,
    generate_id,
    image_id_of,
    short_id,
    validate_digest,
    validate_id,
    validate_stored_id,
)

HEX64 = "0123456789abcdef" * 4
HOSTILE = [
    "",
    ".",
    "..",
    "../../x",
    "a/b",
    "/abs",
    "a\0b",
    "a\n",
    HEX64 + "\n",
    HEX64[:-1] + "\0",
    " ",
    "json",
    "checksums",
    ":tmp:",
    "x" * 300,
    HEX64 + "0",
    HEX64.upper(),
    HEX64[:-1] + "g",
    "\u0661" * 64,
    "\uff11" * 64,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_ids_are_refused_on_one_line(text: str) -> None:
    for validate in (validate_id, validate_stored_id):
        with pytest.raises(InvalidNameError) as caught:
            validate(text)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_new_ids_are_64_digits_and_stored_ones_8_to_64() -> None:
    assert validate_id(HEX64) == HEX64
    for length in (8, 16, 63, 64):
        assert validate_stored_id(HEX64[:length]) == HEX64[:length]
    for length in (7, 1):
        with pytest.raises(InvalidNameError):
            validate_stored_id(HEX64[:length])
    with pytest.raises(InvalidNameError):
        validate_id(HEX64[:63])


@pytest.mark.parametrize(
    "text", ["sha256:../../x", "sha256:" + HEX64.upper(), HEX64, "sha512:" + HEX64 * 2, "sha256:"]
)
def test_digests_that_are_none(text: str) -> None:
    with pytest.raises(InvalidNameError):
        validate_digest(text)


def test_generate_id_draws_until_it_is_not_a_number() -> None:
    draws: Iterator[bytes] = iter(
        [b"\x12" * 32, bytes.fromhex("123456789012" + "ab" * 26), b"\xab" * 32]
    )
    asked: list[int] = []

    def source(count: int) -> bytes:
        asked.append(count)
        return next(draws)

    assert generate_id(source) == "ab" * 32
    assert asked == [32, 32, 32]


def test_generated_ids_differ() -> None:
    ids = {generate_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(validate_id(text) == text for text in ids)


def test_short_id() -> None:
    assert short_id(HEX64) == HEX64[:12]
    assert short_id("sha256:" + HEX64) == HEX64[:12]
    assert short_id("abcdef12") == "abcdef12"


def test_chain_id_is_that_of_the_specification() -> None:
    base = DiffId("sha256:" + "1" * 64)
    top = DiffId("sha256:" + "2" * 64)
    assert str(chain_id(None, base)) == str(base)
    expected = hashlib.sha256(f"{base} {top}".encode()).hexdigest()
    assert chain_id(ChainId(base), top) == "sha256:" + expected
    assert image_id_of(chain_id(ChainId(base), top)) == expected
    assert digest_hex(base) == "1" * 64
    with pytest.raises(InvalidNameError):
        chain_id(ChainId("sha256:x"), top)


def test_index_finds_by_beginning_as_the_original_did() -> None:
    first, second = "19b36c2c326ccc11e726eee6ee78a0ba", "2b3d1a4f" * 4
    index = IdIndex()
    with pytest.raises(NotFoundError):
        index.get("1")
    index.add(first)
    for prefix in (first, first[0], first[: len(first) // 2]):
        assert index.get(prefix) == first
    index.add(second)
    assert index.get(first[:1]) == first
    assert index.get(second[:1]) == second
    third = first[:6] + "f" * 26  # conflict up to six characters, unique from the seventh
    index.add(third)
    for length in range(1, 7):
        with pytest.raises(AmbiguousError) as caught:
            index.get(first[:length])
        assert set(caught.value.candidates) == {first, third}
    assert index.get(first[:7]) == first
    assert index.get(third[:7]) == third
    index.delete(third)
    assert index.get(first[:1]) == first
    with pytest.raises(NotFoundError):
        index.get(third)
    assert list(index) == [first, second]
    assert len(index) == 2


def test_exact_id_wins_over_longer_ones_that_begin_with_it() -> None:
    index = IdIndex(["deadbeef", "deadbeef00", "deadbeef01"])
    assert index.get("deadbeef") == "deadbeef"
    with pytest.raises(AmbiguousError):
        index.get("deadbee")
    assert "deadbeef" in index
    assert "deadbee" not in index
    assert 5 not in index


def test_index_errors() -> None:
    index = IdIndex(["deadbeef"])
    with pytest.raises(ConflictError):
        index.add("deadbeef")
    with pytest.raises(InvalidNameError):
        index.add("dead beef")
    with pytest.raises(NotFoundError):
        index.delete("dead")
    for prefix in ("", "dead beef", "DEAD", "..", "dead\0"):
        with pytest.raises(InvalidNameError):
            index.get(prefix)


def test_ambiguous_message_is_short() -> None:
    index = IdIndex(f"abcd{number:060d}" for number in range(500))
    with pytest.raises(AmbiguousError, match=r"fits 500 images .* and 495 more") as caught:
        index.get("abcd")
    assert len(caught.value.candidates) == 500
    assert len(str(caught.value)) < 200


_ids = st.text("0a1", min_size=8, max_size=11)


@given(st.lists(st.tuples(st.booleans(), _ids), max_size=30), st.text("0a1", max_size=11))
def test_index_against_a_naive_model(steps: list[tuple[bool, str]], query: str) -> None:
    index, model = IdIndex(), set[str]()
    for add, text in steps:
        known = text in model
        try:
            if add:
                index.add(text)
            else:
                index.delete(text)
        except UnionfsError:
            assert known == add
        else:
            assert known != add
            (model.add if add else model.discard)(text)
    assert list(index) == sorted(model)
    fitting = sorted(text for text in model if text.startswith(query))
    if not query:
        with pytest.raises(InvalidNameError):
            index.get(query)
    elif query in model:
        assert index.get(query) == query
    elif not fitting:
        with pytest.raises(NotFoundError):
            index.get(query)
    elif len(fitting) == 1:
        assert index.get(query) == fitting[0]
    else:
        with pytest.raises(AmbiguousError) as caught:
            index.get(query)
        assert list(caught.value.candidates) == fitting
