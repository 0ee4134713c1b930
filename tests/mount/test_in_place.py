"""Mounted over the source's own folder: Plex's paths stay, and without cachefs the slow folder is simply there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefs.mounts import mounted_at
from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import attempt, is_clean, kill_server, settings_in, wait_gone, wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

Start = Callable[[dict[str, Any]], RunningCachefs]

CONTENT = random.Random(5).randbytes(3 * MIB)

_LIKE_PLEX = """
import mmap, os, sys
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            begin = file.read(65536)
            file.seek(-65536, os.SEEK_END)
            end = file.read()
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                assert mapped[:65536] == begin and mapped[-65536:] == end
                print(os.path.relpath(file.name, sys.argv[1]), len(mapped))
"""

_HANGING_UNMOUNT = """
#include <unistd.h>
void fuse_session_unmount(void *session) { (void)session; for (;;) pause(); }
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The source is a plain folder, with its film in a folder of its own."""
    with settings_in(tmp_path) as made:
        made["mountpoint"] = made["sources"][0]["path"]
        films = tmp_path / "media" / "Films" / "A Film (2020)"
        films.mkdir(parents=True)
        (films / "A Film.mkv").write_bytes(CONTENT)
        yield made


@pytest.fixture
def running(settings: dict[str, Any], start_mount: Start) -> RunningCachefs:
    return start_mount(settings)


def _film(folder: Path) -> Path:
    return folder / "Films" / "A Film (2020)" / "A Film.mkv"


def _as_plex(folder: Path) -> str:
    """Walk the folder and read every file as a scanner does: both ends, then mapped into memory."""
    command = [sys.executable, "-c", _LIKE_PLEX, str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def test_plex_sees_the_same_files_with_and_without_it(settings: dict[str, Any], start_mount: Start) -> None:
    folder = Path(settings["mountpoint"])
    before, inode = _as_plex(folder), _film(folder).stat().st_ino
    running = start_mount(settings)
    assert _as_plex(folder) == before
    assert running.run("copy", str(_film(folder))).returncode == 0
    assert os.getxattr(_film(folder), STATE) == b"cached"
    from_source = running.status().reads.source_bytes
    assert _as_plex(folder) == before
    assert _film(folder).stat().st_ino == inode
    assert read(_film(folder)) == CONTENT
    assert running.status().reads.source_bytes == from_source

    assert running.terminate() == 0
    assert is_clean(running)
    assert _as_plex(folder) == before
    assert _film(folder).stat().st_ino == inode


def test_what_is_written_is_there_when_it_is_gone(running: RunningCachefs) -> None:
    folder = running.mountpoint
    new = folder / "Shows" / "A Show" / "S01E01.mkv"
    new.parent.mkdir(parents=True)
    new.write_bytes(CONTENT)
    with _film(folder).open("r+b") as file:
        file.write(b"new")
    os.rename(new, new.with_name("renamed.mkv"))
    (folder / "gone.mkv").touch()
    os.unlink(folder / "gone.mkv")

    assert running.terminate() == 0

    assert read(new.with_name("renamed.mkv")) == CONTENT
    assert read(_film(folder)) == b"new" + CONTENT[3:]
    assert sorted(os.listdir(folder)) == ["Films", "Shows"]


def test_a_folder_in_use_before_the_mount_is_left_when_it_ends(settings: dict[str, Any], start_mount: Start) -> None:
    """A nested folder, and the working directory of somebody who stands in it."""
    inside = _film(Path(settings["mountpoint"])).parent
    with subprocess.Popen(["cat"], cwd=inside, stdin=subprocess.PIPE) as stander:
        running = start_mount(settings)
        assert os.listdir(f"/proc/{stander.pid}/cwd") == ["A Film.mkv"]
        assert sorted(os.listdir(inside)) == ["A Film.mkv"]
        with subprocess.Popen(["cat"], cwd=inside, stdin=subprocess.PIPE) as second:
            assert running.terminate() == 0
            assert second.poll() is None
        assert os.listdir(inside) == ["A Film.mkv"]


def test_it_takes_its_mount_away_itself_for_libfuse_may_hang(
    tmp_path: Path, settings: dict[str, Any], start_mount: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libfuse 3.17 starts umount(8) for it, whose process hangs while one of the server's open files does."""
    hanging = tmp_path / "hanging.so"
    command = ["gcc", "-shared", "-fPIC", "-o", str(hanging), "-x", "c", "-"]
    subprocess.run(command, input=_HANGING_UNMOUNT, text=True, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(hanging))
    running = start_mount(settings)
    assert running.terminate() == 0
    assert is_clean(running)
    assert read(_film(Path(settings["mountpoint"]))) == CONTENT


def test_a_killed_server_does_not_mount_over_itself(running: RunningCachefs, expected_warnings: list[str]) -> None:
    expected_warnings.append("the server ended with signal SIGKILL")
    folder = running.mountpoint
    assert running.run("copy", str(_film(folder))).returncode == 0
    killed = kill_server(running)
    wait_until(running, lambda: _serves_anew(running, killed), "another server is ready")
    assert os.getxattr(_film(folder), STATE) == b"cached"
    assert read(_film(folder)) == CONTENT
    assert running.terminate() == 0
    assert is_clean(running)
    assert read(_film(folder)) == CONTENT
    with pytest.raises(OSError, match=r"not supported|No data"):
        os.getxattr(_film(folder), STATE)


def _serves_anew(running: RunningCachefs, killed: int) -> bool:
    asked = running.run("status", "--json")
    return asked.returncode == 0 and f'"pid": {killed},' not in asked.stdout


def test_a_start_over_a_dead_mount_finds_the_source_below_it(
    running: RunningCachefs, settings: dict[str, Any], start_mount: Start
) -> None:
    server = running.status().pid
    os.kill(server, signal.SIGSTOP)  # so that the keeper's death cannot make it unmount
    running.kill()
    os.kill(server, signal.SIGKILL)
    wait_gone(server)
    mount = mounted_at(running.mountpoint)
    assert mount is not None
    assert mount.is_cachefs

    again = start_mount(settings)

    assert read(_film(again.mountpoint)) == CONTENT
    assert again.terminate() == 0
    assert is_clean(again)
    assert read(_film(running.mountpoint)) == CONTENT


def test_over_a_disk_that_is_mounted_there_itself(
    slow_disk: SlowDisk, cachefs_settings: dict[str, Any], start_mount: Start
) -> None:
    cachefs_settings["mountpoint"] = cachefs_settings["sources"][0]["path"]
    (slow_disk.backing / "film.mkv").write_bytes(CONTENT)
    running = start_mount(cachefs_settings)
    film = running.mountpoint / "film.mkv"
    assert running.run("copy", str(film)).returncode == 0
    slow_disk.reset()
    assert read(film) == CONTENT
    assert slow_disk.counts().of("read") == 0
    assert running.terminate() == 0
    mount = mounted_at(running.mountpoint)
    assert mount is not None
    assert mount.source == "slowdisk"
    assert read(film) == CONTENT
    assert slow_disk.counts().of("read") > 0


def test_over_a_folder_of_a_disk(slow_disk: SlowDisk, cachefs_settings: dict[str, Any], start_mount: Start) -> None:
    (slow_disk.backing / "Media").mkdir()
    (slow_disk.backing / "Media" / "film.mkv").write_bytes(CONTENT)
    (slow_disk.backing / "other").touch()
    cachefs_settings["sources"][0]["path"] = cachefs_settings["mountpoint"] = str(slow_disk.mountpoint / "Media")
    running = start_mount(cachefs_settings)
    assert read(running.mountpoint / "film.mkv") == CONTENT
    assert sorted(os.listdir(slow_disk.mountpoint)) == ["Media", "other"]
    assert running.terminate() == 0
    assert is_clean(running)
    assert read(running.mountpoint / "film.mkv") == CONTENT


def test_a_folder_that_was_emptied_is_refused_until_it_is_accepted(
    settings: dict[str, Any], start_mount: Start, tmp_path: Path
) -> None:
    running = start_mount(settings)
    folder = running.mountpoint
    assert os.listdir(folder) == ["Films"]
    assert running.run("check").returncode == 0, "the mount is not taken for another folder"
    assert running.terminate() == 0
    assert running.run("check").returncode == 0
    (folder / "Films").rename(tmp_path / "away")
    made = attempt(running.config, settings)
    assert made.code == 3
    assert "the folder is empty; is its disk mounted?" in made.output
    checked = running.run("check")
    assert checked.returncode == 2
    assert "the folder is empty; is its disk mounted?" in checked.stdout
    assert running.run("accept", "media").returncode == 0
    assert running.run("check").returncode == 0
    assert os.listdir(start_mount(settings).mountpoint) == []
