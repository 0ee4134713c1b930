"""A sample media library: series with seasons, films, and what lies beside them, with content anybody can check.

Tests and the demo build it in a folder. Every byte follows from the file's path and its position (``SampleFile``), so
that a reader can tell right from wrong without the file. Knows nothing of Plex; ``library_in_plex`` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import shake_128
from pathlib import Path

BLOCK_BYTES = 1 << 16
OLDEST_NS = 1_700_000_000 * 10**9
"""Modification time of the first file; the others follow a minute apart, all long before any test runs."""


@dataclass(frozen=True, slots=True)
class SampleFile:
    """One file: where it is below the library's root, and how long it is."""

    path: str
    size: int

    def content(self, start: int = 0, end: int | None = None) -> bytes:
        """The right bytes from ``start`` to ``end`` (the file's end when None or beyond)."""
        end = self.size if end is None else min(end, self.size)
        if end <= start:
            return b""
        first = start // BLOCK_BYTES
        blocks = b"".join(self._block(number) for number in range(first, (end - 1) // BLOCK_BYTES + 1))
        return blocks[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES]

    def _block(self, number: int) -> bytes:
        return shake_128(f"{self.path}:{number}".encode()).digest(BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class SampleEpisode:
    """One episode: its video and the files that go with it."""

    show: str
    season: int
    number: int
    video: SampleFile
    sidecars: tuple[SampleFile, ...]

    @property
    def name(self) -> str:
        """As people write it: ``Slow Tides S01E02``."""
        return f"{self.show} S{self.season:02}E{self.number:02}"


@dataclass(frozen=True, slots=True)
class SampleShow:
    """A series with its episodes in order."""

    title: str
    year: int
    episodes: tuple[SampleEpisode, ...]
    extras: tuple[SampleFile, ...]
    """Files of the series as a whole: its poster."""


@dataclass(frozen=True, slots=True)
class SampleFilm:
    """A film: its video and the files that go with it."""

    title: str
    year: int
    video: SampleFile
    sidecars: tuple[SampleFile, ...]

    @property
    def name(self) -> str:
        """As people write it: ``The Long Spin (2019)``."""
        return f"{self.title} ({self.year})"


@dataclass(frozen=True, slots=True)
class LibrarySizes:
    """How large the videos are. Small by default: most tests care about names, not amounts."""

    episode_bytes: int = 1 << 20
    film_bytes: int = 2 << 20


@dataclass(frozen=True, slots=True)
class SampleLibrary:
    """Everything there is, below ``root``: ``TV/…`` and ``Films/…``."""

    root: Path
    shows: tuple[SampleShow, ...]
    films: tuple[SampleFilm, ...]
    files: dict[str, SampleFile] = field(default_factory=dict)
    """By path below the root."""

    def show(self, title: str) -> SampleShow:
        return next(show for show in self.shows if show.title == title)

    def film(self, title: str) -> SampleFilm:
        return next(film for film in self.films if film.title == title)

    def is_right(self, path: str, start: int, data: bytes) -> bool:
        """Whether ``data`` is what the file holds from ``start`` on."""
        return data == self.files[path].content(start, start + len(data))


def build_library(root: Path, sizes: LibrarySizes | None = None) -> SampleLibrary:
    """Write the sample library into ``root`` (made if missing) and say what is in it."""
    sizes = sizes or LibrarySizes()
    shows = (
        _show("Slow Tides", 2021, (3, 2), sizes.episode_bytes),
        _show("Night Shift", 2018, (2,), sizes.episode_bytes),
    )
    films = tuple(
        _film(title, year, sizes.film_bytes)
        for title, year in (("The Long Spin", 2019), ("Cold Platter", 1987), ("Seek Time", 2004))
    )
    files = {file.path: file for file in _all_files(shows, films)}
    for number, file in enumerate(files.values()):
        _write(root, file, OLDEST_NS + number * 60 * 10**9)
    return SampleLibrary(root, shows, films, files)


def _show(title: str, year: int, seasons: tuple[int, ...], episode_bytes: int) -> SampleShow:
    folder = f"TV/{title} ({year})"
    episodes = tuple(
        _episode(folder, title, season, number, episode_bytes)
        for season, count in enumerate(seasons, 1)
        for number in range(1, count + 1)
    )
    return SampleShow(title, year, episodes, (SampleFile(f"{folder}/poster.jpg", 40_000),))


def _episode(folder: str, show: str, season: int, number: int, size: int) -> SampleEpisode:
    stem = f"{folder}/Season {season:02}/{show} - S{season:02}E{number:02}"
    # Lengths differ a little and are no multiple of anything, as in life.
    video = SampleFile(f"{stem}.mkv", size + season * 1013 + number * 37)
    sidecars = (SampleFile(f"{stem}.en.srt", 31_007 + number), SampleFile(f"{stem}.nfo", 1_203))
    return SampleEpisode(show, season, number, video, sidecars)


def _film(title: str, year: int, size: int) -> SampleFilm:
    stem = f"Films/{title} ({year})/{title} ({year})"
    sidecars = (
        SampleFile(f"{stem}.en.forced.srt", 4_099),
        SampleFile(f"{stem}.nfo", 2_203),
        SampleFile(f"{stem}-poster.jpg", 60_013),
    )
    return SampleFilm(title, year, SampleFile(f"{stem}.mkv", size + year), sidecars)


def _all_files(shows: Iterable[SampleShow], films: Iterable[SampleFilm]) -> Iterator[SampleFile]:
    for show in shows:
        yield from show.extras
        for episode in show.episodes:
            yield from (episode.video, *episode.sidecars)
    for film in films:
        yield from (film.video, *film.sidecars)


def _write(root: Path, file: SampleFile, mtime_ns: int) -> None:
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as writing:
        for start in range(0, file.size, BLOCK_BYTES):
            writing.write(file.content(start, start + BLOCK_BYTES))
    os.utime(path, ns=(mtime_ns, mtime_ns))
