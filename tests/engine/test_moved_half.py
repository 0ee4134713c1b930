"""Moved files that their sources still have, or have again: a crash, or a disk that did not answer, left them so."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from cachefs import leases
from cachefs.cache.places import Stays
from cachefs.errors import CacheError
from cachefs.fs import homes, keepings, renaming
from cachefs.fs.found import RESERVED
from cachefs.leases import Lease
from cachefs.model import EntryState, FileKey, Fingerprint, Phase
from tests.engine.fskit import Kernel, Rooms, rooms
from tests.engine.test_moving import CONTENT, FILM, NEW, OTHER, content, kernel_of, put, shown

STRANGER = b"another film" * 1000


async def act(fs: Rooms, change: Callable[[Kernel], None]) -> None:
    await trio.to_thread.run_sync(change, kernel_of(fs))


async def leaving(fs: Rooms, path: str = FILM, data: bytes = CONTENT) -> FileKey:
    """The SSD's file says that it is the only one; its source has not given up its own yet."""
    at = put(fs, path, data)
    key = await fs.moved(path)
    await _back_at_its_source(fs, key, at, data, Phase.LEAVING)
    return key


async def returning(fs: Rooms) -> FileKey:
    """It is at its source again, and the SSD's file does not know."""
    at = put(fs, FILM, CONTENT)
    key = await fs.moved(FILM)
    await _back_at_its_source(fs, key, at, CONTENT, Phase.RETURNING)
    return key


async def _back_at_its_source(fs: Rooms, key: FileKey, at: Path, data: bytes, phase: Phase) -> None:
    entry = fs.store.moves.get(key)
    assert entry is not None
    assert entry.home is not None
    (kept,) = (fs.folder / RESERVED).iterdir()
    kept.write_bytes(data)
    os.utime(kept, ns=(0, entry.fingerprint.mtime_ns))
    kept.rename(at)
    found = os.stat(at)
    there = replace(entry.home.fingerprint, size=found.st_size, mtime_ns=found.st_mtime_ns)
    await fs.store.moves.set_home(entry, replace(entry.home, phase=phase, fingerprint=there))


HALVES = (leaving, returning)


@pytest.mark.parametrize("half", HALVES)
async def test_a_file_that_is_deleted_does_not_come_back(
    tmp_path: Path, half: Callable[[Rooms], Awaitable[FileKey]]
) -> None:
    async with rooms(tmp_path) as fs:
        await half(fs)
        await act(fs, lambda kernel: kernel.unlink(FILM))
        assert await shown(fs) == {}
        assert not (fs.folder / FILM).exists()
        await fs.movers.round()
        assert await shown(fs) == {}


@pytest.mark.parametrize("half", HALVES)
async def test_a_file_that_is_renamed_has_one_name(tmp_path: Path, half: Callable[[Rooms], Awaitable[FileKey]]) -> None:
    async with rooms(tmp_path) as fs:
        await half(fs)
        await act(fs, lambda kernel: kernel.rename(FILM, NEW))
        assert await shown(fs) == {NEW: CONTENT}
        await fs.movers.round()
        assert await shown(fs) == {NEW: CONTENT}


async def test_a_file_that_replaces_one_is_not_joined_by_it(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        await leaving(fs)
        put(fs, "other", OTHER)
        await act(fs, lambda kernel: kernel.rename("other", FILM))
        assert await shown(fs) == {FILM: OTHER}
        await fs.movers.round()
        assert await shown(fs) == {FILM: OTHER}


async def test_while_its_source_is_away_it_is_neither_deleted_nor_renamed(
    tmp_path: Path, expected_warnings: list[str]
) -> None:
    expected_warnings.append("is offline")
    async with rooms(tmp_path) as fs:
        key = await leaving(fs)
        fs.source._went_away("a test says so")
        for change in (lambda kernel: kernel.unlink(FILM), lambda kernel: kernel.rename(FILM, NEW)):
            with pytest.raises(OSError, match=f"{os.strerror(errno.EBUSY)}|{os.strerror(errno.EIO)}"):
                await act(fs, change)
        entry = fs.store.moves.get(key)
        assert entry is not None
        assert entry.home is not None
        assert entry.home.phase is Phase.LEAVING


async def test_what_took_the_place_of_a_half_moved_file_stays_beside_it(
    tmp_path: Path, expected_warnings: list[str]
) -> None:
    expected_warnings.append("another file has its place")
    async with rooms(tmp_path) as fs:
        key = await leaving(fs)
        (fs.folder / FILM).unlink()
        (fs.folder / FILM).write_bytes(STRANGER)
        await act(fs, lambda kernel: kernel.rename(FILM, NEW))
        assert await shown(fs) == {FILM: STRANGER, NEW: CONTENT}
        assert fs.store.moves.get(key) is None


async def test_settling_does_not_overtake_a_renaming_that_is_late(tmp_path: Path, expected_warnings: list[str]) -> None:
    """mv had no answer in time; its thread goes on, and what it does is what counts in the end."""
    expected_warnings.append("is offline")
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.moved(FILM)
        put(fs, "other", OTHER)
        go_on = threading.Event()
        fs.source.hang("carry_out", go_on)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await act(fs, lambda kernel: kernel.rename("other", FILM))
        await fs.source.probe_once()
        assert fs.source.online
        await fs.movers.round()
        go_on.set()
        with trio.fail_after(10):
            while (fs.folder / "other").exists() or fs.routing._late:  # noqa: ASYNC110  (a thread is waited for)
                await trio.sleep(0.01)
        fs.movers._not_before.clear()
        await fs.movers.round()
        assert await shown(fs) == {FILM: OTHER}


async def test_nothing_is_written_to_a_file_that_another_one_may_have_replaced(
    tmp_path: Path, expected_warnings: list[str]
) -> None:
    expected_warnings.append("is offline")
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.moved(FILM)
        put(fs, "other", OTHER)
        go_on = threading.Event()
        fs.source.hang("carry_out", go_on)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await act(fs, lambda kernel: kernel.rename("other", FILM))
        await fs.source.probe_once()
        for flags in (os.O_WRONLY, os.O_RDWR):
            with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
                await act(fs, lambda kernel, flags=flags: kernel.close(kernel.open(FILM, flags)))  # type: ignore[misc]
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            await act(fs, lambda kernel: kernel.truncate(FILM, 3))
        assert await content(fs, FILM) == CONTENT
        go_on.set()
        with trio.fail_after(10):
            while fs.routing._late:  # noqa: ASYNC110  (a thread is waited for)
                await trio.sleep(0.01)
        fs.movers._not_before.clear()
        await fs.movers.round()
        await act(fs, lambda kernel: kernel.close(kernel.open(FILM, os.O_RDWR)))
        assert await shown(fs) == {FILM: OTHER}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EPERM])
async def test_a_file_that_cannot_be_renamed_over_what_its_source_keeps_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(name: str, *, dir_fd: int) -> None:
        raise OSError(number, os.strerror(number), name)

    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        put(fs, "other", OTHER)
        before = fs.store.moves.get(key)
        assert before is not None
        monkeypatch.setattr(renaming, "unlink_for_good", refuse)
        with pytest.raises(OSError, match=os.strerror(number)):
            await act(fs, lambda kernel: kernel.rename(FILM, "other"))
        monkeypatch.undo()
        assert await shown(fs) == {FILM: CONTENT, "other": OTHER}
        fs.movers._not_before.clear()
        await fs.movers.round()
        assert await shown(fs) == {FILM: CONTENT, "other": OTHER}
        after = fs.store.moves.get(key)
        assert after is not None
        assert (after.home, after.id) == (before.home, before.id)
        await act(fs, lambda kernel: kernel.rename(FILM, "other"))
        assert await shown(fs) == {"other": CONTENT}
    async with rooms(tmp_path) as fs:
        assert await shown(fs) == {"other": CONTENT}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EEXIST])
async def test_a_file_that_nothing_could_be_renamed_over_is_wholly_away_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(step: object) -> None:
        raise OSError(number, os.strerror(number))

    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        put(fs, "other", OTHER)
        before = fs.store.moves.get(key)
        monkeypatch.setattr(renaming, "carry_out", refuse)
        with pytest.raises(OSError, match=os.strerror(number)):
            await act(fs, lambda kernel: kernel.rename("other", FILM))
        monkeypatch.undo()
        assert fs.store.moves.get(key) == before
        assert await shown(fs) == {FILM: CONTENT, "other": OTHER}


# --- a source that knows no leases ---


async def test_a_source_that_is_no_local_disk_does_not_empty_what_somebody_may_have_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE grants a lease on what is open below it."""
    monkeypatch.setattr(leases, "take", lambda number, kind: Lease.GRANTED)
    monkeypatch.setattr(leases, "holds", lambda number, kind: True)
    monkeypatch.setattr(leases, "give_back", lambda number: None)
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        fs.source.is_local = False
        with at.open("rb") as reader:
            key = await fs.moved(FILM)
            assert reader.read() == CONTENT
        entry = fs.store.moves.get(key)
        assert entry is not None
        assert entry.home is not None
        assert not entry.home.reserved
        await fs.movers.restore(key)
        assert at.read_bytes() == CONTENT


@pytest.fixture
def no_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "take", lambda number, kind: Lease.UNKNOWN)


@pytest.mark.usefixtures("no_leases")
async def test_what_is_renamed_over_a_file_that_is_just_leaving_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = homes._rename_to_nothing

    def late(old_folder: int, old: str, new_folder: int, new: str) -> None:
        monkeypatch.setattr(homes, "_rename_to_nothing", rename)
        (tmp_path / "new").write_bytes(STRANGER)
        (tmp_path / "new").rename(at)
        rename(old_folder, old, new_folder, new)

    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        monkeypatch.setattr(homes, "_rename_to_nothing", late)
        with pytest.raises(Stays, match="replaced"):
            await fs.movers.move(fs.key(FILM))
        assert at.read_bytes() == STRANGER
        assert await shown(fs) == {FILM: STRANGER}
        entry = fs.store.get(fs.key(FILM))
        assert entry is None or entry.state is not EntryState.MOVED


@pytest.mark.usefixtures("no_leases")
@pytest.mark.parametrize("there", ["the file", "a stranger"])
async def test_what_a_crash_leaves_of_a_file_that_was_leaving_goes_or_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_warnings: list[str], there: str
) -> None:
    expected_warnings.append("another file has its place")

    def die(*args: object) -> None:
        raise OSError(errno.EIO, "killed")

    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        with monkeypatch.context() as patch:
            patch.setattr(keepings, "left", die)
            with pytest.raises(Stays, match="killed"):
                await fs.movers.move(fs.key(FILM))
        (aside,) = (fs.folder / RESERVED).iterdir()
        assert aside.name.endswith(keepings.LEAVING)
        if there == "a stranger":
            aside.unlink()
            aside.write_bytes(STRANGER)
    async with rooms(tmp_path) as fs:
        await fs.movers.round()
        assert await shown(fs) == {FILM: CONTENT}
        if there == "a stranger":
            assert (fs.folder / FILM).read_bytes() == STRANGER
        else:
            await fs.movers.restore(fs.key(FILM))
            assert (fs.folder / FILM).read_bytes() == CONTENT
        assert [*fs.folder.glob(f"{RESERVED}/*{keepings.LEAVING}")] == []


async def test_a_file_of_which_nobody_tells_us_who_has_it_open_is_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "take", lambda number, kind: Lease.FORBIDDEN)
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        with pytest.raises(Stays, match="somebody else"):
            await fs.movers.move(fs.key(FILM))
        assert at.read_bytes() == CONTENT
        entry = fs.store.get(fs.key(FILM))
        assert entry is not None
        assert entry.state is EntryState.CACHED


async def test_a_file_that_could_not_come_home_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on rclone: neither RENAME_NOREPLACE nor links."""

    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(homes, "_rename_to_nothing", refuse)
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        with pytest.raises(Stays, match="could not come back"):
            await fs.movers.move(fs.key(FILM))
        assert at.read_bytes() == CONTENT
        assert await content(fs, FILM) == CONTENT


# --- an SSD that is away ---


async def test_nothing_is_said_to_be_noted_on_an_ssd_that_is_away(tmp_path: Path, expected_warnings: list[str]) -> None:
    expected_warnings.append("is away")
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        fs.store._shelf.presence.went_away("a test says so")
        moves = fs.store.moves
        there = Fingerprint(1, 2)
        for note in (
            partial(moves.changed, key),
            partial(moves.replacing, key, there),
            partial(moves.yielding, key, there),
            partial(moves.settled, key),
        ):
            with pytest.raises(CacheError, match="is away"):
                await note()
