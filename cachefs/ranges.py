"""Sorted, coalesced, half-open byte ranges. Pure; the one value that says which bytes are on the SSD.

Invariant: spans are non-empty, ascending, and neither overlap nor touch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """Bytes ``start`` to ``end``, the end excluded."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Ranges:
    """An immutable set of byte positions."""

    spans: tuple[Span, ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Ranges:
        """The union of any half-open pairs, in any order; empty pairs are ignored."""
        ranges = cls()
        for start, end in pairs:
            ranges = ranges.insert(start, end)
        return ranges

    def insert(self, start: int, end: int) -> Ranges:
        """This set with the bytes from ``start`` to ``end`` added."""
        if start < 0:
            raise ValueError(f"range starts before the file: {start}")
        if end <= start:
            return self
        spans = self.spans
        low = self._first_touching(start)
        high = low
        while high < len(spans) and spans[high].start <= end:
            high += 1
        if high > low:
            start = min(start, spans[low].start)
            end = max(end, spans[high - 1].end)
        return Ranges((*spans[:low], Span(start, end), *spans[high:]))

    def missing(self, start: int, end: int) -> tuple[Span, ...]:
        """The parts of ``start`` to ``end`` that this set does not hold, ascending."""
        return tuple(span for span, present in self.split(start, end) if not present)

    def covers(self, start: int, end: int) -> bool:
        """Whether every byte from ``start`` to ``end`` is held; true for an empty range."""
        if end <= start:
            return True
        index = self._first_touching(start)
        if index < len(self.spans) and self.spans[index].end == start:
            index += 1
        return index < len(self.spans) and self.spans[index].start <= start and end <= self.spans[index].end

    def split(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        """``start`` to ``end`` in ascending pieces, each with whether it is held."""
        if end <= start:
            return
        position = start
        for span in self.spans[self._first_touching(start) :]:
            if span.end <= position:
                continue
            if span.start >= end:
                break
            if span.start > position:
                yield Span(position, span.start), False
                position = span.start
            stop = min(span.end, end)
            yield Span(position, stop), True
            position = stop
        if position < end:
            yield Span(position, end), False

    @property
    def total(self) -> int:
        """How many bytes are held."""
        return sum(span.length for span in self.spans)

    def _first_touching(self, start: int) -> int:
        """Index of the first span that ends at or after ``start``."""
        index = bisect_right(self.spans, start, key=lambda span: span.start)
        return index - 1 if index and self.spans[index - 1].end >= start else index
