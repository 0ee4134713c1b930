"""Which descriptor serves each read, and what a change does to the cached copy before it acts.

The SSD holds other bytes than the source here (``SSD`` for ``SRC``), so that a test can tell where a read came from.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cachefs.cache.store import EvictResult, Refused
from cachefs.descriptors import Descriptor
from cachefs.fs import ssd
from cachefs.fs.caller import Caller
from cachefs.fs.changes import Attributes
from cachefs.fs.inodes import ROOT
from cachefs.fs.rename import EXCHANGE
from cachefs.fs.xattrs import Xattrs
from cachefs.model import FileKey, Visible
from tests.engine.fskit import TIMEOUT_S, TTL_S, Rooms, rooms

SRC = b"source" * 100
SSD = b"SOURCE" * 100
SIZE = len(SRC)
ME = Caller(os.getuid(), os.getgid())
SSD_FAILED = pytest.mark.expected_warnings("the SSD copy of Media:a cannot be used")
OFFLINE = pytest.mark.expected_warnings("source Media .* is offline")


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[Rooms]:
    """One source with the file ``a``."""
    async with rooms(tmp_path) as made:
        (made.folder / "a").write_bytes(SRC)
        yield made


async def opened(fs: Rooms, path: str = "a", flags: int = os.O_RDONLY) -> int:
    return (await fs.routing.open(await fs.node(path), flags)).handle


async def read(fs: Rooms, handle: int, start: int = 0, size: int = 2 * SIZE) -> bytes:
    return bytes(await fs.routing.read(handle, start, size))


async def fails_to_begin(fs: Rooms, path: str = "a") -> Refused:
    refused = await fs.store.begin(await fs.union.files.stat(fs.key(path)), "because", now=1.0)
    assert isinstance(refused, Refused)
    return refused


# --- where a read comes from -----------------------------------------------------------------------------------------


async def test_a_file_that_is_not_cached_is_read_from_its_source(fs: Rooms) -> None:
    assert await read(fs, await opened(fs)) == SRC
    assert fs.counters.read_counters().source_bytes == SIZE


async def test_an_open_file_moves_to_the_ssd_once_it_is_published_and_back_when_it_goes(fs: Rooms) -> None:
    handle = await opened(fs)
    assert await read(fs, handle, 0, 6) == b"source"
    await fs.published("a", data=SSD)
    assert await read(fs, handle, 0, 6) == b"SOURCE"
    await fs.store.evict(fs.key("a"), force=True)
    assert await read(fs, handle, 0, 6) == b"source"
    await fs.published("a", data=SSD)
    assert await read(fs, handle, 6, 6) == b"SOURCE"


async def test_one_read_takes_what_is_copied_from_the_ssd_and_the_rest_from_the_source(fs: Rooms) -> None:
    entry = await fs.begun("a")
    await fs.copy(entry, 10, 20, data=SSD[10:20])
    await fs.copy(entry, 30, 40, data=SSD[30:40])
    handle = await opened(fs)
    whole = SRC[:10] + SSD[10:20] + SRC[20:30] + SSD[30:40] + SRC[40:]
    assert await read(fs, handle) == whole
    assert await read(fs, handle, 15, 20) == whole[15:35]
    assert await read(fs, handle, SIZE - 3, 100) == whole[-3:]
    assert await read(fs, handle, SIZE, 100) == b""
    assert fs.routing.state(await fs.node("a")) is Visible.PARTIAL


async def test_a_cached_file_ends_where_it_ends(fs: Rooms) -> None:
    await fs.published("a", data=SSD)
    handle = await opened(fs)
    assert await read(fs, handle, SIZE - 3, 100) == SSD[-3:]
    assert await read(fs, handle, SIZE, 100) == b""
    assert await read(fs, handle, SIZE + 500, 100) == b""


async def test_an_empty_file_is_cached_and_empty(fs: Rooms) -> None:
    (fs.folder / "a").write_bytes(b"")
    await fs.published("a")
    assert await read(fs, await opened(fs)) == b""


async def test_opening_and_reading_a_fresh_cached_file_asks_the_source_for_nothing(fs: Rooms) -> None:
    await fs.published("a", data=SSD)
    node = await fs.node("a")
    fs.source.asked.clear()
    handle = (await fs.routing.open(node, os.O_RDONLY)).handle
    assert await read(fs, handle) == SSD
    await fs.routing.flush(handle)
    await fs.routing.release(handle)
    assert fs.source.asked == []


async def test_readers_of_one_file_share_and_the_last_to_leave_closes(fs: Rooms) -> None:
    first, second = await opened(fs), await opened(fs)
    await fs.routing.release(first)
    assert await read(fs, second) == SRC
    await fs.routing.release(second)
    assert [file.path for file in fs.routing.open_files()] == []


async def test_an_open_file_is_not_evicted(fs: Rooms) -> None:
    await fs.published("a")
    handle = await opened(fs)
    assert await fs.store.evict(fs.key("a")) is EvictResult.OPEN
    await fs.changes.rename(fs.union.node(ROOT), "a", fs.union.node(ROOT), "b", 0)
    await fs.published("b")
    assert await fs.store.evict(fs.key("b")) is EvictResult.OPEN
    await fs.routing.release(handle)
    assert await fs.store.evict(fs.key("b")) is EvictResult.EVICTED


async def test_reads_stay_right_while_copies_come_and_go(fs: Rooms) -> None:
    """Source and SSD hold the same bytes here: whatever happens between, every read is right."""
    data = os.urandom(50_000)
    (fs.folder / "a").write_bytes(data)
    handle = await opened(fs)

    async def reads(start: int) -> None:
        while not stop.is_set():
            for offset in range(start, len(data), 7919):
                assert await read(fs, handle, offset, 9000) == data[offset : offset + 9000]

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        for start in range(3):
            nursery.start_soon(reads, start)
        for _ in range(10):
            entry = await fs.begun("a")
            for begin in range(0, len(data), 10_000):
                await fs.copy(entry, begin, begin + 10_000)
            assert await fs.store.publish(entry, await fs.union.files.stat(entry.key)) is not None
            await fs.store.evict(entry.key, force=True)
            await fs.store.remove_doomed()
        stop.set()
    assert fs.counters.read_counters().cache_reads
    assert fs.counters.read_counters().source_reads


# --- the SSD fails ---------------------------------------------------------------------------------------------------


def _vanishes(path: Path) -> None:
    path.unlink()


def _is_truncated(path: Path) -> None:
    os.truncate(path, 100)


def _is_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _is_a_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


@SSD_FAILED
@pytest.mark.parametrize("fault", [_vanishes, _is_truncated, _is_a_folder, _is_a_symlink])
async def test_an_ssd_that_fails_breaks_no_open(fs: Rooms, fault: Callable[[Path], None]) -> None:
    entry = await fs.published("a", data=SSD)
    fault(Path(fs.store.file_of(entry)))
    handle = await opened(fs)
    assert fs.store.get(fs.key("a")) is None
    assert await read(fs, handle) == SRC


@SSD_FAILED
async def test_an_ssd_that_fails_breaks_no_read(fs: Rooms) -> None:
    entry = await fs.published("a", data=SSD)
    handle = await opened(fs)
    _is_truncated(Path(fs.store.file_of(entry)))
    assert await read(fs, handle, 6, SIZE) == SRC[6:]
    assert fs.store.get(fs.key("a")) is None
    assert fs.counters.read_counters().fallbacks == 1
    assert await read(fs, handle) == SRC


@SSD_FAILED
async def test_a_copy_in_flight_that_fails_breaks_no_read(fs: Rooms) -> None:
    entry = await fs.begun("a")
    await fs.copy(entry, 0, 300, data=SSD[:300])
    handle = await opened(fs)
    assert await read(fs, handle) == SSD[:300] + SRC[300:]
    os.truncate(fs.store.file_of(entry), 50)
    assert await read(fs, handle) == SRC


@SSD_FAILED
async def test_an_ssd_that_hangs_delays_one_open_and_is_given_up(
    fs: Rooms, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await fs.published("a", data=SSD)
    go, opening = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    really_open = ssd._open_file

    def hangs(path: str) -> Descriptor:
        token.run_sync_soon(opening.set)
        go.wait(30)
        return really_open(path)

    monkeypatch.setattr(ssd, "_open_file", hangs)
    found: list[bytes] = []

    async def reading() -> None:
        found.append(await read(fs, await opened(fs)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading)
        await opening.wait()
        mock_clock.jump(60)
    assert found == [SRC]
    assert fs.store.get(fs.key("a")) is None
    go.set()
    while fs.routing.ssd_threads_busy:
        await trio.to_thread.run_sync(threading.get_ident)
    assert await trio.to_thread.run_sync(_open_at, fs.store.file_of(entry)) == []


def _open_at(path: str) -> list[str]:
    """The descriptors of this process that are open on ``path``."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own
            continue
        if target == path:
            found.append(number)
    return found


# --- changes demote first --------------------------------------------------------------------------------------------


def rows(fs: Rooms, tmp_path: Path) -> int:
    with sqlite3.connect(tmp_path / "ssd" / "index.sqlite") as index:
        return int(index.execute("SELECT count(*) FROM entries").fetchone()[0])


Change = Callable[[Rooms], Awaitable[object]]


async def _opens_for_writing(fs: Rooms) -> None:
    await fs.routing.release(await opened(fs, "a", os.O_WRONLY))


async def _appends(fs: Rooms) -> None:
    handle = await opened(fs, "a", os.O_WRONLY | os.O_APPEND)
    await fs.routing.write(handle, SIZE, b"more")
    await fs.routing.release(handle)


async def _opens_with_o_trunc(fs: Rooms) -> None:
    await fs.routing.release(await opened(fs, "a", os.O_RDONLY | os.O_TRUNC))


async def _truncates(fs: Rooms) -> None:
    await fs.changes.set_attributes(await fs.node("a"), Attributes(size=10))


async def _sets_mtime(fs: Rooms) -> None:
    await fs.changes.set_attributes(await fs.node("a"), Attributes(mtime_ns=1))


async def _links(fs: Rooms) -> None:
    await fs.changes.link(await fs.node("a"), fs.union.node(ROOT), "b")


async def _unlinks(fs: Rooms) -> None:
    await fs.changes.unlink(fs.union.node(ROOT), "a")


async def _renames(fs: Rooms) -> None:
    await fs.changes.rename(fs.union.node(ROOT), "a", fs.union.node(ROOT), "b", 0)


async def _renames_over(fs: Rooms) -> None:
    await fs.changes.rename(fs.union.node(ROOT), "other", fs.union.node(ROOT), "a", 0)


async def _exchanges(fs: Rooms) -> None:
    await fs.changes.rename(fs.union.node(ROOT), "other", fs.union.node(ROOT), "a", EXCHANGE)


CHANGES: list[Change] = [
    _opens_for_writing,
    _appends,
    _opens_with_o_trunc,
    _truncates,
    _sets_mtime,
    _links,
    _unlinks,
    _renames,
    _renames_over,
    _exchanges,
]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_demotes_in_memory_and_index_before_it_acts(fs: Rooms, tmp_path: Path, change: Change) -> None:
    (fs.folder / "other").write_bytes(b"other")
    await fs.published("a", data=SSD)
    await fs.node("a")
    seen: list[tuple[str, object, int]] = []
    acts = {"open_node", "write", "_set_attributes", "_link", "remove", "carry_out"}

    def gate(name: str) -> None:
        if name in acts:
            seen.append((name, fs.store.get(fs.key("a")), rows(fs, tmp_path)))

    fs.source.gate = gate
    await change(fs)
    assert seen
    assert all((entry, count) == (None, 0) for _, entry, count in seen), seen


@pytest.mark.parametrize(
    "wanted",
    [Attributes(mode=0o600), Attributes(uid=os.getuid()), Attributes(atime_ns=5)],
    ids=["chmod", "chown", "atime"],
)
async def test_what_changes_no_content_leaves_the_entry(fs: Rooms, wanted: Attributes) -> None:
    entry = await fs.published("a")
    await fs.changes.set_attributes(await fs.node("a"), wanted)
    await Xattrs(fs.union, fs.routing).set(await fs.node("a"), "user.x", b"y", Caller(os.getuid(), os.getgid()))
    assert fs.store.get(entry.key) == entry


async def test_a_write_through_another_name_demotes_the_entry(fs: Rooms) -> None:
    os.link(fs.folder / "a", fs.folder / "b")
    await fs.published("a", data=SSD)
    handle = await opened(fs, "b", os.O_RDWR)
    assert fs.store.get(fs.key("a")) is None
    await fs.routing.write(handle, 0, b"written")
    assert await read(fs, await opened(fs, "a"), 0, 7) == b"written"


async def test_a_renamed_folder_takes_its_files_out_of_the_cache(fs: Rooms) -> None:
    (fs.folder / "d").mkdir()
    (fs.folder / "d" / "x").write_bytes(SRC)
    await fs.published("d/x", data=SSD)
    handle = await opened(fs, "d/x")
    assert await read(fs, handle, 0, 6) == b"SOURCE"
    await fs.changes.rename(fs.union.node(ROOT), "d", fs.union.node(ROOT), "e", 0)
    assert fs.store.get(fs.key("d/x")) is None
    assert await read(fs, handle, 0, 6) == b"source"
    await fs.published("e/x", data=SSD)
    assert await read(fs, handle, 0, 6) == b"SOURCE"


async def test_a_new_file_under_an_old_name_is_not_read_as_the_old_one(fs: Rooms) -> None:
    await fs.published("a", data=SSD)
    old = await opened(fs)
    assert await read(fs, old, 0, 6) == b"SOURCE"
    root = fs.union.node(ROOT)
    await fs.changes.unlink(root, "a")
    found, made = await fs.changes.create(root, "a", os.O_RDWR, 0o644, ME)
    fs.union.inodes.looked_up(found.node)
    new = fs.routing.adopt(found.node, made, os.O_RDWR).handle
    await fs.routing.write(new, 0, b"new")
    assert await read(fs, old) == SRC
    assert await read(fs, new) == b"new"
    await fs.routing.release(new)
    await fs.published("a", data=b"NEW")
    assert await read(fs, await opened(fs)) == b"NEW"
    assert await read(fs, old) == SRC


# --- bars ------------------------------------------------------------------------------------------------------------


async def test_a_file_open_for_writing_is_not_copied_until_it_is_released(fs: Rooms) -> None:
    os.link(fs.folder / "a", fs.folder / "b")
    first, second = await opened(fs, "a", os.O_WRONLY), await opened(fs, "a", os.O_RDWR)
    assert await fails_to_begin(fs, "a") is Refused.BARRED
    assert await fails_to_begin(fs, "b") is Refused.BARRED
    await fs.routing.release(first)
    assert await fails_to_begin(fs, "a") is Refused.BARRED
    await fs.routing.release(second)
    assert not isinstance(await fs.begun("a"), Refused)


async def test_a_new_file_is_not_copied_until_it_is_released(fs: Rooms) -> None:
    root = fs.union.node(ROOT)
    found, made = await fs.changes.create(root, "new", os.O_WRONLY, 0o644, ME)
    fs.union.inodes.looked_up(found.node)
    handle = fs.routing.adopt(found.node, made, os.O_RDWR).handle
    assert await fails_to_begin(fs, "new") is Refused.BARRED
    await fs.routing.release(handle)
    await fs.begun("new")


async def test_a_copy_begun_before_a_write_is_not_published_after_it(fs: Rooms) -> None:
    entry = await fs.begun("a")
    await fs.copy(entry, 0, SIZE)
    before = await fs.union.files.stat(entry.key)
    handle = await opened(fs, "a", os.O_RDWR)
    await fs.routing.write(handle, 0, b"x")
    await fs.routing.release(handle)
    assert await fs.store.publish(entry, before) is None


async def test_a_failed_open_for_writing_bars_nothing_afterwards(fs: Rooms) -> None:
    node = await fs.node("a")
    (fs.folder / "a").unlink()
    with pytest.raises(OSError, match="Stale"):
        await fs.routing.open(node, os.O_WRONLY)
    (fs.folder / "a").write_bytes(SRC)
    await fs.begun("a")


@OFFLINE
async def test_a_late_write_bars_its_file_until_its_thread_returns(fs: Rooms, mock_clock: MockClock) -> None:
    handle = await opened(fs, "a", os.O_RDWR)
    file = await fs.union.files.stat(fs.key("a"))
    go, writing = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def gate(name: str) -> None:
        if name == "write":
            token.run_sync_soon(writing.set)
            go.wait(30)

    async def gives_up() -> None:
        with pytest.raises(OSError, match="no answer within"):
            await fs.routing.write(handle, 0, b"late")

    fs.source.gate = gate
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gives_up)
        await writing.wait()
        mock_clock.jump(TIMEOUT_S)
    assert await fs.store.begin(file, "because", now=1.0) is Refused.BARRED
    await fs.source.probe_once()  # the source is back, and the write is still under way
    assert fs.source.online
    with pytest.raises(OSError, match="an earlier change of it has not come back yet"):
        await fs.routing.write(handle, 0, b"overtaken")
    go.set()
    while fs.source.health().threads_busy:
        await trio.to_thread.run_sync(threading.get_ident)
    await wait_all_tasks_blocked()
    assert (fs.folder / "a").read_bytes()[:4] == b"late"
    await fs.routing.write(handle, 0, b"next")
    assert (fs.folder / "a").read_bytes()[:4] == b"next"
    await fs.routing.release(handle)
    assert not isinstance(await fs.begun("a"), Refused)


async def test_what_was_moved_behind_the_mount_is_not_taken_for_what_has_its_place(fs: Rooms) -> None:
    for name in ("mine", "other"):
        (fs.folder / name).mkdir()
        (fs.folder / name / "x").write_bytes(name.encode())
    mine = await fs.node("mine")
    assert (await fs.union.lookup(mine, "x")).stat.size == 4  # its folder is open now
    (fs.folder / "mine").rename(fs.folder / "moved")
    (fs.folder / "other").rename(fs.folder / "mine")
    await fs.changes.unlink(mine, "x")
    assert not (fs.folder / "moved" / "x").exists()  # the folder that was meant
    fs.source.folders.forget("")
    for change in (fs.changes.unlink(mine, "x"), fs.changes.rmdir(mine, "x"), fs.union.lookup(mine, "x")):
        with pytest.raises(OSError, match="Stale"):
            await change
    assert (fs.folder / "mine" / "x").read_bytes() == b"other"


# --- freshness -------------------------------------------------------------------------------------------------------


async def test_the_source_is_asked_once_per_ttl(fs: Rooms, mock_clock: MockClock) -> None:
    await fs.published("a", data=SSD)
    node = await fs.node("a")
    fs.source.asked.clear()
    for _ in range(3):
        mock_clock.jump(TTL_S + 1)
        for _ in range(5):
            await fs.routing.release((await fs.routing.open(node, os.O_RDONLY)).handle)
    assert fs.source.asked == ["stat_node"] * 3


async def test_a_file_rewritten_behind_the_mount_is_not_served_after_the_ttl(fs: Rooms, mock_clock: MockClock) -> None:
    await fs.published("a", data=SSD)
    node = await fs.node("a")
    handle = await opened(fs)
    (fs.folder / "a").write_bytes(b"rewritten")
    mock_clock.jump(TTL_S + 1)
    later = (await fs.routing.open(node, os.O_RDONLY)).handle
    assert await read(fs, later) == b"rewritten"
    assert await read(fs, handle) == b"rewritten"


async def test_a_file_replaced_behind_the_mount_is_another_file(fs: Rooms) -> None:
    await fs.published("a", data=SSD)
    node = await fs.node("a")
    old = await opened(fs)
    assert await read(fs, old, 0, 6) == b"SOURCE"
    (fs.folder / "new").write_bytes(b"replaced")
    os.rename(fs.folder / "new", fs.folder / "a")
    assert (await fs.node("a")).number != node.number
    assert await read(fs, await opened(fs)) == b"replaced"
    with pytest.raises(OSError, match="Stale"):
        await fs.union.attributes(node)
    assert fs.store.get(fs.key("a")) is None
    await fs.store.remove_doomed()
    assert await read(fs, old, 6, SIZE) == SSD[6:]
    assert (await fs.routing.attributes_of_open(node)).stat.size == SIZE
    await fs.published("a", data=b"REPLACED")
    assert await read(fs, old) == SSD
    await fs.routing.release(old)


async def test_a_file_deleted_behind_the_mount_is_readable_while_it_is_open(fs: Rooms) -> None:
    (fs.folder / "other").write_bytes(b"other")
    await fs.published("a", data=SSD)
    handle = await opened(fs)
    assert await read(fs, handle, 0, 6) == b"SOURCE"
    (fs.folder / "a").unlink()
    with pytest.raises(FileNotFoundError):
        await fs.node("a")
    await fs.store.remove_doomed()
    assert await read(fs, handle) == SSD


@pytest.mark.parametrize("copied", [SIZE, SIZE - 1])
async def test_what_was_written_to_or_never_whole_is_not_read_from_the_ssd_for_want_of_a_source(
    fs: Rooms, copied: int
) -> None:
    (fs.folder / "other").write_bytes(b"other")
    entry = await fs.begun("a")
    await fs.copy(entry, 0, copied, data=SSD[:copied])
    if copied == SIZE:
        await fs.store.publish(entry, await fs.union.files.stat(entry.key))
    handle = await opened(fs)
    assert await read(fs, handle, 0, 6) == b"SOURCE"
    if copied == SIZE:
        await _opens_for_writing(fs)
    (fs.folder / "a").unlink()
    with pytest.raises(FileNotFoundError):
        await fs.node("a")
    if copied == SIZE:
        with pytest.raises(OSError, match="Stale"):
            await read(fs, handle)
    else:
        assert await read(fs, handle) == SRC


async def test_pages_are_kept_only_while_the_file_is_unchanged(fs: Rooms) -> None:
    node = await fs.node("a")

    async def keeps(flags: int = os.O_RDONLY) -> bool:
        opening = await fs.routing.open(node, flags)
        await fs.routing.release(opening.handle)
        return opening.keep_cache

    assert not await keeps()
    assert await keeps()
    await fs.published("a")
    assert await keeps()
    assert not await keeps(os.O_WRONLY)
    assert not await keeps()
    assert await keeps()
    (fs.folder / "a").write_bytes(b"behind the mount")
    assert not await keeps()
    assert await keeps()
    await fs.changes.set_attributes(node, Attributes(mtime_ns=7))
    assert not await keeps()
    assert await keeps()


@OFFLINE
async def test_a_cached_file_opens_and_reads_while_its_source_is_away(fs: Rooms, mock_clock: MockClock) -> None:
    await fs.published("a", data=SSD)
    node = await fs.node("a")
    go, asked = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def gate(_: str) -> None:
        token.run_sync_soon(asked.set)
        go.wait(30)

    fs.source.gate = gate
    mock_clock.jump(TTL_S + 1)
    found: list[bytes] = []

    async def opens() -> None:
        handle = (await fs.routing.open(node, os.O_RDONLY)).handle
        found.append(await read(fs, handle))
        await fs.routing.flush(handle)
        await fs.routing.release(handle)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(opens)
        await asked.wait()
        mock_clock.jump(TIMEOUT_S)
    assert found == [SSD]
    assert not fs.source.online
    with trio.fail_after(1):
        await opens()
    assert found == [SSD, SSD]
    go.set()


@OFFLINE
async def test_a_hung_source_delays_no_read_from_the_ssd(fs: Rooms, mock_clock: MockClock) -> None:
    (fs.folder / "b").write_bytes(SRC)
    await fs.published("a", data=SSD)
    cached, other = await opened(fs), await opened(fs, "b")
    go, asked = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def gate(_: str) -> None:
        token.run_sync_soon(asked.set)
        go.wait(30)

    fs.source.gate = gate
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(read, fs, other, SIZE - 1, 10))  # past the end: a thread must look
        await asked.wait()
        assert await read(fs, cached) == SSD
        go.set()


# --- files without a name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
async def test_an_unlinked_file_is_readable_while_it_is_open(fs: Rooms, cached: bool) -> None:
    if cached:
        await fs.published("a", data=SSD)
    handle = await opened(fs)
    await fs.changes.unlink(fs.union.node(ROOT), "a")
    assert await read(fs, handle) == SRC
    assert [file.path for file in fs.routing.open_files()] == ["(deleted)"]
    await fs.routing.release(handle)


@OFFLINE
async def test_an_unlinked_file_is_forgotten_while_its_source_is_away(fs: Rooms, mock_clock: MockClock) -> None:
    node = await fs.node("a")
    await fs.changes.unlink(fs.union.node(ROOT), "a")
    orphan = node.orphan
    assert orphan is not None
    await away(fs, mock_clock)
    forgotten = fs.union.inodes.forgotten(node.number, 1)
    assert forgotten is node
    await fs.union.let_go(node)
    assert not orphan.closed


async def away(fs: Rooms, clock: MockClock) -> None:
    """One call hangs until the source is given up."""
    go, asked = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hang() -> None:
        token.run_sync_soon(asked.set)
        go.wait(30)

    async def gives_up() -> None:
        with pytest.raises(OSError, match="no answer within"):
            await fs.source.call(hang)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gives_up)
        await asked.wait()
        clock.jump(TIMEOUT_S)
    go.set()


# --- missing is not empty --------------------------------------------------------------------------------------------


@OFFLINE
async def test_a_root_that_has_become_empty_is_an_error_for_listing_and_lookup(fs: Rooms) -> None:
    root = fs.union.node(ROOT)
    assert (await fs.union.contents.listing(root, 9)).names == ["a"]
    (fs.folder / "a").unlink()
    with pytest.raises(OSError, match="empty"):
        await fs.union.contents.listing(root, 9)
    with pytest.raises(OSError, match="empty"):
        await fs.union.lookup(root, "a")
    (fs.folder / "b").write_bytes(b"back")
    await fs.source.probe_once()
    assert (await fs.union.contents.listing(root, 9)).names == ["b"]


@OFFLINE
async def test_a_missing_root_drops_no_cached_copy(fs: Rooms) -> None:
    entry = await fs.published("a")
    (fs.folder / "a").unlink()
    with pytest.raises(OSError, match="empty"):
        await fs.union.lookup(fs.union.node(ROOT), "a")
    assert fs.store.get(entry.key) == entry


async def test_a_root_that_was_emptied_through_the_mount_is_empty(fs: Rooms) -> None:
    root = fs.union.node(ROOT)
    assert (await fs.union.contents.listing(root, 9)).names == ["a"]
    await fs.changes.unlink(root, "a")
    assert (await fs.union.contents.listing(root, 9)).names == []
    with pytest.raises(FileNotFoundError):
        await fs.union.lookup(root, "a")


async def test_a_file_deleted_at_its_source_leaves_the_cache(fs: Rooms) -> None:
    (fs.folder / "other").write_bytes(b"other")
    await fs.published("a")
    (fs.folder / "a").unlink()
    with pytest.raises(FileNotFoundError):
        await fs.union.lookup(fs.union.node(ROOT), "a")
    assert fs.store.get(FileKey(fs.source.name, "a")) is None
