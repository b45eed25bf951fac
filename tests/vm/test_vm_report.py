"""Reading what came out of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.vm import report

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.kernel.test_a" name="one"/>
<testcase classname="tests.kernel.test_a" name="two"><skipped message="aufs: no AUFS"/></testcase>
<testcase classname="tests.kernel.test_a" name="three"><skipped message="aufs: no AUFS"/></testcase>
%s</testsuite></testsuites>"""
FAILED = '<testcase classname="t" name="bad"><failure message="assert 1 == 2&#10;more"/></testcase>'


def files(tmp_path: Path, **content: str) -> dict[str, Path]:
    found = {}
    for key, text in content.items():
        name = key.replace("_", ".")
        (tmp_path / name).write_text(text)
        found[name] = tmp_path / name
    return found


def test_counts_and_reasons() -> None:
    found = report.outcome(JUNIT % FAILED)
    assert found.passed == 1
    assert found.failed == {"t::bad": "assert 1 == 2"}
    assert found.skipped == {"aufs: no AUFS": 2}
    with pytest.raises(ValueError, match="not a JUnit"):
        report.outcome("half a <doc")


def test_success_is_shown_with_its_skips(tmp_path: Path) -> None:
    found = files(tmp_path, kernel_xml=JUNIT % "", bench_txt="\rwalk: plain\r      \rratio 1.0\n")
    lines, good = report.summary(found, {"kernel": 0, "bench": 0})
    assert good
    assert lines == [
        "kernel: 1 passed, 0 failed, 2 skipped",
        "  skipped 2: aufs: no AUFS",
        "bench: ok",
        "  ratio 1.0",
    ]


@pytest.mark.parametrize("status", [1, None])
def test_failures_hangs_and_silence_are_no_success(tmp_path: Path, status: int | None) -> None:
    found = files(tmp_path, kernel_xml=JUNIT % FAILED)
    lines, good = report.summary(found, {"kernel": 1, "bench": status})
    assert not good
    assert "  FAILED t::bad: assert 1 == 2" in lines
    assert f"bench: FAILED, status {status}" in lines
    skipped = files(tmp_path, kernel_xml="<testsuites/>")
    assert not report.summary(skipped, {"kernel": 0})[1]


def test_a_run_that_was_cut_off_says_so(tmp_path: Path) -> None:
    found = files(tmp_path, kernel_xml=JUNIT % "")
    for status, said in ((None, "CUT OFF"), (3, "ended with 3")):
        lines, good = report.summary(found, {"kernel": status})
        assert not good
        assert said in lines[0]


def test_what_a_kernel_cannot_do_is_named_and_no_failure(tmp_path: Path) -> None:
    found = files(tmp_path, kernel_xml=JUNIT % "")
    lines, good = report.summary(found, {"bench-aufs": "this kernel has no aufs", "kernel": 0})
    assert good
    assert lines[0] == "bench-aufs: left out: this kernel has no aufs"


def test_measurements_are_shown_as_their_table(tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text("Ratios\n fuse 1.2\n")
    found = files(tmp_path, bench_txt="step 1\rstep 2\n") | {
        "bench/table.txt": tmp_path / "table.txt"
    }
    lines, good = report.summary(found, {"bench": 0})
    assert good
    assert lines == ["bench: ok", "  Ratios", "   fuse 1.2"]
