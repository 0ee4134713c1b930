"""The slow disk itself: a proper file system that counts and is slow, and always goes away."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cachefs.mounts import mounted_at
from tests.mount.kit import MIB, with_two_files
from tests.standin.slowdisk_control import SlowDisk
from tests.standin.slowdisk_process import REPOSITORY, SlowDiskSettings

WAKE_UP_S = 0.4


@pytest.fixture
def disk(slow_disk: SlowDisk) -> SlowDisk:
    return with_two_files(slow_disk)


def test_content_and_inode_numbers_are_the_backing_folders(disk: SlowDisk) -> None:
    inside, outside = disk.mountpoint / "TV" / "a.mkv", disk.backing / "TV" / "a.mkv"
    assert inside.read_bytes() == outside.read_bytes()
    assert inside.stat().st_ino == outside.stat().st_ino
    assert inside.stat().st_mtime_ns == outside.stat().st_mtime_ns
    assert sorted(os.listdir(disk.mountpoint)) == ["Films", "TV"]


def test_changes_reach_the_backing_folder(disk: SlowDisk) -> None:
    root, behind = disk.mountpoint, disk.backing
    (root / "new").mkdir(0o750)
    (root / "new" / "file").write_bytes(b"0123456789")
    with open(root / "new" / "file", "ab") as appending:
        appending.write(b"more")
        os.fsync(appending.fileno())
    os.truncate(root / "new" / "file", 12)
    assert (behind / "new" / "file").read_bytes() == b"0123456789mo"
    os.link(root / "new" / "file", root / "linked")
    assert (behind / "linked").stat().st_nlink == 2
    os.symlink("new/file", root / "pointer")
    assert os.readlink(root / "pointer") == "new/file"
    assert (root / "pointer").read_bytes() == b"0123456789mo"
    os.chmod(root / "linked", 0o640)
    os.utime(root / "linked", ns=(1_000_000_001, 2_000_000_002))
    os.setxattr(root / "linked", "user.note", b"x")
    changed = (behind / "linked").stat()
    assert (stat.S_IMODE(changed.st_mode), changed.st_atime_ns, changed.st_mtime_ns) == (
        0o640,
        1_000_000_001,
        2_000_000_002,
    )
    assert os.getxattr(behind / "linked", "user.note") == b"x"
    assert os.listxattr(root / "linked") == ["user.note"]
    os.rename(root / "linked", root / "Films" / "b.mkv")
    os.unlink(root / "new" / "file")
    os.rmdir(root / "new")
    assert sorted(os.listdir(behind)) == ["Films", "TV", "pointer"]
    assert (behind / "Films" / "b.mkv").read_bytes() == b"0123456789mo"


def test_deleted_open_file_keeps_its_content_and_its_number(disk: SlowDisk) -> None:
    path = disk.mountpoint / "TV" / "a.mkv"
    with open(path, "rb") as held:
        number = os.fstat(held.fileno()).st_ino
        path.unlink()
        path.write_bytes(b"another")
        assert path.stat().st_ino != number
        assert held.read(3) == bytes(range(3))


def test_folder_larger_than_one_reply_is_listed_once_each(disk: SlowDisk) -> None:
    names = {f"{number:04}-{'n' * 60}" for number in range(500)}
    for name in names:
        (disk.backing / "TV" / name).touch()
    listed = os.listdir(disk.mountpoint / "TV")
    assert sorted(listed) == sorted({*names, "a.mkv"})


def test_every_operation_is_counted_until_reset(disk: SlowDisk) -> None:
    disk.reset()
    assert disk.counts().total == 0
    os.stat(disk.mountpoint / "TV" / "a.mkv")
    os.stat(disk.mountpoint / "TV" / "a.mkv")
    counts = disk.counts()
    assert counts.of("lookup") == 4, "two components, twice: nothing is remembered"
    assert counts.total == sum(counts.operations.values())


@pytest.mark.parametrize("slow_disk_settings", [SlowDiskSettings(0.0, 1e6, None, 0, 0.0, direct_io=True)])
def test_with_direct_io_every_read_arrives(disk: SlowDisk) -> None:
    disk.reset()
    with open(disk.mountpoint / "TV" / "a.mkv", "rb", buffering=0) as file:
        for _ in range(3):
            os.pread(file.fileno(), 4096, 0)
    assert (disk.counts().of("read"), disk.counts().read_bytes) == (3, 3 * 4096)


def test_each_open_reads_from_the_disk_again(disk: SlowDisk) -> None:
    disk.reset()
    for _ in range(2):
        (disk.mountpoint / "TV" / "a.mkv").read_bytes()
    assert disk.counts().read_bytes == 2 * MIB


@pytest.mark.parametrize("slow_disk_settings", [SlowDiskSettings(WAKE_UP_S, 1e6, None, 0, 0.0)])
def test_sleeping_disk_makes_the_first_wait_and_stays_awake(disk: SlowDisk) -> None:
    disk.sleep()
    assert disk.counts().asleep
    began = time.monotonic()
    (disk.mountpoint / "TV" / "a.mkv").read_bytes()
    assert time.monotonic() - began >= WAKE_UP_S
    assert not disk.counts().asleep
    assert disk.counts().wake_ups == 1, "whoever came while it started waited for the same start"


def test_asking_for_the_file_system_s_size_wakes_nobody(disk: SlowDisk) -> None:
    disk.sleep()
    os.statvfs(disk.mountpoint)
    assert disk.counts().asleep


@pytest.mark.parametrize("slow_disk_settings", [SlowDiskSettings(0.0, 1e6, 4e6, 64 << 10, 0.0)])
def test_throughput_is_held(disk: SlowDisk) -> None:
    began = time.monotonic()
    (disk.mountpoint / "TV" / "a.mkv").read_bytes()
    took_s = time.monotonic() - began
    assert took_s >= (MIB - (64 << 10)) / 4e6, "1 MiB at 4 MB/s, but for the burst"


def test_disk_goes_when_the_one_who_started_it_dies(slow_disk_folders: tuple[Path, Path]) -> None:
    backing, mountpoint = slow_disk_folders
    program = (
        "import os, signal, sys; from pathlib import Path; from tests.standin.slowdisk_control import slow_disk\n"
        "with slow_disk(Path(sys.argv[1]), Path(sys.argv[2])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(backing), str(mountpoint)]
    with tempfile.TemporaryDirectory(prefix="sd-") as temporary:  # whoever is killed leaves its files
        environ = {**os.environ, "TMPDIR": temporary}
        died = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, env=environ)
        assert died.stdout is not None
        died.stdout.read()  # ends when the last holder of this pipe is gone: the disk's process inherited it
        assert died.wait(20) == -9
    assert mounted_at(mountpoint) is None
