"""Which parts of one read come from the SSD. Pure: the decision, apart from the descriptors that carry it out."""

from __future__ import annotations

from typing import NamedTuple

from cachefs.model import CacheEntry, EntryState, Visible


class Segment(NamedTuple):
    """Bytes ``start`` to ``end`` of a file, to be read from the SSD (``cached``) or from the source."""

    start: int
    end: int
    cached: bool


def route(entry: CacheEntry | None, start: int, end: int) -> tuple[Segment, ...]:
    """The pieces of one read, ascending and without gaps.

    A published entry serves all of its file, and what lies past its end is the end of the file; of an entry that is
    being copied, the bytes that are on the SSD already. Anything else is the source's.
    """
    if end <= start:
        return ()
    if entry is None:
        return (Segment(start, end, cached=False),)
    if entry.state is EntryState.CACHED:
        return (Segment(start, min(end, entry.size), cached=True),) if start < entry.size else ()
    return tuple(Segment(span.start, span.end, cached) for span, cached in entry.ranges.split(start, end))


def visible(entry: CacheEntry | None) -> Visible:
    """What ``user.cachefs.state`` says of a file with this entry."""
    if entry is None:
        return Visible.SOURCE
    return Visible.CACHED if entry.state.is_whole else Visible.PARTIAL
