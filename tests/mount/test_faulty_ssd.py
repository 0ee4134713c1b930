"""The SSD fails in every way: what the daemon serves comes from the source, and copying begins again by itself."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cachefs.errors import UserError
from cachefs.model import EntryState
from tests.mount.kit import MIB, STATE, read, took_s
from tests.mount.lives import settings_in, wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk
from tests.standin.slowdisk_process import SlowDiskFailed

Start = Callable[[dict[str, Any]], RunningCachefs]

CONTENT = random.Random(5).randbytes(2 * MIB)
CACHED = ("one.mkv", "two.mkv")
UNCACHED = ("three.mkv", "four.mkv")
WRITING = ("write", "create", "mkdir", "unlink", "rename", "setattr", "fsync", "setxattr", "rmdir", "mknod")
A_FEW_S = 6.0
FAILS = "copying pauses and is tried again"
AWAY = "is away"
WARNINGS = [
    r"a disk call still hangs in process",
    r"the SSD copy of .* cannot be used",
    r"the cache folder .* fails: copying pauses and is tried again",
    r"the cache folder .* is away",
]


def _deleted(ssd: SlowDisk) -> None:
    for path in ssd.backing.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


FAULTS: dict[str, Callable[[SlowDisk], None]] = {
    "errors on read": lambda ssd: ssd.fail(errno.EIO, kinds=("read",)),
    "errors on write": lambda ssd: ssd.fail(errno.EIO, kinds=WRITING),
    "read-only": lambda ssd: ssd.fail(errno.EROFS, kinds=WRITING),
    "full": lambda ssd: ssd.fail(errno.ENOSPC, kinds=("write", "create", "mkdir", "fsync")),
    "over quota": lambda ssd: ssd.fail(errno.EDQUOT, kinds=("write", "create", "mkdir", "fsync")),
    "errors on everything": SlowDisk.fail,
    "unplugged": SlowDisk.go_away,
    "an empty folder": SlowDisk.leave_empty_folder,
    "emptied": _deleted,
}
SAID = {"errors on write": FAILS, "read-only": FAILS, "full": FAILS, "over quota": FAILS}
SAID |= {"errors on everything": AWAY, "unplugged": AWAY, "an empty folder": AWAY}
READABLE = ("errors on write", "read-only", "full", "over quota")


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
                with suppress(UserError):  # it says that the SSD is away
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
        with suppress(SlowDiskFailed, FileNotFoundError):  # it may be dead
            slow_disk.release()


@pytest.mark.parametrize("fault", FAULTS)
def test_an_ssd_that_fails_costs_nobody_a_byte(scene: Scene, fault: str) -> None:
    with (scene.mount / "one.mkv").open("rb", buffering=0) as film:
        os.posix_fadvise(film.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead of the fault
        begin = film.read(MIB // 2)
        FAULTS[fault](scene.ssd)
        assert begin + b"".join(iter(lambda: film.read(MIB // 4), b"")) == CONTENT, "a film that is open plays on"
    _goes_on_serving(scene, fault)
    if fault in SAID:
        _stops_copying_with_one_message(scene, SAID[fault])
    else:
        _is_filled_again(scene)
    _can_be_changed(scene)
    assert scene.running.terminate() == 0
    assert "Traceback" not in scene.running.log.read_text()


@pytest.mark.parametrize("fault", ["full", "over quota"])
def test_a_start_without_room_on_the_ssd_serves_what_it_holds(
    scene: Scene, start_mount: Start, expected_warnings: list[str], fault: str
) -> None:
    expected_warnings.append("the SSD is full: the cache folder .* can be read but not written")
    settings = yaml.safe_load(scene.running.config.read_text())
    scene.running.kill()
    FAULTS[fault](scene.ssd)
    running = start_mount(settings)
    for name in (*CACHED, *UNCACHED):
        assert read(running.mountpoint / name) == CONTENT
    assert [os.getxattr(running.mountpoint / name, STATE) for name in CACHED] == [b"cached", b"cached"]
    scene.ssd.release()
    with running.client() as client:
        client.copy(UNCACHED[0])
    wait_until(running, lambda: os.getxattr(running.mountpoint / UNCACHED[0], STATE) == b"cached", "it is copied", 60.0)


def _goes_on_serving(scene: Scene, fault: str) -> None:
    for name in (*CACHED, *UNCACHED):
        assert read(scene.mount / name) == CONTENT
    states = [os.getxattr(scene.mount / name, STATE) for name in CACHED]
    assert (states == [b"cached", b"cached"]) == (fault in READABLE)


def _is_filled_again(scene: Scene) -> None:
    scene.ssd.release()
    scene.copy(*CACHED)
    wait_until(scene.running, lambda: scene.cached() == set(CACHED), "they are cached again")
    assert all(read(scene.mount / name) == CONTENT for name in CACHED)


def _stops_copying_with_one_message(scene: Scene, message: str) -> None:
    scene.copy(*UNCACHED)
    wait_until(scene.running, lambda: scene.said(message) > 0, "it says so")
    wait_until(scene.running, lambda: not scene.running.status().copies, "nothing is tried any more")
    assert scene.said("WARNING the cache folder") == 1


def _can_be_changed(scene: Scene) -> None:
    (scene.mount / "one.mkv").write_bytes(b"another")
    assert read(scene.mount / "one.mkv") == read(scene.media / "one.mkv") == b"another"
    (scene.mount / "two.mkv").rename(scene.mount / "renamed.mkv")
    assert read(scene.mount / "renamed.mkv") == CONTENT
    (scene.mount / "renamed.mkv").unlink()
    assert sorted(os.listdir(scene.mount)) == sorted(["one.mkv", *UNCACHED])


@pytest.mark.parametrize("fault", ["errors on everything", "an empty folder"])
def test_an_ssd_that_was_away_is_used_again(scene: Scene, fault: str) -> None:
    FAULTS[fault](scene.ssd)
    scene.copy(*UNCACHED)
    wait_until(scene.running, lambda: scene.said(AWAY) > 0, "it says so")
    assert scene.cached() == set()
    (scene.mount / "one.mkv").write_bytes(CONTENT[::-1])
    if fault == "an empty folder":
        assert os.listdir(scene.ssd.mountpoint) == [], "nothing is written where the SSD was"
        scene.ssd.come_back()
    else:
        scene.ssd.release()
    everything = {*CACHED, *UNCACHED}  # one.mkv is asked for still: what it holds now is copied
    wait_until(scene.running, lambda: scene.cached() == everything, "copying goes on")
    assert (scene.said(AWAY), scene.said("is back, with 1 copies"), scene.said(" WARNING ")) == (1, 1, 1)
    assert read(scene.mount / "one.mkv") == CONTENT[::-1]
    assert all(read(scene.mount / name) == CONTENT for name in everything - {"one.mkv"})


@pytest.mark.alone  # all its closing has a second less than the keeper waits
def test_an_ssd_that_hangs_keeps_nobody_waiting(scene: Scene) -> None:
    film = (scene.mount / "one.mkv").open("rb", buffering=0)
    with film:
        os.posix_fadvise(film.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        begin = film.read(MIB // 2)
        scene.ssd.hang()
        assert took_s((scene.mount / "two.mkv").write_bytes, b"another") < A_FEW_S
        assert took_s((scene.mount / "two.mkv").rename, scene.mount / "renamed.mkv") < A_FEW_S
        wait_until(scene.running, lambda: scene.said(AWAY) > 0, "it is found out", A_FEW_S)
        assert begin + b"".join(iter(lambda: film.read(MIB // 4), b"")) == CONTENT
    assert read(scene.mount / "one.mkv") == CONTENT
    scene.ssd.release()
    both = {"one.mkv", "renamed.mkv"}  # the second was asked for, whatever its name and bytes are
    wait_until(scene.running, lambda: scene.cached() == both, "it is used again")
    assert read(scene.mount / "one.mkv") == CONTENT
    assert read(scene.mount / "renamed.mkv") == b"another"
    scene.ssd.hang()
    assert scene.running.terminate() == 0
    assert "the server did not stop" not in scene.running.log.read_text()
