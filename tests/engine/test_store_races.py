"""Publication, drop, bar and removal of one name at the same time: who wins, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from cachefs.cache.store import Hooks, Refused, Step, Store, Targets
from cachefs.model import DropCause, EntryState
from tests.engine.cachekit import begun, cached, content, key, listed, names, opened, source_file, write

# --- bars -----------------------------------------------------------------------------------------------------------

BARS = [names("Show/a"), Targets(folders=frozenset({key("Show")})), Targets(inodes=frozenset({7}))]


@pytest.mark.parametrize("targets", BARS, ids=["key", "folder", "inode"])
async def test_barred_file_is_neither_begun_nor_published(tmp_path: Path, targets: Targets) -> None:
    file = source_file("Show/a", 4, inode=7)
    async with opened(tmp_path / "cache") as store:
        entry = await begun(store, file)
        await write(store, entry, b"data")
        with store.bar(targets), store.bar(targets) as inner:
            inner.release()
            assert await store.begin(file, "because", 1.0) is Refused.BARRED
            assert await store.publish(entry, file) is None
            other = await begun(store, source_file("Show 2/b", inode=8))
            assert other.state is EntryState.COPYING
        assert await store.publish(entry, file) is not None


async def test_bar_outlives_its_block_when_it_is_not_used_as_one(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        bar = store.bar(names("a"))
        assert await store.begin(source_file("a"), "because", 1.0) is Refused.BARRED
        bar.release()
        bar.release()
        await begun(store, source_file("a"))


# --- races between publication, drop and removal --------------------------------------------------------------------


@dataclass(slots=True)
class During:
    """Does something on the event loop at one step of a publication, which waits for it."""

    step: Step
    act: Callable[[], object] = bool

    def __call__(self, done: Step) -> None:
        if done is self.step:
            trio.from_thread.run_sync(self.act)


@pytest.mark.parametrize("step", list(Step))
async def test_entry_dropped_during_its_publication_leaves_nothing(tmp_path: Path, step: Step) -> None:
    during = During(step)
    async with opened(tmp_path / "cache", hooks=Hooks(on_step=during)) as store:
        during.act = lambda: store.demote(names("a"), DropCause.CHANGED)
        entry = await begun(store, source_file("a", 4))
        await write(store, entry, b"data")
        assert await store.publish(entry, source_file("a", 4)) is None
        assert store.get(key("a")) is None
        await store.remove_doomed()
        assert listed(tmp_path / "cache") == set()
        assert store.space().used_bytes == 0
    async with opened(tmp_path / "cache") as store:
        assert store.recovery.rows_dropped == 0
        assert store.get(key("a")) is None


@pytest.mark.parametrize("step", list(Step))
async def test_bar_that_comes_during_a_publication_prevents_it(tmp_path: Path, step: Step) -> None:
    during = During(step)
    async with opened(tmp_path / "cache", hooks=Hooks(on_step=during)) as store:
        during.act = lambda: store.bar(names("a"))
        entry = await begun(store, source_file("a", 4))
        await write(store, entry, b"data")
        assert await store.publish(entry, source_file("a", 4)) is None
        current = store.get(key("a"))
        assert current is None or content(store, current) == b"data"


async def drop_and_publish_anew(store: Store) -> None:
    await store.drop(names("a"), DropCause.REPLACED)
    await cached(store, "a", b"second", mtime_ns=2)


async def drop_and_publish_twice(store: Store) -> None:
    await drop_and_publish_anew(store)
    await store.drop(names("a"), DropCause.REPLACED)
    await cached(store, "a", b"third", mtime_ns=3)


@pytest.mark.parametrize(
    ("act", "data"), [(drop_and_publish_anew, b"second"), (drop_and_publish_twice, b"third")], ids=["once", "twice"]
)
async def test_late_removal_spares_the_newer_copy_of_the_same_name(
    tmp_path: Path, act: Callable[[Store], object], data: bytes
) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a", b"first")
        await act(store)  # type: ignore[misc]  # act is async
        await store.remove_doomed()
        entry = store.get(key("a"))
        assert entry is not None
        assert content(store, entry) == data
        assert store.space().used_bytes == len(data)
    async with opened(tmp_path / "cache") as store:
        assert (store.recovery.kept, store.recovery.files_removed) == (1, 0)


@pytest.mark.parametrize("step", list(Step))
async def test_removal_that_runs_during_a_publication_spares_it(tmp_path: Path, step: Step) -> None:
    during = During(step)
    async with opened(tmp_path / "cache", hooks=Hooks(on_step=during)) as store, trio.open_nursery() as nursery:
        await cached(store, "a", b"first")
        await store.drop(names("a"), DropCause.REPLACED)
        during.act = lambda: nursery.start_soon(store.remove_doomed)
        entry = await cached(store, "a", b"second", mtime_ns=2)
        await store.remove_doomed()
        assert content(store, entry) == b"second"
        assert listed(tmp_path / "cache") == {"files/Media/a"}


async def test_entry_dropped_while_it_begins_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        async with trio.open_nursery() as nursery:
            changed = store.changed
            nursery.start_soon(store.begin, source_file("a"), "because", 1.0)
            await changed.wait()
            store.demote(names("a"), DropCause.CHANGED)
            await store.remove_doomed()
        await store.remove_doomed()
        assert store.get(key("a")) is None
        assert listed(tmp_path / "cache") == set()
        await cached(store, "a")
    async with opened(tmp_path / "cache") as store:
        assert (store.recovery.kept, store.recovery.rows_dropped) == (1, 0)


async def test_stop_during_a_publication_does_not_cost_the_copy(tmp_path: Path) -> None:
    during = During(Step.RENAMED)
    with trio.CancelScope() as stop:
        async with opened(tmp_path / "cache", hooks=Hooks(on_step=during)) as store:
            during.act = stop.cancel
            await cached(store, "a", b"data")
            await trio.lowlevel.checkpoint()
            pytest.fail("it was not stopped")
    async with opened(tmp_path / "cache") as store:
        entry = store.get(key("a"))
        assert entry is not None
        assert entry.state is EntryState.CACHED


async def test_removals_run_by_themselves(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.run_removals)
        await cached(store, "Show/a")
        await store.evict(key("Show/a"))
        with trio.fail_after(10):
            while store.space().used_bytes:
                await store.changed.wait()
        assert listed(tmp_path / "cache") == set()
        assert not any((tmp_path / "cache/files/Media").iterdir())
        nursery.cancel_scope.cancel()


# --- a source that turns a file into a folder, and back -------------------------------------------------------------


async def test_folder_takes_the_place_of_a_cached_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a", b"file")
        entry = await cached(store, "a/b/c", b"below")
        assert store.get(key("a")) is None
        await store.remove_doomed()
        assert content(store, entry) == b"below"
        assert store.space().used_bytes == 5


async def test_file_takes_the_place_of_a_cached_folder(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a/b/c", b"below")
        await cached(store, "a/d", b"too")
        entry = await cached(store, "a", b"file")
        assert [kept.key.path for kept in store.inventory().entries] == ["a"]
        await store.remove_doomed()
        assert content(store, entry) == b"file"
    async with opened(tmp_path / "cache") as store:
        assert (store.recovery.kept, store.recovery.rows_dropped) == (1, 0)


async def test_removal_of_a_file_spares_a_folder_of_its_name(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as store:
        await cached(store, "a", b"file")
        await store.drop(names("a"), DropCause.GONE)
        entry = await cached(store, "a/b", b"below")
        await store.remove_doomed()
        assert content(store, entry) == b"below"


async def test_copy_dropped_before_its_file_is_opened_is_no_failure_of_the_ssd(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        entry = await begun(store, source_file("a"))
        await store.drop(names("a"), DropCause.CHANGED)
        await store.remove_doomed()
        assert await store.open_partial(entry) is None
