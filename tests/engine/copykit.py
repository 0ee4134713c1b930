"""A source on a temporary folder, as the copiers see it, that can be held, watched and made to fail."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, TypeVarTuple, cast

import trio

from cachefs.cache.copying import read_chunk
from cachefs.cache.populate import Copiers, CopySettings
from cachefs.cache.store import Store
from cachefs.descriptors import Descriptor
from cachefs.model import (
    CacheEntry,
    EntryState,
    FileKey,
    Fingerprint,
    InterestKind,
    Plan,
    PlannedCopy,
    PlannedEviction,
    SourceFile,
    SourceName,
    Want,
)
from tests.engine.cachekit import key

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Read:
    """One chunk that was read."""

    start: int
    length: int


async def _at_once(read: Read) -> None:
    await trio.lowlevel.checkpoint()


@dataclass(slots=True)
class FakeSource:
    """``before_read`` is awaited before each chunk; ``errors`` are raised by every call for that path."""

    root: Path
    errors: dict[str, OSError] = field(default_factory=dict)
    before_read: Callable[[Read], Awaitable[None]] = _at_once
    reads: list[Read] = field(default_factory=list)
    stats: list[str] = field(default_factory=list)
    last_read: float = float("-inf")

    def write(self, path: str, data: bytes) -> SourceFile:
        """Make or replace a file."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return self.look(path)

    def look(self, path: str) -> SourceFile:
        found = os.stat(self.root / path)
        fingerprint = Fingerprint(found.st_size, found.st_mtime_ns, found.st_ino, "uuid")
        return SourceFile(key(path), fingerprint, found.st_ino)

    async def stat(self, key: FileKey, /) -> SourceFile:
        self._fail(key)
        self.stats.append(key.path)
        return await trio.to_thread.run_sync(self.look, key.path)

    async def open(self, key: FileKey, /) -> Descriptor:
        self._fail(key)
        return Descriptor(await trio.to_thread.run_sync(os.open, self.root / key.path, os.O_RDONLY))

    async def list_folder(self, key: FileKey, /) -> list[str]:
        self._fail(key)
        return await trio.to_thread.run_sync(os.listdir, self.root / key.path)

    async def run(self, source: SourceName, function: Callable[[*Ts], T], /, *args: *Ts) -> T:
        called: object = function
        if called is read_chunk:
            _, start, length = cast(tuple[Descriptor, int, int], args)
            read = Read(start, length)
            await self.before_read(read)
            self.reads.append(read)
        return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)

    def reading_since(self, source: SourceName, /) -> float:
        return self.last_read

    def _fail(self, key: FileKey) -> None:
        if key.path in self.errors:
            raise self.errors[key.path]


class Gate:
    """Holds every read from the ``after``-th on until it is opened; tells when one stands before it."""

    def __init__(self, after: int = 0) -> None:
        self.reached = trio.Event()
        self._left = after
        self._open = trio.Event()

    async def __call__(self, read: Read) -> None:
        self._left -= 1
        if self._left < 0:
            self.reached.set()
            await self._open.wait()

    def open(self) -> None:
        self._open.set()


def plan_of(
    *copies: SourceFile,
    kind: InterestKind = InterestKind.ON_DECK,
    evictions: tuple[PlannedEviction, ...] = (),
    kept: tuple[SourceFile, ...] = (),
) -> Plan:
    return Plan(
        1.0,
        copies=tuple(PlannedCopy(file, kind, "next on deck") for file in copies),
        evictions=evictions,
        kept=tuple(Want(file, kind, 0, "next on deck", 0.0) for file in kept),
    )


def eviction(path: str, *, for_space: bool) -> PlannedEviction:
    return PlannedEviction(key(path), 10, "watched by Anna", for_space)


@asynccontextmanager
async def working(
    store: Store,
    source: FakeSource,
    settings: CopySettings | None = None,
    now: Callable[[], float] = lambda: 1e9,
    bring_home: Callable[[FileKey], Awaitable[None]] | None = None,
) -> AsyncIterator[Copiers]:
    """Copiers at work inside the block."""
    copiers = Copiers(store, source, settings or CopySettings(workers=1), bring_home, now=now)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copiers.run)
        yield copiers
        nursery.cancel_scope.cancel()


async def until(event: Callable[[], trio.Event], holds: Callable[[], object]) -> None:
    """Return when ``holds``, looking again at every event; fail when it takes too long."""
    with trio.fail_after(20):
        while not holds():
            await event().wait()


async def until_cached(store: Store, *paths: str) -> list[CacheEntry]:
    def entries() -> list[CacheEntry]:
        found = [store.get(key(path)) for path in paths]
        return [entry for entry in found if entry is not None and entry.state is EntryState.CACHED]

    await until(lambda: store.changed, lambda: len(entries()) == len(paths))
    return entries()


async def until_idle(copiers: Copiers) -> None:
    """Return when no copy is in flight."""
    await until(lambda: copiers.changed, lambda: not copiers.progress())
