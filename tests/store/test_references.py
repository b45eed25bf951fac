"""The grammar of `repository:tag`."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.errors import InvalidNameError
from unionfs.store.references import Reference, parse_reference


@pytest.mark.parametrize(
    ("text", "repository", "tag"),
    [
        ("busybox", "busybox", "latest"),
        ("busybox:1.36", "busybox", "1.36"),
        ("demo/app:v2", "demo/app", "v2"),
        ("docker.io/library/busybox", "docker.io/library/busybox", "latest"),
        ("host:5000/repo", "host:5000/repo", "latest"),
        ("host:5000/repo:tag", "host:5000/repo", "tag"),
        ("host:5000", "host", "5000"),
        ("localhost/x", "localhost/x", "latest"),
        ("LOCALHOST/x:y", "LOCALHOST/x", "y"),
        ("Reg.Example.org/a/b/c:T", "Reg.Example.org/a/b/c", "T"),
        ("[::1]:5000/a:b", "[::1]:5000/a", "b"),
        ("a__b/c-----d.e_f", "a__b/c-----d.e_f", "latest"),
        ("a:" + "t" * 128, "a", "t" * 128),
        ("a:_-.", "a", "_-."),
        ("sha256:abc", "sha256", "abc"),
        ("ba12", "ba12", "latest"),
        ("0.0_0/x", "0.0_0/x", "latest"),
    ],
)
def test_good_names(text: str, repository: str, tag: str) -> None:
    reference = parse_reference(text)
    assert (reference.repository, reference.tag) == (repository, tag)
    assert parse_reference(str(reference)) == reference


def test_default_tag() -> None:
    assert str(parse_reference("a", default_tag="edge")) == "a:edge"
    assert str(parse_reference("a:b", default_tag="edge")) == "a:b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (":tag", "empty"),
        ("a:", "a tag is"),
        ("a:.x", "a tag is"),
        ("a:-x", "a tag is"),
        ("a:b:c", "a tag is"),
        ("a:" + "t" * 129, "a tag is"),
        ("a:t\0", "a tag is"),
        ("a:t\n", "a tag is"),
        ("Demo", "lower case"),
        ("host.example/Demo", "lower case"),
        ("a/B", "lower case"),
        ("../../x", "not a host"),
        ("a/../b", "must be"),
        ("/a", "must be"),
        ("a/", "must be"),
        ("a//b", "must be"),
        ("a..b", "must be"),
        ("a___b", "must be"),
        ("-a", "must be"),
        ("a_", "must be"),
        ("a b", "must be"),
        ("ä", "must be"),
        ("\u0661", "must be"),
        ("host:port/x", "not a host"),
        ("host:123456/x", "not a host"),
        ("-h.x/y", "not a host"),
        ("a" * 64, "image id"),
        ("x" * 256, "longer"),
        ("a@sha256:" + "0" * 64, "digest"),
        ("a:b@sha256:" + "0" * 64, "digest"),
    ],
)
def test_bad_names_say_which_rule_they_break(text: str, reason: str) -> None:
    with pytest.raises(InvalidNameError, match=re.escape(reason)) as caught:
        parse_reference(text)
    assert str(caught.value).isprintable()


def test_a_reference_cannot_be_made_wrong() -> None:
    with pytest.raises(InvalidNameError):
        Reference("../../x")
    with pytest.raises(InvalidNameError):
        Reference("a", "b/c")


_component = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+){0,2}", fullmatch=True)
_tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
_host = st.from_regex(
    r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.[a-z]{2}|localhost)(:[0-9]{1,5})?/", fullmatch=True
)


@given(
    st.one_of(st.just(""), _host),
    st.lists(_component.filter(lambda c: len(c) < 64), min_size=1, max_size=3),
    _tag,
)
def test_whatever_follows_the_grammar_is_kept_as_written(
    host: str, components: list[str], tag: str
) -> None:
    text = host + "/".join(components)
    if len(text) > 255:
        return
    reference = parse_reference(f"{text}:{tag}")
    assert reference == Reference(text, tag)
    assert str(reference) == f"{text}:{tag}"


@given(st.text())
def test_any_text_parses_to_itself_or_is_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidNameError as error:
        assert str(error).isprintable()  # noqa: PT017  # both outcomes are right
    else:
        assert str(reference) in (text, f"{text}:latest")
