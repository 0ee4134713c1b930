"""One run of the benchmark as values: what was measured where, ready to be written as JSON, table and chart. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.figures import Figure, Measured, Memory, cpu_s_per_gib, rate, ratio
from tests.bench.probe import System
from tests.bench.works import CPU_TARGET_S, LINES, MEMORY_TARGET_BYTES, WORKS, Kind, Line


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what the native folder does, and each system's ratio to it, in the order of the systems."""

    line: Line
    native: Figure
    ratios: tuple[Figure | None, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """``systems``: the native folder first. ``facts``: about the machine and the run, in words."""

    facts: Mapping[str, str]
    systems: tuple[System, ...]
    measured: tuple[Measured, ...]
    memory: Memory | None

    @property
    def compared(self) -> tuple[System, ...]:
        return self.systems[1:]

    def rows(self) -> list[Row]:
        native = self.systems[0].key
        rows = []
        for line in LINES:
            figure = rate(self.measured, line, native)
            if figure is not None:
                ratios = tuple(ratio(self.measured, line, system.key, native) for system in self.compared)
                rows.append(Row(line, figure, ratios))
        return rows

    def cpu_s_per_gib(self) -> list[float | None]:
        """Of each compared system; the native folder has no daemon."""
        return [cpu_s_per_gib(self.measured, WORKS, system.key) for system in self.compared]

    def as_json(self) -> dict[str, Any]:
        return {
            "facts": dict(self.facts),
            "systems": [
                {"key": s.key, "title": s.title, "kind": s.kind.name, "version": s.version} for s in self.systems
            ],
            "lines": [_line_as_json(row, self.compared) for row in self.rows()],
            "cpu_s_per_gib": dict(zip((s.key for s in self.compared), self.cpu_s_per_gib(), strict=True)),
            "memory": asdict(self.memory) if self.memory else None,
            "measured": [asdict(measured) for measured in self.measured],
        }


def missed(report: Report) -> list[str]:
    """The lines that are not at their target, in words."""
    told = [text for row in report.rows() for text in _missed_in(row, report.compared)]
    for system, seconds in zip(report.compared, report.cpu_s_per_gib(), strict=True):
        if system.kind is Kind.CACHED and seconds is not None and seconds > CPU_TARGET_S:
            told.append(f"processor time, {system.title}: {seconds:.3f} s per GiB, to be at most {CPU_TARGET_S:g}")
    if report.memory is not None and report.memory.bytes_per_entry > MEMORY_TARGET_BYTES:
        told.append(f"memory: {report.memory.bytes_per_entry:,.0f} bytes an entry, to be at most {MEMORY_TARGET_BYTES}")
    return told


def _missed_in(row: Row, systems: Sequence[System]) -> Iterable[str]:
    for system, figure in zip(systems, row.ratios, strict=True):
        target = row.line.targets.get(system.kind)
        if target is not None and figure is not None and figure.median < target:
            yield f"{row.line.title}, {system.title}: {as_ratio(figure.median)}, to be at least {target:.3g}"


def _line_as_json(row: Row, systems: Sequence[System]) -> dict[str, Any]:
    return {
        "key": row.line.key,
        "title": row.line.title,
        "native_per_s": asdict(row.native),
        "unit": row.line.unit,
        "ratios": {s.key: asdict(f) for s, f in zip(systems, row.ratios, strict=True) if f is not None},
        "targets": {kind.name: ratio for kind, ratio in row.line.targets.items()},
    }


def as_ratio(value: float) -> str:
    """Two places, or three where two would say nothing."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
