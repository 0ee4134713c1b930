"""statx(2) against Python's own stat, for every kind of file."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from cachefs.fs.stat import look

KINDS = ["file", "folder", "symlink", "dangling", "fifo", "socket"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    os.link(tmp_path / "file", tmp_path / "another name")
    os.chmod(tmp_path / "file", 0o4751)
    os.utime(tmp_path / "file", ns=(1_600_000_000_123_456_789, -987_654_321))
    (tmp_path / "folder").mkdir()
    (tmp_path / "symlink").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "socket"))
    return tmp_path


@pytest.mark.parametrize("name", KINDS)
def test_it_sees_what_lstat_sees(folder: Path, name: str) -> None:
    place = os.open(folder, os.O_PATH)
    seen, there = look(place, name), os.lstat(folder / name)
    os.close(place)
    assert (seen.mode, seen.ino, seen.dev, seen.nlink) == (there.st_mode, there.st_ino, there.st_dev, there.st_nlink)
    assert (seen.uid, seen.gid, seen.size) == (there.st_uid, there.st_gid, there.st_size)
    assert (seen.rdev, seen.blocks, seen.blksize) == (there.st_rdev, there.st_blocks, there.st_blksize)
    assert (seen.atime_ns, seen.mtime_ns, seen.ctime_ns) == (there.st_atime_ns, there.st_mtime_ns, there.st_ctime_ns)
    assert (seen.is_folder, seen.is_file) == (name == "folder", name == "file")


def test_an_empty_name_is_the_descriptor_itself(folder: Path) -> None:
    place = os.open(folder / "file", os.O_PATH)
    assert look(place).ino == (folder / "file").stat().st_ino
    os.close(place)


def test_device_numbers_are_pythons() -> None:
    place = os.open("/dev", os.O_PATH)
    seen = look(place, "null")
    os.close(place)
    assert (seen.rdev, seen.dev) == (os.stat("/dev/null").st_rdev, os.stat("/dev/null").st_dev)


def test_birth_is_now_for_a_new_file_and_stays(tmp_path: Path) -> None:
    place = os.open(tmp_path, os.O_PATH)
    before = time.time_ns() - 1_000_000_000
    (tmp_path / "new").touch()
    born = look(place, "new").birth_ns
    (tmp_path / "new").write_bytes(b"changed")
    assert look(place, "new").birth_ns == born
    os.close(place)
    assert born == 0 or before <= born <= time.time_ns()  # 0: the file system keeps none


@pytest.mark.parametrize(("name", "wanted"), [("missing", FileNotFoundError), ("file/x", NotADirectoryError)])
def test_its_errors_are_the_system_calls(folder: Path, name: str, wanted: type[OSError]) -> None:
    place = os.open(folder, os.O_PATH)
    with pytest.raises(wanted):
        look(place, name)
    os.close(place)
