"""What only the channel between libfuse and the kernel makes so: each test fails where the object is not built.

Beside these: readers killed in mid-read (``test_hung_source``), default ACLs and set-uid bits (``test_fileops``).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from cachefs import readahead
from cachefs.mounts import mounted_at
from tests.mount.kit import MIB, read
from tests.mount.lives import ENDS_WITHIN_S, settings_in, wait_until
from tests.standin.running import REPOSITORY, RunningCachefs, start_cachefs
from tests.standin.slowdisk_control import SlowDisk

Start = Callable[[dict[str, Any]], RunningCachefs]

TIMEOUT_S = 10.0
"""Of the hung source. Whoever has to wait for it, waits so long."""
BLOCK = 4096
CONTENT = random.Random(4).randbytes(8 * MIB)

_STAT = "import os, sys; os.stat(sys.argv[1])"
_READ_AT_ONCE = """
import os, sys, threading

def read(number, offset):
    os.pread(number, 4096, offset)

path, times = sys.argv[1], int(sys.argv[2])
opened = [os.open(path, os.O_RDONLY) for _ in range(times)]
for place, number in enumerate(opened):
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
    threading.Thread(target=read, args=(number, (place << 23) // times)).start()
"""


@pytest.fixture
def running(slow_disk: SlowDisk, tmp_path: Path, start_mount: Start) -> Iterator[RunningCachefs]:
    """Two sources: ``slow``, the slow disk, and ``media``, a plain folder."""
    with settings_in(tmp_path, (slow_disk.mountpoint, tmp_path / "media")) as made:
        for source in made["sources"]:
            source |= {"timeout": f"{TIMEOUT_S:g}s", "ttl": "0s"}
        for folder in (slow_disk.backing, tmp_path / "media"):
            for name in ("one.mkv", "two.mkv", "three.mkv", "four.mkv"):
                (folder / name).write_bytes(CONTENT)
        yield start_mount(made)
        slow_disk.release()


@contextmanager
def running_python(code: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    try:
        yield process
    finally:
        process.kill()
        process.wait(ENDS_WITHIN_S)


def took_s(function: Callable[..., object], *args: object) -> float:
    began = time.monotonic()
    function(*args)
    return time.monotonic() - began


def reading(process: subprocess.Popen[bytes]) -> int:
    """How many of its threads wait in pread(2), which they call for one block. proc_pid_syscall(5)."""
    calls = [path.read_text().split() for path in Path(f"/proc/{process.pid}/task").glob("*/syscall")]
    return sum(call[3:4] == [hex(BLOCK)] for call in calls)


def test_a_slow_lookup_does_not_hold_up_its_folder(running: RunningCachefs, slow_disk: SlowDisk) -> None:
    slow = running.mountpoint / "slow"
    slow_disk.hang("one.mkv", ("getattr",))  # not the lookup: that would hold up the slow disk's own folder
    with running_python(_STAT, slow / "one.mkv") as looking:
        slow_disk.wait_held()
        assert took_s(os.stat, slow / "two.mkv") < TIMEOUT_S / 4
        assert looking.poll() is None
        slow_disk.release()
        assert looking.wait(ENDS_WITHIN_S) == 0


@pytest.mark.alone
def test_readers_of_a_hung_source_leave_others_their_read_ahead(
    running: RunningCachefs, slow_disk: SlowDisk, expected_warnings: list[str]
) -> None:
    expected_warnings.append("source slow .* is offline")  # on a machine so busy that the rest takes its timeout
    slow, media = running.mountpoint / "slow", running.mountpoint / "media"
    read(media / "one.mkv")
    in_peace = median(took_s(read, media / name) for name in ("two.mkv", "three.mkv"))
    slow_disk.hang("one.mkv", ("read",))
    with running_python(_READ_AT_ONCE, slow / "one.mkv", 20) as hung:
        wait_until(running, lambda: reading(hung) == 20, "20 threads wait for the hung source")
        # Behind the kernel's own limit this would be TIMEOUT_S, hundreds of times as long.
        assert took_s(read, media / "four.mkv") < max(20 * in_peace, TIMEOUT_S / 4)


def test_many_requests_for_a_hung_source_do_not_use_all_up(running: RunningCachefs, slow_disk: SlowDisk) -> None:
    slow, media = running.mountpoint / "slow", running.mountpoint / "media"
    slow_disk.hang("one.mkv", ("read",))
    with running_python(_READ_AT_ONCE, slow / "one.mkv", 150) as hung:
        wait_until(running, lambda: reading(hung) == 150, "150 threads wait for the hung source")
        assert took_s(read, media / "one.mkv") < TIMEOUT_S / 4
        assert took_s(os.listdir, running.mountpoint) < TIMEOUT_S / 4
        assert running.status().pid
        assert reading(hung) > 100, "the others were answered while they waited"  # one may be on the CPU just now
        slow_disk.release()
        assert hung.wait(ENDS_WITHIN_S) == 0


def test_each_folder_of_several_shows_the_room_of_its_own_disk(tmp_path: Path, start_mount: Start) -> None:
    with tempfile.TemporaryDirectory(prefix="cachefs-", dir="/dev/shm") as other:
        there = Path(other)
        with settings_in(tmp_path, (tmp_path / "media", there)) as made:
            for folder in (tmp_path / "media", there):
                (folder / "film.mkv").write_bytes(b"film")
            mountpoint = start_mount(made).mountpoint
            sizes = {folder.name: os.statvfs(folder).f_blocks for folder in (tmp_path / "media", there)}
            assert len({*sizes.values()}) == 2, "these are two file systems"
            for name, blocks in sizes.items():
                assert os.statvfs(mountpoint / name).f_blocks == blocks
                assert os.statvfs(mountpoint / name / "film.mkv").f_blocks == blocks
            assert os.statvfs(mountpoint).f_blocks == sum(sizes.values())


def test_without_the_channel_everything_works_through_python_and_it_is_said_once(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copytree(REPOSITORY / "cachefs", program / "cachefs", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for number in range(700):
        (tmp_path / "media" / "Films").mkdir(parents=True, exist_ok=True)
        (tmp_path / "media" / "Films" / f"film {number}.mkv").write_bytes(b"film")
    (tmp_path / "media" / "one.mkv").write_bytes(CONTENT)
    with settings_in(tmp_path) as made:
        running = start_cachefs(tmp_path / "cachefs.yaml", tmp_path / "cachefs.log", made, program)
        try:
            for _ in range(2):
                assert len(os.listdir(running.mountpoint / "Films")) == 700
                assert (running.mountpoint / "Films" / "film 699.mkv").read_bytes() == b"film"
                assert read(running.mountpoint / "one.mkv") == CONTENT
                assert running.run("copy", "one.mkv").returncode == 0
            assert "channel" in running.status().fast_path
            assert running.log.read_text().count("the channel object") == 2  # as a warning, and of cached files
            (running.mountpoint / "one.mkv").write_bytes(b"changed")
            assert (tmp_path / "media" / "one.mkv").read_bytes() == b"changed"
            assert running.terminate() == 0
        finally:
            running.remove()


@pytest.mark.parametrize(("wanted", "kib"), [("1MiB", 1024), (None, 128)])
def test_the_kernel_reads_ahead_as_far_as_configured(
    tmp_path: Path, start_mount: Start, wanted: str | None, kib: int
) -> None:
    with settings_in(tmp_path) as made:
        (tmp_path / "media" / "film.mkv").write_bytes(CONTENT)
        running = start_mount(made | {"read_ahead": wanted})
        mount = mounted_at(running.mountpoint)
        assert mount is not None
        assert readahead.of(mount) == kib << 10
        assert read(running.mountpoint / "film.mkv") == CONTENT
        requests = running.status().reads.source_reads
        assert len(CONTENT) / (kib << 10) <= requests <= 3 * len(CONTENT) / (kib << 10)
