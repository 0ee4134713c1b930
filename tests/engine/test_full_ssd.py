"""A start on an SSD that is full to the last byte: what it holds is served, and room is made as the plan says."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs import probes
from cachefs.cache.index import Index
from cachefs.cache.metadata import open_metadata
from cachefs.cache.store import EvictResult, Limits
from cachefs.errors import CacheError
from cachefs.model import Pin
from tests.engine.cachekit import Bytes, cached, content, key, listed, opened
from tests.smalldisk import small_disk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted by root only")

FULL = "the SSD is full: the cache folder"


@pytest.fixture
def options() -> str:
    """Of the file system; tests override it by parametrizing."""
    return "size=12m"


@pytest.fixture
def ssd(tmp_path: Path, options: str) -> Iterator[Path]:
    """A cache folder on a small file system."""
    place = tmp_path / "ssd"
    place.mkdir()
    with small_disk(place, options):
        yield place / "cache"


def fill_with_files(ssd: Path) -> list[Path]:
    """Leave not one inode free; returns the files that take them."""
    fillers: list[Path] = []
    for number in itertools.count():
        filler = ssd.with_name(f"filler-{number}")
        try:
            filler.touch()
        except OSError:
            break
        fillers.append(filler)
    return fillers


def fill(ssd: Path) -> Path:
    """Leave not one byte free; returns the file that takes the room."""
    filler = ssd.with_name("filler")
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


@pytest.mark.expected_warnings(FULL)
async def test_a_start_on_a_full_ssd_serves_what_it_holds_and_says_so(
    ssd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(ssd) as store:
        await cached(store, "a.mkv", b"bytes")
        await store.add_pin(Pin("a.mkv"))
        tag = await store.device_tag("disk")
    fill(ssd)
    for _ in range(2):
        async with opened(ssd) as store:
            entry = store.get(key("a.mkv"))
            assert entry is not None
            assert content(store, entry) == b"bytes"
            assert store.pins() == (Pin("a.mkv"),)
            assert await store.device_tag("disk") == tag
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage().startswith(FULL) for record in said] == [True, True]


@pytest.mark.expected_warnings(FULL)
async def test_an_eviction_makes_room_on_a_full_ssd_and_everything_can_be_written_again(ssd: Path) -> None:
    async with opened(ssd) as store:
        await cached(store, "a.mkv", bytes(200_000))
    fill(ssd)
    async with opened(ssd) as store:
        assert await store.evict(key("a.mkv")) is EvictResult.EVICTED
        await store.remove_doomed()
        assert listed(ssd) == set()
        await cached(store, "b.mkv", b"new")
        await store.add_pin(Pin("b.mkv"))
    async with opened(ssd) as store:
        assert [entry.key for entry in store.inventory().entries] == [key("b.mkv")]
        assert store.pins() == (Pin("b.mkv"),)


@pytest.mark.expected_warnings(FULL)
async def test_a_cache_on_a_full_ssd_is_used_as_before_once_there_is_room(ssd: Path) -> None:
    async with opened(ssd) as store:
        await cached(store, "a.mkv")
    filler = fill(ssd)
    async with opened(ssd) as store:
        with pytest.raises(CacheError):
            await store.add_pin(Pin("a.mkv"))
        filler.unlink()
        await store.add_pin(Pin("a.mkv"))
        await cached(store, "b.mkv")
    async with opened(ssd) as store:
        assert {entry.key for entry in store.inventory().entries} == {key("a.mkv"), key("b.mkv")}


@pytest.mark.parametrize("options", ["size=12m,nr_inodes=60"])
async def test_an_ssd_that_has_room_for_bytes_but_for_no_file_says_where_to_look_and_is_used_again(ssd: Path) -> None:
    async with opened(ssd) as store:
        await cached(store, "a.mkv")
        fillers = fill_with_files(ssd)
        with pytest.raises(CacheError, match=r"No space left on device: .*\(df -i\)"):
            await cached(store, "b.mkv")
        assert [entry.key for entry in store.inventory().entries] == [key("a.mkv")]
        for filler in fillers:
            filler.unlink()
        await cached(store, "b.mkv")
    async with opened(ssd) as store:
        assert {entry.key for entry in store.inventory().entries} == {key("a.mkv"), key("b.mkv")}


async def test_what_is_remembered_of_folders_outlives_a_start_on_a_full_ssd(ssd: Path) -> None:
    async with opened(ssd), open_metadata(str(ssd)) as metadata:
        metadata.note(key("TV"), b"listing")
    fill(ssd)
    async with open_metadata(str(ssd)) as metadata:
        assert await metadata.recall(key("TV")) == b"listing"


async def test_a_full_ssd_is_a_warning_of_check_for_mount_serves_what_it_holds(ssd: Path) -> None:
    async with opened(ssd) as store:
        await cached(store, "a.mkv")
    fill(ssd)
    storage = probes.look_at_cache(ssd)
    assert (storage.folder.problem, storage.free_bytes) == ("", 0)


def test_without_room_for_what_sqlite_maps_into_memory_it_maps_nothing(ssd: Path) -> None:
    ssd.mkdir()
    index = Index(str(ssd / "index.sqlite"))
    assert sorted(os.listdir(ssd)) == ["index.sqlite", "index.sqlite-shm", "index.sqlite-wal"]
    index.close()
    fill(ssd)
    index = Index(str(ssd / "index.sqlite"))
    assert "index.sqlite-shm" not in os.listdir(ssd)
    index.close()


async def test_what_was_evicted_counts_as_room_at_once_so_that_no_plan_evicts_more(ssd: Path) -> None:
    limits = Limits(max_size=Bytes(1 << 30), min_free=Bytes(2_000_000))
    async with opened(ssd, limits) as store:
        for name in ("a.mkv", "b.mkv"):
            await cached(store, name, bytes(3_000_000))
        fill(ssd)
        await store.refresh_space()
        assert store.inventory().space.room_bytes < 0
        await store.evict(key("a.mkv"))
        assert store.inventory().space.room_bytes > 0
        assert store.space().room_bytes < 0  # the file is still there
        await store.remove_doomed()
        assert store.inventory().space.room_bytes > 0
        await store.refresh_space()
        assert 0 < store.inventory().space.room_bytes == store.space().room_bytes < 3_000_000
