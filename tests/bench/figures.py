"""From raw measurements to ratios: medians over rounds of what one file system did beside the native folder. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.bench.works import CPU_WORKS, GIB, Line, Passes, Work


@dataclass(frozen=True, slots=True)
class Measured:
    """What the probe did in one run: ``units`` in each pass, and how long each took. ``cpu_s``: the daemon's."""

    work: str
    system: str
    round: int
    units: int
    took_ns: tuple[int, ...]
    cpu_s: float | None

    def rate(self, passes: Passes) -> float | None:
        """Units a second; None when it made no such pass."""
        took = {Passes.EVERY: self.took_ns, Passes.FIRST: self.took_ns[:1], Passes.LATER: self.took_ns[1:]}[passes]
        return self.units / statistics.median(took) * 1e9 if took else None


@dataclass(frozen=True, slots=True)
class Figure:
    """A median, and the lowest and highest of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure | None:
        return cls(statistics.median(values), min(values), max(values)) if values else None


def rates(measured: Iterable[Measured], line: Line, system: str) -> dict[int, float]:
    """By round."""
    found = ((m.round, m.rate(line.passes)) for m in measured if (m.work, m.system) == (line.work, system))
    return {number: rate for number, rate in found if rate is not None}


def rate(measured: Iterable[Measured], line: Line, system: str) -> Figure | None:
    return Figure.of(list(rates(measured, line, system).values()))


def ratio(measured: Sequence[Measured], line: Line, system: str, native: str) -> Figure | None:
    """How fast a system was beside the native folder, each round compared with itself."""
    theirs, own = rates(measured, line, native), rates(measured, line, system)
    return Figure.of([own[number] / theirs[number] for number in own if number in theirs])


def cpu_s_per_gib(measured: Iterable[Measured], works: Iterable[Work], system: str) -> float | None:
    """The daemon's processor time for a GiB, over all rounds: a clock tick (10 ms) is too coarse for one."""
    reading = {work.key for work in works if work.key in CPU_WORKS and work.reads_whole_files}
    found = [m for m in measured if m.system == system and m.work in reading and m.cpu_s is not None]
    read_bytes = sum(m.units * len(m.took_ns) for m in found)
    return sum(m.cpu_s or 0.0 for m in found) / read_bytes * GIB if read_bytes else None


@dataclass(frozen=True, slots=True)
class Memory:
    """The daemon's resident memory: after its start, after a walk of ``entries``, and once the kernel forgot them."""

    entries: int
    start_bytes: int
    walked_bytes: int
    forgotten_bytes: int

    @property
    def bytes_per_entry(self) -> float:
        return (self.walked_bytes - self.start_bytes) / self.entries

    @property
    def kept_bytes_per_entry(self) -> float:
        return (self.forgotten_bytes - self.start_bytes) / self.entries
