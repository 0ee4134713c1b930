"""What the rest of the program asks Plex: a snapshot, a title, whether all is well.

Called by planning, pins and ``check``; returns our own values only. Every call runs plexapi in a worker thread, under a
limiter of its own and one deadline for the whole call; at the deadline, or when the caller is cancelled, the thread's
connections are broken, so that it ends too. Raises ``PlexError`` and nothing else.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from cachefs.errors import PlexError, PlexUnreachable
from cachefs.model import Snapshot, UserName
from cachefs.plex.connection import Connection, Item, translated
from cachefs.plex.episodes import Episodes
from cachefs.plex.gather import Gathered, gather
from cachefs.plex.items import key_of, title_of, whole
from cachefs.plex.memory import Memory
from cachefs.plex.values import Ask, PlexSettings, ServerFacts, TitleMatch

__all__ = ["Ask", "PlexClient", "PlexSettings", "ServerFacts", "TitleMatch"]

log = logging.getLogger(__name__)

_THREADS = 4
"""One works; the others are for threads that were abandoned and have yet to notice."""
_SEASON = re.compile(r"(?P<show>.+?)\s+(?:s|season\s*)(?P<number>\d{1,4})", re.IGNORECASE)
_YEAR = re.compile(r"\s*\(\d{4}\)\s*$")
_FINDABLE = ("movie", "show", "season", "episode")
_PEOPLE_ONLY = Ask(playing=False, next_episodes_playing=0, next_episodes_on_deck=0, watchlist_episodes=0)
_Result = TypeVar("_Result")


class PlexClient:
    """One Plex server. Snapshots are taken one at a time; what they remember is kept here."""

    def __init__(self, settings: PlexSettings) -> None:
        self._settings = settings
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._turn = trio.Lock()
        self._memory = Memory()
        self._said: dict[UserName, str] = {}
        self._up: bool | None = None

    async def snapshot(self, ask: Ask) -> Snapshot:
        """All that Plex says now about what ``ask`` wants to know.

        What is unreadable beside the sessions is reported per user; ``complete`` is False when it may pass. A user
        whose lists can never be read (no token, a PIN) is reported, and does not make a snapshot incomplete. Raises
        ``PlexUnreachable``, ``PlexRefused`` or ``PlexAnswer`` when there is nothing to say at all.
        """
        gathered = await self._gather(ask)
        self._say_users(gathered.snapshot)
        return gathered.snapshot

    async def find(self, title: str) -> tuple[TitleMatch, ...]:
        """The films, shows and episodes with this title, and ``Show S02`` or ``Show Season 2`` for a season.

        Exact titles (but for upper and lower case) if there are any, else all that Plex's own search finds.
        """
        with self._call():
            return await self._run(lambda connection: _find(connection, self._settings, title))

    async def check(self) -> ServerFacts:
        """Name, version and people of the server, read anew as far as that can be."""
        gathered = await self._gather(_PEOPLE_ONLY)
        with self._call():
            name, version = await self._run(lambda connection: _introduce(connection, self._settings))
        users = gathered.snapshot.users
        return ServerFacts(name, version, users[0].user, users)

    async def _gather(self, ask: Ask) -> Gathered:
        """The snapshot's thread gets a frozen memory and returns a new one, which counts only if all went well."""
        settings = self._settings
        with self._call():
            async with self._turn:
                memory, now = self._memory, time.time()
                gathered = await self._run(lambda connection: gather(connection, settings, ask, memory, now))
                self._memory = gathered.memory
                return gathered

    async def _run(self, function: Callable[[Connection], _Result]) -> _Result:
        """Run ``function`` in a worker thread, with a connection of its own that is broken when the caller leaves."""
        connection = Connection(self._settings)

        def work() -> _Result:
            try:
                with translated(self._settings.origin):
                    return function(connection)
            finally:
                connection.close()

        try:
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            connection.abort()

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Around a whole call: the deadline, and a line in the log when Plex goes or is back."""
        try:
            with _deadline(self._settings):
                yield
        except PlexError as error:
            self._say_state(error)
            raise
        self._say_state(None)

    def _say_state(self, error: PlexError | None) -> None:
        """One line when Plex is there or is back; who has asked says that it is away."""
        up = error is None
        if up != self._up:
            level = logging.INFO if up else logging.DEBUG
            log.log(level, "Plex at %s %s", self._settings.origin, "answers" if up else f"does not help: {error}")
        self._up = up

    def _say_users(self, snapshot: Snapshot) -> None:
        """One line when a user's lists become unreadable, one when they can be read again."""
        for report in snapshot.users:
            if report.problem != self._said.get(report.user, ""):
                text = f"could not be read completely: {report.problem}" if report.problem else "can be read again"
                log.info("What %s watches %s", report.user, text)
        self._said = {report.user: report.problem for report in snapshot.users}


@contextmanager
def _deadline(settings: PlexSettings) -> Iterator[None]:
    """``trio.fail_after`` that raises ``PlexUnreachable``."""
    with trio.move_on_after(settings.deadline_s) as scope:
        yield
    if scope.cancelled_caught:
        raise PlexUnreachable(f"{settings.origin} has not given a complete answer within {settings.deadline_s:g} s")


def _introduce(connection: Connection, settings: PlexSettings) -> tuple[str, str]:
    server = connection.server(settings.token)
    return server.friendlyName or "?", server.version or "?"


def _find(connection: Connection, settings: PlexSettings, title: str) -> tuple[TitleMatch, ...]:
    server = connection.server(settings.token)
    if season := _SEASON.fullmatch(title.strip()):
        shows = [one for one in server.search(season["show"]) if one.type == "show" and _is(one, season["show"])]
        numbered = [one for show in shows for one in Episodes(server).of_show(key_of(show))]
        if found := [one for one in numbered if whole(one.index) == int(season["number"])]:
            return tuple(_match(one, exact=True) for one in found)
    listed = [one for one in server.search(_YEAR.sub("", title)) if getattr(one, "type", "") in _FINDABLE]
    exact = [one for one in listed if _is(one, title)]
    matches = {key_of(one): _match(one, exact=bool(exact)) for one in exact or listed}
    return tuple(matches.values())


def _is(item: Item, title: str) -> bool:
    wanted = title.strip().casefold()
    return wanted in (str(item.title).casefold(), title_of(item).casefold())


def _match(item: Item, *, exact: bool) -> TitleMatch:
    return TitleMatch(key_of(item), title_of(item), item.type, exact)
