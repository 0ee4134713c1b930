"""A small library on a stand-in Plex, for the tests of ``cachefs.plex``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cachefs.model import Interest, InterestKind, Snapshot, UserName
from cachefs.plex.client import Ask, PlexClient, PlexSettings
from tests.standin.plex import StandInPlex
from tests.standin.plex_world import Episode, Film, Library, Show

NOTHING = Ask(playing=False, on_deck=False, watchlist=False)
ON_DECK = Ask(playing=False, on_deck=True, watchlist=False, next_episodes_on_deck=2)


@dataclass(frozen=True)
class Shelf:
    """A show of two seasons of three episodes, with a special, and two films."""

    tv: Library
    films: Library
    show: Show
    special: Episode
    first: tuple[Episode, ...]
    second: tuple[Episode, ...]
    heat: Film
    alien: Film


def fill(plex: StandInPlex) -> Shelf:
    tv = plex.add_library("TV", "show", "/data/TV")
    films = plex.add_library("Films", "movie", "/data/Films")
    show = plex.add_show(tv, "Severance")

    def episode(season: int, number: int) -> Episode:
        path = f"/data/TV/Severance/Season {season}/S{season:02}E{number:02}.mkv"
        return plex.add_episode(show, season, number, f"Part {number}", path, 1000 * season + number)

    return Shelf(
        tv,
        films,
        show,
        episode(0, 1),
        tuple(episode(1, number) for number in (1, 2, 3)),
        tuple(episode(2, number) for number in (1, 2, 3)),
        plex.add_film(films, "Heat", 1995, "/data/Films/Heat (1995)/Heat.mkv", 5000),
        plex.add_film(films, "Alien", 1979, "/data/Films/Alien (1979)/Alien.mkv", 6000),
    )


def settings(
    plex: StandInPlex,
    *,
    deadline_s: float = 20.0,
    cloud: bool = True,
    cloud_retry_s: float = 0.0,
    lists_valid: float = 0.0,
) -> PlexSettings:
    """``watchlist_every_s`` and ``lists_valid`` 0: what a test changes shows in the next snapshot."""
    return PlexSettings(
        plex.url,
        plex.token,
        plex.url if cloud else NO_CLOUD,
        deadline_s=deadline_s,
        watchlist_every_s=0.0,
        cloud_retry_s=cloud_retry_s,
        lists_valid=lists_valid,
    )


NO_CLOUD = "http://127.0.0.1:1"
"""Nobody listens there."""


def client(plex: StandInPlex) -> PlexClient:
    return PlexClient(settings(plex))


def of_kind(snapshot: Snapshot, kind: InterestKind, user: str | None = None) -> list[Interest]:
    found = (interest for interest in snapshot.interests if interest.kind is kind)
    return [interest for interest in found if user is None or interest.user == user]


def titles(interests: Iterable[Interest]) -> list[str]:
    return [interest.title for interest in interests]


def problem_of(snapshot: Snapshot, user: str) -> str:
    return next(report.problem for report in snapshot.users if report.user == UserName(user))
