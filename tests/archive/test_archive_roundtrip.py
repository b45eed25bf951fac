"""Tars from here and from other tools: read, recorded, replayed bit for bit."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.limits import Limits
from unionfs.archive.record import Recorder, payload_paths, replay
from unionfs.archive.tarheader import parse_pax
from unionfs.archive.tarstream import TarStream
from unionfs.archive.tarwrite import TarWriter, member_header
from unionfs.errors import StoreError

LIMITS = Limits()


def dense(stream: TarStream, entry: Entry) -> bytes:
    """Read the current member with its holes filled."""
    data = bytearray(entry.size)
    for offset, chunk in stream.payload():
        data[offset : offset + len(chunk)] = chunk
    return bytes(data)


def through_record(data: bytes, keep_from: int = 1) -> tuple[list[tuple[Entry, bytes]], int]:
    """Read a tar with a record, replay it, compare; return the members and the record's size."""
    record = io.BytesIO()
    recorder = Recorder(record)
    stream = TarStream(io.BytesIO(data), LIMITS, recorder)
    members: list[tuple[Entry, bytes]] = []
    kept: dict[bytes, bytes] = {}
    locations: dict[int, bytes] = {}
    for entry in stream:
        path = b"layer/%d" % len(members)
        if entry.kind is Kind.FILE and entry.size >= keep_from:
            locations[stream.keep()] = path
        content = dense(stream, entry)
        kept[path] = content
        members.append((entry, content))
    recorder.finish(locations)
    assert stream.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert stream.size == len(data)
    assert b"".join(replay(record, lambda path: io.BytesIO(kept[path]))) == data
    assert payload_paths(record) == [locations[number] for number in sorted(locations)]
    return members, len(record.getvalue())


def written(members: list[tuple[Entry, bytes]]) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    for entry, content in members:
        writer.add(entry, [content] if content else None)
    writer.close()
    return out.getvalue()


NAMES = st.binary(min_size=1, max_size=300).filter(
    lambda name: (
        b"\0" not in name
        and not name.endswith(b"/")
        and all(len(part) <= 255 for part in name.split(b"/"))
        and name.strip(b"/")
    )
)
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=60).filter(lambda n: b"\0" not in n).map(lambda n: b"user." + n),
    st.binary(max_size=200),
    max_size=3,
)


@st.composite
def entries(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from(Kind))
    content = draw(st.binary(max_size=2000)) if kind is Kind.FILE else b""
    name = draw(NAMES)
    return Entry(
        name=name + b"/" if kind is Kind.DIRECTORY else name,
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 2)),
        gid=draw(st.integers(0, 2**32 - 2)),
        size=len(content),
        mtime_ns=draw(st.integers(-(2**63) + 1, 2**63 - 1)),
        linkname=draw(NAMES) if kind in {Kind.SYMLINK, Kind.HARDLINK} else b"",
        rdev=draw(st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)))
        if kind in {Kind.CHAR, Kind.BLOCK}
        else (0, 0),
        xattrs=draw(XATTRS),
    ), content


@given(st.lists(entries(), max_size=4))
def test_what_is_written_is_read_back(members: list[tuple[Entry, bytes]]) -> None:
    data = written(members)
    assert data == written(members)
    assert through_record(data)[0] == members


@given(st.lists(entries(), max_size=2), st.data())
def test_damage_is_an_error_or_another_archive_but_never_a_crash(
    members: list[tuple[Entry, bytes]], data: st.DataObject
) -> None:
    from unionfs.errors import HostileArchiveError

    raw = bytearray(written(members))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    stream = TarStream(io.BytesIO(cut), LIMITS)
    try:
        for entry in stream:
            dense(stream, entry) if entry.size < 1 << 20 else None
    except HostileArchiveError:
        return
    assert stream.size == len(cut)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_bytes(b"content")
    (root / "big").write_bytes(os.urandom(300_000))
    os.link(root / "file", root / "dir" / "hard")
    os.symlink("../file", root / "dir" / "soft")
    os.symlink("x" * 150, root / "longsoft")
    os.mkfifo(root / "fifo")
    long = root / ("d" * 120) / ("e" * 120)
    long.mkdir(parents=True)
    (long / ("f" * 100)).write_bytes(b"deep")
    for name in (b"new\nline", b"\xff\xfe", "schön".encode(), b" space ", b"-rf"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    with (root / "sparse").open("wb") as file:
        for number in range(40):
            file.seek(number * 65536)
            file.write(b"data%d" % number)
        file.truncate(5_000_000)
    with (root / "hole").open("wb") as file:
        file.truncate(1_000_000)
    os.utime(root / "file", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "big", ns=(0, -1_500_000_000))
    return root


def expected_files(root: Path) -> dict[bytes, bytes]:
    found = {}
    for folder, _, names in os.walk(os.fsencode(root)):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                found[os.path.relpath(path, os.fsencode(root))] = Path(
                    os.fsdecode(path)
                ).read_bytes()
    return found


GNU_TAR = {
    "gnu": ["--format=gnu"],
    "oldgnu": ["--format=oldgnu"],
    "pax": ["--format=pax", "--xattrs"],
    "gnu-sparse": ["--format=gnu", "--sparse"],
    "pax-sparse-0.0": ["--format=pax", "--sparse", "--sparse-version=0.0"],
    "pax-sparse-0.1": ["--format=pax", "--sparse", "--sparse-version=0.1"],
    "pax-sparse-1.0": ["--format=pax", "--sparse", "--sparse-version=1.0"],
    "labelled": ["--format=gnu", "--label=name"],
    "big-records": ["--format=gnu", "-b", "2048"],
}


@pytest.mark.parametrize("case", GNU_TAR)
def test_archives_of_gnu_tar(case: str, tree: Path) -> None:
    data = subprocess.run(
        ["tar", *GNU_TAR[case], "--sort=name", "-C", str(tree), "-cf", "-", "."],
        check=True,
        capture_output=True,
    ).stdout
    members, _ = through_record(data)
    by_name = {entry.name.removeprefix(b"./"): (entry, content) for entry, content in members}
    for name, content in expected_files(tree).items():
        entry, got = by_name[name]
        if entry.kind is Kind.HARDLINK:
            entry, got = by_name[entry.linkname.removeprefix(b"./")]
        assert (entry.kind, got) == (Kind.FILE, content)
    assert by_name[b"longsoft"][0].linkname == b"x" * 150
    assert by_name[b"fifo"][0].kind is Kind.FIFO
    if "sparse" in case:
        assert by_name[b"sparse"][0].extents
        assert by_name[b"hole"][0].extents == ()
    if "pax" in case:
        assert by_name[b"file"][0].mtime_ns == 1_234_567_890_123_456_789
        assert by_name[b"big"][0].mtime_ns == -1_500_000_000


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_of_python_and_its_opinion_of_ours(form: int, tree: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        names = sorted(os.listdir(tree))
        if form == tarfile.USTAR_FORMAT:
            names.remove("longsoft")
            names.remove("d" * 120)
            names.remove("big")
        for name in names:
            tar.add(tree / name, name)
    members, _ = through_record(out.getvalue())
    again = written(members)
    with (
        tarfile.open(fileobj=io.BytesIO(again)) as ours,
        tarfile.open(fileobj=io.BytesIO(out.getvalue())) as theirs,
    ):
        for left, right in zip(ours, theirs, strict=True):
            assert left.name == right.name
            assert (left.type, left.mode, left.uid, left.size) == (
                right.type,
                right.mode,
                right.uid,
                right.size,
            )
            assert left.linkname == right.linkname
            assert left.mtime == pytest.approx(right.mtime)


def test_gnu_tar_extracts_what_we_write(tree: Path, tmp_path: Path) -> None:
    data = subprocess.run(
        ["tar", "--format=pax", "-S", "-C", str(tree), "-cf", "-", "."],
        check=True,
        capture_output=True,
    ).stdout
    members, _ = through_record(data)
    out = tmp_path / "out"
    out.mkdir()
    again = written([(attrs.evolve(e, extents=None), c) for e, c in members])
    done = subprocess.run(
        ["tar", "--warning=no-timestamp", "-C", str(out), "-xf", "-"],
        input=again,
        check=True,
        capture_output=True,
    )
    assert done.stderr == b""
    assert expected_files(out) == expected_files(tree)
    assert (out / "file").stat().st_ino == (out / "dir" / "hard").stat().st_ino
    assert (out / "big").stat().st_mtime_ns == -1_500_000_000


def test_half_read_payloads_are_recorded_whole(tree: Path) -> None:
    data = subprocess.run(
        ["tar", "--format=pax", "-S", "--sparse-version=1.0", "-C", str(tree), "-cf", "-", "."],
        check=True,
        capture_output=True,
    ).stdout
    contents = {e.name: c for e, c in through_record(data)[0]}
    for keep in (False, True):
        record = io.BytesIO()
        recorder = Recorder(record)
        stream = TarStream(io.BytesIO(data), LIMITS, recorder)
        locations = {}
        for entry in stream:
            if keep and entry.size:
                locations[stream.keep()] = entry.name
            for _ in zip(range(2), stream.payload(), strict=False):
                pass
        recorder.finish(locations)
        assert b"".join(replay(record, lambda name: io.BytesIO(contents[name]))) == data


def test_record_of_a_real_tree_is_below_one_percent() -> None:
    data = subprocess.run(
        ["tar", "-C", "/usr/lib/python3", "-cf", "-", "."], check=True, capture_output=True
    ).stdout
    _, size = through_record(data)
    assert size < len(data) / 100


def _small_record() -> tuple[io.BytesIO, bytes]:
    data = written([(Entry(b"a", Kind.FILE, size=600), b"x" * 600)])
    record = io.BytesIO()
    recorder = Recorder(record)
    stream = TarStream(io.BytesIO(data), LIMITS, recorder)
    for _ in stream:
        number = stream.keep()
    recorder.finish({number: b"layer/a"})
    return record, data


def test_a_changed_payload_is_noticed() -> None:
    record, _ = _small_record()
    with pytest.raises(StoreError, match=r"layer/a.*shorter"):
        list(replay(record, lambda _: io.BytesIO(b"x" * 599)))


def test_every_truncated_record_is_refused() -> None:
    record, data = _small_record()

    def opener(_: bytes) -> BinaryIO:
        return io.BytesIO(b"x" * 600)

    whole = record.getvalue()
    assert b"".join(replay(io.BytesIO(whole), opener)) == data
    for length in range(len(whole)):
        with pytest.raises(StoreError, match="damaged"):
            list(replay(io.BytesIO(whole[:length]), opener))


def test_a_payload_without_location_is_the_callers_error() -> None:
    recorder = Recorder(io.BytesIO())
    number = recorder.payload()
    recorder.reference(number, 0, 5)
    with pytest.raises(KeyError):
        recorder.finish({})


def test_a_payload_without_a_path_in_the_table_is_refused() -> None:
    record = io.BytesIO()
    recorder = Recorder(record)
    recorder.reference(5, 0, 1)
    recorder.finish({5: b"layer/x"})
    with pytest.raises(StoreError, match="no path"):
        list(replay(record, lambda _: io.BytesIO(b"x")))


def test_bytes_do_not_depend_on_the_order_of_attributes() -> None:
    xattrs = {b"user.b": b"2", b"user.a": b"1"}
    first = Entry(b"f", Kind.FILE, xattrs=xattrs)
    second = Entry(b"f", Kind.FILE, xattrs=dict(reversed(xattrs.items())))
    assert written([(first, b"")]) == written([(second, b"")])


@pytest.mark.parametrize(
    ("entry", "needs"),
    [
        (Entry(b"plain name", Kind.FILE, uid=0o7777777, mtime_ns=5 * 10**9), b""),
        (Entry(b"n" * 100, Kind.SYMLINK, linkname=b"l" * 100), b""),
        (Entry(b"n" * 101, Kind.FILE), b"path"),
        (Entry("ö".encode(), Kind.FILE), b"path"),
        (Entry(b"s", Kind.SYMLINK, linkname=b"\xff"), b"linkpath"),
        (Entry(b"f", Kind.FILE, uid=0o10000000), b"uid"),
        (Entry(b"f", Kind.FILE, gid=0o10000000), b"gid"),
        (Entry(b"f", Kind.FILE, mtime_ns=1), b"mtime"),
        (Entry(b"f", Kind.FILE, mtime_ns=-(10**9)), b"mtime"),
    ],
)
def test_pax_records_only_where_they_are_needed(entry: Entry, needs: bytes) -> None:
    raw = member_header(entry)
    assert len(raw) == (512 * 3 if needs else 512)
    if needs:
        (record,) = parse_pax(raw[512:1024].rstrip(b"\0"))
        assert record[0] == needs


def test_keep_comes_before_reading() -> None:
    data = written([(Entry(b"a", Kind.FILE, size=1), b"x")])
    stream = TarStream(io.BytesIO(data), LIMITS)
    next(stream)
    list(stream.payload())
    with pytest.raises(RuntimeError):
        stream.keep()


@pytest.mark.parametrize("count", [0, 4, 6])
def test_writer_holds_the_payload_to_its_size(count: int) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(count):
            yield b"x"

    with pytest.raises(ValueError, match="5 bytes announced"):
        TarWriter(io.BytesIO()).add(Entry(b"a", Kind.FILE, size=5), chunks())


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"", Kind.FILE),
        Entry(b"a\0b", Kind.FILE),
        Entry(b"a", Kind.SYMLINK, linkname=b"\0"),
        Entry(b"a", Kind.FILE, uid=-1),
        Entry(b"a", Kind.CHAR, rdev=(1 << 22, 0)),
    ],
)
def test_writer_refuses_what_tar_cannot_say(entry: Entry) -> None:
    with pytest.raises(ValueError, match="tar cannot hold"):
        TarWriter(io.BytesIO()).add(entry)


def test_a_file_above_8_gib_has_a_pax_size() -> None:
    size = 8**11 + 5
    stream = TarStream(io.BytesIO(member_header(Entry(b"a", Kind.FILE, size=size))), LIMITS)
    assert next(stream).size == size
