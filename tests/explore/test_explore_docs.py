"""The explorer's page shows what the program shows."""

from __future__ import annotations

from support.exploring import PAGE, keys_part, part, screen_part

from unionfs.explore.keys import key_table
from unionfs.explore.model import Kind
from unionfs.explore.words import KIND_WORDS

_ADVICE = "`python -m support.exploring` writes it anew"


def test_the_table_of_keys_is_that_of_the_program() -> None:
    assert part("keys", PAGE.read_text()) == keys_part(), _ADVICE
    assert all(text and text != keys for keys, text in key_table())


def test_the_picture_is_that_of_the_program() -> None:
    assert part("screen", PAGE.read_text()) == screen_part(), _ADVICE


def test_every_mark_is_explained() -> None:
    text = PAGE.read_text()
    for kind in Kind:
        mark = f"``{kind.value}``" if kind is not Kind.SAME else "none "
        line = next(line for line in text.splitlines() if line.startswith(mark))
        assert KIND_WORDS[kind] in line
