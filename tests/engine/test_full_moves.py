"""Files that move, are changed and come home while the SSD or the source fills up, at every step; and room again."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.cache import moved_disk
from cachefs.cache.ledger import Ledger
from cachefs.cache.places import Stays
from cachefs.cache.verify import Verification, Wish
from cachefs.errors import CacheError, IndexFull
from cachefs.fs.found import RESERVED
from cachefs.model import Phase
from tests.crash.powerloss.replay import quick_folder
from tests.engine.cachekit import listed
from tests.engine.fskit import Kernel, Rooms, rooms
from tests.engine.test_moving import BOTH, CONTENT, FILM, OTHER, kernel_of, put, shown

Act = Callable[[Rooms], Awaitable[None]]

GIVES_ROOM = {"remove", "remove_published", "remove_partial", "prune"}
"""Of the SSD's steps, those that a full file system still takes."""
AT_SOURCE = {"make_room", "write", "sync_data", "set_attributes", "open_one", "_arrive", "_take_away"}


@dataclass
class Full:
    """There is no room from the ``at``-th step that takes some on, until there is. ``ssd``, or the source."""

    ssd: bool
    at: int = -1
    steps: int = 0
    refused: int = 0

    @contextmanager
    def over(self, fs: Rooms) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if self.ssd:
                shelf = fs.store._shelf
                patch.setattr(shelf, "on_disk", partial(self._on_disk, shelf.on_disk))
                patch.setattr(shelf.ledger, "call", partial(self._index, shelf.ledger, shelf.ledger.call))
            else:
                patch.setattr(fs.source, "gate", self._gate)
            yield

    async def _on_disk(self, run: Callable[..., Awaitable[object]], function: Any, *args: Any) -> object:
        name = getattr(function, "__name__", "")
        takes_room = getattr(function, "__module__", "") in ("cachefs.cache.folder", moved_disk.__name__)
        if takes_room and name not in GIVES_ROOM and not self._step():
            if name in ("relabel", "label"):
                return False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await run(function, *args)

    async def _index(self, ledger: Ledger, call: Callable[..., Awaitable[object]], *args: Any, **named: Any) -> object:
        if not self._step():
            ledger.full = True
            raise IndexFull("the index cannot be used: database or disk is full")
        return await call(*args, **named)

    def _gate(self, name: str) -> None:
        if name in AT_SOURCE and not self._step():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _step(self) -> bool:
        self.steps += 1
        if self.at < 0 or self.steps <= self.at:
            return True
        self.refused += 1
        return False


async def _move(fs: Rooms) -> None:
    await fs.movers.move(fs.key(FILM))


async def _restore(fs: Rooms) -> None:
    await fs.movers.restore(fs.key(FILM))


def _by(act: Callable[[Kernel], None]) -> Act:
    async def acted(fs: Rooms) -> None:
        await trio.to_thread.run_sync(act, kernel_of(fs))

    return acted


def _write(kernel: Kernel) -> None:
    handle = kernel.open(FILM, os.O_RDWR)
    try:
        kernel.write(handle, b"new bytes", 0)
    finally:
        kernel.close(handle)


WRITTEN = b"new bytes" + CONTENT[9:]


def _rename_elsewhere(kernel: Kernel) -> None:
    kernel.rename(FILM, "Other folder/moved.mkv")


@dataclass(frozen=True)
class Case:
    """``after``: what the mount shows when it is done; until then it shows what it did."""

    name: str
    act: Act
    moved: bool
    after: dict[str, bytes]
    always: bool = False
    """A full SSD is no reason to refuse it."""


CASES = (
    Case("move", _move, False, BOTH),
    Case("restore", _restore, True, BOTH),
    Case("write", _by(_write), True, {FILM: WRITTEN, "other": OTHER}),
    Case("rename", _by(_rename_elsewhere), True, {"Other folder/moved.mkv": CONTENT, "other": OTHER}),
    Case("rename over", _by(lambda kernel: kernel.rename(FILM, "other")), True, {"other": CONTENT}),
    Case("be renamed over", _by(lambda kernel: kernel.rename("other", FILM)), True, {FILM: OTHER}),
    Case("delete", _by(lambda kernel: kernel.unlink(FILM)), True, {"other": OTHER}, always=True),
)


async def _refused(fs: Rooms, case: Case) -> bool:
    """Do it; whether it was refused, which must be for want of room and say so."""
    try:
        await case.act(fs)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    except (Stays, CacheError):
        if case.name not in ("move", "restore"):
            raise
    else:
        return False
    return True


async def _try(tmp_path: Path, case: Case, full: Full, *, restart: bool) -> Full:
    async with rooms(tmp_path) as fs:
        put(fs, FILM, CONTENT)
        put(fs, "other", OTHER)
        (fs.folder / "Other folder").mkdir()
        await fs.published(FILM)
        await fs.give_attributes(FILM)
        await fs.published("other")
        if case.moved:
            await fs.movers.move(fs.key(FILM))
        with full.over(fs):
            refused = await _refused(fs, case)
            assert not (refused and case.always)
            assert await shown(fs) == (BOTH if refused else case.after), "nothing is half done"
        assert not refused or not _at_source_too_much(fs)
        if not restart:
            await _goes_on(fs, case, refused)
    if restart:
        async with rooms(tmp_path) as fs:
            await _goes_on(fs, case, refused)
    return full


def _at_source_too_much(fs: Rooms) -> list[Path]:
    """What is kept of moved files takes no room."""
    return [path for path in fs.folder.glob(f"{RESERVED}/*") if path.stat().st_size]


async def _goes_on(fs: Rooms, case: Case, refused: bool) -> None:
    """There is room: all is as before, it can be done, and everything can come home."""
    await fs.movers.round()
    assert await shown(fs) == (BOTH if refused else case.after)
    if refused:
        await case.act(fs)
    assert await shown(fs) == case.after
    assert not fs.movers.problems()
    assert all(entry.home is None or entry.home.phase is Phase.AWAY for entry in fs.store.moves.all())
    await _is_sound(fs)
    for entry in fs.store.moves.all():
        await fs.movers.restore(entry.key)
    assert {path: (fs.folder / path).read_bytes() for path in case.after} == case.after
    assert not [*fs.folder.glob(f"{RESERVED}/*")]


async def _is_sound(fs: Rooms) -> None:
    await fs.store.remove_doomed()
    report = await Verification(fs.store, fs.union.files_asked, fs.movers, Wish(None, True, False), lambda: None).run()
    assert report.sound, report.findings


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder on a disk that syncs at once: each step is tried anew."""
    with quick_folder() as folder:
        yield folder


@pytest.mark.parametrize("restart", [False, True], ids=["goes on", "restart"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_ssd_that_fills_up_at_any_step_leaves_nothing_half_done(
    case: Case, restart: bool, place: Path, expected_warnings: list[str]
) -> None:
    expected_warnings += ["the cache folder .* fails: copying pauses"]
    steps = (await _try(place / "whole", case, Full(ssd=True), restart=restart)).steps
    assert steps
    for at in range(steps):
        full = await _try(place / str(at), case, Full(ssd=True, at=at), restart=restart)
        assert full.refused


@pytest.mark.parametrize("restart", [False, True], ids=["goes on", "restart"])
async def test_a_source_that_fills_up_at_any_step_keeps_nothing_of_what_cannot_come_home(
    restart: bool, place: Path
) -> None:
    case = CASES[1]
    steps = (await _try(place / "whole", case, Full(ssd=False), restart=restart)).steps
    assert steps > 3
    for at in range(steps):
        full = await _try(place / str(at), case, Full(ssd=False, at=at), restart=restart)
        assert full.refused


async def _copy(place: Path, full: Full) -> Full:
    async with rooms(place) as fs:
        put(fs, FILM, CONTENT)
        with full.over(fs):
            try:
                await fs.published(FILM)
            except CacheError:
                await fs.store.remove_doomed()
                assert fs.store.get(fs.key(FILM)) is None
                assert listed(place / "ssd") == set(), "what was copied so far makes room"
            assert await shown(fs) == {FILM: CONTENT}
        await _is_sound(fs)
        if fs.store.get(fs.key(FILM)) is None:
            await fs.published(FILM)
        assert await shown(fs) == {FILM: CONTENT}
        await _is_sound(fs)
    return full


async def test_an_ssd_that_fills_up_at_any_step_of_a_copy_keeps_no_part_of_it(place: Path) -> None:
    steps = (await _copy(place / "whole", Full(ssd=True))).steps
    assert steps > 5
    for at in range(steps):
        full = await _copy(place / str(at), Full(ssd=True, at=at))
        assert full.refused
