"""Fixtures for every test area, and the rule that a logged warning fails a test.

A union that logs a warning in a test has met something nobody planned for; a test
that provokes one on purpose says so by taking `caplog` and the marker below.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with these ignored, and so does nohup; programs that the
    # tests start would inherit that and never see the signals the tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.addinivalue_line("markers", "logs_warnings: this test provokes warnings on purpose")


@pytest.fixture(autouse=True)
def _no_unexpected_warnings(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    yield
    if request.node.get_closest_marker("logs_warnings"):
        return
    bad = [
        record
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.WARNING and record.name.startswith("unionfs")
    ]
    assert not bad, f"logged: {[record.getMessage() for record in bad]}"


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """Return a temporary directory that every user may traverse, read and write in."""
    path = Path(tempfile.mkdtemp(prefix="unionfs-test-"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def as_root() -> None:
    """Skip when the tests run without root."""
    if os.geteuid() != 0:
        pytest.skip("needs uid 0 (run `sudo make test` to include it)")
