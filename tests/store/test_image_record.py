"""Reading and writing the `json` of an image."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.errors import StoreError
from unionfs.store.facts import Facts, decode_facts
from unionfs.store.ids import ImageId
from unionfs.store.image import MAX_JSON, ZERO_TIME, ImageRecord, format_time, now, parse_time

ID = "c0ffee" + "0" * 58
PARENT = "babe" + "1" * 60

ORIGINAL = (
    b'{"id":"%s","parent":"%s","comment":"x","created":"2013-04-15T12:05:46.123456789+02:00",'
    b'"container":"%s","container_config":{"Hostname":"9f8e7d6c5b4a","User":"","Memory":0,'
    b'"MemorySwap":0,"AttachStdin":false,"AttachStdout":true,"AttachStderr":true,'
    b'"PortSpecs":null,"Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,'
    b'"Cmd":["/bin/sh","-c","echo hello \\u003e /world"],"Image":"base"},'
    b'"docker_version":"0.1.4"}'
) % (ID.encode(), PARENT.encode(), ID.encode())


def test_a_record_of_docker_0_1_4_is_read_and_written_to_the_byte() -> None:
    record = ImageRecord.decode(ORIGINAL)
    assert record.id == ID
    assert record.parent == PARENT
    assert record.created == "2013-04-15T12:05:46.123456789+02:00"
    assert record.created_ns == 1366020346123456789
    assert record.container_config["Cmd"][2] == "echo hello > /world"
    assert record.docker_version == "0.1.4"
    assert record.raw == ORIGINAL
    assert record.encode() == ORIGINAL
    assert record.stored_bytes == ORIGINAL


def test_missing_fields_are_zero() -> None:
    record = ImageRecord.decode(b'{"id":"deadbeef"}')
    assert record == ImageRecord(id=ImageId("deadbeef"))
    assert record.parent is None
    assert record.created == ZERO_TIME
    assert record.config is None
    written = json.loads(record.encode())
    assert list(written) == ["id", "created", "container_config"]
    assert written["created"] == "0001-01-01T00:00:00Z"
    assert list(written["container_config"])[:2] == ["Hostname", "User"]
    assert written["container_config"]["Cmd"] is None


def test_order_of_all_fields() -> None:
    raw = json.dumps(
        {
            "Size": 7,
            "os": "linux",
            "architecture": "x86_64",
            "config": {"cmd": ["a"], "Labels": {"b": "1", "a": "2"}},
            "author": "me",
            "docker_version": "0.6",
            "container_config": {},
            "container": "c",
            "created": ZERO_TIME,
            "comment": "k",
            "parent": PARENT,
            "id": ID,
            "checksum": "tarsum",
        }
    ).encode()
    record = ImageRecord.decode(raw)
    assert record.extra == {"checksum": "tarsum"}
    written = json.loads(record.encode())
    expected = "id parent comment created container container_config docker_version author config"
    assert list(written) == [*expected.split(), "architecture", "os", "Size", "checksum"]
    assert written["config"]["Cmd"] == ["a"]
    assert list(written["config"]["Labels"]) == ["a", "b"]
    assert ImageRecord.decode(record.encode()).encode() == record.encode()


def test_keys_in_any_case_and_the_last_duplicate_counts() -> None:
    raw = b'{"ID":"deadbeef","Comment":"1","COMMENT":"2","size":5,"Created":"2013-01-01T00:00:00Z"}'
    record = ImageRecord.decode(raw)
    assert (record.id, record.comment, record.size) == ("deadbeef", "2", 5)
    assert record.created_ns == 1356998400 * 10**9
    assert record.extra == {}
    twice = ImageRecord.decode(b'{"id":"deadbeef","comment":"a","comment":"b","parent":null}')
    assert twice.comment == "b"
    assert twice.parent is None


def test_invalid_utf8_becomes_one_replacement_character_per_byte() -> None:
    record = ImageRecord.decode(b'{"id":"deadbeef","comment":"a\xff\xe2\x82b\\ud800c"}')
    assert record.comment == "a\ufffd\ufffd\ufffdb\ufffdc"
    assert ImageRecord.decode(record.encode()).comment == record.comment


def test_encoding_escapes_as_go_does() -> None:
    record = ImageRecord(id=ImageId("deadbeef"), comment="<a&b>\u2028\u00e9\n\x01")
    assert '"comment":"\\u003ca\\u0026b\\u003e\\u2028\u00e9\\n\\u0001"'.encode() in record.encode()


def test_unknown_fields_survive() -> None:
    record = ImageRecord.decode(b'{"id":"deadbeef","z":{"b":[1,2.5,null]},"a":true}')
    assert record.extra == {"z": {"b": [1, 2.5, None]}, "a": True}
    assert ImageRecord.decode(record.encode()).extra == record.extra


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not valid JSON"),
        (b"{}", "not an image id"),
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'{"id":5}', "wrong type"),
        (b'{"id":"../../etc"}', "not an image id"),
        (b'{"id":"a/b"}', "not an image id"),
        (b'{"id":"deadbeef\\u0000"}', "not an image id"),
        (b'{"id":"deadbeef","parent":"../x"}', "not an image id"),
        (b'{"id":"deadbeef","parent":"abc"}', "not an image id"),
        (b'{"id":"deadbeef","Size":true}', "wrong type"),
        (b'{"id":"deadbeef","Size":1.5}', "wrong type"),
        (b'{"id":"deadbeef","config":[]}', "wrong type"),
        (b'{"id":"deadbeef","created":"yesterday"}', "not a time"),
        (b'{"id":"deadbeef","created":"2013-02-30T00:00:00Z"}', "not a time"),
        (b'{"id":"deadbeef","x":1e400}', "too large"),
        (b'{"id":"deadbeef","x":-1e400}', "too large"),
        (b'{"id":"deadbeef","x":NaN}', "NaN is not"),
        (b'{"id":"deadbeef","x":Infinity}', "Infinity is not"),
        (b'{"id":"deadbeef","x":' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"id":"deadbeef"} x', "not valid JSON"),
        (b'{"id":"deadbeef","x":"\n"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"id":"deadbeef"}', "byte order mark"),
        ('{"id":"deadbeef"}'.encode("utf-16"), "UTF-16"),
        ('{"id":"deadbeef"}'.encode("utf-16-le"), "UTF-16"),
        ('{"id":"deadbeef"}'.encode("utf-16-be"), "UTF-16"),
        (b'{"id":"deadbeef","x":' + b"[" * 10000 + b"]" * 10000 + b"}", "nested"),
        (b'{"a":' * 5000, "nested"),
        (b'"' + b'\\"' * (MAX_JSON // 2 - 1), "not valid JSON"),
        (b'{"x":"' + b"\\" * (MAX_JSON // 2 - 1), "not valid JSON"),
        (b'{"id":"deadbeef","x":"' + b"a" * MAX_JSON + b'"}', "larger than"),
    ],
)
def test_bad_records_give_one_clear_line(raw: bytes, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        ImageRecord.decode(raw, "`json` of image x")
    text = str(caught.value)
    assert text.startswith("`json` of image x")
    assert text.isprintable()
    assert len(text) < 300


def test_brackets_in_strings_are_no_nesting() -> None:
    record = ImageRecord.decode(b'{"id":"deadbeef","comment":"' + b'[{\\"' * 500 + b'"}')
    assert record.comment == '[{"' * 500


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1969-12-31T23:59:59.5Z", -(10**9) // 2),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T19:30:00-04:30", 0),
        ("0001-01-01T00:00:00+02:00", -62135604000 * 10**9),
        ("2013-04-15T12:05:46.1234567891Z", 1366027546123456789),
    ],
)
def test_times(text: str, ns: int) -> None:
    assert parse_time(text) == ns


@given(st.integers(-62135596800 * 10**9, 253402300799 * 10**9))
def test_times_are_written_to_the_nanosecond(ns: int) -> None:
    assert parse_time(format_time(ns)) == ns


def test_now_follows_source_date_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert now() == "1970-01-01T00:00:01Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    assert parse_time(now()) > 1366027546 * 10**9


@given(st.binary(max_size=60))
def test_no_bytes_crash_the_reader(raw: bytes) -> None:
    for data in (raw, b'{"id":"deadbeef","comment":"' + raw + b'"}'):
        try:
            record = ImageRecord.decode(data)
        except StoreError:
            continue
        assert ImageRecord.decode(record.encode()).encode() == record.encode()


def test_facts_round_trip_and_tolerate_later_fields() -> None:
    facts = Facts(diff_id="sha256:" + "0" * 64, size=5, dialect="override", warnings=("a", "b"))
    assert decode_facts(facts.encode()) == facts
    assert json.loads(facts.encode())["format"] == 1
    assert decode_facts(b'{"format":1,"size":2,"new":{"x":[1]}}').size == 2
    assert decode_facts(b"{}") == Facts()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b'{"size":"x"}',
        b'{"dialect":"klingon"}',
        b"\xff",
        b'{"size":1e400}',
        b"[" * 100000,
    ],
)
def test_damaged_facts(raw: bytes) -> None:
    with pytest.raises(StoreError, match="is damaged"):
        decode_facts(raw)


def test_facts_of_a_later_format_are_not_misread() -> None:
    with pytest.raises(StoreError, match="newer unionfs"):
        decode_facts(b'{"format":2,"size":"five"}')
