"""What the stand-in Plex server knows: libraries, items, users, sessions, history. No HTTP, no XML.

Used by ``tests.standin.plex`` (which changes it) and ``tests.standin.plex_xml`` (which shows it). Not thread safe: the
stand-in holds its lock around every use.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Literal

OWNER_ACCOUNT = 1
"""The owner's account number on his own server, whatever his number at plex.tv is."""


@dataclass(frozen=True)
class File:
    path: str
    size: int


@dataclass(eq=False)
class Library:
    key: int
    name: str
    kind: Literal["movie", "show"]
    locations: list[str]
    films: list[Film] = field(default_factory=list)
    shows: list[Show] = field(default_factory=list)

    @property
    def episodes(self) -> list[Episode]:
        return [episode for show in self.shows for episode in show.episodes]


@dataclass(eq=False)
class Film:
    rating_key: int
    library: Library
    title: str
    year: int
    guid: str
    versions: list[list[File]]
    """Each version (Media) is a list of parts."""
    added_at: float
    duration_s: float = 7200.0


@dataclass(eq=False)
class Show:
    rating_key: int
    library: Library
    title: str
    guid: str
    added_at: float
    seasons: dict[int, Season] = field(default_factory=dict)

    @property
    def episodes(self) -> list[Episode]:
        return [episode for number in sorted(self.seasons) for episode in self.seasons[number].in_order]


@dataclass(eq=False)
class Season:
    rating_key: int
    show: Show
    number: int
    episodes: list[Episode] = field(default_factory=list)

    @property
    def in_order(self) -> list[Episode]:
        return sorted(self.episodes, key=lambda episode: episode.number)


@dataclass(eq=False)
class Episode:
    rating_key: int
    season: Season
    number: int
    title: str
    guid: str
    versions: list[list[File]]
    added_at: float
    duration_s: float = 2700.0

    @property
    def show(self) -> Show:
        return self.season.show

    @property
    def library(self) -> Library:
        return self.season.show.library


Playable = Film | Episode
Item = Film | Show | Season | Episode


@dataclass
class ViewState:
    """What one user has done with one item."""

    count: int = 0
    last_at: float | None = None
    offset_s: float = 0.0


@dataclass(eq=False)
class User:
    account: int
    cloud_id: int
    name: str
    token: str | None
    """The token that this server accepts; None: plex.tv has no token of this user for this server."""
    home: bool = True
    protected: bool = False
    """Has a PIN: plex.tv refuses to switch to this user without it."""
    title: str = ""
    """What plex.tv calls the user, where that is not the name that the server has."""
    on_deck: dict[Playable, float] = field(default_factory=dict)
    states: dict[Playable, ViewState] = field(default_factory=dict)
    watchlist: dict[Film | Show, float] = field(default_factory=dict)
    cloud_generation: int = 1

    @property
    def owner(self) -> bool:
        return self.account == OWNER_ACCOUNT

    @property
    def cloud_token(self) -> str:
        """What plex.tv and discover accept: the owner's own token, a switched-to user's another one."""
        return self.token or "" if self.owner else f"cloud-{self.cloud_id}-token-{self.cloud_generation}"

    def state(self, item: Playable) -> ViewState:
        return self.states.setdefault(item, ViewState())


@dataclass(eq=False)
class Play:
    key: int
    user: User
    item: Playable
    state: str = "playing"
    position_s: float = 0.0


@dataclass(frozen=True)
class HistoryRow:
    key: int
    user: User
    item: Playable
    at: float


class World:
    """The items by rating key, the users by name, and numbers that are never used twice."""

    def __init__(self, owner: str, token: str) -> None:
        self._numbers = itertools.count(1)
        self.libraries: list[Library] = []
        self.items: dict[int, Item] = {}
        self.plays: list[Play] = []
        self.history: list[HistoryRow] = []
        self.owner = User(OWNER_ACCOUNT, 900001, owner, token)
        self.users: dict[str, User] = {owner: self.owner}

    def number(self) -> int:
        return next(self._numbers)

    def user(self, name: str | None) -> User:
        return self.owner if name is None else self.users[name]

    def by_server_token(self, token: str) -> User | None:
        return next((user for user in self.users.values() if token and user.token == token), None)

    def by_cloud_token(self, token: str) -> User | None:
        return next((user for user in self.users.values() if token and user.cloud_token == token), None)

    def next_episode(self, episode: Episode) -> Episode | None:
        """What Plex puts on deck after ``episode``: specials are followed by nothing."""
        if episode.season.number == 0:
            return None
        regular = [other for other in episode.show.episodes if other.season.number > 0]
        following = regular[regular.index(episode) + 1 :]
        return following[0] if following else None

    def watched(self, user: User, item: Playable, at: float) -> None:
        """Mark as watched the way a finished session does: history, view count, the next episode on deck."""
        state = user.state(item)
        state.count, state.last_at, state.offset_s = state.count + 1, at, 0.0
        user.on_deck.pop(item, None)
        self.history.append(HistoryRow(self.number(), user, item, at))
        if isinstance(item, Episode) and (following := self.next_episode(item)):
            user.on_deck[following] = at


def now() -> float:
    """The clock of the stand-in, in whole seconds as Plex keeps them."""
    return float(int(time.time()))
