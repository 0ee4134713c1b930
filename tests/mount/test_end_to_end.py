"""The main job, through a real mount: what people watch is on the SSD before they ask, and nobody notices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cachefs.model import EntryState
from tests.mount.kit import MIB, Household, read
from tests.standin.library import LibrarySizes, build_library
from tests.standin.library_in_plex import put_in_plex
from tests.standin.plex import StandInPlex, run_stand_in_plex
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk
from tests.standin.slowdisk_process import SlowDiskSettings

KEEP_WATCHED_S = 2


@pytest.fixture
def plex() -> Iterator[StandInPlex]:
    with run_stand_in_plex() as running:
        running.add_user("kid", "kid-token")
        yield running


@pytest.fixture
def household(
    plex: StandInPlex,
    slow_disk: SlowDisk,
    cachefs_settings: dict[str, Any],
    start_mount: Callable[[dict[str, Any]], RunningCachefs],
) -> Household:
    library = build_library(slow_disk.backing, LibrarySizes(episode_bytes=2 * MIB, film_bytes=3 * MIB))
    items = put_in_plex(library, plex)
    cachefs_settings["sources"][0]["ttl"] = "1h"
    cachefs_settings["plex"] = {"url": plex.url, "token": plex.token, "cloud_url": plex.url}
    cachefs_settings["policy"] = {
        "playing": {"after": "0s", "next_episodes": 1},
        "on_deck": {"next_episodes": 1},
        "keep_watched": f"{KEEP_WATCHED_S}s",
    }
    running = start_mount(cachefs_settings)
    return Household(running, slow_disk, library, plex, items, cachefs_settings, start_mount)


def _episode(household: Household, number: int) -> tuple[str, Any]:
    """Name and sample of an episode of the first show."""
    show = household.library.shows[0]
    return show.episodes[number].name, show.episodes[number].video


def test_what_is_on_deck_is_cached_and_reading_it_asks_the_source_for_nothing(household: Household) -> None:
    name, video = _episode(household, 0)
    assert household.state(video) == "source"

    household.plex.on_deck(None, household.items.episodes[name])
    household.wait_for_state(video, "cached")
    household.wait_for_state(_episode(household, 1)[1], "cached")
    household.wait_until_idle()
    household.disk.reset()

    assert read(household.path(video)) == video.content()
    assert household.disk.counts().total == 0
    reads = household.cachefs.status().reads
    assert reads.cache_bytes + reads.kernel_size >= video.size


def test_a_sidecar_is_cached_with_its_video(household: Household) -> None:
    episode = household.library.shows[0].episodes[0]
    household.plex.on_deck(None, household.items.episodes[episode.name])
    for sidecar in episode.sidecars:
        household.wait_for_state(sidecar, "cached")
        assert read(household.path(sidecar)) == sidecar.content()


@pytest.mark.parametrize("slow_disk_settings", [SlowDiskSettings(wake_up_s=0, bytes_per_s=20e6, seek_s=0)])
def test_an_open_reader_is_finished_from_the_ssd(household: Household) -> None:
    name, video = _episode(household, 0)
    with household.path(video).open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead of what comes later
        begin = stream.read(MIB // 2)

        household.plex.play("owner", household.items.episodes[name])
        household.wait_for_state(video, "cached")
        household.wait_until_idle()
        household.disk.reset()
        rest = b"".join(iter(lambda: stream.read(MIB // 4), b""))

    assert begin + rest == video.content()
    assert household.disk.counts().of("read") == 0


def test_an_open_reader_goes_back_to_the_source_when_the_entry_is_evicted(household: Household) -> None:
    household.settings["fast_path"] = "off"  # a handle that the kernel serves stays with its copy to the end
    household = household.restarted()
    name, video = _episode(household, 0)
    household.plex.on_deck(None, household.items.episodes[name])
    household.wait_for_state(video, "cached")
    with household.path(video).open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        begin = stream.read(MIB)
        assert household.cachefs.run("evict", video.path).returncode == 0
        household.wait_for_state(video, "source")
        household.disk.reset()
        rest = b"".join(iter(lambda: stream.read(MIB), b""))
    assert begin + rest == video.content()
    assert household.disk.counts().of("read") > 0


def test_what_was_watched_is_evicted_after_a_while(household: Household) -> None:
    name, video = _episode(household, 0)
    session = household.plex.play("owner", household.items.episodes[name])
    household.wait_for_state(video, "cached")

    session.finish()

    household.wait_for_state(video, "source")
    household.wait_for_state(_episode(household, 1)[1], "cached")


def test_plex_may_stop_and_start(household: Household, expected_warnings: list[str]) -> None:
    expected_warnings.append("plex")
    name, video = _episode(household, 0)
    household.plex.stop_server()
    household.wait_until(lambda: bool(household.cachefs.status().plex.problem), "status says that Plex is away")
    assert read(household.path(video)) == video.content()

    household.plex.start_server()
    household.plex.on_deck(None, household.items.episodes[name])

    household.wait_for_state(video, "cached", within_s=60)
    assert not household.cachefs.status().plex.problem
    [said] = [line for line in household.cachefs.log.read_text().splitlines() if " WARNING " in line]
    assert "the cache stays as it is until Plex answers" in said


def test_a_restart_keeps_the_cache(household: Household) -> None:
    name, video = _episode(household, 0)
    household.plex.on_deck(None, household.items.episodes[name])
    household.wait_for_state(video, "cached")

    household = household.restarted()

    assert household.state(video) == "cached"
    household.wait_until_idle()
    household.disk.reset()
    assert read(household.path(video)) == video.content()
    assert household.disk.counts().of("read") == 0


def test_a_file_rewritten_through_the_mount_is_never_served_stale(household: Household) -> None:
    name, video = _episode(household, 0)
    household.plex.on_deck(None, household.items.episodes[name])
    household.wait_for_state(video, "cached")
    before = os.stat(household.path(video))

    with household.path(video).open("r+b", buffering=0) as file:
        file.seek(MIB)
        file.write(b"new bytes")
        assert household.state(video) == "source"
    os.utime(household.path(video), ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync would: same size, same time

    content = video.content()
    expected = content[:MIB] + b"new bytes" + content[MIB + 9 :]
    assert read(household.path(video)) == expected
    household.wait_for_state(video, "cached")
    assert read(household.path(video)) == expected


def test_a_file_replaced_behind_the_mount_is_new_within_the_ttl(household: Household) -> None:
    name, video = _episode(household, 0)
    household.settings["sources"][0]["ttl"] = "1s"
    household = household.restarted()
    household.plex.on_deck(None, household.items.episodes[name])
    household.wait_for_state(video, "cached")
    assert read(household.path(video)) == video.content()

    replacement = household.disk.backing / "replacement"
    replacement.write_bytes(b"a better release" * 1000)
    os.replace(replacement, household.disk.backing / video.path)

    household.wait_until(
        lambda: read(household.path(video)) == b"a better release" * 1000, "the new file is seen", within_s=5
    )


def test_a_damaged_ssd_file_is_noticed_and_the_source_answers(
    household: Household, expected_warnings: list[str]
) -> None:
    expected_warnings.append("SSD copy of .* cannot be used")
    name, video = _episode(household, 0)
    household.plex.on_deck(None, household.items.episodes[name])
    household.wait_for_state(video, "cached")
    (entry,) = [
        entry
        for entry in household.cachefs.client().entries()
        if entry.state is EntryState.CACHED and entry.key.path == video.path
    ]
    os.truncate(f"{household.settings['cache']['path']}/files/{entry.key.source}/{entry.key.path}", MIB // 2)

    assert read(household.path(video)) == video.content()
    assert household.state(video) == "source"


def test_a_pinned_title_is_cached_and_unpinned_again(household: Household) -> None:
    film = household.library.films[0]
    pinned = household.cachefs.run("pin", film.title)
    assert pinned.returncode == 0, pinned.stderr
    household.wait_for_state(film.video, "cached")
    assert household.cachefs.run("unpin", film.title).returncode == 0
    household.wait_for_state(film.video, "source")


def test_the_watchlist_of_a_home_user_is_followed(household: Household) -> None:
    film = household.library.films[0]
    household.plex.watchlist("kid", household.items.films[film.name])
    household = household.restarted()  # plex.tv is asked for watchlists once a minute
    household.wait_for_state(film.video, "cached")
    explained = household.cachefs.run("explain", film.video.path)
    assert "kid" in explained.stdout
