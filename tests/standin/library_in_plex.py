"""Registers the sample library in the stand-in Plex, under the paths that Plex has for it.

Tests and the demo call ``put_in_plex`` once; the stand-in's own items come back by the names people use.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.standin.library import SampleLibrary
from tests.standin.plex import StandInPlex
from tests.standin.plex_world import Episode, Film, Show


@dataclass(frozen=True, slots=True)
class PlexItems:
    """The stand-in's items by what people call them: ``Slow Tides``, ``Slow Tides S01E02``, ``Seek Time (2004)``."""

    shows: dict[str, Show]
    episodes: dict[str, Episode]
    films: dict[str, Film]


def put_in_plex(library: SampleLibrary, plex: StandInPlex, root: str = "/data") -> PlexItems:
    """Two Plex libraries, ``TV`` and ``Films``, whose folders Plex calls ``root/TV`` and ``root/Films``."""
    items = PlexItems({}, {}, {})
    tv = plex.add_library("TV", "show", f"{root}/TV")
    for show in library.shows:
        items.shows[show.title] = plex.add_show(tv, show.title)
        for episode in show.episodes:
            path, size = f"{root}/{episode.video.path}", episode.video.size
            items.episodes[episode.name] = plex.add_episode(
                items.shows[show.title], episode.season, episode.number, f"Part {episode.number}", path, size
            )
    films = plex.add_library("Films", "movie", f"{root}/Films")
    for film in library.films:
        path, size = f"{root}/{film.video.path}", film.video.size
        items.films[film.name] = plex.add_film(films, film.title, film.year, path, size)
    return items
