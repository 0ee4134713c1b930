"""What is measured: the pieces of work the probe does, and the lines of the table that come of them.

Pure. Every file system gets the same works on the same files.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Files(enum.Enum):
    """Which files a work is done on."""

    FILM = "the first film"
    FILMS = "all films"
    CLIPS = "all clips"
    TREE = "a tree of its own in every round"


class Kept(enum.Enum):
    """What the kernel may keep in memory when a pass begins."""

    ALL = "everything"
    BENEATH = "what lies beneath the mount, but no page of the mount's own"
    NOTHING = "no page of the file, so that it comes from the disk"


class Passes(enum.Enum):
    """Which passes of a work a line is about."""

    EVERY = "every"
    FIRST = "first"
    LATER = "later"


class Kind(enum.Enum):
    """How a file system is mounted for the benchmark, as far as targets and works depend on it."""

    NATIVE = "native"
    CACHED = "cachefs, cached"
    UNCACHED = "cachefs, not cached"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Work:
    """One run of the probe. A pass reads in blocks of ``block`` bytes, or does ``count`` operations."""

    key: str
    probe: str
    files: Files
    kept: Kept
    block: int = MIB
    count: int = 0
    of: frozenset[Kind] = frozenset(Kind)

    @property
    def reads_whole_files(self) -> bool:
        return self.probe in ("sequential", "streams")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table. ``targets`` are ratios to the native folder."""

    key: str
    title: str
    work: str
    unit: str
    passes: Passes = Passes.EVERY
    targets: Mapping[Kind, float] = field(default_factory=dict)


_ONE_TREE = frozenset(Kind) - {Kind.UNCACHED}
"""Looking around is the same whether files are cached or not; the first cachefs stands for both."""

WORKS = (
    Work("sequential-1m", "sequential", Files.FILM, Kept.BENEATH, block=MIB),
    Work("sequential-64k", "sequential", Files.FILM, Kept.BENEATH, block=64 * KIB),
    Work("streams", "streams", Files.FILMS, Kept.BENEATH, block=MIB),
    Work("random-128k", "random", Files.FILMS, Kept.BENEATH, block=128 * KIB, count=2000),
    Work("random-4k", "random", Files.FILMS, Kept.BENEATH, block=4 * KIB, count=4000),
    Work("reopen", "reopen", Files.FILMS, Kept.BENEATH, block=128 * KIB, count=100),
    Work("disk", "sequential", Files.FILM, Kept.NOTHING, block=MIB),
    Work("open-close", "open-close", Files.CLIPS, Kept.ALL, count=1000),
    Work("open-read-close", "open-read-close", Files.CLIPS, Kept.ALL, block=64 * KIB, count=1000),
    Work("stat", "stat", Files.TREE, Kept.ALL, of=_ONE_TREE),
    Work("walk", "walk", Files.TREE, Kept.ALL, of=_ONE_TREE),
)

_FAST = {Kind.CACHED: 0.97}

LINES = (
    Line("sequential-1m", "sequential, 1 MiB reads", "sequential-1m", "B", targets={**_FAST, Kind.UNCACHED: 0.25}),
    Line("sequential-64k", "sequential, 64 KiB reads", "sequential-64k", "B", targets={**_FAST, Kind.UNCACHED: 0.25}),
    Line("streams", "four streams at once", "streams", "B", targets={**_FAST, Kind.UNCACHED: 0.12}),
    Line("random-128k", "random 128 KiB reads", "random-128k", "reads", targets=_FAST),
    Line("random-4k", "random 4 KiB reads", "random-4k", "reads", targets={Kind.CACHED: 0.93}),
    Line("reopen", "seek: open, read 1 MiB, close", "reopen", "seeks"),
    Line("disk", "sequential, from the disk", "disk", "B"),
    Line("open-close", "open, close", "open-close", "files", targets={Kind.CACHED: 0.016, Kind.UNCACHED: 0.010}),
    Line("open-read-close", "open, read 64 KiB, close", "open-read-close", "files"),
    Line("stat-cold", "stat, cold", "stat", "files", Passes.FIRST, {Kind.CACHED: 0.03}),
    Line("stat-warm", "stat, warm", "stat", "files", Passes.LATER, {Kind.CACHED: 0.87}),
    Line("walk-cold", "walk with stat, cold", "walk", "entries", Passes.FIRST, {Kind.CACHED: 0.11}),
    Line("walk-warm", "walk with stat, warm", "walk", "entries", Passes.LATER, {Kind.CACHED: 0.80}),
)

CPU_WORKS = ("sequential-1m", "sequential-64k", "streams")
"""What processor time per GiB is taken from: works that read much."""
CPU_TARGET_S = 0.02
MEMORY_TARGET_BYTES = 600
"""Per entry that the kernel knows."""
