"""Starts viewers, hears how they go, and ends them. The demo itself never touches the mount: it may hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.standin.library import SampleFile
from tests.standin.slowdisk_process import REPOSITORY


@dataclass(frozen=True, slots=True)
class Report:
    """How a viewer is getting on. ``state`` is what ``user.cachefs.state`` of its open file says."""

    position: int = 0
    first_byte_s: float | None = None
    wrong_bytes: int = 0
    state: str = ""
    took_s: float = 0.0
    ended: bool = False

    @property
    def bytes_per_s(self) -> float:
        """After the first byte."""
        seconds = self.took_s - (self.first_byte_s or 0.0)
        return self.position / seconds if seconds > 0 else 0.0


class Viewer:
    """One viewer process; ``report`` is always its newest word, ``states`` all it saw of its file, in order."""

    def __init__(self, mountpoint: Path, file: SampleFile, bytes_per_s: float | None) -> None:
        self.file = file
        self.report = Report()
        self.states: tuple[str, ...] = ()
        command = [sys.executable, "-m", "tests.demo.viewer", os.fspath(mountpoint), file.path, str(file.size)]
        command += [] if bytes_per_s is None else ["--bytes-per-s", str(bytes_per_s)]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def running(self) -> bool:
        """Whether there is more to hear from it."""
        return self._listener.is_alive()

    @property
    def progress(self) -> float:
        """0 to 1."""
        return self.report.position / self.file.size

    @property
    def saw_it_right(self) -> bool:
        """Whether it read everything, and every byte was right."""
        return self.report.ended and self.report.position == self.file.size and self.report.wrong_bytes == 0

    def end(self) -> None:
        """Kill it if it still runs. A reader that a hung mount holds goes when the mount does."""
        self._process.kill()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.report = Report(**json.loads(line))
                if self.states[-1:] != (self.report.state,):
                    self.states += (self.report.state,)
        self._process.wait()


@contextmanager
def viewer(mountpoint: Path, file: SampleFile, bytes_per_s: float | None = None) -> Iterator[Viewer]:
    """Somebody who watches ``file``, as fast as possible when no pace is given; ended with the block."""
    watching = Viewer(mountpoint, file, bytes_per_s)
    try:
        yield watching
    finally:
        watching.end()


@contextmanager
def scan(mountpoint: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What a media server does to a library now and then: look at every file, open none; ended with the block."""
    looking = subprocess.Popen(
        ["find", os.fspath(mountpoint), "-size", "+0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield looking
    finally:
        looking.kill()
