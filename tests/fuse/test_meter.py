"""Requests are counted once, by kind and time, and can be watched; unwatched they cost little."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support.asking import ADAPTERS, ask, mounted, unionfs
from support.fuseplace import Place

from unionfs.cli.stats import percentile, span
from unionfs.fuse import trace as traces
from unionfs.fuse.boundary import handler
from unionfs.fuse.meter import BUCKETS, Meter, Timing, bucket_bound

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- counting ------------------------------------------------------------------------


def test_times_fall_into_powers_of_two() -> None:
    timing = Timing()
    for elapsed in (0, 1023, 1024, 2047, 2048, 10**9, 10**15):
        timing.add(elapsed, 0)
    filled = {index: count for index, count in enumerate(timing.buckets) if count}
    assert filled == {0: 2, 1: 2, 2: 1, 20: 1, BUCKETS - 1: 1}
    for index in range(BUCKETS - 1):
        bound = bucket_bound(index)
        assert bound is not None
        longest = Timing()
        longest.add(round(bound * 1e9) - 1, errno.ENOENT)
        assert longest.buckets[index] == 1
        assert longest.errors == 1
    assert bucket_bound(BUCKETS - 1) is None


def test_percentiles_are_upper_bounds() -> None:
    bounds = [1.0, 2.0, None]
    assert percentile([98, 1, 1], bounds, 0.5) == 1.0
    assert percentile([98, 1, 1], bounds, 0.99) == 2.0
    assert percentile([98, 1, 1], bounds, 1) == float("inf")
    assert percentile([0, 0, 0], bounds, 0.5) == 0
    assert [span(value) for value in (5e-6, 0.0123, 2.5)] == ["5us", "12.3ms", "2.5s"]


class _Counting:
    """Stands for an adapter; counts what a request costs in calls."""

    def __init__(self) -> None:
        self.recorder = Meter().trio

    @handler
    async def lookup(self, parent: int, name: bytes) -> int:
        return parent + len(name)


def _calls(action: Any) -> list[str]:
    """Return the names of all Python functions that are called, in order."""
    seen: list[str] = []

    def profile(frame: Any, event: str, _: object) -> None:
        if event == "call":
            seen.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return seen


def _run(coroutine: Any) -> Any:
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    return ended.value.value


async def test_an_unwatched_request_costs_two_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the tracing is called or made: shown by counting calls."""
    served = _Counting()

    def refuse(*_: object) -> None:
        raise AssertionError("made though nobody watches")

    monkeypatch.setattr(traces.Event, "__init__", refuse)
    monkeypatch.setattr(traces.Tracing, "event", refuse)
    await served.lookup(1, b"name")
    seen = _calls(lambda: _run(served.lookup(1, b"name")))
    ours = [name for name in seen if name in ("guarded", "counted", "lookup", "timing", "add")]
    assert ours == ["guarded", "counted", "lookup", "timing", "add"]
    assert not {"event", "end", "_begin", "_end", "facts"} & set(seen)
    assert sum(served.recorder.timings["lookup"].buckets) == 2


def test_the_lane_makes_nothing_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()

    class Request:
        opcode, unique, nodeid, pid, body = 1, 7, 1, 1, memoryview(b"x\0")

    def lookup(_: object) -> bytes:
        return b"\1" * 8

    def refuse(*_: object) -> None:
        raise AssertionError("made though nobody watches")

    monkeypatch.setattr(traces.Event, "__init__", refuse)
    table = meter.watched({1: lookup})
    assert table[1](Request()) == b"\1" * 8  # type: ignore[arg-type]  # as much as needed
    seen = _calls(lambda: table[1](Request()))  # type: ignore[arg-type]  # as much as needed
    assert [name for name in seen if name != "<lambda>"] == ["quick", "lookup"]
    assert meter.requests()["lookup"]["count"] == 2


# -- on mounts -----------------------------------------------------------------------


@pytest.mark.fuse
def test_what_was_asked_is_what_is_counted(root: Place, adapter: str) -> None:
    mounted(root, adapter)
    root.sh(
        "cat mnt/f mnt/d/a; head -c 100000 /dev/zero > mnt/new; cat mnt/new >/dev/null;"
        " echo x >> mnt/d/b; cat mnt/absent || :; ls mnt"
    )
    found = ask(root, "stats")
    requests = found["requests"]
    assert requests["write"]["bytes"] == 100_000 + 2
    assert requests["read"]["bytes"] >= len("lower" + "aaa")
    assert requests["lookup"]["count"] >= 5
    assert requests["readdir"]["count"] >= 1
    for item in requests.values():
        assert sum(item["buckets"]) == item["count"] >= item["errors"]
        assert len(item["buckets"]) == len(found["buckets"])
    assert found["copy_ups"] == 2  # d and d/b
    assert found["copy_up_bytes"] == 3
    assert found["lane"] == (adapter == "lane")
    assert [item["branch"] for item in found["branches"]] == ["rw", "layer 1"]
    assert found["branches"][1]["entries_read"] > 0
    assert 0 <= found["cache_hits"] <= found["lookups"]


@pytest.mark.fuse
def test_stats_in_all_forms(user: Place) -> None:
    mounted(user, "nolane")
    user.sh("ls -lR mnt >/dev/null; cat mnt/f >/dev/null")
    rows = [line.split("\t") for line in unionfs(user, "stats", "mnt").stdout.splitlines()]
    assert any(row[0] == "getattr" and len(row) == 7 for row in rows)
    assert any(row[0].startswith("layer 1") for row in rows)
    assert 'op="read"' in unionfs(user, "stats", "mnt", "--prometheus").stdout
    assert "exclude" in unionfs(user, "stats", "mnt", "--json", "--watch", status=2).stderr
    words = [*user.python, "-m", "unionfs", "stats", "mnt", "--watch", "--interval", "0.1"]
    with user.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        user.sh("sleep 1; ls -lR mnt >/dev/null")
        user.umount()  # ends the watching too
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == 1
    assert "the mount has" in err
    assert "PER SECOND" in out


@pytest.fixture
def tracing(root: Place) -> Iterator[Any]:
    """Start `unionfs trace` and wait until it watches."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        argv = [*root.python, "-m", "unionfs", "trace", "mnt", *words]
        process = root.start(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        running.append(process)
        assert process.stderr is not None
        assert "tracing" in process.stderr.readline()
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.fuse
def test_a_trace_says_who_answered(root: Place, adapter: str, tracing: Any) -> None:
    root.sh("mkdir -p top/d; echo t > top/t; touch top/d/.wh.b")
    mounted(root, adapter, "top", "base")
    root.sh("rm mnt/t")
    trace = tracing("--op", "lookup", "--json", "--count", "4")
    root.sh("cat mnt/t mnt/d/b mnt/nothing mnt/f || :")
    events = {}
    for line in trace.communicate(timeout=60)[0].splitlines():
        event = json.loads(line)
        events[event["path"]] = event
    facts = {
        path: (event["result"], event["branch"], event["whiteouts"])
        for path, event in events.items()
    }
    assert facts["/t"] == ("ENOENT", None, ["rw:/.wh.t"])
    assert facts["/d"] == ("ok", "layer 2", [])
    assert facts["/d/b"] == ("ENOENT", None, ["layer 2:/d/.wh.b"])
    assert facts["/nothing"] == ("ENOENT", None, [])
    event = events["/d"]
    assert event["pid"] > 0
    assert event["microseconds"] >= 0
    assert event["errno"] == 0
    assert event["time"] > 1_700_000_000


@pytest.mark.fuse
def test_a_trace_can_be_narrowed(root: Place, adapter: str, tracing: Any) -> None:
    mounted(root, adapter)
    below = tracing("--path", "/d", "--count", "2", "--json")
    reads = tracing("--op", "read", "--count", "2")
    mine = root.start("sh", "-c", "read go; exec cat mnt/p", stdin=subprocess.PIPE)
    own = tracing("--pid", str(mine.pid), "--count", "1", "--json")
    root.sh("cat mnt/f; cat mnt/d/a mnt/d/b")
    mine.communicate("go\n", timeout=60)
    for line in below.communicate(timeout=60)[0].splitlines():
        assert json.loads(line)["path"].startswith("/d")
    lines = reads.communicate(timeout=60)[0].splitlines()
    assert [line.split()[2:5] for line in lines] == [["read", "/f", "ok"], ["read", "/d/a", "ok"]]
    (line,) = own.communicate(timeout=60)[0].splitlines()
    assert json.loads(line)["pid"] == mine.pid


@pytest.mark.fuse
def test_changes_are_traced_with_their_branch(root: Place, adapter: str, tracing: Any) -> None:
    mounted(root, adapter)
    trace = tracing("--json")
    root.sh("echo x >> mnt/d/a; mkdir mnt/n; mv mnt/f mnt/g; rm mnt/p; ln mnt/q mnt/r")
    seen: dict[str, dict[str, Any]] = {}
    assert trace.stdout is not None
    for line in trace.stdout:
        event = json.loads(line)
        seen[event["op"]] = event
        if event["op"] == "link":
            break
    assert seen["write"]["path"] == "/d/a"
    assert seen["write"]["branch"] == "rw"
    assert seen["mkdir"]["path"] == "/n"
    assert seen["rename"]["path"] == "/f"
    assert seen["unlink"]["whiteouts"] == ["rw:/.wh.p"]
    assert seen["link"]["path"] == "/r"


def test_watching_into_a_pipe(user: Place) -> None:
    """Who reads sees every look, and the command ends with its reader."""
    user.mount()
    user.sh("cat mnt/f")
    words = ["timeout", "60", *user.python, "-m", "unionfs", "stats", "mnt", "--watch"]
    with user.start(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as watcher:
        assert watcher.stdout is not None
        looks = 0
        while looks < 3:
            line = watcher.stdout.readline()
            assert line
            looks += "PER SECOND" in line
        watcher.stdout.close()
        assert watcher.wait(30) != 0
