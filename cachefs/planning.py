"""From "something happened in Plex" to a plan in the copiers' hands.

The daemon runs ``Planning.run`` under supervision. It gathers (Plex, files, inventory), lets the pure planner decide,
and hands the decision over; a new plan replaces the old one. Plex being away keeps the last snapshot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, TypeVarTuple

import trio

from cachefs.cache.wishes import Wishes
from cachefs.config import PolicyConfig
from cachefs.errors import PlexError, UserError
from cachefs.model import (
    Asked,
    FileKey,
    Interest,
    InterestKind,
    Inventory,
    Pin,
    Plan,
    PlexEvent,
    PlexEventKind,
    Session,
    Skip,
    Snapshot,
    SourceFile,
    Want,
    Watched,
)
from cachefs.planner import PlanRequest, plan
from cachefs.resolving import Held, Resolver
from cachefs.status import HealthRegistry
from cachefs.units import format_duration
from cachefs.wanting import Policy, WantedItems, wanted_items, watched_files

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

COMPONENT = "planning"
PLEX = "plex"
BY_HAND = "asked for with cachefs copy"
_DEBOUNCE_S = 0.5
_ASK_PLEX_EVERY_S = 5.0
"""Plex reports a playing session every second or so; what it says then seldom changes a plan."""
_PLAN_EVERY_S = 30.0
MOST_AT_ONCE = 500
"""What is planned on the event loop itself, in some 10 ms; 20,000 wants take most of a second."""


class Plex(Protocol):
    """What planning needs of Plex, as ``PlexClient.snapshot`` with its question already asked."""

    async def __call__(self, pinned: tuple[str, ...]) -> Snapshot: ...


class Holdings(Protocol):
    """What planning needs of the cache, as ``Store`` gives it."""

    @property
    def changed(self) -> trio.Event: ...

    @property
    def wishes(self) -> Wishes: ...

    def inventory(self) -> Inventory: ...

    def pins(self) -> tuple[Pin, ...]: ...

    async def add_pin(self, pin: Pin) -> None: ...

    def why_never(self, file: SourceFile) -> str: ...

    async def note_wanted(self, keys: list[FileKey], now: float) -> None: ...

    async def note_watched(self, key: FileKey, at: float) -> None: ...

    async def set_reason(self, key: FileKey, reason: str) -> None: ...


@dataclass(slots=True)
class Planning:
    """The planning task and what it knows. ``plan`` is the newest plan, ``snapshot`` the newest word from Plex."""

    plex: Plex | None
    resolver: Resolver
    store: Holdings
    policy: PolicyConfig
    health: HealthRegistry
    follow: Callable[[Plan], None]
    missing: Callable[[], frozenset[FileKey]] = frozenset
    """What could not be copied since the last plan, for it is not there."""
    now: Callable[[], float] = time.time
    plan: Plan = field(default_factory=lambda: Plan(0.0))
    snapshot: Snapshot = field(default_factory=lambda: Snapshot(0.0, complete=False))
    pinned: frozenset[FileKey] = frozenset()
    """What must not be evicted by hand, of the newest plan: pinned by path or title, and what goes with it."""
    _dirty: trio.Event = field(default_factory=trio.Event)
    _wished: trio.Event = field(default_factory=trio.Event)
    _ask_plex: bool = True
    _asked_at: float = float("-inf")
    _away: bool = False
    """Whether Plex has not answered the last time it was asked."""
    _next_change_at: float | None = None

    # --- what wakes it -------------------------------------------------------------------------------------------

    def on_event(self, event: PlexEvent) -> None:
        """Plex has news; synchronous and conflated."""
        if event.kind is PlexEventKind.CONNECTED:
            self.health.recovered(PLEX)
        if event.kind in (PlexEventKind.LIBRARY, PlexEventKind.CONNECTED):
            self.resolver.forget()
        self._ask_plex = True
        self._dirty.set()

    def wake(self) -> None:
        """Pins changed, or a person asked for a plan."""
        self._ask_plex = True
        self._asked_at = float("-inf")
        self._wished.set()

    def folder_changed(self, folder: FileKey) -> None:
        """Something came, went or changed in a folder of the union: below a pinned one that makes another plan."""
        if self.resolver.changed(folder):
            self._wished.set()

    def hold_back(self, key: FileKey) -> None:
        """A person evicted this file: do not copy it again at once."""
        self.store.wishes.add(Asked(key, self.now(), away=True))

    async def copy_now(self, file: SourceFile) -> None:
        """A person wants this file, now and as long as watched ones are kept: durable when this returns, unless the SSD
        fails. ``UserError`` when it gets no room."""
        self.resolver.saw(file)
        await self.resolver.look_beside(file)
        wishes = self.store.wishes
        before = wishes.get(file.key)
        wishes.add(Asked(file.key, self.now()))
        made = await self._made(await self._request())
        refused = [skip.reason for skip in made.skips if skip.key == file.key]
        if refused and not any(copy.key == file.key for copy in made.copies):
            wishes.end(file.key)
            if before is not None and before.away:
                wishes.add(before)
            await wishes.save()
            raise UserError(f"{file.key.path}: {refused[0]}")
        self.plan = made
        self.follow(made)
        self._wished.set()
        await wishes.save()

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of their pins."""
        gone = self.snapshot.unknown_titles
        return tuple(
            f"pinned title {pin.target}: Plex has no such item any more; the files that it had stay pinned "
            "(unpin it, or unpin it and pin it anew)"
            for pin in self.store.pins()
            if pin.rating_key in gone
        )

    def why_not(self, key: FileKey) -> tuple[str, ...]:
        """Why the newest plan does not copy this file, though somebody may want it; empty when there is no reason."""
        named: tuple[Interest | Session, ...] = (*self.snapshot.interests, *self.snapshot.sessions)
        titles = {one.title for one in named if any(self.resolver.locate(file) == key for file in one.files)}
        skips = self.plan.skips
        return tuple(skip.reason for skip in skips if skip.key == key or (skip.key is None and skip.what in titles))

    # --- the task ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plan, hand over, wait for a reason to do it again. Runs for ever."""
        while True:
            self._dirty, self._wished = trio.Event(), trio.Event()
            changed = self.store.changed
            await self._look_at_plex()
            request = await self._request()
            self.plan = await self._made(request)
            self.follow(self.plan)
            await self._remember(request)
            self.health.recovered(COMPONENT)
            await self._wait(changed)

    async def _wait(self, changed: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._news, nursery.cancel_scope)
            nursery.start_soon(_first, self._wished, nursery.cancel_scope)
            nursery.start_soon(_first, changed, nursery.cancel_scope)
            await trio.sleep(self._patience_s())
            nursery.cancel_scope.cancel()
        await trio.sleep(_DEBOUNCE_S)

    async def _news(self, scope: trio.CancelScope) -> None:
        """Return when Plex has news and may be asked for them: without them the plan would be the same."""
        await self._dirty.wait()
        await trio.sleep_until(self._asked_at + _ASK_PLEX_EVERY_S)
        scope.cancel()

    def _patience_s(self) -> float:
        """How long a plan stays true when nothing happens: sessions come of age, what was watched becomes due."""
        patience = min(_PLAN_EVERY_S, max(1.0, self.policy.keep_watched / 4))
        if self._next_change_at is not None:
            patience = min(patience, max(0.0, self._next_change_at - self.now()))
        if self._ask_plex:
            patience = min(patience, max(0.0, self._asked_at + _ASK_PLEX_EVERY_S - trio.current_time()))
        return patience

    async def _look_at_plex(self) -> None:
        now = trio.current_time()
        if not self._ask_plex or now - self._asked_at < _ASK_PLEX_EVERY_S:
            return
        self._ask_plex, answered = False, False
        self._asked_at = now
        try:
            await self._take_snapshot()
            answered = True
        finally:
            self._ask_plex = self._ask_plex or not answered  # a failure of ours is no answer

    async def _take_snapshot(self) -> None:
        if self.plex is None:
            return
        pinned = tuple(pin.rating_key for pin in self.store.pins() if pin.rating_key)
        try:
            answer = await self.plex(pinned)
            self.snapshot = _without_unpinned(answer, self.store.pins())  # some may have gone meanwhile
        except PlexError as error:
            if not self.health.component(PLEX).problem:
                log.warning("plex: %s; the cache stays as it is until Plex answers", error)
            self.health.degraded(PLEX, str(error))
            self._away = True
            return
        self._away = False
        self.health.recovered(PLEX)

    async def dry_run(self) -> Plan:
        """A fresh plan that nobody carries out."""
        await self._take_snapshot()
        return await self._made(await self._request())

    async def foresee(self, pin: Pin) -> Plan:
        """A plan with this new pin, which nobody carries out. Plex is asked for a title only."""
        if pin.rating_key:
            await self._take_snapshot()
        return await self._made(await self._request())

    async def pins_went(self) -> None:
        """What is pinned no more may be evicted by hand once this returns. Plex is not asked."""
        self.snapshot = _without_unpinned(self.snapshot, self.store.pins())
        await self._request()

    async def _made(self, request: PlanRequest) -> Plan:
        return await aside(len(request.wants) + len(request.inventory.entries), plan, request)

    async def _request(self) -> PlanRequest:
        """Everything the planner decides from, of this moment."""
        now = self.now()
        snapshot = self.snapshot
        missing = self.missing()
        self.resolver.look_again(missing)
        await self.resolver.settle_paths(snapshot.folders)
        many = len(snapshot.interests) + len(snapshot.views)
        items = await aside(many, wanted_items, snapshot, _policy(self.policy), now)
        self._next_change_at = items.next_change_at
        pins = self.store.pins()
        resolved = await self.resolver.resolve(items.items, pins, self.store.inventory().entries)
        by_title = await self._pinned_titles()
        pinned = resolved.pinned | self._pinned_by_title(items) | {want.key for want in by_title}
        pinned |= {want.key for want in resolved.wants if want.follows in pinned}
        if {pin.target for pin in pins} == {pin.target for pin in self.store.pins()}:  # else who changed them asks anew
            self.pinned = pinned
        # What a person copied or evicted by hand counts for as long as watched files are kept.
        self.store.wishes.end_before(now - max(self.policy.keep_watched, 60.0))
        asked = await self._asked(missing)
        await self.store.wishes.save()
        by_hand = {want.key for want in asked}
        others = tuple(want for want in resolved.wants if want.key not in by_hand)
        wants = (*asked, *(want for want in (*resolved.wants, *by_title) if not self._is_held_back(want)))
        never = {want.key: why for want in wants if (why := self.store.why_never(want.file))}
        playing = (self.resolver.locate(file) for session in snapshot.sessions for file in session.files)
        return PlanRequest(
            wants=tuple(want for want in wants if want.key not in never),
            skips=(*items.skips, *resolved.skips, *self._skips_held_back(others, now), *_skips(wants, never)),
            watched=self._watched(),
            playing=frozenset(key for key in playing if key is not None),
            inventory=self.store.inventory(),
            keep_watched_s=self.policy.keep_watched,
            complete=self._knows_all() and resolved.complete,
            away=self._away,
            now=now,
            pinned=pinned,
        )

    def _knows_all(self) -> bool:
        """Whether what is not wanted now is unwanted. Without a Plex there is nothing that could be unknown."""
        return self.plex is None or (self.snapshot.complete and not self._away)

    def _pinned_by_title(self, items: WantedItems) -> frozenset[FileKey]:
        keys = (self.resolver.locate(item.file) for item in items.items if item.pinned)
        return frozenset(key for key in keys if key is not None)

    async def _pinned_titles(self) -> list[Want]:
        """What titles stood for of which Plex does not say what they are now: it was not asked yet, is away, or has
        them no more."""
        told = {title.rating_key for title in self.snapshot.titles}
        held = Held(self.store.inventory().entries)
        found: list[Want] = []
        for pin in self.store.pins():
            for key in pin.stood_for if pin.rating_key not in told else ():
                file = await self.resolver.known(key, held)
                if file is not None:
                    want = Want(file, InterestKind.PINNED, 0, "pinned", pin.created_at)
                    found += (want, *await self.resolver.going_along(want, held))
        return found

    async def _remember_titles(self) -> None:
        """What Plex says of pinned titles outlives this process, and Plex."""
        told = {title.rating_key: title.files for title in self.snapshot.titles}
        for pin in self.store.pins():
            keys = (self.resolver.locate(file) for file in told.get(pin.rating_key, ()))
            stands_for = tuple(sorted({key for key in keys if key is not None}))
            if stands_for and stands_for != pin.stood_for:
                await self.store.add_pin(replace(pin, stood_for=stands_for))

    def _is_held_back(self, want: Want) -> bool:
        """Whether a person evicted the file, or the video that it goes with, and nobody pinned it."""
        keys = (want.key, want.follows) if want.follows is not None else (want.key,)
        return want.key not in self.pinned and any(self._evicted_at(key) is not None for key in keys)

    def _evicted_at(self, key: FileKey) -> float | None:
        """When a person evicted this file; None when he did not, or asked for it since."""
        asked = self.store.wishes.get(key)
        return asked.at if asked is not None and asked.away else None

    def _skips_held_back(self, wants: tuple[Want, ...], now: float) -> list[Skip]:
        return [
            Skip(
                str(want.key),
                f"{want.reason}; but you evicted it {format_duration(max(now - at, 0.0))} ago "
                "(cachefs copy brings it back)",
                want.key,
            )
            for want in wants
            if (at := self._evicted_at(want.key)) is not None and self._is_held_back(want)
        ]

    async def _asked(self, missing: frozenset[FileKey]) -> list[Want]:
        """What a person asked for, as it is now: it may have been rewritten since; with what goes along. A wish ends
        with its file."""
        held = Held(self.store.inventory().entries)
        found: list[Want] = []
        wishes = self.store.wishes
        for asked in wishes.all():
            key = asked.key
            if asked.away:
                continue
            file = await self.resolver.known(key, held if key not in missing else Held())
            if file is None and self.resolver.is_gone(key):
                self.resolver.look_again((key,))  # it may have that name only since it was looked for
                file = await self.resolver.known(key, Held())
            if file is not None:
                want = Want(file, InterestKind.PLAYING, 0, BY_HAND, asked.at)
                found += (want, *await self.resolver.going_along(want, held))
            elif self.resolver.is_gone(key) and wishes.gone(key):
                log.info("%s is not there any more: what cachefs copy asked for ends with it", key)
        return found

    def _watched(self) -> tuple[Watched, ...]:
        found = ((self.resolver.locate(file.file), file) for file in watched_files(self.snapshot))
        return tuple(Watched(key, file.user, file.at) for key, file in found if key is not None)

    async def _remember(self, request: PlanRequest) -> None:
        """Tell the cache what is wanted and why, and what was watched, so that it survives a restart."""
        await self._remember_titles()
        await self.store.note_wanted([want.key for want in request.wants], request.now)
        entries = {entry.key: entry for entry in request.inventory.entries}
        for want in self.plan.kept:
            if want.key in entries and entries[want.key].reason != want.reason:
                await self.store.set_reason(want.key, want.reason)
        for watched in request.watched:
            entry = entries.get(watched.key)
            if entry is not None and (entry.watched_at or 0.0) < watched.at:
                await self.store.note_watched(watched.key, watched.at)


async def aside(count: int, function: Callable[[*Ts], T], *args: *Ts) -> T:
    """``function(*args)``, pure and about ``count`` things: in a thread when that would hold the event loop up."""
    if count <= MOST_AT_ONCE:
        return function(*args)
    return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)


def _skips(wants: Iterable[Want], never: Mapping[FileKey, str]) -> Iterator[Skip]:
    """For what can never be copied."""
    for want in wants:
        if want.key in never:
            yield Skip(str(want.key), f"{want.reason}; but {never[want.key]}", want.key)


async def _first(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _without_unpinned(snapshot: Snapshot, pins: Iterable[Pin]) -> Snapshot:
    """What Plex said when more titles were pinned, as if only these had been."""
    keys = {pin.rating_key for pin in pins}
    titles = tuple(title for title in snapshot.titles if title.rating_key in keys)
    if titles == snapshot.titles:
        return snapshot
    gone = {file for title in snapshot.titles for file in title.files}
    gone -= {file for title in titles for file in title.files}
    interests = (one for one in snapshot.interests if one.kind is not InterestKind.PINNED or not gone >= {*one.files})
    return replace(snapshot, titles=titles, interests=tuple(interests))


def _policy(config: PolicyConfig) -> Policy:
    return Policy(
        playing=config.playing.enabled,
        playing_after_s=config.playing.after,
        on_deck=config.on_deck.enabled,
        on_deck_max_age_s=config.on_deck.max_age,
        watchlist=config.watchlist.enabled,
        watchlist_max_age_s=config.watchlist.max_age,
        recently_added=config.recently_added.enabled,
        recently_added_max_age_s=config.recently_added.max_age,
    )
