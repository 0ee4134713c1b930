"""The demo: its story happens, and whoever stops it finds nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.standin.slowdisk_process import REPOSITORY

pytestmark = pytest.mark.alone

MARK = "CHECKED_DEMO"
LONGEST_S = 120


@dataclass(frozen=True, slots=True)
class RunningDemo:
    """The demo as a process whose every child is known by a mark in its environment."""

    process: subprocess.Popen[str]
    folder: Path
    mark: str

    def read_until(self, pattern: str) -> None:
        """Read its output up to the line that matches."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if re.search(pattern, line):
                return
        pytest.fail(f"the demo never said {pattern!r}:\n{''.join(seen)}")

    def finish(self) -> str:
        """The rest of its output, once it has ended."""
        return self.process.communicate(timeout=LONGEST_S)[0]

    def leftovers(self) -> list[str]:
        """Processes it started, mounts and files it made, that are still there."""
        processes = [f"process {pid}: {command}" for pid, command in processes_with(f"{MARK}={self.mark}")]
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        return processes + mounts + [str(path) for path in self.folder.iterdir()]


def processes_with(assignment: str) -> Iterator[tuple[int, str]]:
    """Running processes that have this in their environment."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if assignment.encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name), (folder / "cmdline").read_text().replace("\0", " ")
        except (PermissionError, ProcessLookupError, FileNotFoundError):
            continue  # another user's, or gone meanwhile


@pytest.fixture
def demo() -> Iterator[RunningDemo]:
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:  # short: sockets live below it
        environ = {**os.environ, "TMPDIR": folder, MARK: folder}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.demo"],
            cwd=REPOSITORY,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield RunningDemo(process, Path(folder), folder)
        finally:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.mark.timeout(LONGEST_S + 30)
def test_the_story_happens_and_leaves_nothing(demo: RunningDemo) -> None:
    began = time.monotonic()
    output = demo.finish()
    assert demo.process.returncode == 0, output
    assert time.monotonic() - began < LONGEST_S
    assert "Shown:" in output
    assert demo.leftovers() == []


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("A sample library", signal.SIGINT),
        ("Anna watches", signal.SIGINT),
        ("copying ", signal.SIGTERM),
    ],
    ids=["while it is set up", "while the disk wakes up", "while files are copied"],
)
def test_whoever_stops_it_finds_nothing_left(demo: RunningDemo, line: str, number: signal.Signals) -> None:
    demo.read_until(line)
    demo.process.send_signal(number)
    output = demo.finish()
    assert demo.process.returncode == 130, output
    assert demo.leftovers() == []
