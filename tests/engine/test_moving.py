"""Moving files to the SSD for good, and home again; stopped before and after every step, and begun again."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cachefs.cache import moved_disk
from cachefs.cache.belonging import moved_in, refusal
from cachefs.cache.label import NAME
from cachefs.cache.places import Conflict, Stays
from cachefs.cache.restoring import Restoration
from cachefs.cache.store import EvictResult, open_store
from cachefs.cache.verify import Verification, Wish
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.fs import homes
from cachefs.fs.found import RESERVED
from cachefs.fs.homes import Homes
from cachefs.fs.operations import Operations
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat
from cachefs.model import DropCause, EntryState, FileKey, Phase, SourceName, Targets, Visible
from cachefs.ranges import Ranges
from cachefs.verification import Flaw
from tests.engine.cachekit import ROOMY
from tests.engine.fskit import MEDIA, Kernel, Rooms, rooms
from tests.fileops import SCENARIOS, Scenario, Seen, refused

CONTENT = os.urandom(300_000)
OTHER = os.urandom(200_000)
FILM = "Films/Heat.mkv"
NEW = "Films/Heat (1995).mkv"
UNMOVED = {
    "the_state_is_answered_never_listed_and_cannot_be_set",  # says of a file that it is at its source
    "rename_of_a_folder_carries_what_is_in_it",  # needs a kernel that keeps the folders of open files
}


def put(fs: Rooms, path: str, content: bytes) -> Path:
    at = fs.folder / path
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_bytes(content)
    os.setxattr(at, "user.who", b"Ann")
    at.chmod(0o640)
    os.utime(at, ns=(time.time_ns(), 10**18 + 123_456_789))
    return at


def kernel_of(fs: Rooms) -> Kernel:
    return Kernel(Operations(fs.union, fs.routing, fs.changes), fs.folder)


async def seen(fs: Rooms, path: str) -> Seen:
    return await trio.to_thread.run_sync(kernel_of(fs).stat, path)


async def content(fs: Rooms, path: str) -> bytes:
    def read() -> bytes:
        kernel = kernel_of(fs)
        handle = kernel.open(path)
        data = kernel.read(handle, 1 << 20)
        kernel.close(handle)
        return data

    return await trio.to_thread.run_sync(read)


def of_file(path: Path) -> tuple[object, ...]:
    info = path.stat()
    return info.st_ino, info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, os.getxattr(path, "user.who")


# --- what a person sees ----------------------------------------------------------------------------------------------


async def test_nothing_changes_in_the_mount_and_the_source_has_its_room_back(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        at_source, before = of_file(at), await seen(fs, FILM)
        key = await fs.moved(FILM)
        assert not at.exists()
        assert sum(path.stat().st_blocks for path in (fs.folder / RESERVED).iterdir()) == 0
        assert await seen(fs, FILM) == before
        assert await content(fs, FILM) == CONTENT
        listed = await trio.to_thread.run_sync(kernel_of(fs).entries, "Films")
        assert (at.name, before.ino) in listed
        assert fs.routing.state(await fs.node(FILM)) is Visible.CACHED
        await fs.movers.restore(key)
        assert of_file(at) == at_source
        assert at.read_bytes() == CONTENT
        assert replace(await seen(fs, FILM), atime_ns=before.atime_ns) == before, "it was read meanwhile"
        entry = fs.store.get(key)
        assert entry is not None
        assert entry.state is EntryState.CACHED


async def test_what_is_kept_for_another_cache_folder_stays(tmp_path: Path) -> None:
    """Whoever starts once with another ``cache.path`` must not lose the inode numbers of files moved to the first."""
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        put(fs, "other", OTHER)
        kept = fs.folder / RESERVED / "1000000"
        kept.parent.mkdir()
        kept.touch()
        key = await fs.moved("other")
        assert kept.exists()
        await fs.moved(FILM)
        await Restoration(fs.movers, [moved for moved in fs.store.moves.all() if moved.key == key]).run()
        assert kept.exists()
        await Restoration(fs.movers, fs.store.moves.all()).run()
        assert not kept.exists()  # as a crash leaves it of a deleted file, for all that is known
        assert not fs.store.moves.all()


async def test_what_is_kept_of_moved_files_is_shown_nowhere(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.moved(FILM)
        kernel = kernel_of(fs)

        def look() -> None:
            assert RESERVED not in [name for name, _ in kernel.entries("")]
            with pytest.raises(FileNotFoundError):
                kernel.stat(RESERVED)
            with pytest.raises(PermissionError):
                kernel.mkdir(RESERVED)
            assert kernel.listxattr(FILM) == ["user.who"]
            with pytest.raises(PermissionError):
                kernel.setxattr(FILM, "user.cachefs.entry", b"mine")

        await trio.to_thread.run_sync(look)


async def test_a_link_in_the_place_of_what_is_kept_is_not_followed(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        (kept,) = (fs.folder / RESERVED).iterdir()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / kept.name).write_bytes(b"precious")
        kept.rename(tmp_path / "kept")
        kept.parent.rmdir()
        kept.parent.symlink_to(elsewhere)
        homes = Homes(fs.union)
        for act in (
            partial(homes.let_go, key, int(kept.name), keep=True),
            partial(homes.let_go, key, int(kept.name), keep=False),
            partial(homes.open_return, key, int(kept.name)),
            partial(homes.arrive, key, int(kept.name), Descriptor(os.open(fs.folder, os.O_RDONLY))),
            partial(homes.tidy, key.source, frozenset),
            partial(homes.filled, key),
        ):
            with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
                await act()
        assert os.listdir(elsewhere) == [kept.name]
        assert (elsewhere / kept.name).read_bytes() == b"precious"
        assert await content(fs, FILM) == CONTENT


async def test_a_file_of_several_names_is_copied_and_not_moved(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        os.link(at, fs.folder / "other")
        await fs.published(FILM)
        with pytest.raises(Stays, match="hard links"):
            await fs.movers.move(fs.key(FILM))
        assert at.read_bytes() == CONTENT


@pytest.mark.parametrize("way", ["appends to it", "links it"])
async def test_a_file_that_somebody_finds_just_before_its_name_goes_is_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    set_aside = homes._set_aside
    appending: list[threading.Thread] = []

    def append(path: Path) -> None:
        with path.open("ab", buffering=0) as file:
            file.write(b" and more")

    def late(source: Source, folder: int, name: str, aside: str, is_ours: Callable[[Stat], bool]) -> None:
        if way == "links it":
            os.link(at, tmp_path / "link")
        else:
            appending.append(threading.Thread(target=append, args=(at,)))
            appending[0].start()
            while not _is_waited_for(at):
                pass
        set_aside(source, folder, name, aside, is_ours)

    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        monkeypatch.setattr(homes, "_set_aside", late)
        with pytest.raises(Stays, match="open"):
            await fs.movers.move(fs.key(FILM))
        for thread in appending:
            thread.join()
        if way == "links it":
            assert (at.read_bytes(), (tmp_path / "link").read_bytes()) == (CONTENT, CONTENT)
        else:
            assert at.read_bytes() == CONTENT + b" and more"
        assert os.listdir(fs.folders[MEDIA] / RESERVED) == []


def _is_waited_for(path: Path) -> bool:
    """proc(5): a lease on this file is being broken."""
    locks = Path("/proc/locks").read_text().splitlines()
    return any("BREAKING" in line and line.split()[5].endswith(f":{path.stat().st_ino}") for line in locks)


async def test_a_file_that_somebody_has_open_at_its_source_is_not_moved(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        with at.open("rb") as somebody, pytest.raises(Stays, match="open"):
            await fs.movers.move(fs.key(FILM))
        somebody.close()
        assert at.read_bytes() == CONTENT
        entry = fs.store.get(fs.key(FILM))
        assert entry is not None
        assert entry.state is EntryState.CACHED
        await fs.movers.move(fs.key(FILM))
        assert not at.exists()


async def test_a_copy_that_differs_is_not_moved_but_dropped(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        await fs.published(FILM, data=CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        await fs.give_attributes(FILM)
        with pytest.raises(Stays, match="differs"):
            await fs.movers.move(fs.key(FILM))
        assert at.read_bytes() == CONTENT
        assert fs.store.get(fs.key(FILM)) is None


async def test_bytes_that_the_ssd_has_lost_are_not_brought_home(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        copy = tmp_path / "ssd/files/Media" / FILM
        times = copy.stat()
        copy.chmod(0o600)
        copy.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(Stays, match="lost"):
            await fs.movers.restore(key)
        assert not at.exists()
        assert fs.store.moves.get(key) is not None


async def test_what_took_a_moved_files_place_is_never_overwritten(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        at.write_bytes(OTHER)
        with pytest.raises(Conflict, match="another file has its place"):
            await fs.movers.restore(key)
        assert at.read_bytes() == OTHER
        assert await content(fs, FILM) == CONTENT
        assert [found for found, _ in fs.movers.problems()] == [key]
        await trio.to_thread.run_sync(kernel_of(fs).rename, FILM, NEW)
        assert await content(fs, FILM) == OTHER
        assert await content(fs, NEW) == CONTENT
        await fs.movers.restore(fs.key(NEW))
        assert (fs.folder / NEW).read_bytes() == CONTENT
        assert at.read_bytes() == OTHER


async def test_that_a_source_had_no_room_is_told_for_a_while_and_not_for_ever(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)

        def refuse(_: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        for told_for_s, told in (
            (60.0, ((key, "its source has no room for it (No space left on device)"),)),
            (0.0, ()),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fs.source, "gate", refuse)
                patch.setattr("cachefs.cache.moving._NEWS_S", told_for_s)
                with pytest.raises(OSError, match="No space left"):
                    await fs.movers.restore(key)
                assert fs.movers.problems() == told


async def test_a_file_that_moves_while_it_is_looked_up_is_found(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        folder, reached, go_on = await fs.node("Films"), trio.Event(), threading.Event()

        def gate(name: str) -> None:
            if name == "look_up" and not go_on.is_set():
                trio.from_thread.run_sync(reached.set)
                go_on.wait(20)

        fs.source.gate = gate
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.union.lookup, folder, "Heat.mkv")
            await reached.wait()
            await fs.movers.move(fs.key(FILM))
            go_on.set()


async def test_a_file_that_comes_home_while_its_folder_is_read_is_listed(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key, folder = await fs.moved(FILM), await fs.node("Films")
        read = fs.union.contents._read_once

        async def late(*args: Any) -> Any:
            reading = await read(*args)
            await fs.movers.restore(key)
            return reading

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fs.union.contents, "_read_once", late)
            reading = await fs.union.contents.read(folder, 100)
        assert reading.listing.named("Heat.mkv") is not None


async def test_a_file_that_comes_home_while_it_is_opened_is_read_there(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        opened = fs.routing._ssd.open_moved

        async def late(*args: Any) -> tuple[int, int]:
            await fs.movers.restore(key)
            assert await fs.store.evict(key, force=True) is EvictResult.EVICTED
            await fs.store.remove_doomed()
            return await opened(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fs.routing._ssd, "open_moved", late)
            assert await content(fs, FILM) == CONTENT


TARGET = "Films/Casino.mkv"


@dataclass(frozen=True)
class MetByAReturn:
    """A change through the mount that meets a file on its way home; ``target``: what is at the other name before, if
    anything, and whether that has moved; ``left``: what the union holds afterwards."""

    change: Callable[[Kernel], object]
    target: str = ""
    left: dict[str, bytes] = field(default_factory=dict)

    async def prepare(self, fs: Rooms) -> FileKey:
        """The moved file, and what is at the other name."""
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        if self.target:
            put(fs, TARGET, OTHER)
        if self.target == "moved":
            await fs.moved(TARGET)
        return key

    async def must_be_done(self, fs: Rooms) -> None:
        """In the union, and at the source once everything is at home."""
        await fs.store.remove_doomed()
        assert await shown(fs) == self.left
        for moved in fs.store.moves.all():
            await fs.movers.restore(moved.key)
        assert {path: (fs.folder / path).read_bytes() for path in self.left} == self.left
        assert await shown(fs) == self.left


MEETINGS = {
    "unlink": MetByAReturn(lambda kernel: kernel.unlink(FILM)),
    "rename": MetByAReturn(lambda kernel: kernel.rename(FILM, NEW), left={NEW: CONTENT}),
    "rename over a file": MetByAReturn(lambda kernel: kernel.rename(FILM, TARGET), "source", {TARGET: CONTENT}),
    "rename over a moved file": MetByAReturn(lambda kernel: kernel.rename(FILM, TARGET), "moved", {TARGET: CONTENT}),
    "a file is renamed over it": MetByAReturn(lambda kernel: kernel.rename(TARGET, FILM), "source", {FILM: OTHER}),
    "a moved file is renamed over it": MetByAReturn(lambda kernel: kernel.rename(TARGET, FILM), "moved", {FILM: OTHER}),
}


@pytest.mark.parametrize("what", MEETINGS)
async def test_a_change_that_meets_a_file_on_its_way_home_is_done_when_it_says_so(tmp_path: Path, what: str) -> None:
    meeting = MEETINGS[what]
    async with rooms(tmp_path) as fs:
        key = await meeting.prepare(fs)
        arriving, go_on = trio.Event(), threading.Event()

        def gate(name: str) -> None:
            if name == "_arrive":
                trio.from_thread.run_sync(arriving.set)
                go_on.wait(20)

        fs.source.gate = gate
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.movers.restore, key)
            await arriving.wait()
            nursery.start_soon(trio.to_thread.run_sync, meeting.change, kernel_of(fs))
            await trio.testing.wait_all_tasks_blocked(0.05)
            go_on.set()
        await meeting.must_be_done(fs)


async def test_attributes_that_change_while_a_file_moves_go_along_or_keep_it_at_its_source(tmp_path: Path) -> None:
    """Its bytes are compared for minutes; a change of then is only seen by its ctime."""
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        os.setxattr(at, "user.who", b"Ben")  # between the copy and the move
        at.chmod(0o600)
        key, same_bytes = fs.key(FILM), fs.movers.carrying._same_bytes

        async def meanwhile(*args: Any) -> str:
            digest = await same_bytes(*args)
            at.chmod(0o604)
            os.removexattr(at, "user.who")
            os.setxattr(at, "user.other", b"Eve")
            return digest

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fs.movers.carrying, "_same_bytes", meanwhile)
            with pytest.raises(Stays, match="changed meanwhile"):
                await fs.movers.move(key)
        assert at.read_bytes() == CONTENT
        await fs.movers.move(key)
        moved = fs.store.moves.get(key)
        assert moved is not None
        await fs.movers.restore(key)
        assert (stat.S_IMODE(at.stat().st_mode), os.listxattr(at)) == (0o604, ["user.other"])


async def test_a_file_that_got_another_size_on_the_ssd_is_copied_as_a_whole_when_it_is_home(
    tmp_path: Path,
) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        await trio.to_thread.run_sync(kernel_of(fs).truncate, FILM, 100)
        await fs.movers.restore(key)
        entry = fs.store.get(key)
        assert entry is not None
        assert (entry.state, entry.size, entry.ranges.spans) == (EntryState.CACHED, 100, Ranges.of([(0, 100)]).spans)


async def test_a_copy_that_is_dropped_while_it_becomes_the_only_one_leaves_the_source_its_file(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        key, shelf = fs.key(FILM), fs.store._shelf
        on_disk = shelf.on_disk

        async def late(function: Any, *args: Any) -> Any:
            result = await on_disk(function, *args)
            if function is moved_disk.relabel:
                fs.store.demote(Targets(keys=frozenset((key,))), DropCause.CHANGED)
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shelf, "on_disk", late)
            with pytest.raises(Stays):
                await fs.movers.move(key)
        assert at.read_bytes() == CONTENT
        await fs.store.remove_doomed()
        assert await shown(fs) == {FILM: CONTENT}


async def test_what_a_renamed_folder_brings_home_does_not_move_again_before_it_is_renamed(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        restore = fs.movers.restore

        async def late(key: FileKey) -> None:
            await restore(key)
            with pytest.raises(Stays, match="changes it"):
                await fs.movers.move(key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fs.movers, "restore", late)
            await trio.to_thread.run_sync(kernel_of(fs).rename, "Films", "Old films")
        assert fs.store.get(key) is None
        assert await shown(fs) == {"Old films/Heat.mkv": CONTENT}


async def test_a_folder_is_renamed_when_its_file_has_left_and_is_home_again(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        leave = fs.store.moves.leave

        async def rename() -> None:
            await trio.to_thread.run_sync(kernel_of(fs).rename, "Films", "Old films")

        async with trio.open_nursery() as nursery:

            async def late(*args: Any) -> Any:
                nursery.start_soon(rename)
                while not fs.store._shelf.bars._folders:
                    await trio.lowlevel.checkpoint()
                return await leave(*args)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fs.store.moves, "leave", late)
                await fs.movers.move(fs.key(FILM))
        assert await shown(fs) == {"Old films/Heat.mkv": CONTENT}


async def test_the_folders_of_moved_files_are_closed_when_nobody_needs_them(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.moved(FILM)
        assert await content(fs, FILM) == CONTENT
        folders = [source.folders for source in (fs.source, *fs.union.elsewhere.sources.values())]
        assert [bool(each._open) for each in folders] == [True, True]
        for each in folders:
            each._max_age_s = 0.0
        await fs.union.close_idle_folders()
        assert [bool(each._open) for each in folders] == [False, False]


async def test_a_moved_file_takes_the_place_of_a_cached_one(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        put(fs, "other", OTHER)
        await fs.moved(FILM)
        await fs.published("other")
        await trio.to_thread.run_sync(kernel_of(fs).rename, FILM, "other")
        assert await shown(fs) == {"other": CONTENT}
        await fs.store.remove_doomed()
        assert fs.store.space().used_bytes == len(CONTENT)
        await fs.movers.restore(fs.key("other"))
        assert (fs.folder / "other").read_bytes() == CONTENT


async def test_a_file_whose_folder_was_deleted_comes_home_all_the_same(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        at.parent.rmdir()
        await fs.movers.restore(key)
        assert at.read_bytes() == CONTENT


async def test_a_moved_file_is_never_dropped_whatever_its_source_shows(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        fs.store.gone(key)
        fs.store.gone(FileKey(key.source, "Films"))
        entry = fs.store.get(key)
        assert entry is not None
        assert await fs.store.evict(key, force=True) is EvictResult.MOVED
        assert await content(fs, FILM) == CONTENT


async def test_the_folder_of_a_moved_file_is_not_empty(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.moved(FILM)
        with refused(39):  # ENOTEMPTY
            await trio.to_thread.run_sync(kernel_of(fs).rmdir, "Films")
        await trio.to_thread.run_sync(kernel_of(fs).unlink, FILM)
        await trio.to_thread.run_sync(kernel_of(fs).rmdir, "Films")
        assert not (fs.folder / "Films").exists()
        assert not (fs.folder / RESERVED).exists()


async def test_a_source_that_is_not_configured_any_more_does_not_take_its_moved_files_along(tmp_path: Path) -> None:
    async with rooms(tmp_path, "Media", "More") as fs:
        put(fs, FILM, CONTENT)
        await fs.moved(f"Media/{FILM}")
    more = {SourceName("More"): str(tmp_path / "sources/More")}
    assert "the only copy of one file, Films/Heat.mkv of source Media" in await refused_start(tmp_path, more)


async def refused_start(tmp_path: Path, sources: dict[SourceName, str]) -> str:
    """What a start says that is refused; ``check`` says the same, without the index."""
    with pytest.raises(CacheError) as refused:
        async with open_store(tmp_path / "ssd", ROOMY, sources):
            pass
    root = str(tmp_path / "ssd")
    assert refusal(root, sources, moved_in(root)) == str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("lost", ["nothing", "the index", "the labels"])
@pytest.mark.parametrize("changed", ["path", "name"])
async def test_nobody_is_told_to_delete_a_folder_that_may_hold_the_only_copy(
    tmp_path: Path, changed: str, lost: str
) -> None:
    async with rooms(tmp_path) as fs:
        for name in (FILM, NEW):
            put(fs, name, CONTENT)
            await fs.moved(name)
    here = str(tmp_path / "sources/Media")
    sources = {MEDIA: f"{here}2"} if changed == "path" else {SourceName("Films"): here}
    if lost == "the index":
        for path in (tmp_path / "ssd").glob("index.sqlite*"):
            path.unlink()
    if lost == "the labels":  # as by a copy without extended attributes
        for name in (FILM, NEW):
            os.removexattr(tmp_path / "ssd/files/Media" / name, NAME)
        root = str(tmp_path / "ssd")
        assert refusal(root, sources, moved_in(root)).endswith("hoose another cache.path")
        with pytest.raises(CacheError) as refused:
            async with open_store(tmp_path / "ssd", ROOMY, sources):
                pass
        said = str(refused.value)
    else:
        said = await refused_start(tmp_path, sources)
    assert "It holds the only copy of 2 files, such as Films/Heat (1995).mkv of source Media, so keep it: " in said
    again = f" (name {here} Media again)" if changed == "name" else ""
    assert said.endswith(
        f"write the old configuration again{again}, set cache.mode to copy, mount, run cachefs restore --all, "
        "and then change it"
    )


async def test_a_lost_index_loses_no_moved_file(tmp_path: Path, expected_warnings: list[str]) -> None:
    expected_warnings.append("the index .* is gone")
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        before = await seen(fs, FILM)
        await fs.moved(FILM)
        await trio.to_thread.run_sync(kernel_of(fs).truncate, FILM, 1000)
    for path in (tmp_path / "ssd").glob("index.sqlite*"):
        path.unlink()
    async with rooms(tmp_path) as fs:
        await fs.movers.round()
        now = await seen(fs, FILM)
        assert replace(now, size=before.size, mtime_ns=before.mtime_ns) == before
        assert await content(fs, FILM) == CONTENT[:1000]
        await fs.movers.restore(fs.key(FILM))
        assert (fs.folder / FILM).read_bytes() == CONTENT[:1000]


async def test_a_source_that_takes_a_file_away_late_loses_nothing(tmp_path: Path, expected_warnings: list[str]) -> None:
    expected_warnings.append("offline")
    goes_on = threading.Event()
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        fs.source.hang("_take_away", goes_on)
        with pytest.raises(Stays):
            await fs.movers.move(fs.key(FILM))
        await fs.source.probe_once()
        assert fs.source.online
        for _ in range(3):  # it is not known yet what became of it
            await fs.movers.round()
            entry = fs.store.moves.get(fs.key(FILM))
            assert entry is not None
            assert entry.home is not None
            assert entry.home.phase is Phase.LEAVING
        goes_on.set()
        with trio.fail_after(10):
            while at.exists() or not fs.movers._homes.is_ready(fs.key(FILM)):  # noqa: ASYNC110  (a thread is waited for)
                await trio.sleep(0.01)
        await fs.movers.settle(fs.key(FILM))
        assert await content(fs, FILM) == CONTENT
        await fs.movers.restore(fs.key(FILM))
        assert at.read_bytes() == CONTENT


async def test_a_folder_of_the_ssd_that_was_removed_and_made_again_is_found(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        put(fs, NEW, OTHER)
        await fs.moved(FILM)
        assert await content(fs, FILM) == CONTENT  # the folder is open now
        await trio.to_thread.run_sync(kernel_of(fs).unlink, FILM)
        assert not (tmp_path / "ssd/files/Media/Films").exists()
        await fs.moved(NEW)
        assert await content(fs, NEW) == OTHER


async def verified(fs: Rooms, *, content: bool = True, repair: bool = True) -> set[tuple[Flaw, str]]:
    wish = Wish(content=content, repair=repair)
    report = await Verification(fs.store, fs.union.files_asked, fs.movers, wish, lambda: None).run()
    return {(finding.flaw, finding.mended) for finding in report.findings}


async def test_verify_finds_rot_and_takers_and_mends_nothing_of_what_is_the_only_copy(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        assert await verified(fs) == set()
        await trio.to_thread.run_sync(kernel_of(fs).truncate, FILM, 1000)
        assert await verified(fs) == set()
        at.write_bytes(OTHER)
        assert await verified(fs, content=False) == {(Flaw.TAKEN, "")}
        assert [found for found, _ in fs.movers.problems()] == [key]
        at.unlink()
        copy = tmp_path / "ssd/files/Media" / FILM
        copy.chmod(0o600)
        copy.write_bytes(bytes(1000))
        assert await verified(fs) == {(Flaw.ROTTEN, "")}
        assert await verified(fs, content=False) == set()
        assert fs.movers.problems() == (
            (key, "its bytes on the SSD are not those that were moved (see cachefs verify)"),
        )
        copy.rename(tmp_path / "aside")
        assert await verified(fs, content=False) == {(Flaw.LOST, "")}
        assert "cannot be read: No such file" in fs.movers.problems()[0][1]
        (tmp_path / "aside").rename(copy)
        assert await verified(fs, content=False) == set()
        assert not fs.movers.problems()
        copy.unlink()
        assert await verified(fs, content=False) == {(Flaw.LOST, "")}
        assert fs.store.moves.get(key) is not None


async def test_a_moved_file_that_is_brought_home_by_hand_while_mounted_is_that_of_its_source(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        shutil.move(tmp_path / "ssd/files/Media" / FILM, at)
        assert {flaw for flaw, _ in await verified(fs, repair=False)} == {Flaw.MISSING}
        assert fs.store.get(key) is None
        assert await content(fs, FILM) == CONTENT
        assert await verified(fs, repair=False) == set()


async def test_an_ssd_that_does_not_say_what_is_on_it_loses_no_moved_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = os.lstat

    def fail(path: str) -> os.stat_result:
        if str(path).endswith(FILM):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return look(path)

    async with rooms(tmp_path) as fs:
        at = put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        put(fs, FILM, OTHER)
        with monkeypatch.context() as patch:
            patch.setattr(os, "lstat", fail)
            await verified(fs, repair=True)
        assert fs.store.moves.get(key) is not None
        assert (tmp_path / "ssd/files/Media" / FILM).read_bytes() == CONTENT
        at.unlink()


# --- every file operation, on files that have moved ------------------------------------------------------------------


@dataclass
class MovedFiles(Kernel):
    """Every file moves as soon as nobody writes it."""

    rooms: Any = None
    writers: dict[int, str] = field(default_factory=dict)
    moved: int = 0

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
        if not flags & os.O_ACCMODE:
            self.move(path)
        handle = Kernel.open(self, path, flags, mode)
        if flags & os.O_ACCMODE:
            self.writers[handle] = path
        return handle

    def close(self, handle: int) -> None:
        Kernel.close(self, handle)
        path = self.writers.pop(handle, None)
        if path is not None:
            self.move(path)

    def move(self, path: str) -> None:
        at = self.rooms.folder / path
        with suppress(OSError):
            if stat.S_ISREG(os.lstat(at).st_mode) and path not in self.writers.values():
                self.moved += trio.from_thread.run(self._move, path)

    async def _move(self, path: str) -> bool:
        fs: Rooms = self.rooms
        try:
            await fs.moved(path)
        except (AssertionError, Stays, OSError):
            return False  # it is being written, or has several names
        return True


class _Behind:
    """The source's folder, as ``Kernel.behind``: whoever looks there finds everything at home."""

    def __init__(self, fs: Rooms) -> None:
        self._fs = fs

    def __fspath__(self) -> str:
        return str(self / "")

    def __truediv__(self, name: str) -> Path:
        for entry in self._fs.store.moves.all():
            trio.from_thread.run(self._fs.movers.restore, entry.key)
        return self._fs.folder / name


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_moved_files_behave_as_any_other(scenario: Scenario, tmp_path: Path) -> None:
    if scenario.__name__ in UNMOVED:
        return
    async with rooms(tmp_path) as fs:
        kernel = MovedFiles(Operations(fs.union, fs.routing, fs.changes), _Behind(fs), rooms=fs)  # type: ignore[arg-type]
        with trio.fail_after(60):
            await trio.to_thread.run_sync(scenario, kernel)
        MOVED.append(kernel.moved)


def test_the_scenarios_did_move_files() -> None:
    assert sum(MOVED) >= len(MOVED) / 2


# --- stopped before and after every step -----------------------------------------------------------------------------


MOVED: list[int] = []
"""How many files each scenario has moved."""


class Killed(Exception):
    """The process ends here."""


_STEPS = {
    "moves": ("leave", "set_home", "returned", "delete", "rename"),
    "homes": ("take_away", "open_return", "arrive", "let_go"),
}


@dataclass
class Killer:
    """Ends everything at the n-th moment; there are two to a step."""

    at: int = -1
    moments: int = 0
    dead: bool = False

    def watch(self, fs: Rooms, patch: pytest.MonkeyPatch) -> None:
        for owner, names in ((fs.store.moves, _STEPS["moves"]), (fs.movers._homes, _STEPS["homes"])):
            for name in names:
                patch.setattr(owner, name, partial(self._step, getattr(owner, name)))
        patch.setattr(fs.source, "gate", lambda name: self._moment() if name in ("carry_out", "remove") else None)

    async def _step(self, function: Callable[..., Awaitable[object]], *args: Any, **named: Any) -> object:
        self._moment()
        result = await function(*args, **named)
        self._moment()
        return result

    def _moment(self) -> None:
        if self.moments == self.at or self.dead:
            self.dead = True
            raise Killed
        self.moments += 1


async def _move(fs: Rooms) -> None:
    await fs.moved(FILM)


async def _restore(fs: Rooms) -> None:
    await fs.movers.restore(fs.key(FILM))


async def _rename(fs: Rooms) -> None:
    await _act(fs, lambda kernel: kernel.rename(FILM, NEW))


async def _rename_over(fs: Rooms) -> None:
    await _act(fs, lambda kernel: kernel.rename(FILM, "other"))


async def _be_renamed_over(fs: Rooms) -> None:
    await _act(fs, lambda kernel: kernel.rename("other", FILM))


async def _delete(fs: Rooms) -> None:
    await _act(fs, lambda kernel: kernel.unlink(FILM))


async def _write_and_restore(fs: Rooms) -> None:
    def write(kernel: Kernel) -> None:
        handle = kernel.open(FILM, os.O_RDWR)
        kernel.write(handle, CONTENT[:10], 0)
        kernel.close(handle)

    await _act(fs, write)
    await fs.movers.restore(fs.key(FILM))


async def _act(fs: Rooms, act: Callable[[Kernel], None]) -> None:
    try:
        await trio.to_thread.run_sync(act, kernel_of(fs))
    except OSError as error:
        if error.errno != 5:
            raise
        raise Killed from error  # an operation that dies answers EIO


@dataclass(frozen=True)
class Case:
    """What is done, whether the file has moved before, and what the mount may show afterwards: by name."""

    act: Callable[[Rooms], Awaitable[None]]
    moved: bool
    outcomes: tuple[dict[str, bytes], ...]


BOTH = {FILM: CONTENT, "other": OTHER}
CASES = (
    Case(_move, False, (BOTH,)),
    Case(_restore, True, (BOTH,)),
    Case(_write_and_restore, True, (BOTH,)),
    Case(_rename, True, (BOTH, {NEW: CONTENT, "other": OTHER})),
    Case(_rename_over, True, (BOTH, {"other": CONTENT})),
    Case(_be_renamed_over, True, (BOTH, {FILM: OTHER})),
    Case(_delete, True, (BOTH, {"other": OTHER})),
)


async def shown(fs: Rooms) -> dict[str, bytes]:
    """Every file of the mount, and its bytes."""
    names: list[str] = []

    def walk(kernel: Kernel, folder: str) -> Iterator[str]:
        for name, _ in kernel.entries(folder):
            path = f"{folder}/{name}".lstrip("/")
            if name not in {".", ".."}:
                if stat.S_ISDIR(kernel.stat(path).mode):
                    yield from walk(kernel, path)
                else:
                    yield path

    names = await trio.to_thread.run_sync(lambda: list(walk(kernel_of(fs), "")))
    return {name: await content(fs, name) for name in names}


def not_in_peace(tmp_path: Path) -> None:
    """The end of those who are killed: nobody has closed the index."""
    with closing(sqlite3.connect(tmp_path / "ssd" / "index.sqlite")) as index, index:
        index.execute("INSERT OR REPLACE INTO meta VALUES ('open', x'')")


async def _try(tmp_path: Path, case: Case, at: int) -> Killer:
    """Do it, killed at a moment, and begin again."""
    killer = Killer(at)
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        put(fs, "other", OTHER)
        if case.moved:
            await fs.moved(FILM)
        numbers = {(await seen(fs, name)).ino: name for name in BOTH}
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            killer.watch(fs, patch)
            await case.act(fs)
    not_in_peace(tmp_path)
    async with rooms(tmp_path) as fs:
        await fs.movers.round()
        assert not [kept for kept in fs.folder.glob(f"{RESERVED}/*") if kept.stat().st_size]
        await fs.movers.kept.tidy(MEDIA)
        found = await shown(fs)
        assert found in case.outcomes, (at, sorted(found))
        for name, data in found.items():
            assert BOTH[numbers[(await seen(fs, name)).ino]] == data
        assert not fs.movers.problems()
        assert all(entry.home is None or entry.home.phase is Phase.AWAY for entry in fs.store.moves.all())
        for entry in fs.store.moves.all():
            await fs.movers.restore(entry.key)
        at_source = {path: (fs.folder / path).read_bytes() for path in found}
        assert at_source == found
        held = {f"files/{entry.key.source}/{entry.key.path}" for entry in fs.store.inventory().entries}
        files = {str(path.relative_to(tmp_path / "ssd")) for path in (tmp_path / "ssd/files").rglob("*")}
        assert {name for name in files if (tmp_path / "ssd" / name).is_file()} == held
        assert not [*fs.folder.glob(f"{RESERVED}/*")]
    return killer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.act.__name__.strip("_"))
async def test_killed_before_or_after_any_step_nothing_is_lost(
    case: Case, tmp_path: Path, expected_warnings: list[str]
) -> None:
    expected_warnings.append("")
    moments = (await _try(tmp_path / "whole", case, -1)).moments
    assert moments
    for at in range(moments):
        killer = await _try(tmp_path / str(at), case, at)
        assert killer.dead


async def test_a_hard_linked_file_that_was_replaced_when_it_died_loses_its_name(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        os.link(put(fs, "other", OTHER), fs.folder / "its other name")
        key = await fs.moved(FILM)
        there = await fs.movers._homes.look(fs.key("other"))
        assert there is not None
        await fs.store.moves.replacing(key, there.file.fingerprint)
        await fs.store.moves.rename(key, fs.key("other"))
    async with rooms(tmp_path) as fs:
        await fs.movers.round()
        assert {path.name for path in fs.folder.iterdir() if path.is_file()} == {"its other name"}
        assert (fs.folder / "its other name").stat().st_nlink == 1
        assert await shown(fs) == {"other": CONTENT, "its other name": OTHER}
        assert [entry.home.phase for entry in fs.store.moves.all() if entry.home is not None] == [Phase.AWAY]
