"""A household with a faulty disk: cachefs over two sources, of which one is the slow disk and partly cached.

The tests of failing sources share it. The daemon serves every read here, so that each can be followed and measured.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cachefs.model import EntryState
from tests.mount.kit import MIB, errno_of
from tests.mount.lives import slow_and_media_in, wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk
from tests.standin.slowdisk_process import SlowDiskFailed

Start = Callable[[dict[str, Any]], RunningCachefs]

TIMEOUT_S = 2
CONTENT = random.Random(4).randbytes(4 * MIB)
CACHED = ("one.mkv", "Show/four.mkv")
ATTRIBUTE, VALUE = "user.kept", b"as its copy has it"
"""Of what is cached."""
UNCACHED = ("two.mkv", "three.mkv", "Show/five.mkv")
FILES = dict.fromkeys((*CACHED, *UNCACHED), CONTENT)
IN_ROOT = ["Show", "one.mkv", "three.mkv", "two.mkv"]
IN_SHOW = ["five.mkv", "four.mkv"]
UNTRUE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
"""What says of a file that it is not there."""
WARNINGS = [r"source slow .* is offline", "a disk call still hangs in process"]

FAULTS: dict[str, Callable[[SlowDisk], None]] = {
    "hung": SlowDisk.hang,
    "erring": SlowDisk.fail,
    "dead": SlowDisk.go_away,
    "an empty folder": SlowDisk.leave_empty_folder,
}
every_fault = pytest.mark.parametrize("fault", FAULTS)


@dataclass(frozen=True, slots=True)
class Scene:
    """cachefs over ``slow``, of which CACHED is on the SSD, and ``media``."""

    running: RunningCachefs
    disk: SlowDisk
    settings: dict[str, Any]
    start: Start

    @property
    def slow(self) -> Path:
        return self.running.mountpoint / "slow"

    @property
    def media(self) -> Path:
        return self.running.mountpoint / "media"

    def break_disk(self, fault: str) -> None:
        """From now on the slow disk has this fault, and somebody has met it."""
        FAULTS[fault](self.disk)
        errno_of((self.slow / "three.mkv").stat)

    def mend_disk(self, fault: str) -> None:
        if fault in ("hung", "erring"):
            self.disk.release()
        else:
            self.disk.come_back()

    def is_online(self) -> bool:
        return all(source.online for source in self.running.status().sources)

    def cached(self, source: str = "slow") -> set[str]:
        """What is wholly on the SSD, as ``cachefs ls`` shows it."""
        with self.running.client() as client:
            entries = [entry for entry in client.entries() if entry.state is EntryState.CACHED]
        return {entry.key.path for entry in entries if entry.key.source == source}

    def copy(self, *paths: str) -> None:
        """Have files of the mount cached."""
        with self.running.client() as client:
            keys = [client.copy(path) for path in paths]
        wait_until(
            self.running, lambda: all(key.path in self.cached(key.source) for key in keys), f"{paths} are cached"
        )

    def restarted(self) -> Scene:
        assert self.running.terminate() == 0
        return replace(self, running=self.start(self.settings))


@contextmanager
def fault_settings(folder: Path, disk: SlowDisk) -> Iterator[dict[str, Any]]:
    with slow_and_media_in(folder, disk, FILES, TIMEOUT_S) as made:
        yield made | {"fast_path": "off"}


@contextmanager
def fault_scene(settings: dict[str, Any], disk: SlowDisk, start: Start) -> Iterator[Scene]:
    """Running, with everything listed once. At the end nothing hangs any more."""
    made = Scene(start(settings), disk, settings, start)
    for name in CACHED:
        os.setxattr(made.slow / name, ATTRIBUTE, VALUE)
    made.copy(*(f"slow/{name}" for name in CACHED))
    assert sorted(os.listdir(made.slow)) == IN_ROOT
    assert sorted(os.listdir(made.slow / "Show")) == IN_SHOW
    try:
        yield made
    finally:
        with suppress(SlowDiskFailed, FileNotFoundError):  # it may be dead
            disk.release()
