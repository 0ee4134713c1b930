"""What the running daemon answers to the control API: the one place where a person's wish meets all parts.

Called by ``control.api`` through its ``Engine`` protocol. Holds no state of its own.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from cachefs import __version__, abroad, accepting, explaining, paths
from cachefs.cache.moving import Movers
from cachefs.cache.populate import Copiers
from cachefs.cache.restoring import Restoration
from cachefs.cache.store import Store
from cachefs.cache.verify import Verification, Wish
from cachefs.errors import CacheError, PlexError, UserError
from cachefs.fs.acls import Acls
from cachefs.fs.routing import Routing
from cachefs.fs.segments import visible
from cachefs.fs.union import Union
from cachefs.model import (
    CacheEntry,
    EntryState,
    Evicted,
    Explanation,
    FileKey,
    Pin,
    Pinned,
    Plan,
    Skip,
    SourceFile,
    SourceHealth,
    SourceName,
    Status,
    UnionPath,
)
from cachefs.planning import PLEX, Planning
from cachefs.plex.client import PlexClient, PlexSettings, TitleMatch
from cachefs.sidecars import is_video
from cachefs.status import Counters, HealthRegistry

log = logging.getLogger(__name__)

_FORESIGHT_S = 10.0
"""How long whoever pins waits to hear whether there is room."""
_ROOT = "/"
"""The whole mount, as the list of pins shows it."""
_EXPLAIN_FOLDER = "explain says why one file is cached or not; cachefs ls lists what is cached"
_COPY_FOLDER = "copy takes one file; cachefs pin keeps all that is in a folder"
_YEAR = re.compile(r"\s*\(\d{4}\)\s*$")


@dataclass(frozen=True, slots=True)
class Parts:
    """The objects that make up a running daemon."""

    mountpoint: Path
    union: Union
    store: Store
    routing: Routing
    copiers: Copiers
    movers: Movers
    planning: Planning
    plex: PlexClient | None
    plex_settings: PlexSettings | None
    health: HealthRegistry
    counters: Counters
    started_at: float
    acls: Acls | None = None


class DaemonEngine:
    """``control.api.Engine`` over the daemon's parts."""

    def __init__(self, parts: Parts, stop: Callable[[], None]) -> None:
        self._parts = parts
        self._stop = stop

    # --- shows ---------------------------------------------------------------------------------------------------

    @property
    def mountpoint(self) -> Path:
        return self._parts.mountpoint

    def status(self) -> Status:
        parts = self._parts
        parts.routing.count_reads()
        inventory = parts.store.inventory()
        states = [entry.state for entry in inventory.entries]
        away = parts.store.moves.absent()
        moved = [*parts.store.moves.all(), *away]
        return Status(
            version=__version__,
            mountpoint=str(parts.mountpoint),
            pid=os.getpid(),
            started_at=parts.started_at,
            plex=parts.health.component(PLEX),
            plex_url=parts.plex_settings.origin if parts.plex_settings is not None else "",
            users=parts.planning.snapshot.users,
            components=parts.health.components(),
            sources=tuple(source.health() for source in parts.union.sources.values()),
            space=inventory.space,
            entries_cached=sum(state.is_whole for state in states),
            entries_copying=states.count(EntryState.COPYING),
            entries_moved=len(moved),
            moved_bytes=sum(entry.size for entry in moved),
            moved_away=len(away),
            copies=parts.copiers.progress(),
            reads=parts.counters.read_counters(),
            sessions=parts.planning.snapshot.sessions,
            open_files=tuple(parts.routing.open_files()),
            backing_files=parts.routing.backings.live,
            fast_path=parts.routing.backings.problem,
            waiting=parts.copiers.waiting(),
            cache_problem=parts.store.problem,
            notes=(*parts.planning.resolver.notes, *parts.planning.notes, *self._unsettled()),
        )

    def _unsettled(self) -> tuple[str, ...]:
        """What is said of moved files that are neither here nor there."""
        name_of = self._parts.union.layout.union
        return tuple(f"moved file {name_of(key)}: {why}" for key, why in self._parts.movers.problems())

    async def plan(self) -> Plan:
        return replace(await self._parts.planning.dry_run(), waiting=self._parts.copiers.waiting())

    def entries(self) -> tuple[CacheEntry, ...]:
        store = self._parts.store
        away = explaining.away(store.moves.absent())
        return (*explaining.as_of_now(store.inventory().entries, self._parts.planning.plan), *away)

    def pins(self) -> tuple[Pin, ...]:
        return self._parts.store.pins()

    async def explain(self, text: str) -> Explanation:
        path, key = self._key(text)
        parts = self._parts
        entry = parts.store.get(key)
        file = entry.source_file if entry is not None else await self._file(key, text, _EXPLAIN_FOLDER)
        plan = parts.planning.plan
        planned = next((copy for copy in plan.copies if copy.key == key), None)
        waiting = parts.copiers.waiting_for(planned) if planned is not None else ""
        reasons = explaining.reasons(plan, key, entry, parts.planning.why_not(key), waiting)
        moved = parts.store.moves.get(key) is not None
        if why := parts.movers.why_not_moved(key):
            reasons = (*reasons, f"not moved: {why}")
        return Explanation(
            path=path,
            state=visible(entry),
            size=file.size,
            on_ssd_bytes=entry.ranges.total if entry is not None else 0,
            reasons=reasons if entry is not None or not moved else (parts.store.problem, *reasons),
            wanted=explaining.is_wanted(plan, key),
            waiting=waiting,
            planned_position=explaining.place(plan, key),
            moved=moved,
        )

    # --- acts ----------------------------------------------------------------------------------------------------

    async def pin(self, text: str) -> Pinned:
        pin = await self._pin_of(text)
        await self._look_beside(pin)
        await self._parts.store.add_pin(pin)
        self._parts.planning.wake()
        with trio.move_on_after(_FORESIGHT_S):  # a pinned root of a huge library takes its time
            foreseen = await self._parts.planning.foresee(pin)
            unfit = explaining.unfit_pins(foreseen, self._parts.union.layout.union)
            return Pinned(pin, unfit or self._not_there(pin, foreseen))
        return Pinned(pin)

    def _not_there(self, pin: Pin, foreseen: Plan) -> str:
        """What is said of a title of which the mount has not every file."""
        planning = self._parts.planning
        titles = planning.snapshot.titles if pin.rating_key else ()
        files = [file for title in titles if title.rating_key == pin.rating_key for file in title.files]
        keys = {planning.resolver.locate(file) for file in files} - {None}
        paths = {file.path for file in files}
        lost = [
            skip.reason for skip in foreseen.skips if skip.want is None and (skip.key in keys or skip.what in paths)
        ]
        return lost[0] if lost else ""

    async def _look_beside(self, pin: Pin) -> None:
        """See what is in a pinned folder now, and what goes with a pinned file: beside a cached one nobody would look
        any more."""
        key = self._parts.union.layout.key(UnionPath(pin.target)) if not pin.rating_key else None
        if key is not None:
            self._parts.planning.resolver.look_below(key)
        try:
            if key is not None and is_video(key.path):
                await self._parts.planning.resolver.look_beside(await self._parts.union.files.stat(key))
        except OSError as error:
            log.debug("%s: %s", key, error)  # a folder of such a name, or its source does not answer

    async def unpin(self, text: str) -> bool:
        pins = self._pins_called(text) or await self._pins_titled(text)
        for pin in pins:
            await self._parts.store.remove_pin(pin.target)
        if pins:
            self._parts.planning.wake()
            with trio.move_on_after(_FORESIGHT_S):
                await self._parts.planning.pins_went()
        return bool(pins)

    def _pins_called(self, text: str) -> list[Pin]:
        """The pins of this path, or of this title, whose year and capitals may be left out."""
        try:
            path: str = self._path(text) if text != _ROOT else ""
        except UserError:
            path = text
        title = text.strip().casefold()
        return [
            pin
            for pin in self._parts.store.pins()
            if (title in _title_forms(pin.target) if pin.rating_key else pin.target in (path, text))
        ]

    async def _pins_titled(self, text: str) -> list[Pin]:
        """The pins of a title as Plex takes it: a season may be written in two ways. None while Plex is away."""
        if self._parts.plex is None:
            return []
        try:
            matches = await self._parts.plex.find(text)
        except PlexError as error:
            log.debug("%s", error)
            return []
        keys = {match.rating_key for match in matches if match.exact}
        return [pin for pin in self._parts.store.pins() if keys & set(pin.rating_key.split(","))]

    async def evict(self, text: str) -> Evicted:
        below = [entry.key for entry in self._below(self._path(text), self._parts.store.inventory().entries)]
        if not below:
            problem = self._parts.store.problem if self._parts.store.away else ""
            raise UserError(problem or f"{text}: nothing of it is cached")
        if all(map(self._why_it_stays, below)):
            whys = dict.fromkeys(map(self._why_it_stays, below))
            raise UserError("\n".join(f"{text} stays: {why}" for why in whys))
        gone: list[FileKey] = []
        left: list[Skip] = []
        for key in below:
            if why := self._why_it_stays(key):  # asked anew: it may have moved while others went
                left.append(Skip(str(key), why, key))
                continue
            self._parts.planning.hold_back(key)
            await self._parts.store.evict(key, force=True)
            log.info("evicted %s: asked for with cachefs evict", key)
            gone.append(key)
        await self._parts.store.wishes.save()
        return Evicted(tuple(gone), tuple(left))

    def _why_it_stays(self, key: FileKey) -> str:
        """Why a person's word does not evict a file; empty when it does."""
        if self._parts.store.moves.get(key) is not None:
            return "it was moved: the SSD holds its only copy; cachefs restore brings it home"
        if key in self._parts.planning.pinned:
            return "it is pinned (cachefs pin --list says by what); unpin it first"
        return ""

    async def copy(self, text: str) -> FileKey:
        _, key = self._key(text)
        file = await self._file(key, text, _COPY_FOLDER)
        try:
            await self._parts.store.refresh_space()  # somebody may just have made room
        except CacheError as error:
            log.debug("%s", error)  # the wish stands; what it waits for is said by whoever is asked
        await self._parts.planning.copy_now(file)
        return key

    async def accept(self, name: str, *, moved: bool) -> SourceHealth:
        source = self._parts.union.sources.get(SourceName(name))
        if source is None:
            names = ", ".join(self._parts.union.sources)
            raise UserError(f"{name}: no such source; there are: {names}")
        if source.online and not source.health().problem:
            raise UserError(f"source {name} is online: there is nothing to accept")
        if not moved:
            moves = self._parts.store.moves
            away = sum(entry.key.source == source.name for entry in (*moves.all(), *moves.absent()))
            abroad.refuse_other_disk(name, Path(source.path), away)
        try:
            await self._parts.union.accept(source)
        except OSError as error:
            raise accepting.not_there(source.path, error) from error
        if not source.online:
            raise UserError(f"source {name} was accepted, but is away again: {source.health().problem}")
        return source.health()

    def verification(self, text: str, content: bool, repair: bool) -> Verification:
        parts = self._parts
        path = self._path(text) if text else UnionPath("")
        if parts.store.away:
            raise UserError(f"{parts.store.problem}; nothing of it can be verified before it is back")
        made = Verification(
            parts.store,
            parts.union.files_asked,
            parts.movers,
            Wish(parts.union.layout.key(path) if path else None, content, repair),
            lambda: parts.copiers.bandwidth,
        )
        if path and not made.entries:
            raise UserError(f"{text}: nothing of it is cached")
        return made

    async def restoration(self, text: str) -> Restoration:
        """Of the moved file, of all below the folder, or of all when the text is empty: then every source that
        answers is left tidy, too. Refused when there is neither such a file nor such a folder."""
        parts, path = self._parts, self._path(text) if text else UnionPath("")
        if parts.store.away:
            raise UserError(f"{parts.store.problem}; what was moved there cannot come home before it is back")
        below = self._below(path, parts.store.moves.all())
        if path and not below and not await self._exists(text):
            raise UserError(f"{text}: no such file or folder in the mount")
        return Restoration(parts.movers, below, () if path else parts.union.sources)

    def request_stop(self) -> None:
        self._stop()

    # --- what a person typed -------------------------------------------------------------------------------------

    def _path(self, text: str) -> UnionPath:
        return paths.argument(text, self._parts.mountpoint, self._parts.union.layout)

    def _below(self, path: UnionPath, entries: Iterable[CacheEntry]) -> list[CacheEntry]:
        """Those of this file, or of the files below this folder; all of them below the root."""
        name_of = self._parts.union.layout.union
        return [
            entry
            for entry in entries
            if not path or name_of(entry.key) == path or name_of(entry.key).startswith(f"{path}/")
        ]

    def _key(self, text: str) -> tuple[UnionPath, FileKey]:
        path = self._path(text)
        key = self._parts.union.layout.key(path)
        if key is None:
            raise UserError(f"{text} is the mount's root; name a file below it")
        return path, key

    async def _file(self, key: FileKey, text: str, of_folder: str) -> SourceFile:
        """``of_folder``: what is said of a folder."""
        try:
            return await self._parts.union.files.stat(key)
        except IsADirectoryError as error:
            raise UserError(f"{text} is a folder: {of_folder}") from error
        except OSError as error:
            raise UserError(f"{text}: {error.strerror or error}") from error

    async def _pin_of(self, text: str) -> Pin:
        """A path if there is such a file or folder in the mount, else a title in Plex."""
        if await self._exists(text):
            return Pin(self._path(text), created_at=time.time())
        if self._parts.plex is None:
            raise UserError(
                f"{text}: no such file or folder in the mount, and no Plex is configured to look for a title"
            )
        title, rating_key = _title_meant(text, await self._parts.plex.find(text))
        return Pin(title, rating_key, created_at=time.time())

    async def _exists(self, text: str) -> bool:
        try:
            path = self._path(text)
        except UserError:
            return False
        key = self._parts.union.layout.key(path)
        if key is None:
            return True
        try:
            return await self._parts.union.files.exists(key)
        except OSError as error:
            raise UserError(f"{text}: {error.strerror or error}") from error


def _title_forms(title: str) -> tuple[str, str]:
    """``Heat (1995)`` as people may write it."""
    return title.casefold(), _YEAR.sub("", title).casefold()


def _title_meant(text: str, matches: tuple[TitleMatch, ...]) -> tuple[str, str]:
    """The one title that is meant, and its rating keys: several libraries may have it. What Plex's search only takes
    for alike is never pinned: it may be a typo's neighbour."""
    exact = [match for match in matches if match.exact]
    found = [match for match in exact if match.title.casefold() == text.casefold()] or exact
    titles = ", ".join(dict.fromkeys(f"{match.title} ({match.kind})" for match in (found or matches)[:10]))
    if not found:
        alike = f"; Plex has: {titles}" if titles else ""
        raise UserError(f"{text}: neither a file or folder in the mount nor a title in Plex{alike}")
    if len({(match.title, match.kind) for match in found}) > 1:
        raise UserError(f"{text}: Plex has several such titles: {titles}; name one of them in full, or a path")
    return found[0].title, ",".join(match.rating_key for match in found)
