"""One of two sources hangs for good: nobody but those who wait for it may notice, and it ends when asked to."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from cachefs.mounts import mounted_at, parse
from tests.mount.kit import MIB, STATE, errno_of, read, took_s
from tests.mount.lives import Reader, attempt, is_clean, kill_server, readers, slow_and_media_in, wait_until
from tests.standin.running import REPOSITORY, RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

Start = Callable[[dict[str, Any]], RunningCachefs]

MOUNT = 3
TIMEOUT_S = 2
STOPS_WITHIN_S = 5.0
PAGE = 4096
CONTENT = random.Random(3).randbytes(4 * MIB)


@pytest.fixture
def settings(slow_disk: SlowDisk, tmp_path: Path) -> Iterator[dict[str, Any]]:
    files = dict.fromkeys(("one.mkv", "two.mkv", "three.mkv"), CONTENT)
    with slow_and_media_in(tmp_path, slow_disk, files, TIMEOUT_S) as made:
        yield made


@pytest.fixture
def running(settings: dict[str, Any], start_mount: Start, expected_warnings: list[str]) -> RunningCachefs:
    expected_warnings.append(r"source slow .* is offline")
    return start_mount(settings)


@pytest.fixture
def start_reader() -> Iterator[Callable[[Path], Reader]]:
    with readers() as start:
        yield start


def test_who_does_not_ask_the_hung_source_notices_nothing(
    running: RunningCachefs, slow_disk: SlowDisk, start_reader: Callable[[Path], Reader]
) -> None:
    slow, media = running.mountpoint / "slow", running.mountpoint / "media"
    assert running.run("copy", "slow/one.mkv").returncode == 0
    cached, uncached = start_reader(slow / "one.mkv"), start_reader(slow / "two.mkv")
    assert cached.read(0) == uncached.read(0) == PAGE
    in_peace = min(took_s(read, media / "one.mkv") for _ in range(3))

    slow_disk.hang()
    waiting = [start_reader(slow / "two.mkv") for _ in range(20)]
    for reader in waiting:
        reader.begin(2 * MIB)
    uncached.begin(2 * MIB)
    slow_disk.wait_held()

    # Every wait for the hung source is two seconds or more: in a tenth of one, nothing can have waited for it.
    assert min(took_s(read, media / name) for name in ("one.mkv", "two.mkv", "three.mkv")) < max(5 * in_peace, 0.2)
    assert took_s(os.listdir, running.mountpoint) < TIMEOUT_S / 4
    assert took_s(cached.read, 3 * MIB) < TIMEOUT_S / 4
    assert cached.read(MIB) == PAGE
    assert uncached.result() == -errno.EIO

    assert {source.name: source.online for source in running.status().sources} == {"slow": False, "media": True}
    shown = running.run("status")
    assert shown.returncode == 0
    assert "no answer within 2 s" in shown.stdout
    assert uncached.read(3 * MIB) == -errno.EIO
    assert took_s(uncached.read, 2 * MIB) < TIMEOUT_S / 4
    assert sorted(os.listdir(slow)) == ["one.mkv", "three.mkv", "two.mkv"]  # as it was seen last
    assert read(media / "one.mkv") == CONTENT
    assert cached.read(2 * MIB) == PAGE
    assert errno_of(os.statvfs, running.mountpoint) == 0

    slow_disk.release()
    wait_until(running, lambda: all(source.online for source in running.status().sources), "the source is back")
    assert uncached.read(MIB) == PAGE
    assert read(slow / "three.mkv") == CONTENT
    assert os.getxattr(slow / "one.mkv", STATE) == b"cached"
    assert running.terminate() == 0


@pytest.mark.parametrize("mounted_first", [True, False])
def test_doctor_says_so_and_does_not_wait(
    settings: dict[str, Any],
    slow_disk: SlowDisk,
    start_mount: Start,
    expected_warnings: list[str],
    mounted_first: bool,
) -> None:
    expected_warnings += [r"source slow .* is offline", "a disk call still hangs in process"]
    running = start_mount(settings)
    if not mounted_first:
        assert running.terminate() == 0
    slow_disk.hang()
    began = time.monotonic()
    told = running.run("doctor", "--json")
    assert time.monotonic() - began < 5 * TIMEOUT_S
    assert told.returncode == 2
    assert f"the source {slow_disk.mountpoint} does not answer" in told.stdout
    assert ("runs with pid" in told.stdout) is mounted_first
    assert ('"1 MiB"' in told.stdout) is mounted_first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_time_while_a_source_hangs(
    running: RunningCachefs,
    settings: dict[str, Any],
    slow_disk: SlowDisk,
    start_reader: Callable[[Path], Reader],
    start_mount: Start,
    expected_warnings: list[str],
    number: signal.Signals,
) -> None:
    expected_warnings.append("a disk call still hangs in process")
    held = [start_reader(running.mountpoint / "slow" / name) for name in ("one.mkv", "two.mkv")]
    assert all(reader.read(0) == PAGE for reader in held)
    assert running.run("copy", "--no-wait", "slow/three.mkv").returncode == 0
    slow_disk.hang()
    for reader in held:
        reader.begin(2 * MIB)
    slow_disk.wait_held(2)

    running.process.send_signal(number)

    assert running.process.wait(STOPS_WITHIN_S) == 0
    assert is_clean(running)
    slow_disk.release()
    assert read(start_mount(settings).mountpoint / "slow" / "one.mkv") == CONTENT


def test_a_start_over_a_hung_source_of_which_nothing_is_known_is_refused_when_its_time_is_over(
    tmp_path: Path, settings: dict[str, Any], slow_disk: SlowDisk
) -> None:
    slow_disk.hang()
    made = attempt(tmp_path / "cachefs.yaml", settings)
    assert made.code == MOUNT
    assert f"a source cannot be opened: source slow: no answer within {TIMEOUT_S} s" in made.output
    assert mounted_at(Path(settings["mountpoint"])) is None


def test_a_start_over_a_hung_source_can_be_stopped(
    tmp_path: Path, settings: dict[str, Any], slow_disk: SlowDisk
) -> None:
    settings["sources"][0]["timeout"] = "60s"
    config = tmp_path / "cachefs.yaml"
    config.write_text(yaml.safe_dump(settings))
    slow_disk.hang()
    with subprocess.Popen([sys.executable, "-m", "cachefs", "mount", "-c", str(config)], cwd=REPOSITORY) as process:
        slow_disk.wait_held()
        process.terminate()
        assert process.wait(STOPS_WITHIN_S) == 0
    assert mounted_at(Path(settings["mountpoint"])) is None


def test_a_server_killed_while_a_source_hangs_is_replaced(
    running: RunningCachefs,
    slow_disk: SlowDisk,
    start_reader: Callable[[Path], Reader],
    expected_warnings: list[str],
) -> None:
    """Its threads cannot end before the disk answers, and it keeps the cache until then; the mount must not hang."""
    expected_warnings += ["the server ended with signal SIGKILL", "the server could not start again"]
    expected_warnings.append("a disk call still hangs in process")
    reader = start_reader(running.mountpoint / "slow" / "two.mkv")
    assert reader.read(0) == PAGE
    slow_disk.hang()
    reader.begin(2 * MIB)
    slow_disk.wait_held()

    kill_server(running)

    assert reader.result() < 0
    assert errno_of(os.statvfs, running.mountpoint) in (errno.ENOTCONN, errno.ECONNABORTED)
    slow_disk.release()
    wait_until(running, lambda: running.run("status").returncode == 0, "it answers", within_s=30)
    assert read(running.mountpoint / "slow" / "two.mkv") == CONTENT


def test_readers_killed_in_mid_read_do_not_freeze_it(running: RunningCachefs, slow_disk: SlowDisk) -> None:
    """A client that is killed after the kernel has announced its request and before the server takes it leaves the
    server with nothing to read: it must not wait there."""
    with ExitStack() as stack:
        for name in ("one.mkv", "two.mkv", "three.mkv") * 10:
            start = stack.enter_context(readers())
            reader = start(running.mountpoint / "slow" / name)
            assert reader.read(0) == PAGE
            slow_disk.hang(name, ("read",))
            reader.begin(2 * MIB)
            reader.begin(3 * MIB)
            reader.kill()
            slow_disk.release(name)
            assert running.status().pid
            assert errno_of(os.listdir, running.mountpoint) == 0
    assert read(running.mountpoint / "media" / "one.mkv") == CONTENT
    assert read(running.mountpoint / "slow" / "one.mkv") == CONTENT
    assert running.terminate() == 0


@pytest.mark.parametrize("how", ["SIGTERM", "unmount", "killed"])
def test_in_place_over_a_hung_source_it_ends_in_time(
    cachefs_settings: dict[str, Any],
    slow_disk: SlowDisk,
    start_reader: Callable[[Path], Reader],
    start_mount: Start,
    expected_warnings: list[str],
    how: str,
) -> None:
    """The mountpoint is the hung disk's own: whoever looks below the mount hangs as well."""
    expected_warnings += ["source Media .* is offline", "a disk call still hangs", "does not end", "SIGKILL"]
    place = slow_disk.mountpoint
    (slow_disk.backing / "one.mkv").write_bytes(CONTENT)
    cachefs_settings["mountpoint"] = cachefs_settings["sources"][0]["path"] = str(place)
    cachefs_settings["sources"][0]["timeout"] = f"{TIMEOUT_S}s"
    running = start_mount(cachefs_settings)
    reader = start_reader(place / "one.mkv")
    assert reader.read(0) == PAGE
    slow_disk.hang()
    reader.begin(2 * MIB)
    slow_disk.wait_held()

    if how == "unmount":
        assert running.run("unmount").returncode == 0
    elif how == "killed":
        kill_server(running)
    if how != "unmount":
        running.process.send_signal(signal.SIGTERM)

    assert running.process.wait(STOPS_WITHIN_S) == 0
    mounted = parse(Path("/proc/self/mountinfo").read_bytes())
    assert not any(mount.is_cachefs and mount.path == place for mount in mounted)
    slow_disk.release()
    assert read(place / "one.mkv") == CONTENT
