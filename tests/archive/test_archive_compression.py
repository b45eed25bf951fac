"""Compression is told by content, decoded here, and bounded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest

from unionfs.archive import compression
from unionfs.archive.compression import compression_of, decompress
from unionfs.archive.limits import Limits
from unionfs.errors import HostileArchiveError, LimitError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMITS = Limits()
DATA = bytes(range(256)) * 3000
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ),
    "zstd": zstd.compress,
    "none": lambda data: data,
}
PACKED = {name: pack(DATA) for name, pack in PACKERS.items()}
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def gzip_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "zlib":
        monkeypatch.setattr(compression, "_igzip", None)
    elif compression._igzip is None:
        pytest.skip("isal is not installed")


def unpack(data: bytes, limits: Limits = LIMITS, step: int = 100_000) -> bytes:
    reader = decompress(io.BytesIO(data), limits)
    parts = []
    while part := reader.read(step):
        assert len(part) <= step
        parts.append(part)
    assert reader.read(step) == b""
    assert reader.bytes_in == len(data)
    return b"".join(parts)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_unpacks(name: str, step: int) -> None:
    assert decompress(io.BytesIO(PACKED[name]), LIMITS).compression == name
    assert unpack(PACKED[name], step=step) == DATA


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_several_members_and_trailing_nuls(name: str) -> None:
    packed = PACKED[name] + PACKERS[name](b"second") + PACKERS[name](b"") + bytes(3000)
    assert unpack(packed) == DATA + b"second"


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_empty(name: str) -> None:
    assert unpack(PACKERS[name](b"")) == b""


def test_no_bytes_at_all() -> None:
    assert decompress(io.BytesIO(b""), LIMITS).compression == "none"
    assert unpack(b"") == b""


@pytest.mark.parametrize(
    "packed",
    [SKIPPABLE + PACKED["zstd"], PACKED["zstd"] + SKIPPABLE, SKIPPABLE * 3 + PACKED["zstd"]],
)
def test_zstd_skippable_frames(packed: bytes) -> None:
    assert unpack(packed) == DATA


def test_zstd_of_the_command_line_tool() -> None:
    packed = subprocess.run(["zstd", "-c", "-T2"], input=DATA, capture_output=True, check=True)
    assert unpack(packed.stdout) == DATA


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_every_truncation_is_noticed(name: str) -> None:
    packed = PACKERS[name](b"some text")
    for length in range(10, len(packed)):
        with pytest.raises(HostileArchiveError, match="truncated"):
            unpack(packed[:length])


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_damage_is_noticed(name: str) -> None:
    packed = bytearray(PACKED[name])
    packed[len(packed) // 2] ^= 0x55
    with pytest.raises(HostileArchiveError, match="damaged"):
        unpack(bytes(packed))


def test_gzip_checksum_is_checked() -> None:
    packed = bytearray(PACKED["gzip"])
    packed[-6] ^= 1
    with pytest.raises(HostileArchiveError, match="damaged gzip"):
        unpack(bytes(packed))


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
@pytest.mark.parametrize("rubbish", [b"rubbish", b"r", b"\0\0x", b"BZh9 and more than that"])
def test_rubbish_after_the_data(name: str, rubbish: bytes) -> None:
    with pytest.raises(HostileArchiveError, match=f"not {name} follows"):
        unpack(PACKED[name] + rubbish)


@pytest.mark.parametrize(
    "head", [b"BZh and so on", b"BZh9.txt\0\0\0\0", b"\x1f\x8bX", b"\x28\xb5\x2f", b"PK\3\4", b""]
)
def test_names_that_only_look_like_magic(head: bytes) -> None:
    assert compression_of(head) == "none"


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_bombs_are_stopped(name: str) -> None:
    bomb = PACKERS[name](bytes(20 << 20))
    limits = Limits(ratio=100, ratio_after=1 << 20)
    reader = decompress(io.BytesIO(bomb), limits)
    with pytest.raises(LimitError, match="--limit ratio="):
        list(iter(lambda: reader.read(1 << 16), b""))
    assert reader.bytes_out < 3 << 20


def test_a_small_file_of_zeros_is_no_bomb() -> None:
    assert unpack(PACKERS["zstd"](bytes(5 << 20))) == bytes(5 << 20)


@pytest.mark.parametrize("name", PACKED)
def test_output_limit(name: str) -> None:
    with pytest.raises(LimitError, match="--limit layer_bytes="):
        unpack(PACKED[name], Limits(layer_bytes=len(DATA) - 1))
    assert unpack(PACKED[name], Limits(layer_bytes=len(DATA))) == DATA


def test_padding_limit() -> None:
    with pytest.raises(LimitError, match="--limit trailing_bytes="):
        unpack(PACKED["gzip"] + bytes(5000), Limits(trailing_bytes=4999))


def test_xz_memory_is_bounded() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}]
    packer = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=filters)
    packed = bytearray(packer.compress(b"x") + packer.flush())
    # The dictionary size is one byte of the block header; its CRC follows.
    start = 12
    length = (packed[start] + 1) * 4
    assert packed[start + 2] == lzma.FILTER_LZMA2
    packed[start + 4] = 35  # 2^29 + 2^28
    crc = zlib.crc32(packed[start : start + length - 4])
    packed[start + length - 4 : start + length] = crc.to_bytes(4, "little")
    with pytest.raises(HostileArchiveError, match="damaged xz"):
        unpack(bytes(packed))


def test_no_program_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("started a program")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setenv("PATH", "")
    for packed in PACKED.values():
        assert unpack(packed) == DATA
