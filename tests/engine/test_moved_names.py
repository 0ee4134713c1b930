"""Moved files that get other names, or lose theirs, while something else happens to them or to the folders above."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cachefs.cache import moved_bytes
from cachefs.cache.places import Stays
from cachefs.fs.found import RESERVED
from cachefs.model import FileKey
from tests.engine.fskit import Kernel, Rooms, rooms
from tests.engine.test_moving import CONTENT, FILM, MEETINGS, NEW, OTHER, TARGET, content, kernel_of, put, seen, shown

STRANGER = b"somebody else's"


async def call(fs: Rooms, function: Callable[[Kernel], object]) -> None:
    await trio.to_thread.run_sync(function, kernel_of(fs))


def before(owner: Any, name: str, act: Callable[[], Awaitable[object]], patch: pytest.MonkeyPatch) -> None:
    """``act`` once, before the first call of this method."""
    done: list[bool] = []
    real = getattr(owner, name)

    async def acting(*args: Any, **more: Any) -> Any:
        if not done:
            done.append(True)
            await act()
        return await real(*args, **more)

    patch.setattr(owner, name, acting)


@pytest.mark.parametrize("what", MEETINGS)
async def test_a_change_before_the_first_look_at_what_comes_home_is_done_when_it_says_so(
    tmp_path: Path, what: str
) -> None:
    """The SSD's file was opened, and its state not yet seen: the change leaves no trace in what is compared later."""
    meeting = MEETINGS[what]
    async with rooms(tmp_path) as fs:
        key = await meeting.prepare(fs)
        done: list[bool] = []
        real = fs.store.on_ssd

        async def on_ssd(function: Callable[..., Any], *args: Any) -> Any:
            if function is moved_bytes.state_of and not done:
                done.append(True)
                await call(fs, meeting.change)
            return await real(function, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fs.store, "on_ssd", on_ssd)
            await fs.movers.restore(key)
        assert done
        await meeting.must_be_done(fs)


async def test_a_file_that_is_renamed_on_its_way_home_comes_home_once(tmp_path: Path) -> None:
    """Both ways lead through the one inode that its source keeps."""
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        number = (await seen(fs, FILM)).ino
        async with trio.open_nursery() as nursery:

            async def meet() -> None:
                await call(fs, lambda kernel: kernel.rename(FILM, NEW))
                nursery.start_soon(fs.movers.restore, fs.key(NEW))
                await trio.testing.wait_all_tasks_blocked(0.05)

            with pytest.MonkeyPatch.context() as patch:
                before(fs.movers.carrying, "bring", meet, patch)
                await fs.movers.restore(key)
        assert await shown(fs) == {NEW: CONTENT}
        assert (fs.folder / NEW).read_bytes() == CONTENT
        assert (await seen(fs, NEW)).ino == number
        assert not (fs.folder / RESERVED).exists()


@pytest.mark.parametrize(
    "now", [CONTENT[:10], CONTENT[::-1], CONTENT * 2], ids=["truncated", "written", "written and longer"]
)
async def test_a_file_that_is_written_on_its_way_home_is_taken_for_no_failing_disk(tmp_path: Path, now: bytes) -> None:
    """It ends early, or has other bytes than those that were moved: it is carried again, as it is now."""
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        copy = fs.store.file_of(fs.store.moves.all()[0])

        async def write() -> None:
            async with fs.routing.turns.changing(lambda: (key,), content=True):
                await trio.Path(copy).write_bytes(now)

        with pytest.MonkeyPatch.context() as patch:
            before(fs.movers.carrying, "bring", write, patch)
            await fs.movers.restore(key)
        assert (fs.folder / FILM).read_bytes() == now
        assert fs.movers.problems() == ()


async def test_a_file_that_has_another_name_when_its_way_home_begins_stays_on_the_ssd(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        with pytest.MonkeyPatch.context() as patch:
            before(fs.store, "on_ssd", lambda: call(fs, lambda kernel: kernel.rename(FILM, NEW)), patch)
            await fs.movers.restore(key)
        assert await shown(fs) == {NEW: CONTENT}
        assert fs.store.moves.get(fs.key(NEW)) is not None


FOLDER_CHANGES: dict[str, tuple[Callable[[Kernel], object], str]] = {
    "the folder": (lambda kernel: kernel.rename("P/d", "P/e"), "P/e/f"),
    "the one above": (lambda kernel: kernel.rename("P", "Q"), "Q/d/f"),
    "exchange": (lambda kernel: kernel.rename("P/d", "P/x", 2), "P/x/f"),
}


@pytest.mark.parametrize("what", FOLDER_CHANGES)
@pytest.mark.parametrize("old", ["elsewhere/f", "P/d/old"])
async def test_a_moved_file_goes_along_with_the_folder_that_it_is_being_renamed_into(
    tmp_path: Path, what: str, old: str
) -> None:
    change, left = FOLDER_CHANGES[what]
    async with rooms(tmp_path) as fs:
        (fs.folder / "P/d").mkdir(parents=True)
        (fs.folder / "P/x").mkdir()
        put(fs, old, CONTENT)
        await fs.moved(old)
        for folder in ("P/d", "P/x"):
            await fs.node(folder)
        async with trio.open_nursery() as nursery:

            async def meet() -> None:
                nursery.start_soon(call, fs, change)
                await trio.testing.wait_all_tasks_blocked(0.05)

            with pytest.MonkeyPatch.context() as patch:
                before(fs.store.moves, "rename", meet, patch)
                await call(fs, lambda kernel: kernel.rename(old, "P/d/f"))
        assert await shown(fs) == {left: CONTENT}
        for moved in fs.store.moves.all():
            await fs.movers.restore(moved.key)
        assert (fs.folder / left).read_bytes() == CONTENT
        found = [path for path in fs.folder.rglob("*") if path.is_file()]
        assert found == [fs.folder / left]


async def test_a_moved_file_is_found_under_its_new_folder_by_whoever_waited_for_that_to_be_renamed(
    tmp_path: Path,
) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, "P/d/g", OTHER)
        put(fs, "elsewhere/f", CONTENT)
        await fs.moved("elsewhere/f")
        folder, new_folder = await fs.node("elsewhere"), await fs.node("P/d")
        renaming, go_on = trio.Event(), threading.Event()

        def gate(name: str) -> None:
            if name == "carry_out":
                trio.from_thread.run_sync(renaming.set)
                go_on.wait(20)

        fs.source.gate = gate
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, fs, lambda kernel: kernel.rename("P/d", "P/e"))
            await renaming.wait()
            nursery.start_soon(fs.changes.rename, folder, "f", new_folder, "f", 0)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert fs.store.moves.get(fs.key("elsewhere/f")) is not None, "it waits"
            go_on.set()
        assert await shown(fs) == {"P/e/g": OTHER, "P/e/f": CONTENT}


async def test_a_folder_is_not_removed_by_a_name_that_the_one_above_has_no_more(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        (fs.folder / "P/d").mkdir(parents=True)
        above = await fs.node("P")
        async with trio.open_nursery() as nursery:

            async def remove() -> None:
                with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                    await fs.changes.rmdir(above, "d")

            async def meet() -> None:
                nursery.start_soon(remove)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert (fs.folder / "P/d").is_dir(), "it waits"

            with pytest.MonkeyPatch.context() as patch:
                before(fs.source, "change", meet, patch)
                await call(fs, lambda kernel: kernel.rename("P", "Q"))
        assert (fs.folder / "Q/d").is_dir()
        await fs.changes.rmdir(above, "d")
        assert not (fs.folder / "Q/d").exists()


async def test_a_folder_is_renamed_although_somebody_changes_a_moved_file_in_it_just_now(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key = await fs.moved(FILM)
        async with trio.open_nursery() as nursery, fs.routing.turns.changing(lambda: (key,), content=False):
            nursery.start_soon(call, fs, lambda kernel: kernel.rename("Films", "Old films"))
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert await shown(fs) == {"Old films/Heat.mkv": CONTENT}


async def test_a_folder_that_is_to_be_renamed_waits_for_nobody_who_came_later(tmp_path: Path) -> None:
    """Else those who change a file in it again and again would keep it, and the folder above, from everybody."""
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        put(fs, TARGET, OTHER)
        turns, came = fs.routing.turns, list[str]()

        async def change(path: str) -> None:
            async with turns.changing(lambda: (fs.key(path),), content=False):
                came.append(path)

        async def rename(old: str, new: str) -> None:
            async with turns.renaming(lambda: (fs.key(old), fs.key(new))):
                came.append(old)

        async with trio.open_nursery() as nursery, turns.changing(lambda: (fs.key(FILM),), content=False):
            for folder in ("Films", "Films/x"):  # two that wait do not wait for each other
                nursery.start_soon(rename, folder, "y")
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(change, TARGET)
            await trio.testing.wait_all_tasks_blocked()
            assert came == ["Films/x"], "nothing happens below that"
            nursery.start_soon(change, "Elsewhere/f")
            await trio.testing.wait_all_tasks_blocked()
            assert came == ["Films/x", "Elsewhere/f"]
        assert came == ["Films/x", "Elsewhere/f", "Films", TARGET]


@pytest.mark.parametrize("coming", ["of its source", "moved"])
async def test_what_is_renamed_over_a_moved_file_never_goes_over_a_stranger_in_its_place(
    tmp_path: Path, coming: str
) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        await fs.moved(FILM)
        put(fs, TARGET, OTHER)
        if coming == "moved":
            await fs.moved(TARGET)
        (fs.folder / FILM).write_bytes(STRANGER)
        if coming == "moved":
            await call(fs, lambda kernel: kernel.rename(TARGET, FILM))
            assert await shown(fs) == {FILM: OTHER}
        else:
            with pytest.raises(FileExistsError):
                await call(fs, lambda kernel: kernel.rename(TARGET, FILM))
            assert await shown(fs) == {FILM: CONTENT, TARGET: OTHER}
        assert (fs.folder / FILM).read_bytes() == STRANGER


async def test_two_files_of_one_number_never_move_both(tmp_path: Path) -> None:
    """Where no lease is granted a file that has moved is only deleted, and its number given to the next one."""
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        put(fs, "other", OTHER)
        await fs.moved(FILM)
        (moved,) = fs.store.moves.all()
        await fs.published("other")
        await fs.give_attributes("other")
        copy = fs.store.get(fs.key("other"))
        assert copy is not None
        same = replace(moved, source_file=replace(moved.source_file, inode=copy.source_file.inode))
        fs.store._shelf.holdings.update(same)
        with pytest.raises(Stays, match="already has its inode number"):
            await fs.movers.move(fs.key("other"))
        assert (fs.folder / "other").read_bytes() == OTHER


async def test_a_source_that_keeps_no_inode_is_not_empty_when_its_last_file_has_moved(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, "film.mkv", CONTENT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cachefs.fs.homes._lease", lambda number: False)
            key = await fs.moved("film.mkv")
        (kept,) = (fs.folder / RESERVED).iterdir()
        assert kept.stat().st_size == 0
        await fs.source.probe_once()
        assert fs.source.online
        assert await content(fs, "film.mkv") == CONTENT
        await fs.movers.restore(key)
        assert [path.name for path in fs.folder.iterdir()] == ["film.mkv"]
        assert (fs.folder / "film.mkv").read_bytes() == CONTENT


async def test_what_took_the_place_of_the_file_on_its_way_home_is_not_taken_for_it(tmp_path: Path) -> None:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        key: FileKey = await fs.moved(FILM)
        (kept,) = (fs.folder / RESERVED).iterdir()

        async def meet() -> None:
            kept.rename(tmp_path / "away")
            kept.write_bytes(STRANGER)

        with pytest.MonkeyPatch.context() as patch:
            before(fs.movers._homes, "arrive", meet, patch)
            with pytest.raises(OSError, match=r"not in .* any more"):
                await fs.movers.restore(key)
        assert await content(fs, FILM) == CONTENT
        assert not (fs.folder / FILM).exists()
