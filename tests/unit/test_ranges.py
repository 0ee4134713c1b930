"""Ranges against the plainest model there is: a set of integers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.ranges import Ranges, Span

LIMIT = 40
positions = st.integers(0, LIMIT)
pairs = st.lists(st.tuples(positions, positions), max_size=12)


def model(inserted: list[tuple[int, int]]) -> set[int]:
    return {position for start, end in inserted for position in range(start, end)}


@given(pairs)
def test_holds_what_was_inserted(inserted: list[tuple[int, int]]) -> None:
    ranges = Ranges.of(inserted)
    assert {position for span in ranges.spans for position in range(*span)} == model(inserted)
    assert ranges.total == len(model(inserted))


@given(pairs)
def test_spans_are_ascending_and_neither_empty_nor_touching(inserted: list[tuple[int, int]]) -> None:
    spans = Ranges.of(inserted).spans
    assert all(span.length > 0 for span in spans)
    assert all(before.end < after.start for before, after in itertools.pairwise(spans))


@given(pairs, positions, positions)
def test_covers_exactly_what_is_held_whole(inserted: list[tuple[int, int]], start: int, end: int) -> None:
    assert Ranges.of(inserted).covers(start, end) == (set(range(start, end)) <= model(inserted))


@given(pairs, positions, positions)
def test_missing_is_the_complement(inserted: list[tuple[int, int]], start: int, end: int) -> None:
    missing = Ranges.of(inserted).missing(start, end)
    found = {position for span in missing for position in range(*span)}
    assert found == set(range(start, end)) - model(inserted)
    assert all(span.length > 0 for span in missing)


@given(pairs, positions, positions)
def test_split_tiles_the_whole_in_alternating_pieces(inserted: list[tuple[int, int]], start: int, end: int) -> None:
    pieces = list(Ranges.of(inserted).split(start, end))
    assert [position for span, _ in pieces for position in range(*span)] == list(range(start, end))
    assert all(span.length > 0 for span, _ in pieces)
    held = model(inserted)
    assert all(present == (position in held) for span, present in pieces for position in range(*span))
    assert all(before[1] != after[1] for before, after in itertools.pairwise(pieces))


@given(pairs)
def test_order_of_insertion_does_not_matter(inserted: list[tuple[int, int]]) -> None:
    assert Ranges.of(inserted) == Ranges.of(reversed(inserted))


def test_touching_spans_become_one() -> None:
    assert Ranges.of([(0, 4), (8, 12), (4, 8)]).spans == (Span(0, 12),)


def test_negative_start_is_refused() -> None:
    with pytest.raises(ValueError, match="before the file"):
        Ranges().insert(-1, 4)
