"""The copiers on real files: what is copied, in which order, what makes room for it, and what stops it."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import trio

from cachefs.cache.pacing import CHUNK_BYTES, SHARED_CHUNK_BYTES, CopySettings
from cachefs.cache.store import Store
from cachefs.model import FileKey, InterestKind
from cachefs.ranges import Ranges
from tests.engine.cachekit import cached, content, key, limited, listed, opened
from tests.engine.copykit import (
    MIB,
    FakeSource,
    Gate,
    eviction,
    plan_of,
    until,
    until_cached,
    until_idle,
    working,
)
from tests.engine.test_recovery_moved import moved


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    (tmp_path / "source").mkdir()
    return FakeSource(tmp_path / "source")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def published_order(store: Store) -> list[str]:
    entries = sorted(store.inventory().entries, key=lambda entry: entry.id)
    return [entry.key.path for entry in entries]


# --- copying -------------------------------------------------------------------------------------------------------


async def test_files_are_copied_in_the_order_of_the_plan(root: Path, source: FakeSource) -> None:
    files = [source.write(path, path.encode() * 1000) for path in ("b", "Show/a", "c")]
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(*files))
        for entry in await until_cached(store, "b", "Show/a", "c"):
            assert content(store, entry) == entry.key.path.encode() * 1000
        assert published_order(store) == ["b", "Show/a", "c"]


async def test_file_of_several_chunks_arrives_byte_for_byte(root: Path, source: FakeSource) -> None:
    data = os.urandom(2 * CHUNK_BYTES + 12345)
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.write("a", data)))
        (entry,) = await until_cached(store, "a")
        assert content(store, entry) == data
        assert [read.length for read in source.reads] == [CHUNK_BYTES, CHUNK_BYTES, 12345]


async def test_empty_file_is_copied(root: Path, source: FakeSource) -> None:
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.write("a", b"")))
        (entry,) = await until_cached(store, "a")
        assert content(store, entry) == b""


async def test_holes_stay_holes(root: Path, source: FakeSource) -> None:
    number = os.open(source.root / "a", os.O_CREAT | os.O_RDWR)
    os.pwrite(number, b"begin", 0)
    os.pwrite(number, b"middle", 5 * MIB)
    os.ftruncate(number, 12 * MIB)
    os.close(number)
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.look("a")))
        (entry,) = await until_cached(store, "a")
        assert content(store, entry) == (source.root / "a").read_bytes()
        assert os.stat(store.file_of(entry)).st_blocks * 512 < MIB


async def test_attributes_are_kept(root: Path, source: FakeSource) -> None:
    source.write("a", b"data")
    os.setxattr(source.root / "a", "user.note", b"kept")
    os.chmod(source.root / "a", 0o640)
    os.utime(source.root / "a", ns=(1_000_000_007, 1_500_000_000_123_456_789))
    if os.geteuid() == 0:
        os.chown(source.root / "a", 1234, 2345)
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.look("a")))
        (entry,) = await until_cached(store, "a")
        copy, original = os.stat(store.file_of(entry)), os.stat(source.root / "a")
        facts = ("st_mode", "st_mtime_ns", "st_uid", "st_gid")
        assert [getattr(copy, fact) for fact in facts] == [getattr(original, fact) for fact in facts]
        assert os.getxattr(store.file_of(entry), "user.note") == b"kept"


async def test_several_workers_copy_at_once(root: Path, source: FakeSource) -> None:
    gate = Gate()
    source.before_read = gate
    files = [source.write(path, b"data") for path in "abc"]
    async with opened(root) as store, working(store, source, CopySettings(workers=2)) as copiers:
        copiers.follow(plan_of(*files))
        await until(lambda: copiers.changed, lambda: len(copiers.progress()) == 2)
        assert {progress.key.path for progress in copiers.progress()} == {"a", "b"}
        gate.open()
        await until_cached(store, "a", "b", "c")


async def test_progress_and_log_tell_what_happens(
    root: Path, source: FakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cachefs.cache.populate")
    gate = Gate(after=1)
    source.before_read = gate
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.write("Show/a.mkv", bytes(2 * CHUNK_BYTES))))
        await gate.reached.wait()
        (progress,) = copiers.progress()
        assert (progress.done_bytes, progress.size) == (CHUNK_BYTES, 2 * CHUNK_BYTES)
        assert progress.reason == "next on deck"
        assert progress.bytes_per_s > 0
        gate.open()
        await until_cached(store, "Show/a.mkv")
        await until_idle(copiers)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("copied Media:Show/a.mkv (8 MiB in ")
    assert line.endswith("/s): next on deck")


async def test_copy_yields_to_readers_of_the_same_source(root: Path, source: FakeSource) -> None:
    source.last_read = float("inf")
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.write("a", bytes(3 * MIB))))
        await until_cached(store, "a")
        assert [read.length for read in source.reads] == [SHARED_CHUNK_BYTES] * 3


# --- stopping and going on -----------------------------------------------------------------------------------------


async def test_copy_that_a_new_plan_drops_stops_and_goes_on_where_it_stopped(root: Path, source: FakeSource) -> None:
    data = os.urandom(3 * CHUNK_BYTES)
    file = source.write("a", data)
    gate = Gate(after=1)
    source.before_read = gate
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(file))
        await gate.reached.wait()
        copiers.follow(plan_of())
        gate.open()
        await until_idle(copiers)
        partial = store.get(key("a"))
        assert partial is not None
        assert partial.ranges == Ranges.of([(0, 2 * CHUNK_BYTES)])
        copiers.follow(plan_of(file))
        (entry,) = await until_cached(store, "a")
        assert content(store, entry) == data
        assert [read.start for read in source.reads] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]


async def test_copy_that_a_new_plan_keeps_goes_on(root: Path, source: FakeSource) -> None:
    file = source.write("a", bytes(3 * CHUNK_BYTES))
    gate = Gate(after=1)
    source.before_read = gate
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(file))
        await gate.reached.wait()
        copiers.follow(plan_of(kept=(file,)))
        gate.open()
        await until_cached(store, "a")
        assert source.stats.count("a") == 2, "it was begun twice"


async def test_copy_goes_on_after_a_restart(root: Path, source: FakeSource) -> None:
    data = os.urandom(3 * CHUNK_BYTES)
    file = source.write("a", data)
    gate = Gate(after=2)
    source.before_read = gate
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(file))
        await gate.reached.wait()
    gate.open()
    async with opened(root) as store, working(store, source) as copiers:
        assert store.recovery.resumable == 1
        copiers.follow(plan_of(file))
        (entry,) = await until_cached(store, "a")
        assert content(store, entry) == data
        assert [read.start for read in source.reads] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]


async def test_what_is_played_takes_the_place_of_what_is_not(root: Path, source: FakeSource) -> None:
    deck, played = source.write("deck", bytes(3 * CHUNK_BYTES)), source.write("played", b"data")
    gate = Gate(after=1)
    source.before_read = gate
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(deck))
        await gate.reached.wait()
        playing = plan_of(played, kind=InterestKind.PLAYING)
        copiers.follow(type(playing)(2.0, copies=(*playing.copies, *plan_of(deck).copies)))
        gate.open()
        await until_cached(store, "played")
        await until_cached(store, "deck")
        assert [read.length for read in source.reads] == [CHUNK_BYTES, CHUNK_BYTES, 4, CHUNK_BYTES]


async def test_entry_evicted_in_the_middle_of_its_copy_leaves_nothing(root: Path, source: FakeSource) -> None:
    gate = Gate(after=1)
    source.before_read = gate
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.write("a", bytes(2 * CHUNK_BYTES))))
        await gate.reached.wait()
        await store.evict(key("a"))
        gate.open()
        await until_idle(copiers)
        await store.remove_doomed()
        assert store.get(key("a")) is None
        assert listed(root) == set()


async def test_file_that_changes_while_it_is_copied_is_not_published(root: Path, source: FakeSource) -> None:
    gate = Gate(after=1)
    source.before_read = gate
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.write("a", bytes(CHUNK_BYTES + 1))))
        await gate.reached.wait()
        source.write("a", bytes(CHUNK_BYTES + 2))
        gate.open()
        await until(lambda: store.changed, lambda: store.get(key("a")) is None)
        await until_idle(copiers)
        assert store.get(key("a")) is None


async def test_file_that_shrinks_while_it_is_copied_is_not_published(root: Path, source: FakeSource) -> None:
    gate = Gate(after=1)
    source.before_read = gate
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.write("a", bytes(2 * CHUNK_BYTES))))
        await gate.reached.wait()
        os.truncate(source.root / "a", CHUNK_BYTES)
        gate.open()
        await until(lambda: store.changed, lambda: store.get(key("a")) is None)


async def test_file_that_fails_waits_for_another_plan_and_holds_nobody_up(root: Path, source: FakeSource) -> None:
    bad, good = source.write("bad", b"bad"), source.write("good", b"good")
    source.errors["bad"] = OSError(errno.EIO, "Input/output error")
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(bad, good))
        await until_cached(store, "good")
        del source.errors["bad"]
        assert store.get(key("bad")) is None
        copiers.follow(plan_of(bad))
        await until_cached(store, "bad")


async def test_file_that_is_not_there_is_reported_once(root: Path, source: FakeSource) -> None:
    gone, bad, good = (source.write(name, b"data") for name in ("gone", "bad", "good"))
    source.errors["gone"] = FileNotFoundError(errno.ENOENT, "No such file or directory")
    source.errors["bad"] = OSError(errno.EIO, "Input/output error")
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(gone, bad, good))
        await until_cached(store, "good")
        assert [copiers.take_missing(), copiers.take_missing()] == [{key("gone")}, frozenset()]


async def test_source_that_hangs_does_not_keep_copiers_from_stopping(root: Path, source: FakeSource) -> None:
    gate = Gate()
    source.before_read = gate
    with trio.fail_after(10):
        async with opened(root) as store, working(store, source) as copiers:
            copiers.follow(plan_of(source.write("a", b"data")))
            await gate.reached.wait()


# --- evicting ------------------------------------------------------------------------------------------------------


async def test_unwanted_entries_go_though_there_is_room(root: Path, source: FakeSource) -> None:
    async with opened(root) as store, working(store, source) as copiers:
        await cached(store, "a")
        await cached(store, "b")
        copiers.follow(plan_of(evictions=(eviction("a", for_space=False), eviction("b", for_space=True))))
        await until(lambda: store.changed, lambda: store.get(key("a")) is None)
        assert store.get(key("b")) is not None


async def test_entries_go_for_space_in_order_and_no_more_than_needed(root: Path, source: FakeSource) -> None:
    evictions = tuple(eviction(path, for_space=True) for path in ("c", "a", "b"))
    async with opened(root, limited(30)) as store, working(store, source) as copiers:
        for path in ("a", "b", "c"):
            await cached(store, path)
        copiers.follow(plan_of(source.write("new", b"0123456789abcde"), evictions=evictions))
        await until_cached(store, "new")
        assert published_order(store) == ["b", "new"]


async def test_room_of_unwanted_entries_is_used_before_anything_goes_for_space(root: Path, source: FakeSource) -> None:
    evictions = (eviction("a", for_space=True), eviction("b", for_space=False))
    async with opened(root, limited(20)) as store, working(store, source) as copiers:
        await cached(store, "a")
        await cached(store, "b")
        copiers.follow(plan_of(source.write("new", b"0123456789"), evictions=evictions))
        await until_cached(store, "new")
        assert published_order(store) == ["a", "new"]


async def test_nothing_goes_for_space_when_it_would_not_be_enough(root: Path, source: FakeSource) -> None:
    evictions = tuple(eviction(path, for_space=True) for path in ("a", "b"))
    async with opened(root, limited(35)) as store, working(store, source) as copiers:
        for path in ("a", "b", "c"):
            await cached(store, path)
        store.opened(key("b"))
        big, small = source.write("big", bytes(20)), source.write("small", bytes(5))
        copiers.follow(plan_of(big, small, evictions=evictions))
        await until_cached(store, "small")
        assert published_order(store) == ["a", "b", "c", "small"]


@pytest.mark.parametrize("for_space", [False, True])
async def test_open_file_is_never_evicted(root: Path, source: FakeSource, for_space: bool) -> None:
    async with opened(root, limited(20)) as store, working(store, source) as copiers:
        await cached(store, "a")
        await cached(store, "b")
        store.opened(key("a"))
        evictions = (eviction("a", for_space=for_space), eviction("b", for_space=True))
        copiers.follow(plan_of(source.write("new", b"0123456789"), evictions=evictions))
        await until_cached(store, "new")
        assert published_order(store) == ["a", "new"]


STAYS = (
    r"Media:[ab] stays on the SSD, its only copy, and so do others .*: its source has no room for it \(No space left"
)


@pytest.mark.expected_warnings(STAYS)
async def test_a_full_source_is_named_once_for_all_the_moved_files_that_it_keeps_away(
    root: Path, source: FakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    tried, both = [], trio.Event()

    async def bring_home(file: FileKey) -> None:
        tried.append(file.path)
        if tried == ["a", "b"]:
            both.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.path)

    async with opened(root) as store, working(store, source, bring_home=bring_home) as copiers:
        for path in ("a", "b"):
            await moved(store, path)
        copiers.follow(plan_of(evictions=(eviction("a", for_space=False), eviction("b", for_space=False))))
        with trio.fail_after(20):
            await both.wait()
        assert published_order(store) == ["a", "b"]
    assert len([text for text in caplog.messages if "stays on the SSD" in text]) == 1
