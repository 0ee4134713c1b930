"""What was seen once is remembered: a scan of the library and a cached film leave a sleeping disk asleep."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.kit import MIB, read
from tests.mount.lives import settings_in, wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk
from tests.standin.slowdisk_rules import IN_MEMORY

Start = Callable[[dict[str, Any]], RunningCachefs]

CONTENT = random.Random(6).randbytes(2 * MIB)
SEEN_WITHIN_S = 2.0
CACHED = ("Films/Heat (1995)/Heat.mkv", "Films/Heat (1995)/Heat.en.srt", "Films/Heat (1995)/poster.jpg")


@pytest.fixture
def settings(slow_disk: SlowDisk, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The slow disk, all of whose changes are made through its mountpoint and so can be heard."""
    for show in range(3):
        for season in range(2):
            folder = slow_disk.backing / f"Show {show}" / f"Season {season}"
            folder.mkdir(parents=True)
            for episode in range(5):
                (folder / f"S{season:02}E{episode:02}.mkv").write_bytes(b"episode")
    (slow_disk.backing / "Films" / "Heat (1995)").mkdir(parents=True)
    for name in CACHED:
        (slow_disk.backing / name).write_bytes(CONTENT)
    with settings_in(tmp_path, (slow_disk.mountpoint,)) as made:
        made["sources"][0]["metadata"] = "remembered"
        yield made


def scan(folder: Path) -> dict[str, tuple[int, int]]:
    """What a scanner looks at: every name, with number and size."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(where, name)
            seen = os.lstat(path)
            found[os.path.relpath(path, folder)] = (seen.st_ino, seen.st_size if name in files else 0)
    return found


def asked(disk: SlowDisk) -> dict[str, int]:
    """What the disk was asked that would wake a real one."""
    return {kind: count for kind, count in disk.counts().operations.items() if count and kind not in IN_MEMORY}


def everything_is_forgotten() -> None:
    """By the kernel: names, attributes and pages."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


def test_a_scan_and_a_cached_film_ask_the_disk_for_nothing(
    settings: dict[str, Any], slow_disk: SlowDisk, start_mount: Start
) -> None:
    running = start_mount(settings)
    before = scan(running.mountpoint)
    assert len(before) == 3 + 6 + 30 + 2 + len(CACHED)
    for name in CACHED:
        assert running.run("copy", name).returncode == 0
    assert running.run("pin", "Films").returncode == 0
    assert running.run("plan").returncode == 0
    for forget in (False, True):
        if forget:
            everything_is_forgotten()
        slow_disk.reset()
        assert scan(running.mountpoint) == before
        for name in CACHED:
            assert read(running.mountpoint / name) == CONTENT
        assert not (running.mountpoint / "Films" / "Heat (1995)" / "Heat.de.srt").exists()
        assert running.run("plan").returncode == 0
        assert asked(slow_disk) == {}


def test_what_changed_while_it_was_forgotten_is_seen(
    settings: dict[str, Any], slow_disk: SlowDisk, start_mount: Start
) -> None:
    running = start_mount(settings)
    before = scan(running.mountpoint)
    everything_is_forgotten()
    season = slow_disk.mountpoint / "Show 1" / "Season 1"
    (season / "S01E99.mkv").write_bytes(b"new")
    (season / "S01E00.mkv").unlink()
    (season / "S01E01.mkv").write_bytes(b"longer than an episode")
    (season / "S01E02.mkv").rename(slow_disk.mountpoint / "Show 2" / "moved.mkv")

    def as_it_is() -> bool:
        now = {name: size for name, (_, size) in scan(running.mountpoint).items()}
        expected = {name: size for name, (_, size) in before.items()} | {
            "Show 1/Season 1/S01E99.mkv": 3,
            "Show 1/Season 1/S01E01.mkv": 22,
            "Show 2/moved.mkv": 7,
        }
        del expected["Show 1/Season 1/S01E00.mkv"], expected["Show 1/Season 1/S01E02.mkv"]
        return now == expected

    wait_until(running, as_it_is, "the changes are seen", SEEN_WITHIN_S)


def test_what_was_changed_through_the_mount_is_seen_though_it_was_remembered(
    settings: dict[str, Any], slow_disk: SlowDisk, start_mount: Start
) -> None:
    running = start_mount(settings)
    scan(running.mountpoint)
    season = running.mountpoint / "Show 0" / "Season 0"
    (season / "S00E00.mkv").write_bytes(b"longer than an episode")
    (season / "S00E01.mkv").unlink()
    (season / "S00E02.mkv").rename(season / "renamed.mkv")
    os.chmod(season / "S00E03.mkv", 0o600)
    (season / "Extras").mkdir()
    everything_is_forgotten()
    assert sorted(os.listdir(season)) == ["Extras", "S00E00.mkv", "S00E03.mkv", "S00E04.mkv", "renamed.mkv"]
    assert (season / "S00E00.mkv").stat().st_size == 22
    assert (season / "S00E03.mkv").stat().st_mode & 0o777 == 0o600
    assert not (season / "S00E01.mkv").exists()


def test_after_a_restart_the_disk_is_asked_once_for_nobody_knows_what_happened(
    settings: dict[str, Any], slow_disk: SlowDisk, start_mount: Start
) -> None:
    running = start_mount(settings)
    scan(running.mountpoint)
    assert running.terminate() == 0
    (slow_disk.backing / "Show 1" / "Season 1" / "S01E99.mkv").write_bytes(b"new")
    running = start_mount(settings)
    assert "Show 1/Season 1/S01E99.mkv" in scan(running.mountpoint)
    slow_disk.reset()
    everything_is_forgotten()
    scan(running.mountpoint)
    assert asked(slow_disk) == {}


def test_a_source_that_is_to_be_asked_is_asked(
    settings: dict[str, Any], slow_disk: SlowDisk, start_mount: Start
) -> None:
    settings["sources"][0]["metadata"] = "asked"
    running = start_mount(settings)
    scan(running.mountpoint)
    everything_is_forgotten()
    slow_disk.reset()
    scan(running.mountpoint)
    assert asked(slow_disk)
