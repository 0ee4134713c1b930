"""What the cache may take, and what an SSD costs that fails."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from cachefs.cache.store import EvictResult, Limits, Refused
from cachefs.errors import CacheError
from cachefs.model import DropCause
from cachefs.ranges import Ranges
from tests.engine.cachekit import Bytes, begun, cached, content, key, limited, listed, names, opened, source_file, write

# --- room -----------------------------------------------------------------------------------------------------------


async def test_two_copies_cannot_both_take_the_last_room(tmp_path: Path) -> None:
    answers = []

    async def begin(path: str) -> None:
        answers.append(await store.begin(source_file(path, 60), "because", 1.0))

    async with opened(tmp_path / "cache", limited(100)) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, "a")
            nursery.start_soon(begin, "b")
        assert answers.count(Refused.NO_ROOM) == 1
        assert store.space().used_bytes == 60


async def test_copies_count_with_their_full_size_from_the_start_and_over_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache", limited(100)) as store:
        await begun(store, source_file("a", 60))
        assert store.space().room_bytes == 40
    async with opened(tmp_path / "cache", limited(100)) as store:
        assert store.space().room_bytes == 40
        assert await store.begin(source_file("b", 41), "because", 1.0) is Refused.NO_ROOM
        await begun(store, source_file("b", 40))


async def test_removed_entry_uses_room_until_its_file_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache", limited(10)) as store:
        await cached(store, "a", b"0123456789")
        assert await store.evict(key("a")) is EvictResult.EVICTED
        assert await store.begin(source_file("b", 10), "because", 1.0) is Refused.NO_ROOM
        await store.remove_doomed()
        await begun(store, source_file("b", 10))


async def test_what_copies_have_yet_to_write_is_not_free(tmp_path: Path) -> None:
    size = 100 << 20
    async with opened(tmp_path / "cache") as store:
        await store.refresh_space()
        free = store.space().free_bytes
        entry = await begun(store, source_file("a", size))
        after = store.space().free_bytes
        assert free - after == pytest.approx(size, abs=size // 2)
        store.record(entry.id, 0, size)
        assert store.space().free_bytes == after


@dataclass(slots=True)
class Movable:
    """A limit that the test moves, as others move what is free on the SSD."""

    count: int = 0

    def resolve(self, total_bytes: int, /) -> int:
        return self.count


async def test_copy_may_not_write_past_min_free(tmp_path: Path) -> None:
    min_free = Movable()
    async with opened(tmp_path / "cache", Limits(Bytes(1 << 50), min_free)) as store:
        first, second = await begun(store, source_file("a", 600)), await begun(store, source_file("b", 600))
        min_free.count = store.space().free_bytes + 1200 - 1000
        assert store.claim(first, 600)
        assert not store.claim(second, 600)
        store.unclaim(first)
        assert store.claim(second, 600)
        store.record(second.id, 0, 600)
        assert not store.claim(first, 600)
        assert store.claim(first, 400)


async def test_entry_that_is_begun_again_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache", limited(10)) as store:
        first = await begun(store, source_file("a", 10))
        await write(store, first, b"01234")
        again = await begun(store, source_file("a", 10))
        assert again.id == first.id
        assert again.ranges == Ranges.of([(0, 5)])
        await write(store, again, b"56789", at=5)
        assert await store.publish(again, source_file("a", 10)) is not None
        assert await store.begin(source_file("a", 10), "because", 1.0) is Refused.EXISTS


async def test_changed_source_file_is_not_published(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        entry = await begun(store, source_file("a", 4))
        await write(store, entry, b"data")
        assert await store.publish(entry, source_file("a", 4, mtime_ns=2)) is None
        assert store.get(key("a")) is None


async def test_incomplete_copy_is_not_published(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        entry = await begun(store, source_file("a", 4))
        await write(store, entry, b"dat")
        with pytest.raises(ValueError, match="incomplete"):
            await store.publish(entry, source_file("a", 4))


# --- an SSD that fails ----------------------------------------------------------------------------------------------


async def test_ssd_that_fails_a_copy_costs_that_entry_only(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        other = await cached(store, "b", b"other")
        entry = await begun(store, source_file("a", 4))
        await write(store, entry, b"data")
        os.unlink(store.file_of(entry))
        with pytest.raises(CacheError, match="failed on Media:a"):
            await store.publish(entry, source_file("a", 4))
        assert store.get(key("a")) is None
        assert content(store, other) == b"other"
        await cached(store, "a", b"again")


async def test_after_a_failed_checkpoint_nothing_is_believed(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        entry = await begun(store, source_file("a", 4))
        await write(store, entry, b"da")
        os.unlink(store.file_of(entry))
        with pytest.raises(CacheError, match="failed on Media:a"):
            await store.checkpoint(entry)
        assert store.get(key("a")) is None


async def test_begin_on_a_lost_folder_is_one_clear_error(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(CacheError, match="failed on Media:a: No such file"):
            await store.begin(source_file("a"), "because", 1.0)
        assert store.get(key("a")) is None


@pytest.mark.expected_warnings("the cache folder .* fails: copying pauses and is tried again")
async def test_drop_returns_even_when_the_index_fails(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
        store._shelf.ledger.index.close()
        await store.drop(names("a"), DropCause.CHANGED)
        assert store.get(key("a")) is None
        await store.remove_doomed()
        assert listed(tmp_path / "cache") == {"files/Media/a"}, "a file went before its row"


@pytest.mark.expected_warnings("the cache folder .* fails: copying pauses and is tried again")
async def test_lock_is_given_up_even_when_the_ssd_fails(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a")
        store.touch(key("a"), 5.0)
        store._shelf.ledger.index.close()
    async with opened(tmp_path / "cache") as store:
        assert store.get(key("a")) is not None


async def test_dropped_copy_gives_back_what_it_had_yet_to_write(tmp_path: Path) -> None:
    size = 1 << 40
    async with opened(tmp_path / "cache", Limits(Bytes(1 << 50), Bytes(-(1 << 50)))) as store:
        free = store.space().free_bytes
        await begun(store, source_file("a", size))
        assert store.space().free_bytes <= free - size // 2
        store.demote(names("a"), DropCause.CHANGED)
        assert store.space().free_bytes >= free - size // 2
