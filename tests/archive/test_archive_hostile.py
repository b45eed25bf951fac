"""What a tar may not do to us: one table row per way, and the odd things that are allowed."""

from __future__ import annotations

import io
from collections.abc import Callable

import attrs
import pytest
from support.tarbytes import END, base256, header, member, padded, pax, pax_records

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.limits import Limits
from unionfs.archive.tarstream import TarStream
from unionfs.errors import HostileArchiveError, LimitError, UsageError

NAN = (b"mtime", b"nan")
SMALL = Limits(
    entries=5,
    layer_bytes=1 << 20,
    file_bytes=1 << 19,
    header_bytes=8192,
    path=300,
    depth=20,
    xattr_bytes=1000,
    trailing_bytes=4096,
)


def read(
    data: bytes, limits: Limits = SMALL, warn: Callable[[str], None] | None = None
) -> list[Entry]:
    stream = TarStream(io.BytesIO(data), limits, warn=warn)
    entries = []
    for entry in stream:
        got = sum(len(chunk) for _, chunk in stream.payload())
        assert got <= entry.size
        entries.append(entry)
    assert stream.size == len(data)
    return entries


def gnu_long(typeflag: bytes, name: bytes) -> bytes:
    return header(b"././@LongLink", typeflag, size=len(name) + 1) + padded(name + b"\0")


OLD_SPARSE = header(
    b"s",
    b"S",
    size=512,
    magic=b"ustar  \0",
    tail=bytes(41) + b"00000001000\0" + b"00000001000\0" + bytes(72) + b"\0" + b"00000002000\0",
)

BAD = {
    "checksum": (header(checksum=b"000001\0 ") + END, "checksum"),
    "checksum-later": (member(data=b"x") + header(b"g", checksum=b"000001\0 ") + END, "checksum"),
    "rubbish-instead-of-header": (member() + b"x" * 512 + END, "no number"),
    "truncated-header": (member() + header(b"g")[:100], "truncated"),
    "truncated-body": (header(size=5000) + bytes(512), "truncated"),
    "truncated-padding": (header(size=5) + b"hello", "truncated"),
    "single-zero-block": (member() + bytes(512) + member(b"g") + END, "single zero block"),
    "negative-size": (header(size=base256(-1, 12)) + END, "negative size"),
    "negative-size-of-extension": (header(b"x", b"x", size=base256(-512, 12)) + END, "negative"),
    "negative-uid": (header(uid=base256(-1, 8)) + END, "uid -1"),
    "negative-mode": (header(mode=base256(-1, 8)) + END, "negative mode"),
    "uid-too-big": (header(uid=base256(2**32, 8)) + END, "uid 4294967296"),
    "uid-minus-one": (header(uid=base256(2**32 - 1, 8)) + END, "uid 4294967295"),
    "gid-too-big-in-pax": (pax((b"gid", b"4294967296")) + header() + END, "gid 4294967296"),
    "octal-with-underscore": (header(uid=b"00001_0\0") + END, "no number"),
    "octal-with-sign": (header(size=b"-0000000007\0") + END, "no number"),
    "octal-with-prefix": (header(uid=b"0o00007\0") + END, "no number"),
    "octal-eight": (header(mode=b"0000698\0") + END, "no number"),
    "unknown-type": (header(typeflag=b"Z") + END, "type Z"),
    "socket-type-of-star": (header(typeflag=b"s") + END, "type s"),
    "multi-volume": (header(typeflag=b"M") + END, "type M"),
    "dumpdir": (header(typeflag=b"D") + END, "type D"),
    "empty-name": (header(b"") + END, "empty name"),
    "empty-link": (header(typeflag=b"2") + END, "to nothing"),
    "empty-hard-link": (header(typeflag=b"1") + END, "empty name"),
    "nul-in-pax-path": (pax((b"path", b"a\0b")) + header() + END, "NUL"),
    "nul-in-pax-linkpath": (pax((b"linkpath", b"a\0b")) + header(typeflag=b"2") + END, "NUL"),
    "pax-at-eof": (pax((b"path", b"x")), "truncated"),
    "pax-before-end-marker": (pax((b"path", b"x")) + END, "truncated"),
    "long-name-at-eof": (gnu_long(b"L", b"x") + END, "truncated"),
    "two-pax-headers": (pax((b"path", b"x")) * 2 + header() + END, "two extended"),
    "two-long-names": (gnu_long(b"L", b"x") * 2 + header() + END, "two long names"),
    "long-name-and-pax-path": (
        gnu_long(b"L", b"safe") + pax((b"path", b"evil")) + header() + END,
        "two different names",
    ),
    "pax-size-differs": (pax((b"size", b"512")) + header() + bytes(512) + END, "different sizes"),
    "pax-size-text": (pax((b"size", b"0x10")) + header() + END, "no number"),
    "pax-size-negative": (pax((b"size", b"-1")) + header() + END, "no number"),
    "pax-uid-float": (pax((b"uid", b"1.0")) + header() + END, "no number"),
    "mtime-nan": (pax(NAN) + header() + END, "no time"),
    "mtime-inf": (pax((b"mtime", b"-inf")) + header() + END, "no time"),
    "mtime-exponent": (pax((b"mtime", b"1e300")) + header() + END, "no time"),
    "pax-length-too-long": (pax(body=b"99 path=x\n") + header() + END, "malformed"),
    "pax-length-too-short": (pax(body=b"5 path=x\n") + header() + END, "malformed"),
    "pax-length-zero": (pax(body=b"0 path=x\n") + header() + END, "malformed"),
    "pax-without-equals": (pax(body=b"7 path\n") + header() + END, "keyword"),
    "pax-without-keyword": (pax(body=b"5 =x\n") + header() + END, "keyword"),
    "pax-trailing-nuls": (pax(body=pax_records((b"a", b"b")) + b"\0\0") + header() + END, "malf"),
    "pax-truncated": (header(b"x", b"x", size=600) + bytes(512), "truncated"),
    "bad-global-header": (pax(body=b"rubbish", typeflag=b"g") + header() + END, "malformed"),
    "xattr-without-name": (pax((b"SCHILY.xattr.", b"x")) + header() + END, "extended attribute"),
    "xattr-long-name": (
        pax((b"SCHILY.xattr.user." + b"n" * 255, b"x")) + header() + END,
        "extended attribute",
    ),
    "xattr-bad-base64": (pax((b"LIBARCHIVE.xattr.user.a", b"*")) + header() + END, "base64"),
    "device-number": (header(typeflag=b"3", rdev=base256(2**40, 8) * 2) + END, "device number"),
    "sparse-overlap": (
        pax((b"GNU.sparse.map", b"0,512,256,512"), (b"GNU.sparse.size", b"4096"))
        + header(size=1024)
        + bytes(1024)
        + END,
        "overlap",
    ),
    "sparse-beyond-end": (
        pax((b"GNU.sparse.map", b"4000,512"), (b"GNU.sparse.size", b"4096"))
        + header(size=512)
        + bytes(512)
        + END,
        "beyond",
    ),
    "sparse-wrong-sum": (
        pax((b"GNU.sparse.map", b"0,100"), (b"GNU.sparse.size", b"4096"))
        + header(size=512)
        + bytes(512)
        + END,
        "add up",
    ),
    "sparse-odd-map": (
        pax((b"GNU.sparse.map", b"0,100,5"), (b"GNU.sparse.size", b"4096")) + header() + END,
        "odd",
    ),
    "sparse-without-size": (pax((b"GNU.sparse.map", b"0,0")) + header() + END, "without a size"),
    "sparse-unknown-version": (
        pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")) + header() + END,
        "unknown version",
    ),
    "sparse-1.0-map-is-text": (
        pax(
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"9"),
        )
        + header(size=512)
        + padded(b"x\n")
        + END,
        "malformed sparse",
    ),
    "old-sparse-beyond-end": (OLD_SPARSE.replace(b"2000", b"1000") + bytes(512) + END, "checksum"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    data, words = BAD[case]
    with pytest.raises(HostileArchiveError, match=words) as caught:
        read(data)
    assert str(caught.value).startswith("layer")
    assert "\n" not in str(caught.value)


LIMITED = {
    "entries": b"".join(member(b"f%d" % n) for n in range(6)) + END,
    "file_bytes": header(size=(1 << 19) + 1) + END,
    "layer_bytes": (header(size=1 << 19) + bytes(1 << 19)) * 3 + END,
    "header_bytes": pax((b"comment", b"x" * 9000)) + header() + END,
    "path": pax((b"path", b"a/" * 200)) + header() + END,
    "component": pax((b"path", b"x" * 256)) + header() + END,
    "depth": pax((b"path", b"a/" * 21)) + header() + END,
    "xattr_bytes": pax((b"SCHILY.xattr.user.a", b"x" * 1000)) + header() + END,
    "trailing_bytes": member() + END + bytes(4097),
}
ALSO_LIMITED = {
    "huge-pax-header": ("header_bytes", header(b"x", b"x", size=base256(1 << 60, 12))),
    "huge-long-name": ("header_bytes", header(b"x", b"L", size=base256(1 << 60, 12))),
    "huge-file": ("file_bytes", header(size=base256(1 << 62, 12))),
    "sparse-terabyte": (
        "file_bytes",
        pax((b"GNU.sparse.map", b""), (b"GNU.sparse.size", b"1099511627776")) + header(),
    ),
    "long-link-target": ("path", pax((b"linkpath", b"x" * 301)) + header(typeflag=b"2")),
    "long-hard-link-target": ("component", pax((b"linkpath", b"x" * 256)) + header(typeflag=b"1")),
    "sparse-map-count": (
        "header_bytes",
        pax(
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"9"),
        )
        + header(size=512)
        + padded(b"99999999999\n"),
    ),
}


@pytest.mark.parametrize("case", [*LIMITED, *ALSO_LIMITED])
def test_limits_name_themselves(case: str) -> None:
    name, data = ALSO_LIMITED[case] if case in ALSO_LIMITED else (case, LIMITED[case])
    with pytest.raises(LimitError, match=rf"--limit {name}=\d+") as caught:
        read(data)
    text = str(caught.value)
    assert name.replace("_", " ") in text
    assert str(getattr(SMALL, name)) in text


def test_every_limit_of_a_tar_is_tested() -> None:
    elsewhere = {"archive_bytes", "ratio", "ratio_after", "json_bytes", "json_depth"}
    assert {field.name for field in attrs.fields(Limits)} == set(LIMITED) | elsewhere


def test_raised_limit_lets_it_pass() -> None:
    limits = SMALL.with_options(["entries=6", "file-bytes=1000000"])
    assert len(read(LIMITED["entries"], limits)) == 6


@pytest.mark.parametrize("option", ["nope=1", "entries=", "entries=-1", "entries=0", "entries=x"])
def test_bad_limit_option(option: str) -> None:
    with pytest.raises(UsageError, match="--limit"):
        SMALL.with_options([option])


GOOD = {
    "dotdot-stays-as-written": (member(b"../x") + END, Entry(b"../x", Kind.FILE)),
    "absolute-stays-as-written": (member(b"/etc//x") + END, Entry(b"/etc//x", Kind.FILE)),
    "pax-overrides-name": (
        pax((b"path", b"../evil")) + header(b"safe") + END,
        Entry(b"../evil", Kind.FILE),
    ),
    "newline-in-pax-path": (pax((b"path", b"a\nb")) + header() + END, Entry(b"a\nb", Kind.FILE)),
    "no-utf8-in-pax-path": (pax((b"path", b"\xff")) + header() + END, Entry(b"\xff", Kind.FILE)),
    "no-utf8-in-name": (header(b"\xff\xfe") + END, Entry(b"\xff\xfe", Kind.FILE)),
    "prefix": (header(b"x", prefix=b"a/b") + END, Entry(b"a/b/x", Kind.FILE)),
    "gnu-has-no-prefix": (
        header(b"x", magic=b"ustar  \0", prefix=b"00000000001\0") + END,
        Entry(b"x", Kind.FILE),
    ),
    "star-prefix": (
        header(
            b"x", tail=b"a".ljust(131, b"\0") + b"00000000001\x0000000000001\0" + b"\0" * 8 + b"tar"
        )
        + END,
        Entry(b"a/x", Kind.FILE),
    ),
    "v7-directory": (
        header(b"d/", b"\0", magic=b"\0" * 8) + END,
        Entry(b"d/", Kind.DIRECTORY),
    ),
    "mode-bits-above-07777": (
        header(mode=b"7777777\0") + END,
        Entry(b"f", Kind.FILE, mode=0o7777),
    ),
    "biggest-uid": (
        header(uid=base256(2**32 - 2, 8)) + END,
        Entry(b"f", Kind.FILE, uid=2**32 - 2),
    ),
    "mtime-before-1970": (
        header(mtime=base256(-1, 12)) + END,
        Entry(b"f", Kind.FILE, mtime_ns=-1_000_000_000),
    ),
    "mtime-fraction-before-1970": (
        pax((b"mtime", b"-1.5")) + header() + END,
        Entry(b"f", Kind.FILE, mtime_ns=-1_500_000_000),
    ),
    "mtime-far-future": (
        pax((b"mtime", b"9" * 300)) + header() + END,
        Entry(b"f", Kind.FILE, mtime_ns=2**63 - 1),
    ),
    "mtime-far-future-binary": (
        header(mtime=base256(2**70, 12)) + END,
        Entry(b"f", Kind.FILE, mtime_ns=2**63 - 1),
    ),
    "directory-with-a-size": (
        header(b"d", b"5", size=5000) + END,
        Entry(b"d", Kind.DIRECTORY),
    ),
    "whiteout-of-a-255-byte-name": (
        pax((b"path", b".wh." + b"n" * 255)) + header() + END,
        Entry(b".wh." + b"n" * 255, Kind.FILE),
    ),
    "global-header-is-ignored": (
        pax((b"path", b"evil"), typeflag=b"g") + header() + END,
        Entry(b"f", Kind.FILE),
    ),
    "xattr-binary": (
        pax((b"SCHILY.xattr.user.a", b"\0\xff\n=")) + header() + END,
        Entry(b"f", Kind.FILE, xattrs={b"user.a": b"\0\xff\n="}),
    ),
    "xattr-empty": (
        pax((b"SCHILY.xattr.user.a", b"")) + header() + END,
        Entry(b"f", Kind.FILE, xattrs={b"user.a": b""}),
    ),
    "xattr-libarchive": (
        pax((b"LIBARCHIVE.xattr.user.a%3Db", b"AP8")) + header() + END,
        Entry(b"f", Kind.FILE, xattrs={b"user.a=b": b"\0\xff"}),
    ),
    "xattr-both-forms": (
        pax((b"SCHILY.xattr.user.a", b"s"), (b"LIBARCHIVE.xattr.user.a", b"bA==")) + header() + END,
        Entry(b"f", Kind.FILE, xattrs={b"user.a": b"s"}),
    ),
    "old-sparse": (
        OLD_SPARSE + bytes(512) + END,
        Entry(b"s", Kind.FILE, size=1024, extents=((512, 512),)),
    ),
    "no-end-marker": (member(), Entry(b"f", Kind.FILE)),
    "half-an-end-marker": (member() + bytes(512), Entry(b"f", Kind.FILE)),
    "label-skipped": (header(b"label", b"V") + member() + END, Entry(b"f", Kind.FILE)),
    "char-0-0": (header(typeflag=b"3") + END, Entry(b"f", Kind.CHAR)),
    "block-8-0": (
        header(typeflag=b"4", rdev=b"0000010\x000000000\0") + END,
        Entry(b"f", Kind.BLOCK, rdev=(8, 0)),
    ),
    "fifo": (header(typeflag=b"6") + END, Entry(b"f", Kind.FIFO)),
    "link-to-itself": (
        header(typeflag=b"1", linkname=b"f") + END,
        Entry(b"f", Kind.HARDLINK, linkname=b"f"),
    ),
    "signed-checksum": (
        header(
            b"\xff",
            checksum=b"%06o\0 "
            % (sum(header(b"\xff")[:148]) + 256 + sum(header(b"\xff")[156:]) - 256),
        )
        + END,
        Entry(b"\xff", Kind.FILE),
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_accepted(case: str) -> None:
    data, expected = GOOD[case]
    assert read(data) == [expected]


def test_empty_stream_is_an_empty_layer() -> None:
    warnings: list[str] = []
    stream = TarStream(io.BytesIO(b""), SMALL, warn=warnings.append)
    assert list(stream) == []
    assert stream.diff_id == (
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert not warnings


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (member(), "no end-of-archive"),
        (member() + END + member(b"hidden"), "after the end-of-archive marker"),
        (header(b"label", b"V") + member() + END, "volume label"),
    ],
)
def test_odd_things_are_told(data: bytes, words: str) -> None:
    warnings: list[str] = []
    assert [entry.name for entry in read(data, warn=warnings.append)] == [b"f"]
    assert len(warnings) == 1
    assert words in warnings[0]


def test_a_promised_digest_makes_a_missing_marker_unsuspicious() -> None:
    warnings: list[str] = []
    stream = TarStream(io.BytesIO(member()), SMALL, warn=warnings.append, promised=True)
    assert len(list(stream)) == 1
    assert not warnings


def test_a_hostile_name_cannot_forge_a_line() -> None:
    data = pax((b"path", b"a\n\x1b[2Jb")) + header(size=5000) + bytes(512)
    with pytest.raises(HostileArchiveError) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_diff_id_only_at_the_end() -> None:
    stream = TarStream(io.BytesIO(member() + END), SMALL)
    next(stream)
    with pytest.raises(RuntimeError):
        _ = stream.diff_id


def test_many_empty_entries_need_no_memory() -> None:
    import tracemalloc

    class Endless:
        def __init__(self) -> None:
            self.left = 20_000

        def read(self, size: int, /) -> bytes:
            count = min(self.left, size // 512)
            self.left -= count
            return header() * count

    stream = TarStream(Endless(), Limits())
    tracemalloc.start()
    assert sum(1 for _ in stream) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
