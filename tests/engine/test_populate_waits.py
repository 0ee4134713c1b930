"""What makes the copiers wait: hours, an SSD that is full or fails, a file that does not stand still.

On a clock that stands until the test moves it.
"""

from __future__ import annotations

import datetime
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cachefs.cache.pacing import CHUNK_BYTES, CopySettings
from cachefs.cache.populate import REST_S
from cachefs.cache.store import RETRY_S, Limits
from cachefs.model import InterestKind
from cachefs.ranges import Ranges
from tests.engine.cachekit import Bytes, key, names, opened
from tests.engine.copykit import FakeSource, Gate, plan_of, until, until_cached, until_idle, working


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    (tmp_path / "source").mkdir()
    return FakeSource(tmp_path / "source")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@dataclass(slots=True)
class Clock:
    """Local time, moved by hand."""

    hour: int

    def __call__(self) -> float:
        return datetime.datetime(2024, 5, 1, self.hour).timestamp()


@dataclass(frozen=True, slots=True)
class Night:
    start = datetime.time(0)

    def contains(self, moment: datetime.time, /) -> bool:
        return moment < datetime.time(6)


NIGHT = CopySettings(workers=1, hours=Night())


async def test_copies_wait_for_their_hours_but_what_is_played_does_not(
    root: Path, source: FakeSource, mock_clock: MockClock
) -> None:
    clock = Clock(hour=12)
    deck, played = source.write("deck", b"deck"), source.write("played", b"played")
    both = plan_of(deck)
    playing = plan_of(played, kind=InterestKind.PLAYING)
    async with opened(root) as store, working(store, source, NIGHT, clock) as copiers:
        copiers.follow(type(both)(1.0, copies=(*both.copies, *playing.copies)))
        await until_cached(store, "played")
        assert store.get(key("deck")) is None
        clock.hour = 1
        await wait_all_tasks_blocked()
        mock_clock.jump(RETRY_S + 1)
        await until_cached(store, "deck")


async def test_copy_stops_when_its_hours_end(root: Path, source: FakeSource, mock_clock: MockClock) -> None:
    clock = Clock(hour=5)
    gate = Gate(after=1)
    source.before_read = gate
    async with opened(root) as store, working(store, source, NIGHT, clock) as copiers:
        copiers.follow(plan_of(source.write("a", bytes(3 * CHUNK_BYTES))))
        await gate.reached.wait()
        clock.hour = 6
        gate.open()
        await until_idle(copiers)
        entry = store.get(key("a"))
        assert entry is not None
        assert entry.ranges == Ranges.of([(0, 2 * CHUNK_BYTES)])


@dataclass(slots=True)
class Movable:
    """A limit that the test moves, as others move what is free on the SSD."""

    count: int = 0

    def resolve(self, total_bytes: int, /) -> int:
        return self.count


async def test_copy_stops_before_min_free_when_others_fill_the_ssd(
    root: Path, source: FakeSource, mock_clock: MockClock
) -> None:
    min_free = Movable()
    gate = Gate(after=1)
    source.before_read = gate
    async with opened(root, Limits(Bytes(1 << 40), min_free)) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.write("a", bytes(3 * CHUNK_BYTES))))
        await gate.reached.wait()
        min_free.count = 1 << 50
        gate.open()
        await until_idle(copiers)
        entry = store.get(key("a"))
        assert entry is not None
        assert entry.ranges == Ranges.of([(0, 2 * CHUNK_BYTES)])
        min_free.count = 0
        mock_clock.jump(RETRY_S + 1)
        await until_cached(store, "a")


@pytest.mark.expected_warnings("copying pauses and is tried again every 30 s: ")
async def test_failing_ssd_is_said_once_and_tried_again(
    root: Path, source: FakeSource, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(root) as store, working(store, source) as copiers:
        shutil.move(root / "partial", root / "away")
        (root / "partial").write_bytes(b"no folder any more")
        copiers.follow(plan_of(source.write("a", b"a"), source.write("b", b"b")))
        for _ in range(3):
            await until(lambda: copiers.changed, lambda: source.stats and not copiers.progress())
            await wait_all_tasks_blocked()
            assert source.stats == ["a"], "it was tried again at once"
            source.stats.clear()
            mock_clock.jump(RETRY_S + 1)
        (root / "partial").unlink()
        shutil.move(root / "away", root / "partial")
        mock_clock.jump(RETRY_S + 1)
        await until_cached(store, "a", "b")
    assert [record.levelname for record in caplog.records if record.levelno >= 30] == ["WARNING"]


async def test_a_cache_folder_that_somebody_emptied_is_used_again(root: Path, source: FakeSource) -> None:
    async with opened(root) as store, working(store, source) as copiers:
        shutil.rmtree(root / "partial")
        shutil.rmtree(root / "files")
        copiers.follow(plan_of(source.write("a", b"a")))
        await until_cached(store, "a")


async def test_barred_file_is_tried_again(root: Path, source: FakeSource, mock_clock: MockClock) -> None:
    async with opened(root) as store, working(store, source) as copiers:
        bar = store.bar(names("a"))
        copiers.follow(plan_of(source.write("a", b"a"), source.write("b", b"b")))
        await until_cached(store, "b")
        assert store.get(key("a")) is None
        bar.release()
        mock_clock.jump(RETRY_S + 1)
        await until_cached(store, "a")


async def test_file_that_is_still_growing_is_left_alone_for_a_while(
    root: Path, source: FakeSource, mock_clock: MockClock
) -> None:
    gate = Gate()
    source.before_read = gate
    async with opened(root) as store, working(store, source) as copiers:
        copiers.follow(plan_of(source.write("a", b"recording")))
        await gate.reached.wait()
        grown = source.write("a", b"recording goes on")
        gate.open()
        await until(lambda: store.changed, lambda: store.get(key("a")) is None)
        await until_idle(copiers)
        copiers.follow(plan_of(grown, source.write("b", b"b")))
        await until_cached(store, "b")
        assert store.get(key("a")) is None
        await wait_all_tasks_blocked()
        mock_clock.jump(REST_S + 1)
        await until_cached(store, "a")


async def test_bandwidth_is_kept_to(root: Path, source: FakeSource) -> None:
    settings = CopySettings(workers=1, bandwidth=10 * CHUNK_BYTES)
    began = trio.current_time()
    async with opened(root) as store, working(store, source, settings) as copiers:
        copiers.follow(plan_of(source.write("a", os.urandom(4 * CHUNK_BYTES))))
        await until_cached(store, "a")
        assert trio.current_time() - began >= 0.35
