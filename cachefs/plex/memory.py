"""What ``PlexClient`` remembers from one snapshot to the next. Frozen: a snapshot makes a new one, or none at all.

``gather`` reads the old one in its worker thread and returns the new one; the client keeps it on the event loop's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeVar

from cachefs.model import Interest, LibraryFolder, PlexFile, UserName, View
from cachefs.plex.values import ListsAsk

EVERYBODY = UserName("")
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Person:
    """The owner or a home user.

    ``account`` is the number in the server's sessions and watch history. ``token`` opens the server in this user's
    name; ``cloud_token`` reads the watchlist, empty when there is none.
    ``problem`` is a lasting reason why some or all of this user's lists stay unread; with an empty ``token`` all.
    """

    name: UserName
    account: int
    token: str = field(repr=False)
    cloud_token: str = field(repr=False)
    problem: str = ""
    is_owner: bool = False


@dataclass(frozen=True, slots=True)
class People:
    """Everybody whose lists are read, the owner first. ``accounts`` are the names that the server has for its accounts,
    by number: not always those that plex.tv has for the same users.

    ``complete`` is False when plex.tv could not be asked for the home users.
    """

    persons: tuple[Person, ...]
    accounts: Mapping[int, UserName]
    read_at: float
    complete: bool = True

    def name_of(self, account: int) -> UserName | None:
        """One name for one user, whoever tells of him."""
        persons = (person.name for person in self.persons if person.account == account)
        return next(persons, None) or self.accounts.get(account)


@dataclass(frozen=True, slots=True)
class SeenSession:
    """A session as it was last seen."""

    first_seen_at: float
    furthest: float
    """The greatest progress seen, 0 to 1."""
    user: UserName
    title: str
    files: tuple[PlexFile, ...]
    rating_key: str


@dataclass(frozen=True, slots=True)
class History:
    """The watch history by row; None: what the library no longer had. ``read_at``: when all of it was read."""

    views: Mapping[str, View | None] = field(default_factory=dict)
    read_at: float = float("-inf")

    @property
    def newest(self) -> float:
        return max((view.at for view in self.views.values() if view is not None), default=0.0)


@dataclass(frozen=True, slots=True)
class Section:
    """A library of films or shows."""

    key: int
    title: str
    kind: Literal["movie", "show"]
    locations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lists:
    """What one person's lists came to, for this question; ``took_s`` to read."""

    ask: ListsAsk
    interests: tuple[Interest, ...]
    read_at: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Folders:
    """The libraries and their folders, asked for rarely."""

    sections: tuple[Section, ...]
    folders: tuple[LibraryFolder, ...]
    read_at: float


@dataclass(frozen=True, slots=True)
class Wished:
    """One entry of a watchlist."""

    guid: str
    kind: Literal["movie", "show"]


@dataclass(frozen=True, slots=True)
class Watchlist:
    entries: tuple[Wished, ...]
    read_at: float


@dataclass(frozen=True, slots=True)
class GuidMatch:
    """Which items of the library have a guid; none is an answer too, for a while."""

    keys: tuple[str, ...]
    asked_at: float


@dataclass(frozen=True, slots=True)
class WishKey:
    user: UserName
    guid: str


@dataclass(frozen=True, slots=True)
class CloudTrouble:
    """Why plex.tv could not be used, and until when it is left alone: for all, or for the one whom it refused."""

    problem: str
    until: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Everything; empty at the start."""

    people: People | None = None
    sessions: Mapping[str, SeenSession] = field(default_factory=dict)
    ended: tuple[View, ...] = ()
    history: History = field(default_factory=History)
    folders: Folders | None = None
    lists: Mapping[UserName, Lists] = field(default_factory=dict)
    """Those that could be read completely."""
    watchlists: Mapping[UserName, Watchlist] = field(default_factory=dict)
    matches: Mapping[str, GuidMatch] = field(default_factory=dict)
    wished_at: Mapping[WishKey, float] = field(default_factory=dict)
    cloud: Mapping[UserName, CloudTrouble] = field(default_factory=dict)
    """By user; what troubles all is under ``EVERYBODY``."""


def with_entry(mapping: Mapping[_Key, _Value], key: _Key, value: _Value) -> Mapping[_Key, _Value]:
    """A copy with one entry more."""
    return MappingProxyType({**mapping, key: value})
