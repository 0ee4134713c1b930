"""Files that have moved to the SSD, over several starts of cachefs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.kit import read
from tests.mount.lives import settings_in, wait_until
from tests.standin.running import CachefsFailed, RunningCachefs

CONTENT = b"a film of some bytes" * 10_000


def test_who_mounts_in_place_over_moved_files_is_warned_until_they_are_home(
    tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs], expected_warnings: list[str]
) -> None:
    film = tmp_path / "media" / "film.mkv"
    with settings_in(tmp_path) as settings:
        running = _start_and_move(film, settings, start_mount)
        assert running.terminate() == 0

        expected_warnings.append("the only copy of one file .195 KiB.* finds them gone; bring them home")
        in_place = settings | {"mountpoint": str(film.parent), "cache": settings["cache"] | {"mode": "copy"}}
        running = start_mount(in_place)
        assert read(film) == CONTENT
        assert _warnings(running) == 1
        assert running.run("restore", "--all").returncode == 0
        assert running.terminate() == 0
        assert film.read_bytes() == CONTENT

        running = start_mount(in_place)
        assert read(film) == CONTENT
        assert _warnings(running) == 1, "none is added"


def test_without_the_ssd_that_has_moved_files_nothing_is_mounted(
    tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> None:
    film = tmp_path / "media" / "film.mkv"
    with settings_in(tmp_path) as settings:
        running = _start_and_move(film, settings, start_mount)
        assert running.terminate() == 0

        ssd = Path(settings["cache"]["path"])
        ssd.rename(tmp_path / "unplugged")
        ssd.mkdir()
        with pytest.raises(CachefsFailed, match="ended with 3") as refused:
            start_mount(settings)
        said = "source media has moved one file to an SSD, and the cache folder .*/ssd holds none of them: is the SSD"
        by_hand = "first copy to the source what there is in .*/ssd/files/media"
        assert re.search(f"{said}.*{by_hand}", str(refused.value))
        checked = running.run("check")
        assert checked.returncode == 2
        assert re.search(said, " ".join(checked.stdout.split()))

        shutil.rmtree(ssd)
        (tmp_path / "unplugged").rename(ssd)
        running = start_mount(settings)
        assert read(running.mountpoint / "film.mkv") == CONTENT


def test_copies_that_lie_where_the_ssd_was_do_not_stand_for_it(
    tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> None:
    media, ssd, unplugged, below = (tmp_path / name for name in ("media", "ssd", "unplugged", "below"))
    with settings_in(tmp_path) as settings:
        (media / "other.mkv").write_bytes(CONTENT)
        running = start_mount(settings)  # once without the SSD, before anything has moved
        with running.client() as client:
            client.copy("other.mkv")
        wait_until(running, lambda: (ssd / "files" / "media" / "other.mkv").exists(), "it is copied")
        assert running.terminate() == 0
        ssd.rename(below)
        ssd.mkdir()
        running = _start_and_move(media / "film.mkv", settings, start_mount)
        assert running.terminate() == 0

        ssd.rename(unplugged)
        below.rename(ssd)
        said = "source media has moved one file to an SSD, and the cache folder .*/ssd holds none of them"
        with pytest.raises(CachefsFailed, match="ended with 3") as refused:
            start_mount(settings)
        assert re.search(said, str(refused.value))
        checked = running.run("check")
        assert checked.returncode == 2
        assert re.search(said, " ".join(checked.stdout.split()))

        ssd.rename(below)
        unplugged.rename(ssd)
        running = start_mount(settings)
        assert read(running.mountpoint / "film.mkv") == CONTENT
        assert running.run("check").returncode == 0


def test_a_source_whose_last_file_has_moved_and_is_deleted_is_not_taken_for_an_unmounted_disk(
    tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> None:
    media = tmp_path / "media"
    with settings_in(tmp_path) as settings:
        running = _start_and_move(media / "film.mkv", settings, start_mount)

        def shows(*names: str) -> bool:
            return os.listdir(running.mountpoint) == list(names) and all(one.online for one in running.status().sources)

        for _ in range(20):
            assert shows("film.mkv")
        (running.mountpoint / "film.mkv").unlink()
        wait_until(running, lambda: not any(media.iterdir()), "nothing is kept of it")
        for _ in range(20):
            assert shows()
        assert running.terminate() == 0
        running = start_mount(settings)
        assert shows()


def test_a_place_that_a_crash_has_left_at_the_source_keeps_nobody_from_starting(
    tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> None:
    media = tmp_path / "media"
    with settings_in(tmp_path) as settings:
        running = _start_and_move(media / "film.mkv", settings, start_mount)
        (place,) = (media / ".cachefs-moved").iterdir()
        (running.mountpoint / "film.mkv").unlink()
        assert running.terminate() == 0
        place.parent.mkdir(exist_ok=True)
        place.touch()

        assert running.run("check").returncode == 0
        running = start_mount(settings)
        assert running.run("restore", "--all").returncode == 0
        assert not place.exists()
        assert running.terminate() == 0

        place.parent.mkdir(exist_ok=True)
        place.touch()  # whose it is by now cannot be known
        with pytest.raises(CachefsFailed, match="holds none of them"):
            start_mount(settings)


def test_another_disk_is_accepted_for_moved_files_only_by_who_says_so(
    tmp_path: Path, start_mount: Callable[[dict[str, Any]], RunningCachefs], expected_warnings: list[str]
) -> None:
    expected_warnings.append("source media .* is offline")
    media = tmp_path / "media"
    with settings_in(tmp_path) as settings:
        (media / "other.mkv").write_bytes(CONTENT)
        (media / "Show").mkdir()
        (media / "Show" / "one.mkv").write_bytes(CONTENT)
        running = _start_and_move(media / "film.mkv", settings, start_mount)
        with running.client() as client:
            client.copy("Show/one.mkv")
        wait_until(running, lambda: not (media / "Show" / "one.mkv").exists(), "it has moved")
        media.rename(tmp_path / "the old disk")
        media.mkdir()
        (media / "of the new disk").touch()
        wait_until(running, lambda: not running.status().sources[0].online, "another folder has its place")
        refused = running.run("accept", "media")
        assert refused.returncode == 2
        assert "the only copy of 2 files of source media" in refused.stderr
        assert not running.status().sources[0].online
        assert running.terminate() == 0
        asked = running.run("accept", "media")
        assert (asked.returncode, asked.stderr) == (2, refused.stderr), "the same without a daemon"
        running = start_mount(settings)
        accepted = running.run("accept", "--moved", "media")
        assert accepted.returncode == 0
        assert accepted.stdout.endswith("one moved file has no folder there; cachefs restore --all brings it back\n")
        assert running.run("restore", "--all").returncode == 0
        assert [(media / name).read_bytes() for name in ("film.mkv", "Show/one.mkv")] == [CONTENT, CONTENT]


def _start_and_move(
    film: Path, settings: dict[str, Any], start_mount: Callable[[dict[str, Any]], RunningCachefs]
) -> RunningCachefs:
    """A cachefs in move mode, with one film in the root of its source that has moved."""
    film.write_bytes(CONTENT)
    settings["cache"]["mode"] = "move"
    running = start_mount(settings)
    with running.client() as client:
        client.copy(film.name)
    wait_until(running, lambda: not film.exists(), "it has moved")
    return running


def _warnings(running: RunningCachefs) -> int:
    return running.log.read_text().count("finds them gone")
