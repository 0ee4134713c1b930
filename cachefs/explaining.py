"""Why a file is or is not on the SSD, in words that hold now: what the newest plan says of it.

Called by ``engine``. Pure: reads plans and entries, asks nobody. What an entry says of itself is why it was copied,
which may be long past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from cachefs.model import CacheEntry, FileKey, InterestKind, Plan
from cachefs.units import format_size

NOBODY = "nobody wants it: not playing, on deck, on a watchlist or pinned"


def as_of_now(entries: Iterable[CacheEntry], plan: Plan) -> tuple[CacheEntry, ...]:
    """The entries, each with the reason for which this plan has it on the SSD."""
    if not plan.made_at:
        return tuple(entries)  # nobody has looked yet
    wanted = {want.key: want.reason for want in plan.kept} | {copy.key: copy.reason for copy in plan.copies}
    wanted |= {skip.want.key: skip.want.reason for skip in plan.skips if skip.want is not None}
    leaving = {eviction.key: f"to be evicted: {eviction.reason}" for eviction in plan.evictions}
    return tuple(
        replace(entry, reason=wanted.get(entry.key) or leaving.get(entry.key) or unwanted(entry)) for entry in entries
    )


def away(moved: Iterable[CacheEntry]) -> tuple[CacheEntry, ...]:
    """Moved files, with what is to be said of them while the SSD is away."""
    return tuple(replace(entry, reason="away with the SSD: it cannot be read until that is back") for entry in moved)


def unwanted(entry: CacheEntry) -> str:
    """An entry that is kept for as long as its room is not needed."""
    return f"nobody is known to want it now; it was copied because: {entry.reason}"


def is_wanted(plan: Plan, key: FileKey) -> bool:
    """Whether the plan would have the file on the SSD, with or without room for it."""
    return (
        any(want.key == key for want in plan.kept)
        or any(copy.key == key for copy in plan.copies)
        or any(skip.want is not None and skip.key == key for skip in plan.skips)
    )


def place(plan: Plan, key: FileKey) -> int | None:
    """Its place among the copies still to be made, 1 being next."""
    return next((place for place, copy in enumerate(plan.copies, 1) if copy.key == key), None)


def reasons(
    plan: Plan, key: FileKey, entry: CacheEntry | None, refusals: Iterable[str], waiting: str
) -> tuple[str, ...]:
    """All that is to be said, the most important first. ``refusals``: why it is not copied though somebody may want it;
    ``waiting``: why its copy has not begun."""
    said = [want.reason for want in plan.kept if want.key == key]
    said += [skip.want.reason for skip in plan.skips if skip.key == key and skip.want is not None]
    said += [f"to be copied: {copy.reason}" for copy in plan.copies if copy.key == key]
    if waiting:
        said.append(f"waiting: {waiting}")
    if entry is not None and not said:
        said.append(unwanted(entry) if plan.made_at else entry.reason)
    said += [f"to be evicted: {eviction.reason}" for eviction in plan.evictions if eviction.key == key]
    said += [f"not copied: {refusal}" for refusal in refusals]
    return tuple(dict.fromkeys(said)) or (NOBODY,)


def unfit_pins(plan: Plan, name_of: Callable[[FileKey], str]) -> str:
    """What is said at once of pinned files that get no room; empty when all do."""
    skips = [skip for skip in plan.skips if skip.want is not None and skip.want.kind is InterestKind.PINNED]
    if not skips:
        return ""
    size = sum(skip.want.file.size for skip in skips if skip.want is not None)
    count = "1 pinned file" if len(skips) == 1 else f"{len(skips)} pinned files"
    first = skips[0].what if skips[0].key is None else name_of(skips[0].key)
    return f"{count} ({format_size(size)}) cannot be copied now, the first is {first}: {skips[0].reason}"
