"""What is recorded: a store from its first start on, through publications, evictions, restarts and a lost index.

Runs in a process of its own, with the cache folder as its argument. ``mark`` writes into the recording what is
acknowledged, or about to be taken back.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from cachefs.cache.copying import Attributes, write_attributes
from cachefs.cache.store import Limits, Refused, Store, Targets, open_store
from cachefs.model import Asked, CacheEntry, DropCause, FileKey, Fingerprint, Pin, SourceFile, SourceName
from tests.crash.content import content
from tests.crash.powerloss.facts import Fact, What

MEDIA = SourceName("Media")
SOURCES = {MEDIA: "/mnt/media"}
SEED = 1


class _Bytes:
    """An amount that does not depend on the disk."""

    def __init__(self, count: int) -> None:
        self._count = count

    def resolve(self, total_bytes: int, /) -> int:
        return self._count


LIMITS = Limits(max_size=_Bytes(1 << 40), min_free=_Bytes(0))


def size_of(path: str, version: int) -> int:
    """From a few bytes to a few pages."""
    return 1 + (len(path) * 2903 + version * 7919) % 30_000


def file_of(path: str, version: int) -> SourceFile:
    """As its source shows this version: the time says which it is."""
    return SourceFile(FileKey(MEDIA, path), Fingerprint(size_of(path, version), version, 1000, "uuid"), 1000)


def data_of(path: str, version: int) -> bytes:
    return content(SEED, path, version, size_of(path, version))


def _marker() -> Callable[[bytes], object]:
    marker: Callable[[bytes], object] = ctypes.CDLL(None).crash_mark
    return marker


class Recorder:
    """Does things with a store and says so."""

    def __init__(self, mark: Callable[[bytes], object]) -> None:
        self._mark = mark

    def mark(self, what: What, name: str = "", number: int = 0) -> None:
        self._mark(json.dumps(asdict(Fact(what, name, number)), default=lambda value: value.value).encode())

    async def write(self, store: Store, path: str, version: int, parts: int = 2) -> CacheEntry:
        """A copy with all its bytes, after a checkpoint in the middle."""
        file = file_of(path, version)
        entry = await store.begin(file, "because", now=100.0)
        assert not isinstance(entry, Refused), entry
        await self.fill(store, entry, version, parts)
        return entry

    async def fill(self, store: Store, entry: CacheEntry, version: int, parts: int, upto: int | None = None) -> None:
        data = data_of(entry.key.path, version)
        target = await store.open_partial(entry)
        assert target is not None
        step = max(1, -(-len(data) // parts))
        for number, start in enumerate(range(0, len(data), step)):
            if upto is not None and number >= upto:
                break
            piece = data[start : start + step]
            with target.use() as descriptor:
                os.pwrite(descriptor, piece, start)
            store.record(entry.id, start, start + len(piece))
            if number == 0:
                await store.checkpoint(entry)
                self.mark(What.COPYING, entry.key.path, len(piece))
        if upto is None:
            write_attributes(target, Attributes(0o644, os.geteuid(), os.getegid(), version, version, ()))
        target.close()

    async def publish(self, store: Store, path: str, version: int, parts: int = 2) -> None:
        entry = await self.write(store, path, version, parts)
        self.mark(What.NOT_COPYING, path)
        assert await store.publish(entry, file_of(path, version)) is not None
        self.mark(What.CACHED, path, version)

    async def drop(self, store: Store, *paths: str) -> None:
        for path in paths:
            self.mark(What.LEAVING, path)
        keys = frozenset(FileKey(MEDIA, path) for path in paths)
        await store.drop(Targets(keys=keys), DropCause.CHANGED)
        for path in paths:
            self.mark(What.GONE, path)

    async def evict(self, store: Store, path: str) -> None:
        self.mark(What.LEAVING, path)
        await store.evict(FileKey(MEDIA, path))
        self.mark(What.GONE, path)
        await store.remove_doomed()

    async def pin(self, store: Store, path: str) -> None:
        await store.add_pin(Pin(path, "", 5.0))
        self.mark(What.PINNED, path)

    async def unpin(self, store: Store, path: str) -> None:
        self.mark(What.UNPINNING, path)
        await store.remove_pin(path)
        self.mark(What.UNPINNED, path)

    async def ask(self, store: Store, path: str) -> None:
        store.wishes.add(Asked(FileKey(MEDIA, path), 6.0))
        await store.wishes.save()
        self.mark(What.ASKED, path)

    async def rename_asked(self, store: Store, old: str, new: str) -> None:
        self.mark(What.ASKING_NO_MORE, old)
        await store.renamed(FileKey(MEDIA, old), FileKey(MEDIA, new), exchanged=False)
        self.mark(What.ASKED, new)


async def first_life(ssd: Path, at: Recorder) -> None:
    async with open_store(ssd, LIMITS, SOURCES) as store:
        at.mark(What.TAG, "disk one", await store.device_tag("disk one"))
        await at.publish(store, "Show/Season 1/a.mkv", 1)
        await at.publish(store, "film.mkv", 2, parts=5)
        await at.pin(store, "film.mkv")
        await at.publish(store, "Show/Season 1/b.mkv", 3)
        await at.drop(store, "Show/Season 1/a.mkv")
        await at.publish(store, "Show/Season 1/a.mkv", 4)
        await at.evict(store, "Show/Season 1/b.mkv")
        await at.pin(store, "Show")
        await at.ask(store, "Other/half.mkv")
        entry = await store.begin(file_of("Other/half.mkv", 6), "because", now=100.0)
        assert not isinstance(entry, Refused)
        await at.fill(store, entry, 6, 4, upto=2)


async def second_life(ssd: Path, at: Recorder) -> None:
    """Goes on with the copy that the first left, and publishes under a folder's name and below a file's."""
    async with open_store(ssd, LIMITS, SOURCES) as store:
        at.mark(What.TAG, "disk two", await store.device_tag("disk two"))
        await at.publish(store, "Other/half.mkv", 6)
        await at.unpin(store, "film.mkv")
        await at.rename_asked(store, "Other/half.mkv", "Other/whole.mkv")
        await at.evict(store, "Show/Season 1/a.mkv")
        await at.publish(store, "Show/Season 1", 7)
        await at.drop(store, "Show/Season 1", "film.mkv")
        await store.remove_doomed()
        await at.publish(store, "Show/Season 1/c.mkv", 8)
        await at.publish(store, "film.mkv", 9)
        await store.note_watched(FileKey(MEDIA, "film.mkv"), 7.0)
        await store.set_reason(FileKey(MEDIA, "film.mkv"), "another")


async def lost_index(ssd: Path, at: Recorder) -> None:
    """A start without the index; before it, files that nobody knows."""
    at.mark(What.INDEX_LOST)
    for suffix in ("", "-wal", "-shm"):
        (ssd / f"index.sqlite{suffix}").unlink(missing_ok=True)
    (ssd / "partial" / "77").write_bytes(b"of nobody")
    async with open_store(ssd, LIMITS, SOURCES) as store:
        await at.publish(store, "Show/Season 1/d.mkv", 10)
        await at.evict(store, "film.mkv")


async def damaged_index(ssd: Path, at: Recorder) -> None:
    at.mark(What.INDEX_LOST)
    number = os.open(ssd / "index.sqlite", os.O_WRONLY)
    os.pwrite(number, b"this is no index any more", 0)
    os.close(number)
    async with open_store(ssd, LIMITS, SOURCES) as store:
        await at.publish(store, "film.mkv", 11)


async def main(ssd: Path, mark: Callable[[bytes], object]) -> None:
    at = Recorder(mark)
    lives: tuple[Callable[[Path, Recorder], Any], ...] = (first_life, second_life, lost_index, damaged_index)
    for life in lives:
        await life(ssd, at)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), _marker())
