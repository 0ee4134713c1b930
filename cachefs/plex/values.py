"""What goes into the Plex side and comes out of it besides ``cachefs.model``: settings, a question, small answers.

Imported by everything in ``cachefs.plex`` and by those who call it. No network, no plexapi.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cachefs.model import UserName, UserReport


@dataclass(frozen=True, slots=True)
class PlexSettings:
    """Where Plex is and who asks. ``token`` is the server owner's.

    ``cloud_url``: one address in the place of plex.tv, discover and metadata; None: the real ones. ``deadline_s``
    bounds every call of ``PlexClient`` as a whole. plex.tv is asked for a watchlist at most every
    ``watchlist_every_s``, and left alone for ``cloud_retry_s`` after it failed. People's lists are believed for
    ``lists_valid`` times what they took to read: with many people and slow disks they are what costs Plex most, and it
    is to have nine tenths of its time for others. Where they take a tenth of a second, every look reads them.
    """

    url: str
    token: str = field(repr=False)
    cloud_url: str | None = None
    deadline_s: float = 60.0
    watchlist_every_s: float = 60.0
    cloud_retry_s: float = 60.0
    lists_valid: float = 10.0

    @property
    def origin(self) -> str:
        """The address for logs and errors: no user, no password, no query."""
        return origin_of(self.url)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a snapshot is to hold. ``recently_added_max_age_s`` None: nothing of that kind.

    ``pinned`` are rating keys: of a film, an episode, a season or a show; with commas, those of one title in several
    libraries. ``views_max_age_s``: how far back the watch history is read.
    """

    playing: bool = True
    on_deck: bool = True
    watchlist: bool = True
    recently_added_max_age_s: float | None = None
    next_episodes_playing: int = 2
    next_episodes_on_deck: int = 5
    watchlist_episodes: int = 3
    pinned: tuple[str, ...] = ()
    views_max_age_s: float = 7 * 86400.0

    @property
    def lists(self) -> ListsAsk:
        return ListsAsk(self.on_deck, self.watchlist, self.next_episodes_on_deck, self.watchlist_episodes)


@dataclass(frozen=True, slots=True)
class ListsAsk:
    """What is asked of every person's lists."""

    on_deck: bool
    watchlist: bool
    next_episodes: int
    watchlist_episodes: int


@dataclass(frozen=True, slots=True)
class TitleMatch:
    """An item of the library found by title; ``kind`` is ``movie``, ``show``, ``season`` or ``episode``. ``exact``:
    that is its title; else it only is what Plex's search takes for alike."""

    rating_key: str
    title: str
    kind: str
    exact: bool


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Which server answered, and whose lists it lets us read."""

    name: str
    version: str
    owner: UserName
    users: tuple[UserReport, ...]


def origin_of(url: str) -> str:
    """Scheme, host and port of ``url``, safe to show."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "?", parts.port
    except ValueError:
        return "an address that is no URL"
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{port}" if port else f"{parts.scheme}://{host}"
