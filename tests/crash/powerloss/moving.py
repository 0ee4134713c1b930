"""What is recorded of move mode: files that move to the SSD, are changed there, and come home, over several starts.

Runs in a process of its own, with a root as its argument that holds the source and the cache folder. Whoever owns the
source's files has made them durable, but for one that is only renamed over a moved file. ``mark`` writes into the
recording what is acknowledged, or about to be done.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs.cache.filecopy import FileCopy, Outcome, Share
from cachefs.cache.store import EvictResult
from cachefs.fs.found import RESERVED
from tests.crash.powerloss.house import ATTRIBUTE, FOLDER, OUTSIDE, SSD, data_of, house
from tests.crash.powerloss.replay import lose_index
from tests.crash.powerloss.worlds import ANY, Change, encode
from tests.engine.fskit import Rooms

FILM = "film.mkv"
PILOT = "Show/Season 1/a.mkv"
SECOND = "Show/Season 1/b.mkv"
RENAMED = "Other/new.mkv"
STAYS = "stays.mkv"
REPLACED = "Other/replaced.mkv"
COMING = "Show/coming.mkv"

KILLED = 9
"""What the shim ends a process with."""


class Recorder:
    """Does things in a house and says so."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._shim = ctypes.CDLL(None)

    def _mark(self, change: Change) -> None:
        self._shim.crash_mark(encode(change))

    def may(self, files: Mapping[str, int | None]) -> None:
        self._mark(Change(files, sure=False))

    def sure(self, files: Mapping[str, int | None]) -> None:
        self._mark(Change(files, sure=True))

    def kill_at(self, folder: str, times: int = 1) -> None:
        """Where the names in this folder would be made durable."""
        self._shim.crash_kill_at(os.fsencode(self._root / folder), times)

    def put(self, path: str, version: int, *, durable: bool = True) -> None:
        """A new file of the source, by somebody who makes it ``durable`` before it gets its name."""
        *above, name = f"{FOLDER}/{path}".split("/")
        for depth in range(3, len(above) + 1):
            folder = self._root.joinpath(*above[:depth])
            if not folder.is_dir():
                folder.mkdir()
                keep_names(folder.parent)
        at = self._root / OUTSIDE / name
        number = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        os.pwrite(number, data_of(version), 0)
        os.setxattr(number, ATTRIBUTE, b"%d" % version)
        os.utime(number, ns=(version, version))
        if durable:
            os.fsync(number)
        os.close(number)
        known = version if durable else ANY
        self.may({path: known})
        at.rename(self._root.joinpath(*above, name))
        keep_names(self._root.joinpath(*above))
        keep_names(at.parent)
        self.sure({path: known})

    async def move(self, fs: Rooms, *paths: str) -> None:
        for path in paths:
            if fs.store.get(fs.key(path)) is None:
                await copy(fs, path)
            await fs.movers.move(fs.key(path))
            assert fs.store.moves.get(fs.key(path)) is not None

    async def restore(self, fs: Rooms, path: str, *, evict: bool = False) -> None:
        await fs.movers.restore(fs.key(path))
        assert fs.store.moves.get(fs.key(path)) is None
        if evict:
            await self.evict(fs, path)

    async def evict(self, fs: Rooms, path: str) -> None:
        assert await fs.store.evict(fs.key(path)) is EvictResult.EVICTED
        await fs.store.remove_doomed()

    async def rename(self, fs: Rooms, old: str, new: str, version: int) -> None:
        """Through the mount, by somebody who makes it durable."""
        files = {old: None, new: version}
        self.may(files)
        above = [await fs.node(path.rpartition("/")[0]) for path in (old, new)]
        await fs.changes.rename(above[0], old.rpartition("/")[2], above[1], new.rpartition("/")[2], 0)
        for folder in above:
            await fs.changes.fsync_folder(folder)
        self.sure(files)

    async def unlink(self, fs: Rooms, path: str) -> None:
        folder, _, name = path.rpartition("/")
        above = await fs.node(folder)
        self.may({path: None})
        await fs.changes.unlink(above, name)
        await fs.changes.fsync_folder(above)
        self.sure({path: None})


def keep_names(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(number)
    os.close(number)


async def copy(fs: Rooms, path: str) -> None:
    """As the copiers do."""
    copying = FileCopy(fs.store, fs.union.files, await fs.begun(path), lambda: Share(None, 1), lambda: False)
    assert await copying.run() is Outcome.PUBLISHED


async def first_life(fs: Rooms, at: Recorder) -> None:
    """There, home, and there again, with and without a copy that stays."""
    await at.move(fs, FILM, PILOT)
    await at.restore(fs, PILOT, evict=True)
    await at.restore(fs, FILM)
    await at.move(fs, FILM, PILOT, SECOND)


async def second_life(fs: Rooms, at: Recorder) -> None:
    """Moved files that are renamed, also over a file of the source, or deleted; one that a file of the source
    replaces."""
    at.put(RENAMED, 4)
    await at.rename(fs, SECOND, "Show/c.mkv", 3)
    await at.rename(fs, "Show/c.mkv", RENAMED, 3)
    await at.unlink(fs, FILM)
    at.put(COMING, 5, durable=False)
    await at.rename(fs, COMING, PILOT, 5)
    at.put(FILM, 6)
    await at.move(fs, FILM, PILOT)


async def killed_leaving(fs: Rooms, at: Recorder) -> None:
    """It is at the source no more, and that is not durable."""
    at.kill_at(f"{FOLDER}/{RESERVED}")
    await at.move(fs, STAYS)


async def killed_returning(fs: Rooms, at: Recorder) -> None:
    at.kill_at(FOLDER, times=2)  # the first time is a look, before anything is brought
    await at.restore(fs, STAYS)


async def killed_replacing(fs: Rooms, at: Recorder) -> None:
    """A moved file has the name of another one, whose end is not durable."""
    at.put(REPLACED, 8)
    at.kill_at(f"{FOLDER}/Other")
    await at.rename(fs, PILOT, REPLACED, 5)


async def killed_yielding(fs: Rooms, at: Recorder) -> None:
    at.put(COMING, 9)
    at.kill_at(f"{FOLDER}/Other")
    await at.rename(fs, COMING, REPLACED, 9)


async def after_leaving(fs: Rooms, at: Recorder) -> None:
    """Whoever renames makes it durable by himself, also when cachefs was killed meanwhile."""


async def after_returning(fs: Rooms, at: Recorder) -> None:
    assert fs.store.moves.get(fs.key(STAYS)) is None
    await at.evict(fs, STAYS)


async def after_replacing(fs: Rooms, at: Recorder) -> None:
    at.sure({PILOT: None, REPLACED: 5})


async def after_yielding(fs: Rooms, at: Recorder) -> None:
    for folder in ("Other", "Show"):
        await fs.changes.fsync_folder(await fs.node(folder))
    at.sure({COMING: None, REPLACED: 9})


async def lost_index(fs: Rooms, at: Recorder) -> None:
    """What only the labels know comes home."""
    await at.restore(fs, RENAMED, evict=True)
    await at.restore(fs, FILM, evict=True)
    assert not fs.store.moves.all()


async def stock(_: Rooms, at: Recorder) -> None:
    for version, path in enumerate((FILM, PILOT, SECOND), 1):
        at.put(path, version)
    at.put(STAYS, 7)


Act = Callable[[Rooms, Recorder], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Life:
    """One start. What it does, and whether it is killed over that."""

    act: Act
    killed: bool = False


LIVES = (
    Life(stock),
    Life(first_life),
    Life(second_life),
    Life(killed_leaving, killed=True),
    Life(after_leaving),
    Life(killed_returning, killed=True),
    Life(after_returning),
    Life(killed_replacing, killed=True),
    Life(after_replacing),
    Life(killed_yielding, killed=True),
    Life(after_yielding),
    Life(lost_index),
)


async def live(life: Life, root: Path) -> None:
    if life.act is lost_index:
        lose_index(root / SSD)
    async with house(root) as fs:
        await fs.movers.settle_all(60.0)
        await life.act(fs, Recorder(root))


def main(root: Path) -> None:
    """Each life in a process of its own, since some are killed."""
    apart = multiprocessing.get_context("fork")
    for life in LIVES:
        process = apart.Process(target=trio.run, args=(live, life, root))
        process.start()
        process.join()
        if process.exitcode != (KILLED if life.killed else 0):
            sys.exit(f"{life.act.__name__} ended with {process.exitcode}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
