"""What the tests of planning share: a library that counts what it is asked, a cache in memory, Plex's words by hand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from cachefs.cache.store import Limits, Store, open_store
from cachefs.cache.wishes import Wishes
from cachefs.config import PolicyConfig
from cachefs.errors import PlexUnreachable
from cachefs.fs.files import Files
from cachefs.fs.source import Source
from cachefs.fs.union import Union
from cachefs.model import (
    Asked,
    CacheEntry,
    EntryState,
    FileKey,
    Fingerprint,
    Interest,
    InterestKind,
    Inventory,
    LibraryFolder,
    Pin,
    PinnedTitle,
    Plan,
    PlexFile,
    PlexPath,
    Session,
    Snapshot,
    SourceFile,
    SourceName,
    Space,
    UnionPath,
    UserName,
)
from cachefs.paths import Layout, PathMap, PathRule
from cachefs.planning import Planning, Plex
from cachefs.ranges import Ranges
from cachefs.resolving import Resolver
from cachefs.status import HealthRegistry
from tests.engine.cachekit import ROOMY

MEDIA = SourceName("Media")
MOUNT = Path("/mnt/cachefs")
DATA = PathMap((PathRule(PlexPath("/data"), UnionPath("")),))
"""Plex calls the mount's root /data."""
NOW = 1_700_000_000.0


def key(path: str, source: str = MEDIA) -> FileKey:
    return FileKey(SourceName(source), path)


def seen(path: str, size: int = 10, source: str = MEDIA) -> SourceFile:
    number = sum(os.fsencode(path)) + 1000
    return SourceFile(key(path, source), Fingerprint(size, 1, number, "uuid"), number)


def entry_of(file: SourceFile, *, reason: str = "", copied: int | None = None, wanted_at: float = NOW) -> CacheEntry:
    """A cached entry; with ``copied`` bytes one that is still being copied."""
    state = EntryState.CACHED if copied is None else EntryState.COPYING
    ranges = Ranges().insert(0, file.size if copied is None else copied)
    at = wanted_at - 100
    return CacheEntry(id(file), file, state, ranges, reason, at, at, last_wanted_at=wanted_at)


@dataclass(slots=True)
class CountingLibrary:
    """The union by key, in memory. ``asked`` counts every question that a disk would have to answer."""

    files: dict[FileKey, SourceFile] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    error: OSError | None = None
    """What every question is answered with, while it is set."""

    def add(self, *paths: str, size: int = 10, source: str = MEDIA) -> None:
        for path in paths:
            self.files[key(path, source)] = seen(path, size, source)

    async def stat(self, key: FileKey) -> SourceFile:
        await self._answer("stat", key)
        if key in self.files:
            return self.files[key]
        raise IsADirectoryError(key.path) if self._below(key) else FileNotFoundError(key.path)

    async def list_folder(self, key: FileKey) -> list[str]:
        await self._answer("list", key)
        return self._names(key)

    async def list_subfolders(self, key: FileKey) -> list[str]:
        await self._answer("subfolders", key)
        return [name for name in self._names(key) if self._child(key, name) not in self.files]

    async def _answer(self, question: str, key: FileKey) -> None:
        self.asked[f"{question} {key.path}"] += 1
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error

    def _names(self, folder: FileKey) -> list[str]:
        if folder.path and not self._below(folder):
            raise FileNotFoundError(folder.path)
        return list(dict.fromkeys(rest.partition("/")[0] for rest in self._below(folder)))

    def _below(self, folder: FileKey) -> list[str]:
        prefix = f"{folder.path}/" if folder.path else ""
        mine = (key.path for key in self.files if key.source == folder.source)
        return [path.removeprefix(prefix) for path in mine if path.startswith(prefix)]

    def _child(self, folder: FileKey, name: str) -> FileKey:
        return key(f"{folder.path}/{name}" if folder.path else name, folder.source)


async def written(said: tuple[Asked, ...], within_s: float) -> bool:
    await trio.lowlevel.checkpoint()
    return True


@dataclass(slots=True)
class CacheInMemory:
    """``Holdings`` without a disk, so that its tests can run on a clock that jumps."""

    entries: dict[FileKey, CacheEntry] = field(default_factory=dict)
    pinned: list[Pin] = field(default_factory=list)
    room: int = 1 << 40
    changed: trio.Event = field(default_factory=trio.Event)
    wishes: Wishes = field(default_factory=lambda: Wishes((), written, lambda key: False))
    reasons: list[tuple[FileKey, str]] = field(default_factory=list)

    def hold(self, *entries: CacheEntry) -> None:
        self.entries.update({entry.key: entry for entry in entries})
        self._change()

    def drop(self, key: FileKey) -> None:
        del self.entries[key]
        self._change()

    def _change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def inventory(self) -> Inventory:
        used = sum(entry.size for entry in self.entries.values())
        return Inventory(tuple(self.entries.values()), frozenset(), Space(self.room, 0, used, 1 << 50))

    def pins(self) -> tuple[Pin, ...]:
        return tuple(self.pinned)

    async def add_pin(self, pin: Pin) -> None:
        self.pinned = [pin if one.target == pin.target else one for one in self.pinned]

    def why_never(self, file: SourceFile) -> str:
        return "it is too odd" if "odd" in file.key.path else ""

    async def note_wanted(self, keys: list[FileKey], now: float) -> None:
        for key in keys:
            if key in self.entries:
                self.entries[key] = replace(self.entries[key], last_wanted_at=now)

    async def note_watched(self, key: FileKey, at: float) -> None:
        self.entries[key] = replace(self.entries[key], watched_at=at)

    async def set_reason(self, key: FileKey, reason: str) -> None:
        self.reasons.append((key, reason))
        self.entries[key] = replace(self.entries[key], reason=reason)


@dataclass(slots=True)
class PlexByHand:
    """Says what a test puts into ``snapshot``; counts how often it is asked. ``away``: it does not answer. ``bug``:
    asking it is an error of ours."""

    snapshot: Snapshot = field(default_factory=lambda: Snapshot(NOW))
    asked_at: list[float] = field(default_factory=list)
    pinned: list[tuple[str, ...]] = field(default_factory=list)
    away: bool = False
    bug: bool = False

    async def __call__(self, pinned: tuple[str, ...]) -> Snapshot:
        self.asked_at.append(trio.current_time())
        self.pinned.append(pinned)
        await trio.lowlevel.checkpoint()
        if self.away:
            raise PlexUnreachable("Plex does not answer")
        if self.bug:
            raise ZeroDivisionError("a bug")
        return self.snapshot

    def says(
        self,
        *interests: Interest,
        sessions: tuple[Session, ...] = (),
        folders: tuple[LibraryFolder, ...] = (),
        titles: tuple[PinnedTitle, ...] = (),
    ) -> None:
        self.snapshot = replace(self.snapshot, interests=interests, sessions=sessions, folders=folders, titles=titles)


@dataclass(slots=True)
class Followed:
    """Takes the plans, as the copiers do."""

    plans: list[Plan] = field(default_factory=list)
    came: trio.Event = field(default_factory=trio.Event)

    def __call__(self, plan: Plan) -> None:
        self.plans.append(plan)
        self.came.set()
        self.came = trio.Event()

    async def until(self, holds: Callable[[Plan], object]) -> Plan:
        """The newest plan, once one came for which this holds."""
        with trio.fail_after(600):
            while not (self.plans and holds(self.plans[-1])):
                await self.came.wait()
        return self.plans[-1]


def plex_file(path: str, size: int = 10) -> PlexFile:
    return PlexFile(PlexPath(f"/data/{path}"), size)


def interest(path: str, kind: InterestKind = InterestKind.ON_DECK, *, since: float = NOW, ahead: int = 0) -> Interest:
    return Interest(kind, UserName("Anna"), path, (plex_file(path),), since, ahead)


def session(path: str, *, started_at: float) -> Session:
    return Session("1", UserName("Anna"), path, (plex_file(path),), started_at, 5.0, 100.0, "playing")


def folder(path: str, *samples: str, size: int = 10, library: str = "TV") -> LibraryFolder:
    """A Plex library folder with these files, named from the folder on."""
    return LibraryFolder(library, PlexPath(path), tuple(PlexFile(PlexPath(f"{path}/{name}"), size) for name in samples))


def resolver(
    library: CountingLibrary | Files,
    rules: PathMap = DATA,
    *,
    sources: tuple[str, ...] = (MEDIA,),
    learns: bool = False,
) -> Resolver:
    layout = Layout(tuple(SourceName(name) for name in sources))
    return Resolver(layout, library, MOUNT, rules=PathMap(()) if learns else rules, learns=learns)


@dataclass(slots=True)
class Room:
    """Planning with everything around it in memory."""

    library: CountingLibrary = field(default_factory=CountingLibrary)
    store: CacheInMemory = field(default_factory=CacheInMemory)
    plex: PlexByHand = field(default_factory=PlexByHand)
    health: HealthRegistry = field(default_factory=HealthRegistry)
    followed: Followed = field(default_factory=Followed)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    with_plex: bool = True
    shift: float = 0.0
    """By how much the time of day is ahead of trio's clock."""

    def now(self) -> float:
        return NOW + self.shift + trio.current_time()

    def planning(self) -> Planning:
        plex: Plex | None = self.plex if self.with_plex else None
        return Planning(plex, resolver(self.library), self.store, self.policy, self.health, self.followed, now=self.now)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Planning]:
        """Planning at work inside the block."""
        planning = self.planning()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(planning.run)
            yield planning
            nursery.cancel_scope.cancel()


def copies(plan: Plan) -> dict[str, str]:
    """What is to be copied, and why."""
    return {copy.key.path: copy.reason for copy in plan.copies}


def skips(plan: Plan) -> dict[str, str]:
    return {skip.what.removeprefix(f"{MEDIA}:"): skip.reason for skip in plan.skips}


def evictions(plan: Plan) -> dict[str, str]:
    return {eviction.key.path: eviction.reason for eviction in plan.evictions}


# --- over real folders -----------------------------------------------------------------------------------------------


def write(root: Path, *paths: str, size: int = 10) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * size)


@asynccontextmanager
async def real(tmp_path: Path, *names: str, limits: Limits = ROOMY) -> AsyncIterator[tuple[Store, Union]]:
    """A store, and a union over folders of these names below ``tmp_path`` (one, ``Media``, if none)."""
    folders = {SourceName(name): tmp_path / name for name in names or (MEDIA,)}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    paths = {name: str(folder) for name, folder in folders.items()}
    async with open_store(tmp_path / "ssd", limits, paths) as store:
        sources = [Source(name, path, timeout_s=20.0, ttl_s=5.0, watch_changes=False) for name, path in paths.items()]
        union = Union(sources, Layout(tuple(folders)), store, store.device_tag)
        await union.open_sources()
        try:
            yield store, union
        finally:
            for source in sources:
                source.close()
