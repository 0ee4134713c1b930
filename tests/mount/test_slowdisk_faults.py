"""The slow disk's faults, each through its mount: for which operations it is, what they see, and how it ends."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs.mounts import mounted_at
from tests.mount.kit import MIB, errno_of, took_s, with_two_files
from tests.standin.slowdisk_control import SlowDisk, slow_disk
from tests.standin.slowdisk_process import FAST

DELAY_S = 0.3


@pytest.fixture
def disk(slow_disk: SlowDisk) -> SlowDisk:
    return with_two_files(slow_disk)


@pytest.fixture
def tv(disk: SlowDisk) -> Path:
    return disk.mountpoint / "TV" / "a.mkv"


@pytest.fixture
def film(disk: SlowDisk) -> Path:
    return disk.mountpoint / "Films" / "b.mkv"


def test_a_delay_meets_its_part_until_released(disk: SlowDisk, tv: Path, film: Path) -> None:
    disk.slow_down("TV", delay_s=DELAY_S)
    assert took_s(tv.stat) >= DELAY_S
    assert took_s(film.read_bytes) < DELAY_S
    disk.release("TV")
    assert took_s(tv.stat) < DELAY_S


def test_a_delay_meets_its_kinds_alone(disk: SlowDisk, film: Path) -> None:
    disk.slow_down(kinds=("read", "flush"), delay_s=DELAY_S)
    assert took_s(film.stat) < DELAY_S
    assert took_s(film.read_bytes) >= 2 * DELAY_S, "once for the read, once for the flush"


def test_a_throttle_meets_its_part_and_kind(disk: SlowDisk, tv: Path, film: Path) -> None:
    disk.slow_down("TV/a.mkv", ("read",), bytes_per_s=4e6)
    assert took_s(tv.read_bytes) >= MIB / 4e6
    assert took_s(film.read_bytes) < MIB / 4e6
    assert took_s(tv.write_bytes, bytes(MIB)) < MIB / 4e6
    disk.release()
    assert took_s(tv.read_bytes) < MIB / 4e6


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT])
def test_any_errno_is_what_the_caller_sees(disk: SlowDisk, tv: Path, film: Path, number: int) -> None:
    disk.fail(number, "TV", ("read", "opendir", "mkdir"))
    assert errno_of(tv.read_bytes) == number
    assert errno_of(os.listdir, tv.parent) == number
    assert errno_of(os.mkdir, tv.parent / "new") == number
    assert tv.stat().st_size == MIB
    assert film.read_bytes() == b"film"
    disk.release()
    assert len(tv.read_bytes()) == MIB
    assert os.listdir(tv.parent) == ["a.mkv"]


def test_an_exact_path_leaves_what_is_below_alone(disk: SlowDisk, tv: Path) -> None:
    disk.fail(errno.EIO, "TV", ("opendir",), exact=True)
    (disk.backing / "TV" / "below").mkdir()
    assert errno_of(os.listdir, tv.parent) == errno.EIO
    assert os.listdir(tv.parent / "below") == []
    disk.fail(errno.EIO, "", ("opendir",), exact=True)
    assert errno_of(os.listdir, disk.mountpoint) == errno.EIO
    assert len(tv.read_bytes()) == MIB


def test_the_newest_fault_decides_and_each_is_released_by_itself(disk: SlowDisk, tv: Path, film: Path) -> None:
    disk.fail(errno.EIO, kinds=("read",))
    disk.fail(errno.EACCES, "TV", ("read",))
    disk.fail(errno.EROFS, kinds=("open",))
    assert errno_of(tv.read_bytes) == errno.EROFS
    disk.release(kinds=("open",))
    assert errno_of(tv.read_bytes) == errno.EACCES
    assert errno_of(film.read_bytes) == errno.EIO
    disk.release("TV")
    assert errno_of(tv.read_bytes) == errno.EIO
    disk.release()
    assert len(tv.read_bytes()) == MIB


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        ("lookup", lambda path: path.stat()),
        ("open", lambda path: path.open("rb").close()),
        ("read", lambda path: path.read_bytes()),
        ("write", lambda path: path.write_bytes(b"x")),
        ("setattr", lambda path: os.utime(path)),
        ("statfs", lambda path: os.statvfs(path)),
        ("opendir", lambda path: os.listdir(path.parent)),
        ("readdir", lambda path: os.listdir(path.parent)),
        ("getxattr", lambda path: os.getxattr(path, "user.note")),
        ("unlink", lambda path: path.unlink()),
        ("rename", lambda path: path.rename(path.with_name("other"))),
        ("mkdir", lambda path: path.with_name("folder").mkdir()),
        ("fsync", lambda path: _fsync(path)),
    ],
)
def test_every_kind_can_hang_until_released(
    disk: SlowDisk, film: Path, kind: str, operation: Callable[[Path], object]
) -> None:
    os.setxattr(film, "user.note", b"x")
    disk.reset()
    disk.hang(kinds=(kind,))
    with ThreadPoolExecutor() as pool:
        doing = pool.submit(operation, film)
        disk.wait_held()
        assert not doing.done()
        disk.release()
        doing.result(20)
    assert disk.counts().of(kind) >= 1
    assert disk.counts().held == 0


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def test_a_hang_leaves_other_parts_alone(disk: SlowDisk, tv: Path, film: Path) -> None:
    disk.hang("TV/a.mkv", ("read",))
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(tv.read_bytes)
        disk.wait_held()
        assert film.read_bytes() == b"film"
        assert not reading.done()
        disk.release("TV")
        assert len(reading.result(20)) == MIB


def test_it_goes_away_and_comes_back(disk: SlowDisk, tv: Path) -> None:
    held = os.open(tv, os.O_RDONLY)
    disk.go_away()
    assert errno_of(os.listdir, disk.mountpoint) == errno.ENOTCONN
    assert errno_of(os.read, held, 1) == errno.ENOTCONN
    assert errno_of(os.fstat, held) == errno.ENOTCONN
    disk.come_back()
    assert errno_of(os.read, held, 1) == errno.ENOTCONN, "what was open stays dead"
    assert errno_of(os.close, held) == errno.ENOTCONN
    assert len(tv.read_bytes()) == MIB
    assert disk.counts().of("open") == 1


def test_an_empty_folder_can_be_left_in_its_place(disk: SlowDisk, tv: Path) -> None:
    held = os.open(tv, os.O_RDONLY)
    disk.leave_empty_folder()
    assert mounted_at(disk.mountpoint) is None
    assert os.listdir(disk.mountpoint) == []
    assert errno_of(os.close, held) == errno.ENOTCONN
    disk.come_back()
    assert sorted(os.listdir(disk.mountpoint)) == ["Films", "TV"]


@pytest.mark.parametrize("killed_first", [False, True])
def test_it_goes_away_with_everything_that_hangs(slow_disk_folders: tuple[Path, Path], killed_first: bool) -> None:
    backing, mountpoint = slow_disk_folders
    names = [f"{number}" for number in range(20)]
    for name in names:
        (backing / name).write_bytes(b"a")
    with slow_disk(backing, mountpoint, FAST) as disk:
        disk.hang(kinds=("open", "read"))
        reading = [subprocess.Popen(["cat", mountpoint / name], stderr=subprocess.DEVNULL) for name in names]
        disk.wait_held(len(names))
        began = time.monotonic()
        if killed_first:
            disk.go_away()
        else:
            assert disk.process.end() == 0
        assert time.monotonic() - began < 2
        assert [reader.wait(20) for reader in reading] == [1] * len(names)
    assert mounted_at(mountpoint) is None
