"""The folders of the libraries with a few of their real files, from which path mappings are learned. Asked rarely.

Where the first items of a library leave one of its folders without any, those that are wanted now will do: only for
them a mapping is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from cachefs.model import LibraryFolder, PlexFile, PlexPath
from cachefs.plex.connection import Item, items
from cachefs.plex.items import files_of
from cachefs.plex.memory import Folders, Section
from cachefs.plex.round import Round

SAMPLES = 5
_VALID_S = 6 * 3600.0
_LACKING_VALID_S = 60.0
_PAGE = 100
_PAGES = 5


def read_folders(round: Round) -> Folders:
    """The libraries and their folders, after everybody's lists: as remembered, or asked anew, sooner when a wanted file
    is in none of them. Keeps the old ones when that fails."""
    known, wanted = round.memory.folders, [file for interest in round.interests for file in interest.files]
    if known is not None:
        locations = [folder.path for folder in known.folders]
        lacking = any(_location_of(file.path, locations) is None for file in wanted)
        if round.now - known.read_at < (_LACKING_VALID_S if lacking else _VALID_S):
            return _sampled(known, wanted)
    with round.reading(round.owner, "libraries"):
        sections = tuple(_sections(round.server.library.sections()))
        folders = tuple(folder for section in sections for folder in _folders(round.server, section))
        known = Folders(sections, folders, round.now)
        round.memory = replace(round.memory, folders=known)
    return _sampled(known, wanted) if known is not None else Folders((), (), round.now)


def _sampled(known: Folders, wanted: Sequence[PlexFile]) -> Folders:
    """With wanted files in the folders that have no samples."""
    if all(folder.samples for folder in known.folders):
        return known
    found: dict[str, list[PlexFile]] = {folder.path: [] for folder in known.folders}
    for file in wanted:
        if location := _location_of(file.path, found):
            found[location].append(file)
    folders = (one if one.samples else replace(one, samples=_spread(found[one.path])) for one in known.folders)
    return replace(known, folders=tuple(folders))


def _sections(listed: Iterable[Item]) -> Iterable[Section]:
    for section in listed:
        if section.type in ("movie", "show") and isinstance(section.key, int):
            locations = tuple(path for path in section.locations if path)
            yield Section(section.key, section.title or "", section.type, locations)


def _folders(server: Item, section: Section) -> list[LibraryFolder]:
    """Up to five files for every folder, of different folders below it where there are some."""
    found: dict[str, list[PlexFile]] = {location: [] for location in section.locations}
    params = {"type": 1 if section.kind == "movie" else 4}
    for page in range(_PAGES):
        key = f"/library/sections/{section.key}/all"
        listed = items(server, key, start=page * _PAGE, limit=_PAGE, params=params)
        for file in (file for item in listed for file in files_of(item)):
            if location := _location_of(file.path, section.locations):
                found[location].append(file)
        if len(listed) < _PAGE or all(len(files) >= SAMPLES for files in found.values()):
            break
    return [LibraryFolder(section.title, PlexPath(path), _spread(files)) for path, files in found.items()]


def _location_of(path: str, locations: Iterable[str]) -> str | None:
    """The innermost location that holds ``path``."""
    holding = [location for location in locations if _is_below(path, location)]
    return max(holding, key=len, default=None)


def _is_below(path: str, folder: str) -> bool:
    folder = folder.rstrip("/\\")
    return path.startswith(folder) and path[len(folder) : len(folder) + 1] in ("/", "\\")


def _spread(files: list[PlexFile]) -> tuple[PlexFile, ...]:
    """One file of each folder first, then the others."""
    first: dict[str, PlexFile] = {}
    for file in files:
        pure = PureWindowsPath(file.path) if "\\" in file.path else PurePosixPath(file.path)
        first.setdefault(str(pure.parent), file)
    ordered = [*first.values(), *(file for file in files if file not in first.values())]
    return tuple(ordered[:SAMPLES])
