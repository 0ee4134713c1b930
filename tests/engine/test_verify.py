"""``cachefs verify`` over a real cache folder and a source on a temporary one: what it finds, and what it mends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from cachefs.cache import label
from cachefs.cache.moving import Movers
from cachefs.cache.places import Hold, Homes
from cachefs.cache.populate import CopySettings
from cachefs.cache.store import Store
from cachefs.cache.verify import Verification, Wish
from cachefs.errors import SourceOffline
from cachefs.model import CacheEntry, FileKey, Home, Phase, SourceFile
from cachefs.ranges import Ranges
from cachefs.verification import Flaw, Report
from tests.engine.cachekit import MEDIA, begun, key, listed, opened, write
from tests.engine.copykit import MIB, FakeSource, Read, plan_of, until_cached, working

DATA = bytes(range(256)) * 40
"""10 KiB: more than one block of any file system."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A store over a source with files, and where both are."""

    store: Store
    source: FakeSource
    root: Path

    async def cached(self, path: str, data: bytes = DATA) -> CacheEntry:
        file = self.source.write(path, data)
        entry = await begun(self.store, file)
        await write(self.store, entry, data)
        published = await self.store.publish(entry, file)
        assert published is not None
        return published

    def ssd(self, path: str) -> Path:
        return self.root / "files" / MEDIA / path

    def verification(self, *, below: str | None = None, content: bool = False, repair: bool = False) -> Verification:
        wish = Wish(None if below is None else key(below), content, repair)
        movers = Movers(self.store, self.source, cast(Homes, None), cast(Hold, None), lambda: None, on=False)
        return Verification(self.store, self.source, movers, wish, lambda: None)

    async def verify(self, *, below: str | None = None, content: bool = False, repair: bool = False) -> Report:
        with trio.fail_after(30):
            return await self.verification(below=below, content=content, repair=repair).run()

    def holds(self, path: str) -> bool:
        return self.store.get(key(path)) is not None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    (tmp_path / "source").mkdir()
    return FakeSource(tmp_path / "source")


def flaws(report: Report) -> dict[str, Flaw]:
    """By the name below the source, or that on the SSD for what belongs to no copy."""
    return {
        finding.key.path if finding.key is not None else Path(finding.place).name: finding.flaw
        for finding in report.findings
    }


# --- what is well ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [False, True])
async def test_whole_copies_are_well_and_the_content_is_read_only_when_asked(
    root: Path, source: FakeSource, content: bool
) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        for path in ("Show/a", "Show/b", "empty"):
            await cache.cached(path, DATA if path != "empty" else b"")
        report = await cache.verify(content=content)
    assert (report.findings, report.sound, report.entries) == ((), True, 3)
    assert (report.compared_bytes, len(source.reads)) == ((2 * len(DATA), 2) if content else (0, 0))


@pytest.mark.parametrize("content", [False, True])
async def test_a_copy_that_is_still_being_made_is_compared_as_far_as_it_is(
    root: Path, source: FakeSource, content: bool
) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        entry = await begun(store, source.write("a", DATA))
        await write(store, entry, DATA[:4096])
        await write(store, entry, DATA[5000:6000], at=5000)
        report = await cache.verify(content=content)
    assert report.findings == ()
    assert report.compared_bytes == (5096 if content else 0)


async def test_holes_of_the_source_are_no_damage(root: Path, source: FakeSource) -> None:
    with (source.root / "sparse").open("wb") as file:
        file.truncate(MIB)
        file.write(DATA)
    async with opened(root) as store, working(store, source, CopySettings(workers=1)) as copiers:
        copiers.follow(plan_of(source.look("sparse")))
        await until_cached(store, "sparse")
        cache = Cache(store, source, root)
        assert (await cache.verify()).findings == ()
        assert (await cache.verify(content=True)).compared_bytes == MIB


# --- what differs ----------------------------------------------------------------------------------------------------


def shorten(path: Path) -> None:
    os.truncate(path, 10)


def replace_by_a_link(path: Path) -> None:
    (path.parent / "victim").write_bytes(DATA)
    os.unlink(path)
    path.symlink_to("victim")


def lose_a_block(path: Path) -> None:
    """As a power cut may do: the size is right, and where there were bytes there is nothing."""
    os.truncate(path, 0)
    os.truncate(path, len(DATA))


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(bytes((DATA[5000] ^ 1,)))


DAMAGES = [
    pytest.param(os.unlink, Flaw.MISSING, False, id="lost"),
    pytest.param(shorten, Flaw.WRONG_SIZE, False, id="short"),
    pytest.param(replace_by_a_link, Flaw.STRANGE, False, id="link"),
    pytest.param(lose_a_block, Flaw.UNEQUAL, False, id="hole"),
    pytest.param(flip_a_bit, Flaw.UNEQUAL, True, id="bit"),
]


@pytest.mark.parametrize(("damage", "flaw", "content"), DAMAGES)
async def test_a_damaged_copy_is_named_and_kept_until_repair_drops_it(
    root: Path, source: FakeSource, damage: Callable[[Path], None], flaw: Flaw, content: bool
) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        await cache.cached("b")
        damage(cache.ssd("a"))
        report = await cache.verify(content=content)
        assert flaws(report).get("a") is flaw
        assert not report.sound
        assert cache.holds("a")
        report = await cache.verify(content=content, repair=True)
        assert flaws(report).get("a") is flaw
        assert (cache.holds("a"), cache.holds("b")) == (False, True)
        assert (await cache.verify(content=True, repair=True)).sound
        assert not cache.ssd("a").is_file()


async def test_a_difference_is_named_with_its_first_byte(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        flip_a_bit(cache.ssd("a"))
        [finding] = (await cache.verify(content=True)).findings
    assert (finding.flaw, finding.detail, finding.place) == (
        Flaw.UNEQUAL,
        "from byte 5000 on",
        str(root / "files/Media/a"),
    )


async def test_a_partial_file_that_has_lost_bytes_is_found_without_reading_everything(
    root: Path, source: FakeSource
) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        entry = await begun(store, source.write("a", DATA))
        await write(store, entry, DATA[:8192])
        partial = Path(store.file_of(entry))
        os.truncate(partial, 4096)
        os.truncate(partial, len(DATA))
        report = await cache.verify()
    assert flaws(report) == {"a": Flaw.UNEQUAL}
    assert [(read.start, read.length) for read in source.reads] == [(4096, 4096)]


async def test_a_copy_of_another_file_is_dropped_even_without_repair(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        source.write("a", DATA + b"more")
        report = await cache.verify()
        assert flaws(report) == {"a": Flaw.CHANGED}
        assert report.sound
        assert not cache.holds("a")


async def test_a_file_that_changes_while_it_is_compared_is_no_damage(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")

        async def change(read: Read) -> None:
            source.write("a", b"other" * 3000)

        source.before_read = change
        assert flaws(await cache.verify(content=True)) == {"a": Flaw.CHANGED}


@pytest.mark.parametrize("repair", [False, True])
async def test_a_file_deleted_at_its_source_goes_with_repair(root: Path, source: FakeSource, repair: bool) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        await cache.cached("b")
        os.unlink(source.root / "a")
        report = await cache.verify(repair=repair)
        assert flaws(report) == {"a": Flaw.GONE}
        assert (cache.holds("a"), report.sound) == (not repair, repair)


async def test_a_copy_that_is_evicted_meanwhile_is_no_finding(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        for path in ("a", "b"):
            await cache.cached(path)
        verification = cache.verification(content=True)

        async def evict(read: Read) -> None:
            for path in ("a", "b"):
                await store.evict(key(path), force=True)
            await store.remove_doomed()

        source.before_read = evict
        assert (await verification.run()).findings == ()


# --- what cannot be compared -----------------------------------------------------------------------------------------


async def test_nothing_is_dropped_because_its_source_is_offline(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        source.errors["a"] = SourceOffline("Media", "no answer")
        report = await cache.verify(content=True, repair=True)
        assert flaws(report) == {"a": Flaw.UNCOMPARED}
        assert not report.sound
        assert "offline" in report.findings[0].detail
        assert cache.holds("a")


async def test_nothing_is_dropped_because_its_source_is_empty(root: Path, source: FakeSource) -> None:
    """An empty folder where there was a library is a disk that is not mounted."""
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        os.unlink(source.root / "a")
        report = await cache.verify(repair=True)
        assert flaws(report) == {"a": Flaw.UNCOMPARED}
        assert "is its disk mounted?" in report.findings[0].detail
        assert cache.holds("a")


async def test_a_source_that_fails_in_the_middle_costs_nothing(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")

        async def fail(read: Read) -> None:
            raise OSError(errno.EIO, "Input/output error")

        source.before_read = fail
        assert flaws(await cache.verify(content=True, repair=True)) == {"a": Flaw.UNCOMPARED}
        assert cache.holds("a")


async def test_no_source_is_read_while_somebody_reads_from_it(
    root: Path, source: FakeSource, mock_clock: MockClock
) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        verification = cache.verification(content=True)
        source.last_read = trio.current_time()
        read = trio.Event()

        async def note(_: Read) -> None:
            read.set()

        source.before_read = note
        async with trio.open_nursery() as nursery:
            nursery.start_soon(verification.run)
            while not verification.progress.waiting:
                assert not read.is_set()
                await trio.lowlevel.checkpoint()
            assert verification.progress.waiting == "somebody reads from Media"
            mock_clock.jump(1.9)
            source.last_read = trio.current_time()  # the player asks for more
            mock_clock.jump(0.2)
            await trio.testing.wait_all_tasks_blocked()
            assert not read.is_set()
            mock_clock.jump(2)
            await read.wait()
            mock_clock.autojump_threshold = 0.05
        assert verification.progress.bytes_done == len(DATA)


# --- what belongs to no copy -----------------------------------------------------------------------------------------


@pytest.mark.expected_warnings("the index .* is gone", "are kept and not used: 5")
async def test_what_may_be_the_only_copy_is_removed_only_when_its_source_has_it(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        for path in ("home", "changed", "same size", "alone", "away"):
            await Cache(store, source, root).cached(path)
    for path in ("home", "changed", "same size", "alone", "away"):
        os.removexattr(root / "files" / MEDIA / path, label.NAME)
    for suffix in ("", "-wal", "-shm"):
        (root / f"index.sqlite{suffix}").unlink(missing_ok=True)
    source.write("changed", DATA + b"more")
    source.write("same size", DATA[::-1])
    (source.root / "alone").unlink()
    async with opened(root) as store:
        cache = Cache(store, source, root)
        stat = FakeSource.stat

        async def away(slow: FakeSource, file: FileKey) -> SourceFile:
            if file.path == "away":
                raise OSError(errno.EIO, "it is offline")
            return await stat(slow, file)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeSource, "stat", away)
            report = await cache.verify(repair=True)
        found = {Path(finding.place).name: finding.flaw for finding in report.findings}
        assert found == {
            "home": Flaw.LEFTOVER,
            "changed": Flaw.ALONE,
            "same size": Flaw.ALONE,
            "alone": Flaw.ALONE,
            "away": Flaw.UNCOMPARED,
        }
        assert listed(root) == {f"files/Media/{name}" for name in ("changed", "same size", "alone", "away")}
        assert len((await cache.verify()).findings) == 4


@pytest.mark.expected_warnings("it was removed behind cachefs")
async def test_a_moved_file_that_is_at_its_source_again_is_not_missed_on_the_ssd(
    root: Path, source: FakeSource
) -> None:
    async with opened(root) as store:
        for path in ("home", "lost"):
            entry = await Cache(store, source, root).cached(path)
            assert await store.moves.leave(entry, Home(entry.fingerprint, Phase.AWAY)) is not None
    for path in ("home", "lost"):
        (root / "files" / MEDIA / path).unlink()
    (source.root / "lost").unlink()
    async with opened(root) as store:
        cache = Cache(store, source, root)
        report = await cache.verify()
        assert flaws(report) == {"home": Flaw.UNCLAIMED_ROW, "lost": Flaw.LOST}
        assert [finding.mended for finding in report.findings if finding.flaw is Flaw.UNCLAIMED_ROW] == ["removed"]
        assert flaws(await cache.verify()) == {"lost": Flaw.LOST}


async def test_leftovers_are_named_and_removed_with_repair(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("Show/a")
        await begun(store, source.write("copying", DATA))
        cache.ssd("Old").mkdir()
        cache.ssd("Old/b").write_bytes(b"b")
        (root / "partial/77").write_bytes(b"c")
        report = await cache.verify()
        assert flaws(report) == {"b": Flaw.LEFTOVER, "77": Flaw.LEFTOVER}
        assert listed(root) >= {"files/Media/Old/b", "partial/77"}
        report = await cache.verify(repair=True)
        assert (len(report.findings), report.sound) == (2, True)
        assert listed(root) == {"files/Media/Show/a", "partial/2"}
        assert not cache.ssd("Old").exists()


async def test_what_cachefs_did_not_make_is_named_and_left_alone(
    root: Path, source: FakeSource, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_bytes(b"mine")
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        cache.ssd("folder").symlink_to(victim)
        cache.ssd("file").symlink_to(victim / "precious")
        os.mkfifo(root / "partial/77")
        report = await cache.verify(content=True, repair=True)
        assert flaws(report) == {"folder": Flaw.FOREIGN, "file": Flaw.FOREIGN, "77": Flaw.FOREIGN}
        assert not report.sound
        assert (victim / "precious").read_bytes() == b"mine"
        assert cache.ssd("folder").is_symlink()
        assert cache.ssd("file").is_symlink()


async def test_repair_reaches_nothing_through_a_link_in_the_place_of_a_folder(
    root: Path, source: FakeSource, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "a").write_bytes(DATA)
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("Show/a")
        os.unlink(cache.ssd("Show/a"))
        cache.ssd("Show").rmdir()
        cache.ssd("Show").symlink_to(victim)
        report = await cache.verify(content=True, repair=True)
        assert flaws(report) == {"Show/a": Flaw.MISSING, "Show": Flaw.FOREIGN}
        assert not cache.holds("Show/a")
        assert (victim / "a").read_bytes() == DATA


async def test_what_waits_to_be_removed_is_no_leftover(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        await begun(store, source.write("b", DATA))
        for path in ("a", "b"):
            await store.evict(key(path))
        assert listed(root) == {"files/Media/a", "partial/2"}
        assert (await cache.verify()).findings == ()


async def test_only_what_is_below_a_path_is_verified(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        for path in ("Show/a", "Show 2/b", "c"):
            await cache.cached(path)
            shorten(cache.ssd(path))
        cache.ssd("Show/left").write_bytes(b"")
        cache.ssd("left").write_bytes(b"")
        assert flaws(await cache.verify(below="Show")) == {"Show/a": Flaw.WRONG_SIZE, "left": Flaw.LEFTOVER}
        assert flaws(await cache.verify(below="c")) == {"c": Flaw.WRONG_SIZE}
        assert (await cache.verify(below="")).entries == 3


# --- the index -------------------------------------------------------------------------------------------------------


async def test_rows_and_copies_that_do_not_know_of_each_other_are_mended(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        entry = await cache.cached("a")
        ledger = store._shelf.ledger
        ledger.index.delete([entry.id])
        await cache.cached("b")
        other = await begun(store, source.write("c", DATA))
        store._shelf.holdings.doom(other)
        store._shelf.holdings.removed(other.id)  # as if it had been forgotten in memory alone
        assert flaws(await cache.verify()) == {"a": Flaw.UNRECORDED, "c": Flaw.UNCLAIMED_ROW, "3": Flaw.LEFTOVER}
        report = await cache.verify(repair=True)
        assert report.sound
        assert [row.key.path for row in ledger.index.entries()] == ["b"]


async def test_a_damaged_index_is_named(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        await cache.cached("a")
        connection = store._shelf.ledger.index._connection
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET rootpage = 999 WHERE name = 'pins'")
        connection.execute("PRAGMA writable_schema = RESET")
        report = await cache.verify(repair=True)
        assert flaws(report) == {"index.sqlite": Flaw.INDEX}
        assert not report.sound
        assert cache.holds("a")
        connection.execute("PRAGMA writable_schema = OFF")


async def test_ranges_that_are_copied_meanwhile_do_no_harm(root: Path, source: FakeSource) -> None:
    async with opened(root) as store:
        cache = Cache(store, source, root)
        entry = await begun(store, source.write("a", DATA))
        await write(store, entry, DATA[:4096])
        verification = cache.verification(content=True)
        await write(store, entry, DATA[4096:], at=4096)
        published = await store.publish(entry, source.look("a"))
        assert published is not None
        assert published.ranges == Ranges.of([(0, len(DATA))])
        assert (await verification.run()).findings == ()
