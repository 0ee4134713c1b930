"""What the keeper and the server hold, read from /proc, and whether it has grown. Judging is pure."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
MEMORY_SHARE = 0.10
MEMORY_BYTES = 8 * MIB
"""Memory may grow by so much of it and so much more: allocators and SQLite keep some of the peak."""
DESCRIPTORS = 4
THREADS = 4
"""So many more at the end are no leak: a probe or a housekeeper may be at work in the very moment."""
TREND_DESCRIPTORS = 0.15
_FEWEST = 12
"""Samples, below which they show no trend."""


@dataclass(frozen=True, slots=True)
class Held:
    """By one process, or by several together."""

    memory_bytes: int
    descriptors: int
    threads: int

    def __add__(self, other: Held) -> Held:
        return Held(
            self.memory_bytes + other.memory_bytes,
            self.descriptors + other.descriptors,
            self.threads + other.threads,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at both processes and at what the server counts."""

    at_s: float
    server: Held
    keeper: Held
    entries: int
    backing_files: int
    open_files: int
    used_bytes: int
    """Of the cache."""
    index_bytes: int
    """Of the databases in the cache folder."""


def held(pid: int) -> Held:
    """Raises ``OSError`` when the process is gone."""
    fields = parse_status(Path(f"/proc/{pid}/status").read_text())
    return Held(fields["VmRSS"] * 1024, len(os.listdir(f"/proc/{pid}/fd")), fields["Threads"])


def parse_status(text: str) -> dict[str, int]:
    """The numbers in /proc/PID/status by their names, in its units (KiB for memory)."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        first = value.split()[:1]
        if first and first[0].isdigit():
            found[name] = int(first[0])
    return found


def grown(before: Sample, after: Sample) -> list[str]:
    """What is held at rest after the load and was not held before it; empty when nothing is."""
    found = []
    for name, was, now in (("server", before.server, after.server), ("keeper", before.keeper, after.keeper)):
        if now.memory_bytes > most_memory(was.memory_bytes):
            found.append(f"the {name}'s memory: {was.memory_bytes / MIB:.1f} MiB before, {now.memory_bytes / MIB:.1f}")
        if now.descriptors > was.descriptors + DESCRIPTORS:
            found.append(f"the {name}'s descriptors: {was.descriptors} before, {now.descriptors}")
        if now.threads > was.threads + THREADS:
            found.append(f"the {name}'s threads: {was.threads} before, {now.threads}")
    if after.open_files or after.backing_files:
        found.append(f"nobody reads, but {after.open_files} files are open and {after.backing_files} are backed")
    return found


def growing(samples: Sequence[Sample]) -> list[str]:
    """What the server held more of in the last quarter of the run than in the second; the first is still warming up."""
    if len(samples) < _FEWEST:
        return []
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    found = []
    memory = _medians(second, last, lambda sample: sample.server.memory_bytes)
    if memory[1] > most_memory(memory[0]):
        found.append(f"the server's memory under load: {memory[0] / MIB:.1f} MiB, later {memory[1] / MIB:.1f}")
    descriptors = _medians(second, last, lambda sample: sample.server.descriptors)
    if descriptors[1] > descriptors[0] * (1 + TREND_DESCRIPTORS) + DESCRIPTORS:
        found.append(f"the server's descriptors under load: {descriptors[0]:.0f}, later {descriptors[1]:.0f}")
    threads = _medians(second, last, lambda sample: sample.server.threads)
    if threads[1] > threads[0] * (1 + TREND_DESCRIPTORS) + THREADS:
        found.append(f"the server's threads under load: {threads[0]:.0f}, later {threads[1]:.0f}")
    return found


def most_memory(before: float) -> float:
    return before * (1 + MEMORY_SHARE) + MEMORY_BYTES


def alike(samples: Sequence[Sample]) -> bool:
    """Whether they show processes at rest: nothing comes or goes but what always does, such as a look at Plex."""
    descriptors = [sample.server.descriptors for sample in samples]
    threads = [sample.server.threads for sample in samples]
    return (
        max(descriptors) - min(descriptors) <= DESCRIPTORS
        and max(threads) - min(threads) <= THREADS
        and len({(sample.open_files, sample.backing_files, sample.entries) for sample in samples}) == 1
    )


def _medians(before: Iterable[Sample], after: Iterable[Sample], value: Callable[[Sample], int]) -> tuple[float, float]:
    return statistics.median(map(value, before)), statistics.median(map(value, after))
