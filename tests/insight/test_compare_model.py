"""Random archives: the store and our union show what the specification, applied in memory, shows.

Two readers that share no code but the names of whiteouts, on layers with members in any order,
implied directories, hard links within and across layers, markers beside entries and names twice.
"""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layers import Member, image_of, layer_tar

from unionfs.archive.limits import DEFAULT
from unionfs.archive.tarstream import TarStream
from unionfs.branch import Dialect
from unionfs.insight.convert_tar import converted_chunks, verify_archives
from unionfs.insight.engines.contest import contest
from unionfs.insight.engines.layers import imported
from unionfs.insight.engines.seen import describe
from unionfs.insight.engines.workplace import workplace

_NAMES = (b"a", b"b", b"c\xff")


def random_path(rng: random.Random) -> bytes:
    return b"/".join(rng.choice(_NAMES) for _ in range(rng.choice((1, 1, 2, 2, 3))))


def random_member(rng: random.Random, *, links: bool) -> Member:
    path = random_path(rng)
    parent, _, name = path.rpartition(b"/")
    inside = parent + b"/" if parent else b""
    kind = rng.random()
    if kind < 0.15:
        return Member(inside + b".wh." + name)
    if kind < 0.22 and parent:
        return Member(inside + b".wh..wh..opq")
    uid, mtime = rng.choice((0, 0, 5)), rng.choice((0, 1.5, 10**9))
    if kind < 0.5:
        return Member(path + b"/", "dir", mode=rng.choice((0o755, 0o700)), uid=uid, mtime=mtime)
    if kind < 0.6:
        return Member(
            path, "symlink", target=rng.choice((b"a", b"/b", b"..")), uid=uid, mtime=mtime
        )
    if kind < 0.7 and links:
        return Member(path, "hardlink", target=random_path(rng), uid=uid, mtime=mtime)
    xattrs = ((("user.x", b"1"),), ())[rng.random() < 0.7]
    mode = rng.choice((0o644, 0o4755))
    return Member(
        path, data=rng.choice((b"", b"1", b"22")), mode=mode, xattrs=xattrs, uid=uid, mtime=mtime
    )


def random_layer(rng: random.Random, *, links: bool = True) -> list[Member]:
    return [random_member(rng, links=links) for _ in range(rng.randrange(1, 9))]


@pytest.mark.logs_warnings
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_store_and_union_show_what_the_specification_says(seed: int, count: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # hypothesis chooses the seed
    layers = [random_layer(rng) for _ in range(count)]
    image = image_of([layer_tar(layer) for layer in layers])
    with workplace() as place, imported(image, place) as (sources, refusal):
        verdict = contest(sources, place, ("oci", "unionfs"), refusal=refusal)
    assert verdict.agree, [
        *((name, item.status) for name, item in verdict.outcomes.items()),
        *(
            (item.path, describe(item.expected), describe(item.others["unionfs"][0]))
            for item in verdict.paths()
        ),
        *((member.name, member.kind, member.target) for layer in layers for member in layer),
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_archives_there_and_back(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # hypothesis chooses the seed
    members = random_layer(rng, links=False)
    # Overlayfs needs a member for each opaque directory; so there are such.
    dirs = {member.name.rpartition(b"/")[0] for member in members if member.name.endswith(b".opq")}
    tar = layer_tar([*members, *(Member(path + b"/", "dir") for path in sorted(dirs))])
    tars = [tar]
    spoken = (Dialect.AUFS, Dialect.OVERLAY, Dialect.AUFS)
    for origin, target in itertools.pairwise(spoken):
        source = tars[-1]
        tars.append(b"".join(converted_chunks(opener(source), origin, target, [])))
        verify_archives(opener(source), origin, opener(tars[-1]), target)


def opener(tar: bytes) -> Callable[[], TarStream]:
    return lambda: TarStream(io.BytesIO(tar), DEFAULT, promised=True)
