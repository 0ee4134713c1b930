"""Folders, library and Plex of one soak: the stage of the crash rig, with people, and a cache that is too small."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.crash.stage import LIBRARY, Stage, build
from tests.standin.plex import StandInPlex
from tests.standin.plex_world import Episode, Film

FILES = 64
WRITERS = 3
EPISODES = 8
"""Of a show; every fourth is films."""
USERS = ("Ben", "Cleo", "Dora")
CACHE_BYTES = 16 << 20
"""A third of the library: whoever is wanted next displaces somebody."""


def set_up(folder: Path, seed: int, mode: str) -> Stage:
    return build(folder, seed, FILES, WRITERS, mode)


def settings(stage: Stage, plex: StandInPlex) -> dict[str, Any]:
    """What a user would write, with waits of seconds for hours."""
    made = stage.settings(random.Random(stage.seed))
    made["sources"][0] |= {"ttl": "2s", "metadata": "auto"}
    made["cache"]["max_size"] = str(CACHE_BYTES)
    made["copying"] = {"workers": 2}
    made["fast_path"] = "auto"
    made["plex"] = {
        "url": plex.url,
        "cloud_url": plex.url,
        "token": plex.token,
        "path_map": [{"plex": "/data", "mount": "/"}],
    }
    made["policy"] = {
        "playing": {"after": "0s", "next_episodes": 2},
        "on_deck": {"next_episodes": 2},
        "watchlist": {"episodes": 2},
        "keep_watched": "5s",
    }
    return made


def put_in_plex(stage: Stage, plex: StandInPlex) -> tuple[list[Episode], list[Film]]:
    """Users, and every file of the library as an episode or a film."""
    for name in USERS:
        plex.add_user(name, f"token-of-{name}")
    tv = plex.add_library("TV", "show", f"/data/{LIBRARY}")
    films = plex.add_library("Films", "movie", f"/data/{LIBRARY}")
    names = sorted(stage.library)
    found_episodes: list[Episode] = []
    found_films: list[Film] = []
    for group in range(0, len(names), EPISODES):
        number = group // EPISODES
        show = plex.add_show(tv, f"Show {number}") if number % 4 else None
        for place, name in enumerate(names[group : group + EPISODES]):
            path, size = f"/data/{name}", len(stage.library[name])
            if show is None:
                found_films.append(plex.add_film(films, f"Film {number}-{place}", 1990 + place, path, size))
            else:
                found_episodes.append(plex.add_episode(show, 1, place + 1, f"Part {place}", path, size))
    return found_episodes, found_films
