"""A stand-in Plex over real folders, to try things by hand.

``python -m tests.standin.plex_folders --port 32400 --films DIR --shows DIR`` serves ``DIR/Title (1995).mkv`` and
``DIR/Show/**/… S01E02 ….mkv`` until Ctrl-C; the token is ``owner-token``.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from pathlib import Path

from tests.standin.plex import StandInPlex, run_stand_in_plex
from tests.standin.plex_world import Show


def add_folder_of_films(plex: StandInPlex, folder: Path) -> None:
    library = plex.add_library(folder.name, "movie", str(folder))
    for file in sorted(folder.rglob("*.mkv")):
        found = re.match(r"(.+?) \((\d{4})\)", file.stem)
        title, year = (found[1], int(found[2])) if found else (file.stem, 2000)
        plex.add_film(library, title, year, str(file), file.stat().st_size)


def add_folder_of_shows(plex: StandInPlex, folder: Path) -> None:
    library = plex.add_library(folder.name, "show", str(folder))
    shows: dict[str, Show] = {}
    for file in sorted(folder.rglob("*.mkv")):
        if found := re.search(r"[Ss](\d+)[Ee](\d+)", file.stem):
            name = file.relative_to(folder).parts[0]
            show = shows.setdefault(name, shows.get(name) or plex.add_show(library, name))
            plex.add_episode(show, int(found[1]), int(found[2]), file.stem, str(file), file.stat().st_size)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A stand-in Plex server over real folders")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--films", type=Path, action="append", default=[])
    parser.add_argument("--shows", type=Path, action="append", default=[])
    given = parser.parse_args(arguments)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with run_stand_in_plex(given.port) as plex:
        for folder in given.films:
            add_folder_of_films(plex, folder.resolve())
        for folder in given.shows:
            add_folder_of_shows(plex, folder.resolve())
        sys.stdout.write(f"{plex.url} token {plex.token}\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main())
