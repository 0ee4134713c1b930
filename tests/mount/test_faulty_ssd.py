"""The SSD fails in every way: what the daemon serves comes from the source, and copying begins again by itself."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cachefs.model import EntryState
from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import settings_in, wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

Start = Callable[[dict[str, Any]], RunningCachefs]

CONTENT = random.Random(5).randbytes(2 * MIB)
CACHED = ("one.mkv", "two.mkv")
UNCACHED = ("three.mkv", "four.mkv")
WRITING = ("write", "create", "mkdir", "unlink", "rename", "setattr", "fsync", "setxattr", "rmdir", "mknod")
COPIES_AGAIN_WITHIN_S = 75.0
"""Half a minute between two attempts, and one that may be under way."""
PAUSED = "copying pauses and is tried again"
WARNINGS = [
    r"the SSD copy of .* cannot be used",
    PAUSED,
    r"the cache folder .* fails and is tried again",
]


def _deleted(ssd: SlowDisk) -> None:
    for path in ssd.backing.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


FAULTS: dict[str, Callable[[SlowDisk], None]] = {
    "errors on read": lambda ssd: ssd.fail(errno.EIO, kinds=("read",)),
    "errors on write": lambda ssd: ssd.fail(errno.EIO, kinds=WRITING),
    "read-only": lambda ssd: ssd.fail(errno.EROFS, kinds=WRITING),
    "full": lambda ssd: ssd.fail(errno.ENOSPC, kinds=("write", "create", "mkdir", "fsync")),
    "errors on everything": SlowDisk.fail,
    "emptied": _deleted,
}
STOPS_COPYING = [fault for fault in FAULTS if fault not in ("errors on read", "emptied")]
PASSING = ("full", "errors on everything")
READABLE = ("errors on write", "read-only", "full")
every_fault = pytest.mark.parametrize("fault", FAULTS)


@dataclass(frozen=True, slots=True)
class Scene:
    """cachefs over a plain folder; the slow disk is the SSD, and holds CACHED."""

    running: RunningCachefs
    ssd: SlowDisk
    media: Path

    @property
    def mount(self) -> Path:
        return self.running.mountpoint

    def copy(self, *names: str) -> None:
        with self.running.client() as client:
            for name in names:
                client.copy(name)

    def cached(self) -> set[str]:
        with self.running.client() as client:
            return {entry.key.path for entry in client.entries() if entry.state is EntryState.CACHED}

    def said(self, text: str) -> int:
        """How often this is in the log."""
        return self.running.log.read_text().count(text)


@pytest.fixture
def scene(tmp_path: Path, slow_disk: SlowDisk, start_mount: Start, expected_warnings: list[str]) -> Iterator[Scene]:
    expected_warnings += WARNINGS
    with settings_in(tmp_path) as settings:
        for name in (*CACHED, *UNCACHED):
            (tmp_path / "media" / name).write_bytes(CONTENT)
        settings["cache"]["path"] = str(slow_disk.mountpoint)
        made = Scene(start_mount(settings | {"fast_path": "off"}), slow_disk, tmp_path / "media")
        made.copy(*CACHED)
        wait_until(made.running, lambda: made.cached() == set(CACHED), "they are cached")
        yield made
        slow_disk.release()


@every_fault
def test_an_open_film_plays_on_byte_for_byte(scene: Scene, fault: str) -> None:
    with (scene.mount / "one.mkv").open("rb", buffering=0) as film:
        os.posix_fadvise(film.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead of the fault
        begin = film.read(MIB // 2)
        FAULTS[fault](scene.ssd)
        assert begin + b"".join(iter(lambda: film.read(MIB // 4), b"")) == CONTENT


@every_fault
def test_every_file_can_be_opened_read_and_changed(scene: Scene, fault: str) -> None:
    FAULTS[fault](scene.ssd)
    for name in (*CACHED, *UNCACHED):
        assert read(scene.mount / name) == CONTENT
    (scene.mount / "one.mkv").write_bytes(b"another")
    assert read(scene.mount / "one.mkv") == read(scene.media / "one.mkv") == b"another"
    (scene.mount / "two.mkv").rename(scene.mount / "renamed.mkv")
    assert read(scene.mount / "renamed.mkv") == CONTENT
    (scene.mount / "renamed.mkv").unlink()
    assert sorted(os.listdir(scene.mount)) == sorted(["one.mkv", *UNCACHED])


@pytest.mark.parametrize("fault", READABLE)
def test_an_ssd_that_can_be_read_goes_on_serving(scene: Scene, fault: str) -> None:
    FAULTS[fault](scene.ssd)
    for name in CACHED:
        assert read(scene.mount / name) == CONTENT
        assert os.getxattr(scene.mount / name, STATE) == b"cached"


@pytest.mark.parametrize("fault", STOPS_COPYING)
def test_copying_stops_with_one_message(scene: Scene, fault: str) -> None:
    FAULTS[fault](scene.ssd)
    scene.copy(*UNCACHED)
    wait_until(scene.running, lambda: scene.said(PAUSED) > 0, "it says so")
    wait_until(scene.running, lambda: not scene.running.status().copies, "nothing is tried any more")
    assert scene.said(PAUSED) == 1
    assert scene.said(" WARNING ") == 1


@pytest.mark.parametrize("fault", PASSING)
def test_copying_begins_again_by_itself(scene: Scene, fault: str) -> None:
    FAULTS[fault](scene.ssd)
    scene.copy(*UNCACHED)
    wait_until(scene.running, lambda: scene.said(PAUSED) > 0, "it says so")
    scene.ssd.release()
    all_cached = {*CACHED, *UNCACHED}
    wait_until(scene.running, lambda: scene.cached() == all_cached, "copying goes on", COPIES_AGAIN_WITHIN_S)
    assert (scene.said(PAUSED), scene.said("the SSD works again: copying goes on")) == (1, 1)
    assert all(read(scene.mount / name) == CONTENT for name in all_cached)


def test_an_emptied_cache_folder_is_filled_again(scene: Scene) -> None:
    FAULTS["emptied"](scene.ssd)
    assert all(read(scene.mount / name) == CONTENT for name in CACHED)
    assert scene.cached() == set()
    scene.copy(*CACHED)
    wait_until(scene.running, lambda: scene.cached() == set(CACHED), "they are cached again")
    assert all(read(scene.mount / name) == CONTENT for name in CACHED)
