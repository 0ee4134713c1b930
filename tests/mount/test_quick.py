"""What the channel answers by itself, without Python, is what is there: look-ups, listings, opens, closes and reads."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.mount.kit import MIB, STATE, read
from tests.mount.lives import settings_in, wait_until
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

Start = Callable[[dict[str, Any]], RunningCachefs]

MANY = 3000
SEEN_WITHIN_S = 2.0
CONTENT = random.Random(5).randbytes(2 * MIB)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "Show" / "Season 01").mkdir(parents=True)
    for number in range(1, 6):
        (folder / "Show" / "Season 01" / f"S01E{number:02}.mkv").write_bytes(b"%d" % number)
    return folder


@pytest.fixture
def mounted(source: Path, tmp_path: Path, start_mount: Start) -> Iterator[RunningCachefs]:
    with settings_in(tmp_path, (source,)) as settings:
        yield start_mount(settings)


@contextmanager
def watched_slow_disk(slow_disk: SlowDisk, tmp_path: Path, start_mount: Start, ttl: str) -> Iterator[RunningCachefs]:
    """A source that cannot be watched, and says what it was asked."""
    (slow_disk.backing / "film.mkv").write_bytes(CONTENT)
    with settings_in(tmp_path, (slow_disk.mountpoint,)) as settings:
        settings["sources"][0]["ttl"] = ttl
        yield start_mount(settings)


def getdents(folder: int, size: int) -> list[str]:
    """Some names of an open folder, as few as the kernel takes for one call."""
    libc, buffer = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(size)
    libc.getdents64.restype = ctypes.c_ssize_t
    done = libc.getdents64(folder, buffer, ctypes.c_size_t(size))
    assert done >= 0, os.strerror(ctypes.get_errno())
    names, at = [], 0
    while at < done:
        length = struct.unpack_from("=H", buffer, at + 16)[0]
        names.append(os.fsdecode(buffer.raw[at + 19 : at + length].split(b"\0", 1)[0]))
        at += length
    return names


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield number
    finally:
        os.close(number)


# --- listings --------------------------------------------------------------------------------------------------------


def test_a_large_folder_is_listed_once_and_in_full(mounted: RunningCachefs, source: Path) -> None:
    names = {f"a rather long name, as films have it ({number}).mkv" for number in range(MANY)}
    (source / "Films").mkdir()
    for name in names:
        (source / "Films" / name).touch()
    for _ in range(2):
        listed = os.listdir(mounted.mountpoint / "Films")
        assert len(listed) == MANY
        assert set(listed) == names


def test_a_slow_reader_of_a_folder_misses_no_name_that_stays_and_sees_none_twice(
    mounted: RunningCachefs, source: Path
) -> None:
    folder = source / "Films"
    folder.mkdir()
    stays = {f"stays {number}" for number in range(500)}
    for name in stays | {f"goes {number}" for number in range(500)}:
        (folder / name).touch()
    found: list[str] = []
    with opened_folder(mounted.mountpoint / "Films") as slow:
        found += getdents(slow, 1024)
        for number in range(500):
            (folder / f"goes {number}").unlink()
            (folder / f"comes {number}").touch()
        assert stays < set(os.listdir(mounted.mountpoint / "Films"))  # somebody else reads it from the start
        while names := getdents(slow, 1024):
            found += names
    kept = [name for name in found if name in stays]
    assert len(kept) == len(set(kept))
    assert set(kept) == stays


def test_who_reads_on_in_a_large_folder_that_somebody_has_begun_anew_misses_no_name(
    mounted: RunningCachefs, source: Path
) -> None:
    names = {f"film {number}" for number in range(MANY)}
    (source / "Films").mkdir()
    for name in names:
        (source / "Films" / name).touch()
    films = mounted.mountpoint / "Films"
    with opened_folder(films) as slow, opened_folder(films) as other:
        found: dict[int, list[str]] = {0: [], 1: []}
        while len(found[0]) < MANY // 2:
            found[0] += getdents(slow, 1024)
        (films / "another").touch()
        found[1] += getdents(other, 1024)
        for number, folder in enumerate((slow, other)):
            while some := getdents(folder, 1024):
                found[number] += some
    for listed in found.values():
        kept = [name for name in listed if name in names]
        assert len(kept) == len(set(kept)) == MANY


def test_a_file_written_anew_is_not_taken_for_the_deleted_one_by_who_is_told_of_it_later(
    mounted: RunningCachefs, source: Path
) -> None:
    films = mounted.mountpoint / "Films"
    (source / "Films").mkdir()
    for number in range(400):  # all of them are looked at for the first reply
        (source / "Films" / f"film {number}").write_bytes(b"old")
    with opened_folder(films) as whole:
        last = [name for names in iter(lambda: getdents(whole, 1024), []) for name in names][-1]
    (films / "another").touch()  # so that it is read anew, and not from what the kernel has kept
    with opened_folder(films) as slow, (films / last).open("rb") as deleted:
        getdents(slow, 1024)
        (films / last).unlink()
        (films / last).write_bytes(b"written anew")
        assert last in [name for names in iter(lambda: getdents(slow, 1024), []) for name in names]
        assert (films / last).read_bytes() == b"written anew"
        (films / last).write_bytes(b"and again")
        assert (source / "Films" / last).read_bytes() == b"and again"
        assert deleted.read() == b"old"


def test_a_folder_of_100000_is_listed_in_full_while_it_changes(mounted: RunningCachefs, source: Path) -> None:
    folder, here = source / "Films", mounted.mountpoint / "Films"
    folder.mkdir()
    for number in range(100_000):
        os.mknod(f"{folder}/stays {number}")
    kept: list[str] = []
    with opened_folder(here) as slow:
        for turn in itertools.count():
            if not (names := getdents(slow, 1 << 16)):
                break
            kept += [name for name in names if name.startswith("stays")]
            if turn % 20 == 0:
                (folder / f"comes behind {turn}").touch()
                (here / f"comes {turn}").touch()
                (here / f"comes {turn}").rename(here / f"is renamed {turn}")
                (folder / f"comes behind {turn}").unlink()
    assert len(kept) == len(set(kept)) == 100_000


def test_a_folder_can_be_read_again_from_where_one_was(mounted: RunningCachefs, source: Path) -> None:
    for number in range(200):
        (source / f"film {number}").touch()
    with opened_folder(mounted.mountpoint) as folder:
        getdents(folder, 1024)
        place = os.lseek(folder, 0, os.SEEK_CUR)
        rest = [name for names in iter(lambda: getdents(folder, 1024), []) for name in names]
        os.lseek(folder, place, os.SEEK_SET)
        assert [name for names in iter(lambda: getdents(folder, 1024), []) for name in names] == rest


def test_numbers_and_kinds_in_a_listing_are_those_of_stat(mounted: RunningCachefs, source: Path) -> None:
    (source / "link").symlink_to("nowhere")
    os.mkfifo(source / "fifo")
    os.link(source / "Show" / "Season 01" / "S01E01.mkv", source / "same.mkv")
    for _ in range(2):
        with os.scandir(mounted.mountpoint) as entries:
            for entry in entries:
                seen, there = entry.stat(follow_symlinks=False), os.lstat(source / entry.name)
                assert entry.inode() == seen.st_ino == os.lstat(entry.path).st_ino
                assert (seen.st_mode, seen.st_nlink, seen.st_size, seen.st_mtime_ns, seen.st_uid) == (
                    *(there.st_mode, there.st_nlink, there.st_size, there.st_mtime_ns, there.st_uid),
                )
                assert entry.is_dir(follow_symlinks=False) == os.path.isdir(source / entry.name)
    episode = mounted.mountpoint / "Show" / "Season 01" / "S01E01.mkv"
    assert episode.stat().st_ino == (mounted.mountpoint / "same.mkv").stat().st_ino


def test_a_listing_of_a_source_that_cannot_be_watched_holds_for_its_ttl(
    slow_disk: SlowDisk, tmp_path: Path, start_mount: Start
) -> None:
    with watched_slow_disk(slow_disk, tmp_path, start_mount, "1s") as running:
        assert os.listdir(running.mountpoint) == ["film.mkv"]
        (slow_disk.backing / "new.mkv").touch()
        os.utime(slow_disk.backing, ns=(0, 0))
        wait_until(running, lambda: "new.mkv" in os.listdir(running.mountpoint), "the new file is listed", 5.0)


def test_several_who_list_a_folder_at_once_see_each_name_once(mounted: RunningCachefs, source: Path) -> None:
    (source / "Films").mkdir()
    names = sorted(f"film {number}" for number in range(MANY))
    for name in names:
        (source / "Films" / name).touch()
    films = mounted.mountpoint / "Films"
    assert sorted(os.listdir(films)) == names
    list_it = f"import os; names = os.listdir({str(films)!r}); assert sorted(set(names)) == sorted(names), len(names)"
    for _ in range(3):
        Path("/proc/sys/vm/drop_caches").write_text("2")
        listing = [subprocess.Popen([sys.executable, "-c", list_it]) for _ in range(6)]
        assert [process.wait(60) for process in listing] == [0] * 6


# --- look-ups --------------------------------------------------------------------------------------------------------


def test_a_name_that_was_looked_up_follows_what_happens_to_it(mounted: RunningCachefs, source: Path) -> None:
    season = mounted.mountpoint / "Show" / "Season 01"
    first, second = season / "S01E01.mkv", season / "S01E02.mkv"
    assert os.stat(season).st_nlink == 2  # the folder is known now, and watched
    one, two = first.stat(), second.stat()
    here = source / "Show" / "Season 01"
    os.rename(here / "S01E01.mkv", here / "moved.mkv")
    wait_until(mounted, lambda: not first.exists(), "the old name is gone", SEEN_WITHIN_S)
    assert (season / "moved.mkv").stat().st_ino == one.st_ino
    (here / "S01E02.mkv").write_bytes(b"longer than before")
    wait_until(mounted, lambda: second.stat().st_size == 18, "the new size", SEEN_WITHIN_S)
    assert second.stat().st_ino == two.st_ino


def test_what_was_only_looked_up_can_be_changed_through_the_mount(mounted: RunningCachefs, source: Path) -> None:
    season = mounted.mountpoint / "Show" / "Season 01"
    for number in range(1, 6):
        (season / f"S01E{number:02}.mkv").stat()
    os.chmod(season / "S01E01.mkv", 0o600)
    os.rename(season / "S01E02.mkv", season / "renamed.mkv")
    os.unlink(season / "S01E03.mkv")
    (season / "S01E04.mkv").write_bytes(b"new")
    os.link(season / "S01E05.mkv", season / "linked.mkv")
    assert (season / "S01E01.mkv").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(season)) == sorted(os.listdir(source / "Show" / "Season 01"))
    assert (season / "S01E04.mkv").read_bytes() == b"new"
    assert (season / "linked.mkv").stat().st_nlink == 2


def test_what_the_kernel_has_forgotten_is_found_again_with_the_same_number(
    mounted: RunningCachefs, source: Path
) -> None:
    def numbers() -> dict[str, int]:
        return {name: os.stat(os.path.join(where, name)).st_ino for where, _, names in walked() for name in names}

    def walked() -> list[tuple[str, list[str], list[str]]]:
        return list(os.walk(mounted.mountpoint))

    before = numbers()
    assert len(before) == 5
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert numbers() == before


def test_a_new_folder_where_one_was_renamed_away_has_nothing_of_it(mounted: RunningCachefs, source: Path) -> None:
    mount = mounted.mountpoint
    before = (mount / "Show" / "Season 01" / "S01E01.mkv").stat().st_ino
    assert len(list(os.walk(mount))) == 3
    (mount / "Show").rename(mount / "Old")
    (mount / "Show" / "Season 01").mkdir(parents=True)
    assert not (mount / "Show" / "Season 01" / "S01E01.mkv").exists()
    assert (mount / "Old" / "Season 01" / "S01E01.mkv").stat().st_ino == before
    (mount / "Show" / "Season 01" / "S01E01.mkv").write_bytes(b"new")
    assert (source / "Show" / "Season 01" / "S01E01.mkv").read_bytes() == b"new"
    assert (source / "Old" / "Season 01" / "S01E01.mkv").read_bytes() == b"1"
    assert os.listdir(mount / "Show" / "Season 01") == ["S01E01.mkv"]


@pytest.mark.parametrize("through", [True, False])
def test_two_folders_that_change_places_keep_what_is_theirs(
    mounted: RunningCachefs, source: Path, through: bool
) -> None:
    (source / "Other" / "Season 01").mkdir(parents=True)
    (source / "Other" / "Season 01" / "S01E01.mkv").write_bytes(b"another show")
    assert len(list(os.walk(mounted.mountpoint))) == 5
    for name in ("Show", "Other"):
        assert mounted.run("copy", f"{name}/Season 01/S01E01.mkv").returncode == 0
    where = mounted.mountpoint if through else source
    for old, new in (("Show", "aside"), ("Other", "Show"), ("aside", "Other")):
        (where / old).rename(where / new)

    def as_they_are() -> bool:
        return all(
            sorted(os.listdir(mounted.mountpoint / name / "Season 01"))
            == sorted(os.listdir(source / name / "Season 01"))
            and read(mounted.mountpoint / name / "Season 01" / "S01E01.mkv")
            == (source / name / "Season 01" / "S01E01.mkv").read_bytes()
            for name in ("Show", "Other")
        )

    wait_until(mounted, as_they_are, "each has its own", SEEN_WITHIN_S)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert as_they_are()


# --- opens, closes and reads -----------------------------------------------------------------------------------------


def test_a_file_that_is_opened_often_is_opened_once_at_its_source(
    slow_disk: SlowDisk, tmp_path: Path, start_mount: Start
) -> None:
    with watched_slow_disk(slow_disk, tmp_path, start_mount, "1h") as running:
        film = running.mountpoint / "film.mkv"
        read(film)
        before = slow_disk.counts().operations["open"]
        for _ in range(20):
            assert read(film) == CONTENT
        assert slow_disk.counts().operations["open"] == before


def test_a_change_behind_an_open_that_was_offered_is_seen_after_the_ttl(
    slow_disk: SlowDisk, tmp_path: Path, start_mount: Start
) -> None:
    with watched_slow_disk(slow_disk, tmp_path, start_mount, "1s") as running:
        film = running.mountpoint / "film.mkv"
        assert read(film) == CONTENT
        (slow_disk.backing / "film.mkv").write_bytes(b"another film")
        wait_until(running, lambda: read(film) == b"another film", "the new bytes", 5.0)


def test_every_byte_that_is_read_is_counted_wherever_it_came_from(mounted: RunningCachefs, source: Path) -> None:
    film = mounted.mountpoint / "film.mkv"
    (source / "film.mkv").write_bytes(CONTENT)
    for _ in range(3):
        with film.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that the mount is asked again
            while file.read(MIB):
                pass
    counted = mounted.status().reads
    assert counted.source_bytes == 3 * len(CONTENT)
    assert counted.cache_bytes == 0
    assert mounted.run("copy", "film.mkv").returncode == 0
    before = mounted.status().reads.kernel_opens
    for _ in range(5):
        assert read(film) == CONTENT
    assert mounted.status().reads.kernel_opens == before + 5


def test_an_open_file_moves_to_the_ssd_and_back_though_nobody_asks_python(
    mounted: RunningCachefs, source: Path
) -> None:
    film = mounted.mountpoint / "film.mkv"
    (source / "film.mkv").write_bytes(CONTENT)
    assert read(film) == CONTENT
    for _ in range(3):
        assert mounted.run("copy", "film.mkv").returncode == 0
        assert os.getxattr(film, STATE) == b"cached"
        before = mounted.status().reads.kernel_opens
        assert read(film) == CONTENT
        assert mounted.status().reads.kernel_opens == before + 1
        assert mounted.run("evict", "film.mkv").returncode == 0
        assert read(film) == CONTENT
        assert mounted.status().reads.kernel_opens == before + 1


def test_a_file_that_nobody_has_open_any_more_is_not_shown_as_open_and_can_be_changed(
    mounted: RunningCachefs, source: Path
) -> None:
    film = mounted.mountpoint / "film.mkv"
    (source / "film.mkv").write_bytes(CONTENT)
    assert mounted.run("copy", "film.mkv").returncode == 0
    assert read(film) == CONTENT
    assert not mounted.status().open_files
    with film.open("rb") as file:
        (shown,) = mounted.status().open_files
        assert (shown.readers, shown.writers) == (1, 0)
        with film.open("r+b") as writer:
            writer.write(b"changed")
        assert file.read(7) == b"changed"
    assert read(film) == b"changed" + CONTENT[7:]
    assert (source / "film.mkv").read_bytes() == b"changed" + CONTENT[7:]


def test_a_copy_that_is_out_of_service_is_read_by_no_later_open(
    source: Path, tmp_path: Path, start_mount: Start
) -> None:
    (source / "film.mkv").write_bytes(CONTENT)
    with settings_in(tmp_path, (source,)) as settings:
        running = start_mount(settings | {"fast_path": "off"})
        film = running.mountpoint / "film.mkv"
        with film.open("rb", buffering=0) as stays_open:
            assert running.run("copy", "film.mkv").returncode == 0
            os.posix_fadvise(stays_open.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert stays_open.read(MIB) == CONTENT[:MIB]  # from the SSD
            with film.open("r+b", buffering=0) as writer:
                writer.write(b"changed")
            with film.open("rb", buffering=0) as later:
                os.posix_fadvise(later.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert later.read(MIB) == b"changed" + CONTENT[7:MIB]


@pytest.mark.parametrize("how", ["open", "truncate"])
def test_a_cached_file_that_was_read_just_now_can_be_emptied(mounted: RunningCachefs, source: Path, how: str) -> None:
    film = mounted.mountpoint / "film.mkv"
    for _ in range(5):
        (source / "film.mkv").write_bytes(CONTENT)
        wait_until(mounted, lambda: film.exists() and read(film) == CONTENT, "seen", 5)
        assert mounted.run("copy", "film.mkv").returncode == 0
        assert read(film) == CONTENT
        if how == "open":
            film.write_bytes(b"new")
        else:
            os.truncate(film, 3)
        assert (source / "film.mkv").stat().st_size == 3
        assert len(read(film)) == 3


def test_descriptors_are_given_back_some_seconds_after_the_last_close(mounted: RunningCachefs, source: Path) -> None:
    for number in range(40):
        (source / f"film {number}").write_bytes(b"film")
        assert read(mounted.mountpoint / f"film {number}") == b"film"
    here = str(source)

    def held() -> list[str]:
        folder = Path(f"/proc/{mounted.status().pid}/fd")
        links = [os.readlink(link) for link in folder.iterdir() if os.path.lexists(link)]
        return [link for link in links if link.startswith(f"{here}/film")]

    wait_until(mounted, lambda: not held(), "nothing of the source is open", 15.0)
