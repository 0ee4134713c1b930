"""Which parts of one read come from the SSD."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.fs.segments import Segment, route, visible
from cachefs.model import CacheEntry, EntryState, FileKey, Fingerprint, SourceFile, SourceName, Visible
from cachefs.ranges import Ranges

SIZE = 100
positions = st.integers(0, SIZE + 20)
pairs = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=8)


def entry(state: EntryState, *ranges: tuple[int, int]) -> CacheEntry:
    file = SourceFile(FileKey(SourceName("Media"), "a"), Fingerprint(SIZE, 1), 10)
    return CacheEntry(1, file, state, Ranges.of(ranges), "because", 0.0)


CACHED = entry(EntryState.CACHED, (0, SIZE))


def source(start: int, end: int) -> Segment:
    return Segment(start, end, cached=False)


def ssd(start: int, end: int) -> Segment:
    return Segment(start, end, cached=True)


@pytest.mark.parametrize(
    ("held", "start", "end", "wanted"),
    [
        (None, 0, 50, (source(0, 50),)),
        (None, 90, 500, (source(90, 500),)),
        (None, 7, 7, ()),
        (CACHED, 0, 50, (ssd(0, 50),)),
        (CACHED, 90, 500, (ssd(90, SIZE),)),
        (CACHED, SIZE, 500, ()),
        (CACHED, 300, 500, ()),
        (CACHED, 7, 7, ()),
        (entry(EntryState.COPYING), 0, 50, (source(0, 50),)),
        (entry(EntryState.COPYING, (0, 50)), 0, 50, (ssd(0, 50),)),
        (entry(EntryState.COPYING, (0, 50)), 10, 60, (ssd(10, 50), source(50, 60))),
        (entry(EntryState.COPYING, (20, 30)), 10, 40, (source(10, 20), ssd(20, 30), source(30, 40))),
        (entry(EntryState.COPYING, (0, SIZE)), 90, 500, (ssd(90, SIZE), source(SIZE, 500))),
        (entry(EntryState.COPYING, (50, 60)), 10, 40, (source(10, 40),)),
    ],
)
def test_a_read_is_cut_where_the_ssd_begins_and_ends(
    held: CacheEntry | None, start: int, end: int, wanted: tuple[Segment, ...]
) -> None:
    assert route(held, start, end) == wanted


@given(pairs, positions, positions)
def test_segments_are_the_read_without_gaps_and_from_the_ssd_only_where_it_holds_it(
    held: list[tuple[int, int]], start: int, end: int
) -> None:
    copying = entry(EntryState.COPYING, *held)
    on_ssd = {position for low, high in held for position in range(low, high)}
    found = {position: segment.cached for segment in route(copying, start, end) for position in range(*segment[:2])}
    assert found == {position: position in on_ssd for position in range(start, end)}


@given(pairs, positions, positions)
def test_neighbours_come_from_different_sides(held: list[tuple[int, int]], start: int, end: int) -> None:
    sides = [segment.cached for segment in route(entry(EntryState.COPYING, *held), start, end)]
    assert all(one != other for one, other in itertools.pairwise(sides))


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(None, Visible.SOURCE), (entry(EntryState.COPYING), Visible.PARTIAL), (CACHED, Visible.CACHED)],
)
def test_the_state_that_people_see(held: CacheEntry | None, wanted: Visible) -> None:
    assert visible(held) is wanted
