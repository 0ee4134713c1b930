"""The store on a real folder: what it serves, drops, evicts and remembers."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from trio.testing import MockClock

from cachefs.cache.store import EvictResult, Refused, Targets
from cachefs.model import DropCause, Pin
from cachefs.ranges import Ranges
from tests.engine.cachekit import begun, cached, content, key, listed, names, opened, source_file, write

# --- what is served -------------------------------------------------------------------------------------------------


async def test_published_copy_is_served_and_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        entry = await cached(store, "Show/a.mkv", b"hello")
        assert content(store, entry) == b"hello"
        assert listed(tmp_path / "cache") == {"files/Media/Show/a.mkv"}
    async with opened(tmp_path / "cache") as store:
        assert store.get(key("Show/a.mkv")) == entry
        assert store.recovery.kept == 1


async def test_recorded_ranges_are_served_while_copying(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        entry = await begun(store, source_file("a", 10))
        await write(store, entry, b"456", at=4)
        current = store.get(key("a"))
        assert current is not None
        assert current.ranges == Ranges.of([(4, 7)])
        assert content(store, current)[4:7] == b"456"


async def test_empty_file_is_published(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        assert content(store, await cached(store, "empty.nfo", b"")) == b""


@pytest.mark.parametrize("path", ["\udcff\udc80", "x" * 255, "é" * 127, "a\nb", " ", "…/-rf *"])
async def test_any_name_is_cached(tmp_path: Path, path: str) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, path, b"data")
    async with opened(tmp_path / "cache") as store:
        entry = store.get(key(path))
        assert entry is not None
        assert content(store, entry) == b"data"
        assert await store.evict(key(path)) is EvictResult.EVICTED
        await store.remove_doomed()
        assert listed(tmp_path / "cache") == set()


async def test_path_too_long_for_the_ssd_is_refused(tmp_path: Path) -> None:
    path = "/".join(["x" * 250] * 17)
    async with opened(tmp_path / "cache") as store:
        assert await store.begin(source_file(path), "because", 1.0) is Refused.UNNAMEABLE


# --- freshness ------------------------------------------------------------------------------------------------------


async def test_entry_is_fresh_for_its_ttl_after_its_source_showed_it(tmp_path: Path, mock_clock: MockClock) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
        assert store.is_fresh(key("a"), 5)
        mock_clock.jump(6)
        assert not store.is_fresh(key("a"), 5)
        assert store.observe(source_file("a"))
        assert store.is_fresh(key("a"), 5)


async def test_entry_of_an_earlier_run_is_not_fresh_before_it_is_observed(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
    async with opened(tmp_path / "cache") as store:
        assert not store.is_fresh(key("a"), 1e9)
        assert store.observe(source_file("a"))
        assert store.is_fresh(key("a"), 1e9)


async def test_file_replaced_at_its_source_is_dropped_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
        assert not store.observe(source_file("a", mtime_ns=2))
        assert store.get(key("a")) is None
        assert not store.is_fresh(key("a"), 1e9)
    async with opened(tmp_path / "cache") as store:
        assert store.get(key("a")) is None


async def test_file_that_is_not_cached_is_nothing_to_observe(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        assert store.observe(source_file("a"))
        assert not store.is_fresh(key("a"), 1e9)


async def test_new_inode_number_is_followed(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
        seen = source_file("a")
        moved = type(seen)(seen.key, seen.fingerprint, inode=99)
        assert store.observe(moved)
        store.demote(Targets(inodes=frozenset({seen.inode})), DropCause.CHANGED)
        assert store.get(key("a")) is not None
    async with opened(tmp_path / "cache") as store:
        store.demote(Targets(inodes=frozenset({99})), DropCause.CHANGED)
        assert store.get(key("a")) is None


# --- drops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "left"),
    [
        (names("Show/a"), {"Show/b", "Show 2/c", "d"}),
        (Targets(inodes=frozenset({7})), {"Show 2/c", "d"}),
        (Targets(folders=frozenset({key("Show")})), {"Show 2/c", "d"}),
        (Targets(folders=frozenset({key("")})), set()),
        (Targets(folders=frozenset({key("d")})), {"Show/a", "Show/b", "Show 2/c"}),
        (Targets(folders=frozenset({key("Sho")})), {"Show/a", "Show/b", "Show 2/c", "d"}),
        (
            Targets(inodes=frozenset({1})),
            {"Show/a", "Show/b", "Show 2/c", "d"},
        ),
    ],
)
async def test_drop_takes_what_the_change_touches(tmp_path: Path, targets: Targets, left: set[str]) -> None:
    async with opened(tmp_path / "cache") as store:
        for path, inode in (("Show/a", 7), ("Show/b", 7), ("Show 2/c", 8), ("d", 9)):
            await begun(store, source_file(path, inode=inode))
        await store.drop(targets, DropCause.CHANGED)
        assert {entry.key.path for entry in store.inventory().entries} == left
    async with opened(tmp_path / "cache") as store:
        assert {entry.key.path for entry in store.inventory().entries} == left


async def test_row_of_a_dropped_entry_is_gone_when_drop_returns(tmp_path: Path) -> None:
    root, crashed = tmp_path / "cache", tmp_path / "crashed"
    async with opened(root) as store:
        await cached(store, "a")
        await store.drop(names("a"), DropCause.CHANGED)
        shutil.copytree(root, crashed)
    async with opened(crashed) as store:
        assert store.get(key("a")) is None


async def test_folder_deleted_at_its_source_takes_its_entries_along(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await begun(store, source_file("Show/Season 1/a"))
        await begun(store, source_file("Shows"))
        store.gone(key("Show"))
        assert [entry.key.path for entry in store.inventory().entries] == ["Shows"]


@pytest.mark.expected_warnings(r"the SSD copy of Media:a cannot be used \(Input/output error\)")
async def test_failed_entry_is_given_up_with_one_warning(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        entry = await cached(store, "a")
        store.fail(entry, OSError(errno.EIO, "Input/output error"))
        assert store.get(key("a")) is None
        store.fail(entry, OSError(errno.EIO, "not said again"))


async def test_reader_that_meets_a_publication_does_not_cost_the_entry(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        before = await begun(store, source_file("a", 4))
        await write(store, before, b"data")
        partial = store.file_of(before)
        after = await store.publish(before, source_file("a", 4))
        with pytest.raises(FileNotFoundError) as caught:
            os.stat(partial)
        store.fail(before, caught.value)
        assert store.get(key("a")) == after


# --- eviction -------------------------------------------------------------------------------------------------------


async def test_open_file_is_never_evicted(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
        store.opened(key("a"))
        store.opened(key("a"))
        store.closed(key("a"))
        assert await store.evict(key("a")) is EvictResult.OPEN
        assert store.inventory().open_files == {key("a")}
        store.closed(key("a"))
        assert await store.evict(key("a")) is EvictResult.EVICTED
        assert await store.evict(key("a")) is EvictResult.NOT_CACHED


async def test_open_file_is_evicted_when_a_person_insists(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        entry = await cached(store, "a", b"data")
        store.opened(key("a"))
        reader = os.open(store.file_of(entry), os.O_RDONLY)
        assert await store.evict(key("a"), force=True) is EvictResult.EVICTED
        await store.remove_doomed()
        assert os.read(reader, 10) == b"data"
        os.close(reader)


# --- what is remembered ---------------------------------------------------------------------------------------------


async def test_what_is_known_of_an_entry_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
        store.touch(key("a"), 10.0)
        store.touch(key("a"), 11.0)
        store.touch(key("unknown"), 11.0)
        await store.note_wanted([key("a"), key("unknown")], 12.0)
        await store.note_watched(key("a"), 13.0)
        await store.set_reason(key("a"), "a better one")
        known = store.inventory().entries
    async with opened(tmp_path / "cache") as store:
        assert store.inventory().entries == known
        (entry,) = known
        facts = (entry.last_read_at, entry.last_wanted_at, entry.watched_at, entry.reason)
        assert facts == (11.0, 12.0, 13.0, "a better one")


async def test_pins_survive_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await store.add_pin(Pin("TV/Show", created_at=1.0))
        await store.add_pin(Pin("Heat", "12", 2.0))
        assert await store.remove_pin("Heat")
        assert not await store.remove_pin("Heat")
    async with opened(tmp_path / "cache") as store:
        assert store.pins() == (Pin("TV/Show", created_at=1.0),)


async def test_device_tags_are_given_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        assert [await store.device_tag(name) for name in ("main", "nested", "main")] == [0, 1, 0]
    async with opened(tmp_path / "cache") as store:
        assert await store.device_tag("nested") == 1
