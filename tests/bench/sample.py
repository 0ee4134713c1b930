"""Makes the files that everything is measured on: films, clips, and trees of empty files like a library of series."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.probe import Sample
from tests.bench.works import MIB
from tests.demo.stop import Stop

FILMS, CLIPS = 4, 64
EPISODES, SEASONS = 20, 5
FILES_IN_A_TREE = 10_000
MIB_AT_ONCE = 4
"""As the copiers write: the page cache keeps what is written at once in larger pieces, which are read faster. With
1 MiB at once the copies were read 1.2 times as fast as the native files."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much of everything."""

    film_bytes: int
    rounds: int
    entries: int
    """In the tree that the memory is measured with; 0 leaves that out."""
    min_ms: int
    """A probe goes on for so long."""


FULL = Amounts(film_bytes=512 * MIB, rounds=7, entries=1_000_000, min_ms=300)
QUICK = Amounts(film_bytes=128 * MIB, rounds=5, entries=20_000, min_ms=30)


def make_sample(source: Path, lists: Path, amounts: Amounts, stop: Stop) -> Sample:
    """Write it below ``source``. ``Stopped`` when somebody asked to end meanwhile."""
    films = tuple(f"films/film {number}.mkv" for number in range(FILMS))
    clips = tuple(f"clips/clip {number:02}.mkv" for number in range(CLIPS))
    for name, size in [*((film, amounts.film_bytes) for film in films), *((clip, MIB) for clip in clips)]:
        (source / name).parent.mkdir(exist_ok=True)
        _write(source / name, size, stop)
    trees = tuple(f"tree-{number:02}" for number in range(amounts.rounds * 2))
    for tree in trees:
        names = [os.fspath(path.relative_to(source)) for path in make_tree(source / tree, FILES_IN_A_TREE, stop)]
        (lists / f"{tree}.names").write_text("".join(f"{name}\n" for name in names))
    return Sample(films, clips, trees, lists)


def make_tree(root: Path, files: int, stop: Stop) -> list[Path]:
    """Shows with 5 seasons of 20 episodes each, all empty; the paths of the files in the order of their making."""
    made: list[Path] = []
    for folder in _folders(root):
        stop.wait(0)
        folder.mkdir(parents=True)
        for number in range(min(EPISODES, files - len(made))):
            path = folder / f"{folder.parent.name} - S{folder.name[-2:]}E{number + 1:02}.mkv"
            os.mknod(path, stat.S_IFREG | 0o644)
            made.append(path)
        if len(made) == files:
            return made
    return made


def files_for_entries(entries: int) -> int:
    """How many files, together with their folders, make so many entries of a tree."""
    return entries * EPISODES * SEASONS // ((EPISODES + 1) * SEASONS + 1)


def _folders(root: Path) -> Iterator[Path]:
    show = 0
    while True:
        show += 1
        yield from (root / f"Show {show:05}" / f"Season {season:02}" for season in range(1, SEASONS + 1))


def _write(path: Path, size: int, stop: Stop) -> None:
    """Bytes that repeat nowhere: every MiB begins with its own number."""
    noise = os.urandom(MIB - 8)
    with path.open("wb", buffering=0) as file:
        for first in range(0, size // MIB, MIB_AT_ONCE):
            stop.wait(0)
            numbers = range(first, min(first + MIB_AT_ONCE, size // MIB))
            file.write(b"".join(number.to_bytes(8) + noise for number in numbers))
        os.fsync(file.fileno())  # dirty pages could not be dropped, and would be written in the middle of a round
