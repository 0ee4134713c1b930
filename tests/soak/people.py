"""The people of the stand-in Plex: they start, pause, stop and finish, and change their lists, all the time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tests.crash.actors import Counts
from tests.soak.stage import USERS
from tests.standin.plex import PlayingSession, StandInPlex
from tests.standin.plex_world import Episode, Film

_MOST_SESSIONS = 6


class People:
    """An actor: each act changes what cachefs has to plan."""

    def __init__(self, seed: int, plex: StandInPlex, episodes: Sequence[Episode], films: Sequence[Film]) -> None:
        self.counts = Counts()
        self._plex = plex
        self._items: Sequence[Episode | Film] = [*episodes, *films]
        self._films = films
        self._chance = random.Random(f"{seed}/people")
        self._sessions: list[PlayingSession] = []
        self._acts: Sequence[Callable[[], None]] = (
            self._start,
            self._start,
            self._go_on,
            self._end,
            self._on_deck,
            self._off_deck,
            self._watchlist,
            self._unwatchlist,
        )

    def act(self, root: int) -> None:
        self._chance.choice(self._acts)()
        self._plex.clear_requests()  # they are remembered for tests that ask
        self.counts.commands += 1

    def go_home(self) -> None:
        """Everybody stops watching, and the lists are empty: the same state after every load."""
        while self._sessions:
            self._sessions.pop().stop()
        for user in (None, *USERS):
            for item in self._items:
                self._plex.off_deck(user, item)
            for film in self._films:
                self._plex.unwatchlist(user, film)

    def _who(self) -> str:
        return self._chance.choice((self._plex.owner, *USERS))

    def _item(self) -> Episode | Film:
        return self._chance.choice(self._items)

    def _start(self) -> None:
        if len(self._sessions) == _MOST_SESSIONS:
            self._end()
        self._sessions.append(self._plex.play(self._who(), self._item()))

    def _go_on(self) -> None:
        if self._sessions:
            self._chance.choice(self._sessions).advance(self._chance.random())

    def _end(self) -> None:
        if self._sessions:
            session = self._sessions.pop(self._chance.randrange(len(self._sessions)))
            self._chance.choice((session.stop, session.finish))()

    def _on_deck(self) -> None:
        self._plex.on_deck(self._who(), self._item())

    def _off_deck(self) -> None:
        self._plex.off_deck(self._who(), self._item())

    def _watchlist(self) -> None:
        self._plex.watchlist(self._who(), self._chance.choice(self._films))

    def _unwatchlist(self) -> None:
        self._plex.unwatchlist(self._who(), self._chance.choice(self._films))
