"""Fixtures for every test: a WARNING that nobody declared fails it, and a sample library is there to be used."""

from __future__ import annotations

import codecs
import logging
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import cachefs.fs  # noqa: F401 - its channel comes before pyfuse3, whichever test imports that first
from tests.standin.library import SampleLibrary, build_library

signal.signal(signal.SIGIO, signal.SIG_IGN)  # as the server does, since leases are taken in process, too


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def expected_warnings(request: pytest.FixtureRequest) -> list[str]:
    """Patterns of log messages that this test allows; from the marker of the same name, and a test may append."""
    return [pattern for marker in request.node.iter_markers("expected_warnings") for pattern in marker.args]


@pytest.fixture(autouse=True)
def _no_undeclared_warning(expected_warnings: list[str]) -> Iterator[None]:
    """Fail the test on a log record of WARNING or above that matches no declared pattern."""
    recorder = _Recorder()
    logging.getLogger().addHandler(recorder)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(recorder)
    texts = [f"{record.levelname} {record.name}: {record.getMessage()}" for record in recorder.records]
    undeclared = [text for text in texts if not any(re.search(pattern, text) for pattern in expected_warnings)]
    assert not undeclared, "undeclared warnings: " + "; ".join(undeclared)


@pytest.fixture
def library(tmp_path: Path) -> SampleLibrary:
    """A small sample library in the folder ``library`` of the test's own."""
    return build_library(tmp_path / "library")


hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("steady")  # the same examples everywhere, however slow; others on request


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expected_warnings(*patterns): log messages of WARNING or above that are fine")


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """The path of a new folder, still to be made, in one of an ordinary user, who is the one who runs the test."""
    uid = os.geteuid()
    codecs.lookup("ascii")  # loaded at its first use, which an ordinary user cannot from a Python in root's home
    with tempfile.TemporaryDirectory() as folder:
        if uid == 0:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder, "new")
        finally:
            os.seteuid(uid)
