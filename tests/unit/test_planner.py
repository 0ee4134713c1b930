"""The rules of cachefs.planner: small scenes by hand, and the promises that hold for every scene."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cachefs.planner
from cachefs.model import (
    CacheEntry,
    EntryState,
    FileKey,
    Fingerprint,
    InterestKind,
    Inventory,
    Plan,
    Skip,
    SourceFile,
    SourceName,
    Space,
    UserName,
    Want,
    Watched,
)
from cachefs.planner import PlanRequest, plan
from cachefs.ranges import Ranges

NOW = 1_700_000_000.0
HOUR = 3600.0
DAY = 24 * HOUR
KEEP = 12 * HOUR
GIB = 1024**3
MEDIA = SourceName("Media")
PLAYING, PINNED, ON_DECK, WATCHLIST, RECENT = InterestKind
NONE: frozenset[FileKey] = frozenset()


def key(path: str) -> FileKey:
    return FileKey(MEDIA, path)


def source_file(path: str, size: int, mtime_ns: int = 1) -> SourceFile:
    return SourceFile(key(path), Fingerprint(size, mtime_ns), inode=hash(path) & 0xFFFF)


def want(path: str, size: int, kind: InterestKind = ON_DECK, ahead: int = 0, follows: str = "", **more: float) -> Want:
    return Want(
        file=source_file(path, size, int(more.get("mtime_ns", 1))),
        kind=kind,
        ahead=ahead,
        reason=f"{path}: wanted",
        since=more.get("since", NOW - HOUR),
        users=(UserName("Anna"),),
        follows=key(follows) if follows else None,
    )


def cached(path: str, size: int, idle_s: float = HOUR, watched_ago_s: float | None = None) -> CacheEntry:
    """An entry that was copied ten days ago and last wanted and read ``idle_s`` ago."""
    return CacheEntry(
        id=hash(path),
        source_file=source_file(path, size),
        state=EntryState.CACHED,
        ranges=Ranges.of([(0, size)]),
        reason="",
        begun_at=NOW - 10 * DAY,
        published_at=NOW - 10 * DAY,
        last_read_at=NOW - idle_s,
        last_wanted_at=NOW - idle_s,
        watched_at=None if watched_ago_s is None else NOW - watched_ago_s,
    )


def copying(path: str, size: int, idle_s: float = HOUR) -> CacheEntry:
    entry = cached(path, size, idle_s)
    return replace(entry, state=EntryState.COPYING, ranges=Ranges(), published_at=None)


def request(
    wants: tuple[Want, ...] = (),
    entries: tuple[CacheEntry, ...] = (),
    *,
    limit: int = 100,
    playing: frozenset[FileKey] = NONE,
    open_files: frozenset[FileKey] = NONE,
    watched: tuple[Watched, ...] = (),
    complete: bool = True,
    pinned: frozenset[FileKey] = NONE,
) -> PlanRequest:
    used = sum(entry.size for entry in entries)
    space = Space(max_size_bytes=limit, min_free_bytes=0, used_bytes=used, free_bytes=10**18)
    return PlanRequest(
        wants=wants,
        skips=(),
        watched=watched,
        playing=playing,
        inventory=Inventory(entries, open_files, space),
        keep_watched_s=KEEP,
        complete=complete,
        now=NOW,
        pinned=pinned,
    )


def copies(made: Plan) -> list[str]:
    return [copy.key.path for copy in made.copies]


def evicted(made: Plan) -> list[str]:
    return [eviction.key.path for eviction in made.evictions]


def skipped(made: Plan) -> dict[str, str]:
    return {skip.key.path: skip.reason for skip in made.skips if skip.key is not None}


# --- copies ----------------------------------------------------------------------------------------------------------


def test_copies_are_in_order_of_rank() -> None:
    wants = (
        want("pinned.mkv", 1, PINNED),
        want("list.mkv", 1, WATCHLIST),
        want("next.mkv", 1, ON_DECK, ahead=1),
        want("older.mkv", 1, ON_DECK, since=NOW - DAY),
        want("deck.srt", 1, ON_DECK, follows="deck.mkv"),
        want("deck.mkv", 1, ON_DECK),
        want("now.mkv", 1, PLAYING),
    )
    made = plan(request(wants))
    assert copies(made) == ["now.mkv", "pinned.mkv", "deck.mkv", "deck.srt", "older.mkv", "next.mkv", "list.mkv"]
    assert [copy.kind for copy in made.copies][:2] == [PLAYING, PINNED]
    assert made.copies[0].reason == "now.mkv: wanted"


def test_copy_begun_goes_on_first_among_equals() -> None:
    wants = (want("a.mkv", 10, since=NOW), want("b.mkv", 10, since=NOW - DAY), want("now.mkv", 10, PLAYING))
    made = plan(request(wants, (copying("b.mkv", 10),)))
    assert copies(made) == ["now.mkv", "b.mkv", "a.mkv"]


def test_file_in_copy_is_counted_once() -> None:
    made = plan(request((want("a.mkv", 10), want("b.mkv", 10)), (copying("a.mkv", 10), cached("b.mkv", 10))))
    assert (copies(made), [kept.key.path for kept in made.kept]) == (["a.mkv"], ["b.mkv"])


def test_cached_file_is_kept_and_not_copied() -> None:
    made = plan(request((want("a.mkv", 10),), (cached("a.mkv", 10),)))
    assert (copies(made), evicted(made)) == ([], [])
    assert [kept.key.path for kept in made.kept] == ["a.mkv"]


def test_file_wanted_twice_is_copied_once_with_the_stronger_reason() -> None:
    made = plan(request((want("a.mkv", 10, PINNED), want("a.mkv", 10, PLAYING))))
    assert [(copy.key.path, copy.kind) for copy in made.copies] == [("a.mkv", PLAYING)]


def test_file_that_cannot_fit_is_skipped_with_numbers_and_a_smaller_one_copied() -> None:
    wants = (want("big.mkv", 40 * GIB), want("small.mkv", GIB, WATCHLIST))
    made = plan(request(wants, limit=12 * GIB))
    assert copies(made) == ["small.mkv"]
    assert skipped(made) == {"big.mkv": "needs 40 GiB, only 12 GiB can be freed for it"}


def test_what_has_no_room_is_named_as_wanted_with_all_that_is_in_the_way() -> None:
    wants = (
        want("pin.mkv", 40, PINNED),
        want("deck.mkv", 30),
        want("next.mkv", 20, ahead=1),
        want("list.mkv", 30, WATCHLIST),
    )
    [skip] = plan(request(wants, (cached("pin.mkv", 40), cached("deck.mkv", 30)))).skips
    assert skip.want == wants[3]
    assert skip.reason == "needs 30 B, only 10 B can be freed for it; in the way: 40 B pinned, 50 B On Deck"


def test_pin_displaces_what_is_on_lists_and_never_the_reverse() -> None:
    on_lists = (want("deck.mkv", 60), want("list.mkv", 30, WATCHLIST), want("new.mkv", 10, RECENT))
    entries = tuple(cached(one.key.path, one.file.size) for one in on_lists)
    made = plan(request((*on_lists, want("pin.mkv", 90, PINNED)), entries))
    assert (copies(made), evicted(made)) == (["pin.mkv"], ["list.mkv", "deck.mkv"])
    made = plan(request((*on_lists, want("pin.mkv", 90, PINNED)), (cached("pin.mkv", 90),)))
    assert (copies(made), evicted(made)) == (["new.mkv"], [])


def test_minimum_free_space_limits_as_well() -> None:
    scene = request((want("a.mkv", 10),), limit=100)
    tight = Space(max_size_bytes=100, min_free_bytes=50, used_bytes=0, free_bytes=59)
    made = plan(replace(scene, inventory=Inventory((), NONE, tight)))
    assert skipped(made) == {"a.mkv": "needs 10 B, only 4 B can be freed for it"}


@pytest.mark.parametrize(("free", "made"), [(59, []), (64, []), (65, ["a.mkv"])])
def test_what_is_copied_is_not_evicted_for_a_little_that_others_write(free: int, made: list[str]) -> None:
    """With 50 to stay free, copying leaves 5 more; what is there stays until it is 50."""
    scene = request((want("a.mkv", 10),), limit=1000)
    assert copies(plan(replace(scene, inventory=Inventory((), NONE, Space(1000, 50, 0, free))))) == made
    there = Inventory((cached("a.mkv", 10),), NONE, Space(1000, 50, 10, 50))
    assert evicted(plan(replace(scene, inventory=there))) == []
    less = Inventory((cached("a.mkv", 10),), NONE, Space(1000, 50, 10, 49))
    assert evicted(plan(replace(scene, inventory=less))) == ["a.mkv"]


def test_skips_found_earlier_are_passed_through() -> None:
    skip = Skip("/data/x.mkv", "no mapping")
    assert plan(replace(request(), skips=(skip,))).skips == (skip,)


# --- evictions whether room is needed or not -------------------------------------------------------------------------


def test_watched_file_goes_once_kept_long_enough() -> None:
    entry = cached("a.mkv", 10, idle_s=HOUR)
    seen = Watched(key("a.mkv"), UserName("Anna"), NOW - 13 * HOUR)
    (eviction,) = plan(request((), (entry,), watched=(seen,))).evictions
    assert eviction.reason == "watched by Anna 13h ago, and kept for 12h"
    assert not eviction.for_space
    recent = replace(seen, at=NOW - 11 * HOUR)
    assert evicted(plan(request((), (entry,), watched=(recent,)))) == []


def test_view_that_only_the_index_remembers_counts() -> None:
    made = plan(request((), (cached("a.mkv", 10, watched_ago_s=13 * HOUR),)))
    assert [eviction.reason for eviction in made.evictions] == ["watched 13h ago, and kept for 12h"]


def test_rewatch_keeps_a_watched_file() -> None:
    seen = Watched(key("a.mkv"), UserName("Anna"), NOW - 13 * HOUR)
    made = plan(request((want("a.mkv", 10, since=NOW - HOUR),), (cached("a.mkv", 10),), watched=(seen,)))
    assert evicted(made) == []


def test_view_from_before_the_copy_says_nothing() -> None:
    seen = Watched(key("a.mkv"), UserName("Anna"), NOW - 20 * DAY)
    assert evicted(plan(request((), (cached("a.mkv", 10),), watched=(seen,)))) == []


def test_unwanted_file_goes_once_kept_long_enough() -> None:
    entries = (cached("old.mkv", 10, idle_s=13 * HOUR), cached("new.mkv", 10, idle_s=11 * HOUR))
    made = plan(request((), entries))
    assert [(gone.key.path, gone.reason) for gone in made.evictions] == [("old.mkv", "nobody has wanted it for 13h")]


def test_age_of_a_never_wanted_entry_counts_from_publication_and_else_from_its_begin() -> None:
    asked = replace(cached("a.mkv", 10), last_wanted_at=None, published_at=NOW - HOUR)
    begun = replace(copying("b.mkv", 10), last_wanted_at=None, begun_at=NOW - 13 * HOUR)
    assert evicted(plan(request((), (asked, begun)))) == ["b.mkv"]


def test_incomplete_snapshot_evicts_nothing_as_unwanted() -> None:
    made = plan(request((), (cached("old.mkv", 10, idle_s=30 * DAY),), complete=False))
    assert evicted(made) == []


def test_incomplete_snapshot_evicts_a_watched_file_only_when_nobody_wanted_it_lately() -> None:
    """The unreadable user may be the one for whom it was kept."""
    seen = Watched(key("a.mkv"), UserName("Anna"), NOW - 13 * HOUR)
    lately, long_ago = cached("a.mkv", 10, idle_s=HOUR), cached("a.mkv", 10, idle_s=13 * HOUR)
    assert evicted(plan(request((), (lately,), watched=(seen,), complete=False))) == []
    assert evicted(plan(request((), (long_ago,), watched=(seen,), complete=False))) == ["a.mkv"]


@pytest.mark.parametrize("state", [cached, copying])
def test_changed_file_is_evicted_and_copied_anew(state: object) -> None:
    entry = cached("a.mkv", 10) if state is cached else copying("a.mkv", 10)
    made = plan(request((want("a.mkv", 10, PLAYING, mtime_ns=2),), (entry,), limit=10))
    assert [(gone.key.path, gone.for_space) for gone in made.evictions] == [("a.mkv", False)]
    assert made.evictions[0].reason == "it has changed at its source since it was copied"
    assert copies(made) == ["a.mkv"]
    assert made.kept == ()


def test_changed_file_waits_while_its_older_copy_is_open() -> None:
    scene = request((want("a.mkv", 10, mtime_ns=2),), (cached("a.mkv", 10),), open_files=frozenset({key("a.mkv")}))
    made = plan(scene)
    assert (copies(made), evicted(made), made.kept) == ([], [], ())
    assert skipped(made) == {"a.mkv": "it has changed at its source, and its older copy is still open"}


def test_unknown_inode_does_not_make_a_file_another() -> None:
    entry = cached("a.mkv", 10)
    known = replace(entry.source_file, fingerprint=replace(entry.fingerprint, inode=7, filesystem="u"))
    assert evicted(plan(request((want("a.mkv", 10),), (replace(entry, source_file=known),)))) == []


# --- never -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["playing", "open_files", "pinned"])
def test_playing_open_and_pinned_files_are_never_evicted(how: str) -> None:
    entry = cached("a.mkv", 60, idle_s=30 * DAY, watched_ago_s=5 * DAY)
    kept = frozenset({entry.key})
    scene = request((want("now.mkv", 60, PLAYING),), (entry,), limit=50)
    made = plan(
        replace(
            scene,
            playing=kept if how == "playing" else NONE,
            pinned=kept if how == "pinned" else NONE,
            inventory=replace(scene.inventory, open_files=kept if how == "open_files" else NONE),
        )
    )
    assert evicted(made) == []
    in_the_way = "60 B pinned" if how == "pinned" else "60 B in use"
    assert skipped(made) == {"now.mkv": f"needs 60 B, only 0 B can be freed for it; in the way: {in_the_way}"}
    assert evicted(plan(scene)) == ["a.mkv"]


def test_pinned_want_is_never_evicted_for_a_stronger_want() -> None:
    wants = (want("pinned.mkv", 60, PINNED), want("now.mkv", 60, PLAYING))
    assert evicted(plan(request(wants, (cached("pinned.mkv", 60),)))) == []


def test_wanted_file_is_never_evicted_for_an_equal_or_lower_want() -> None:
    entry = cached("old.mkv", 60)
    for other in (want("new.mkv", 60, ON_DECK, since=NOW), want("list.mkv", 60, WATCHLIST), want("n.mkv", 60, ahead=1)):
        made = plan(request((want("old.mkv", 60, ON_DECK, since=NOW - DAY), other), (entry,)))
        assert evicted(made) == []
        assert skipped(made) == {other.key.path: "needs 60 B, only 40 B can be freed for it; in the way: 60 B On Deck"}


# --- evictions for room ----------------------------------------------------------------------------------------------


def test_nothing_is_evicted_for_room_that_is_there() -> None:
    made = plan(request((want("a.mkv", 50),), (cached("spare.mkv", 50),)))
    assert (copies(made), evicted(made)) == (["a.mkv"], [])


def test_unwanted_goes_before_wanted_and_the_least_wanted_first() -> None:
    entries = (cached("spare.mkv", 10), cached("list.mkv", 30), cached("deck.mkv", 30), cached("recent.mkv", 30))
    wants = (want("list.mkv", 30, WATCHLIST), want("deck.mkv", 30, ON_DECK), want("recent.mkv", 30, RECENT))
    assert evicted(plan(request((*wants, want("now.mkv", 10, PLAYING)), entries))) == ["spare.mkv"]
    assert evicted(plan(request((*wants, want("now.mkv", 40, PLAYING)), entries))) == ["spare.mkv", "recent.mkv"]
    made = plan(request((*wants, want("now.mkv", 65, PLAYING)), entries))
    assert evicted(made) == ["spare.mkv", "recent.mkv", "list.mkv"]
    assert all(eviction.for_space for eviction in made.evictions)
    assert [eviction.reason for eviction in made.evictions[:2]] == [
        "room is needed for what is wanted more; nobody is known to want it, last used 1h ago",
        "room is needed for what is wanted more; wanted less: recent.mkv: wanted",
    ]


@pytest.mark.parametrize(
    ("needed", "gone"),
    [(1, ["a.mkv"]), (20, ["a.mkv"]), (21, ["c.mkv"]), (50, ["big.mkv"]), (60, ["a.mkv", "big.mkv"])],
)
def test_among_equally_wanted_the_smallest_that_is_enough_goes_or_few_large_ones(needed: int, gone: list[str]) -> None:
    entries = (cached("a.mkv", 20), cached("big.mkv", 50), cached("c.mkv", 30))
    wants = (want("a.mkv", 20, RECENT), want("big.mkv", 50, RECENT, since=NOW), want("c.mkv", 30, RECENT))
    assert sorted(evicted(plan(request((*wants, want("now.mkv", needed, PLAYING)), entries)))) == gone


def test_a_video_and_its_sidecars_go_as_one() -> None:
    entries = (cached("a.mkv", 10), cached("a.srt", 5), cached("b.mkv", 12))
    wants = (
        want("a.mkv", 10, RECENT),
        replace(want("a.srt", 5, RECENT), follows=key("a.mkv")),
        want("b.mkv", 12, RECENT),
    )
    made = plan(request((*wants, want("now.mkv", 13, PLAYING)), entries, limit=27))
    assert sorted(evicted(made)) == ["a.mkv", "a.srt"]


def test_unwanted_goes_by_size_times_idle_time_and_unfinished_copies_first() -> None:
    entries = (
        cached("small-old.mkv", 10, idle_s=8 * HOUR),
        cached("big-new.mkv", 50, idle_s=2 * HOUR),
        copying("part.mkv", 5, idle_s=HOUR),
    )
    for needed, gone in ((36, ["part.mkv"]), (41, ["part.mkv", "big-new.mkv"]), (100, 3)):
        made = plan(request((want("now.mkv", needed, PLAYING),), entries))
        assert evicted(made) == gone or len(made.evictions) == gone


def test_what_goes_anyway_makes_room_first() -> None:
    entries = (cached("seen.mkv", 50, watched_ago_s=13 * HOUR), cached("spare.mkv", 50))
    made = plan(request((want("now.mkv", 50, PLAYING),), entries))
    assert [(gone.key.path, gone.for_space) for gone in made.evictions] == [("seen.mkv", False)]


def test_lowered_limit_is_reached_from_the_bottom() -> None:
    entries = tuple(cached(name, 20) for name in ("now.mkv", "deck.mkv", "list.mkv", "spare.mkv", "pinned.mkv"))
    wants = (
        want("now.mkv", 20, PLAYING),
        want("deck.mkv", 20),
        want("list.mkv", 20, WATCHLIST),
        want("pinned.mkv", 20, PINNED),
    )
    playing = frozenset({key("now.mkv")})
    made = plan(request(wants, entries, limit=60, playing=playing))
    assert evicted(made) == ["spare.mkv", "list.mkv"]
    assert not any(eviction.for_space for eviction in made.evictions)
    assert made.evictions[0].reason == "the cache is 40 B over its limits; nobody is known to want it, last used 1h ago"
    assert evicted(plan(request(wants, entries, limit=5, playing=playing))) == ["spare.mkv", "list.mkv", "deck.mkv"]


def test_only_what_the_limits_ask_for_goes_before_a_copy_needs_room() -> None:
    entries = (cached("a.mkv", 40), cached("b.mkv", 40), cached("c.mkv", 40))
    made = plan(request((want("now.mkv", 60, PLAYING),), entries, limit=100))
    assert [eviction.for_space for eviction in made.evictions] == [False, True]


def test_incomplete_snapshot_lets_only_playing_displace_what_was_wanted_lately() -> None:
    entries = (cached("bens.mkv", 60, idle_s=HOUR),)
    for kind, gone in ((WATCHLIST, []), (ON_DECK, []), (PLAYING, ["bens.mkv"])):
        assert evicted(plan(request((want("new.mkv", 60, kind),), entries, complete=False))) == gone
    long_ago = (cached("bens.mkv", 60, idle_s=13 * HOUR),)
    assert evicted(plan(request((want("new.mkv", 60, WATCHLIST),), long_ago, complete=False))) == ["bens.mkv"]


# --- sidecars --------------------------------------------------------------------------------------------------------


def test_sidecar_of_a_video_that_does_not_fit_is_not_copied() -> None:
    wants = (want("TV/a.mkv", 200), want("TV/a.en.srt", 1, follows="TV/a.mkv"))
    made = plan(request(wants))
    assert copies(made) == []
    assert skipped(made)["TV/a.en.srt"] == "it goes with a.mkv, which is not copied"


def test_sidecar_gets_its_room_before_the_next_video() -> None:
    wants = tuple(
        one
        for name in ("a", "b")
        for one in (want(f"TV/{name}.mkv", 50), want(f"TV/{name}.en.srt", 2, follows=f"TV/{name}.mkv"))
    )
    assert copies(plan(request(wants))) == ["TV/a.mkv", "TV/a.en.srt"]


def test_sidecar_of_a_cached_video_displaces_no_equal() -> None:
    wants = (want("TV/a.mkv", 40), want("TV/a.en.srt", 2, follows="TV/a.mkv"), want("TV/b.mkv", 60))
    assert evicted(plan(request(wants, (cached("TV/a.mkv", 40), cached("TV/b.mkv", 60))))) == []


def test_sidecar_of_a_cached_video_is_copied() -> None:
    wants = (want("TV/a.mkv", 90), want("TV/a.en.srt", 1, follows="TV/a.mkv"))
    assert copies(plan(request(wants, (cached("TV/a.mkv", 90),)))) == ["TV/a.en.srt"]


def test_sidecar_of_a_wanted_video_stays_though_no_want_names_it() -> None:
    entries = (cached("TV/a.mkv", 50), cached("TV/a.en.srt", 1, idle_s=30 * DAY), cached("TV/b.srt", 1, idle_s=DAY))
    assert evicted(plan(request((want("TV/a.mkv", 50),), entries))) == ["TV/b.srt"]


@pytest.mark.parametrize("how", ["playing", "open_files", "pinned"])
def test_sidecar_of_a_video_in_use_stays(how: str) -> None:
    entries = (cached("TV/a.mkv", 50, idle_s=DAY), cached("TV/a.en.srt", 1, idle_s=DAY))
    kept = frozenset({key("TV/a.mkv")})
    made = plan(
        request(
            (want("now.mkv", 100, PLAYING),),
            entries,
            playing=kept if how == "playing" else NONE,
            open_files=kept if how == "open_files" else NONE,
            pinned=kept if how == "pinned" else NONE,
        )
    )
    assert evicted(made) == []


def test_sidecar_leaves_with_its_watched_video() -> None:
    entries = (cached("TV/a.en.srt", 1), cached("TV/a.mkv", 50, watched_ago_s=13 * HOUR))
    made = plan(request((), entries))
    assert evicted(made) == ["TV/a.mkv", "TV/a.en.srt"]
    assert made.evictions[1].reason == "it goes with a.mkv: watched 13h ago, and kept for 12h"


def test_sidecar_leaves_with_its_video_when_room_is_needed() -> None:
    entries = (cached("TV/a.en.srt", 1), cached("TV/a.mkv", 50), cached("TV/b.mkv", 49))
    made = plan(request((want("now.mkv", 30, PLAYING),), entries))
    assert evicted(made) == ["TV/a.mkv", "TV/a.en.srt"]


def test_sidecar_pinned_by_itself_does_not_need_its_video() -> None:
    wants = (want("TV/a.en.srt", 1, PINNED, follows="TV/a.mkv"),)
    made = plan(request(wants, (cached("TV/a.mkv", 50, idle_s=DAY),)))
    assert (copies(made), evicted(made)) == (["TV/a.en.srt"], ["TV/a.mkv"])


# --- for every scene -------------------------------------------------------------------------------------------------

NAMES = [f"TV/{name}{end}" for name in ("a", "b", "c", "d", "e") for end in (".mkv", ".en.srt")]
AGES = st.sampled_from([60.0, HOUR, 11 * HOUR, 13 * HOUR, 5 * DAY])
SIZES = st.integers(0, 60)


@dataclass(frozen=True, slots=True)
class Scene:
    request: PlanRequest
    limit: int


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    wants, entries = [], []
    for name in NAMES:
        size, mtime_ns = draw(SIZES), draw(st.sampled_from([1, 1, 1, 2]))
        follows = name.replace(".en.srt", ".mkv") if name.endswith(".srt") and draw(st.booleans()) else ""
        for _ in range(draw(st.integers(0, 2))):
            kind, ahead = draw(st.sampled_from(InterestKind)), draw(st.integers(0, 2))
            wants.append(want(name, size, kind, ahead, follows, since=NOW - draw(AGES), mtime_ns=mtime_ns))
        state = draw(st.sampled_from([None, cached, copying]))
        if state is not None:
            watched_at = draw(st.none() | AGES.map(lambda age: NOW - age))
            entries.append(replace(state(name, size, draw(AGES)), watched_at=watched_at))
    keys = st.frozensets(st.sampled_from(NAMES).map(key), max_size=2)
    limit = draw(st.integers(0, 300))
    made = request(
        tuple(wants),
        tuple(entries),
        limit=limit,
        playing=draw(keys),
        open_files=draw(keys),
        watched=tuple(Watched(name, UserName("Anna"), NOW - draw(AGES)) for name in sorted(draw(keys))),
        complete=draw(st.booleans()),
        pinned=draw(keys),
    )
    return Scene(made, limit)


def carry_out(made: Plan, scene: Scene) -> PlanRequest:
    """What the request would be after the plan; fails when a step is impossible or passes a limit."""
    entries = {entry.key: entry for entry in scene.request.inventory.entries}
    for eviction in made.evictions:
        assert entries.pop(eviction.key).size == eviction.size
    for copy in made.copies:
        held = entries.get(copy.key)
        assert held is None or (held.state is EntryState.COPYING and held.fingerprint == copy.file.fingerprint)
        entries[copy.key] = replace(cached(copy.key.path, copy.file.size, 0.0), source_file=copy.file, begun_at=NOW)
        if held is None:
            assert sum(entry.size for entry in entries.values()) <= scene.limit
    after = tuple(entries.values())
    used = sum(entry.size for entry in after)
    space = replace(scene.request.inventory.space, used_bytes=used)
    return replace(scene.request, inventory=replace(scene.request.inventory, entries=after, space=space))


def in_use(scene: Scene) -> set[FileKey]:
    pinned = {one.key for one in scene.request.wants if one.kind is PINNED} | scene.request.pinned
    return pinned | scene.request.playing | scene.request.inventory.open_files


@given(scenes())
@settings(max_examples=100, deadline=None)
def test_plan_carried_out_leaves_nothing_to_do(scene: Scene) -> None:
    first = plan(scene.request)
    second = plan(carry_out(first, scene))
    assert (second.copies, second.evictions) == ((), ())
    assert {skip.key for skip in first.skips} <= {skip.key for skip in second.skips}


@given(scenes())
@settings(max_examples=100, deadline=None)
def test_limits_hold_unless_what_may_not_go_passes_them(scene: Scene) -> None:
    after = carry_out(plan(scene.request), scene).inventory
    movable = [entry for entry in after.entries if entry.key not in in_use(scene)]
    used = sum(entry.size for entry in after.entries)
    followers = [entry for entry in movable if key(entry.key.path.replace(".en.srt", ".mkv")) not in in_use(scene)]
    assert used <= scene.limit or not [entry for entry in followers if entry.size]


@given(scenes())
@settings(max_examples=100, deadline=None)
def test_nothing_open_playing_or_pinned_is_ever_evicted(scene: Scene) -> None:
    changed = {one.key: one.file.fingerprint for one in scene.request.wants}
    entries = {entry.key: entry for entry in scene.request.inventory.entries}
    for eviction in plan(scene.request).evictions:
        assert eviction.key not in scene.request.inventory.open_files
        stale = changed.get(eviction.key, entries[eviction.key].fingerprint) != entries[eviction.key].fingerprint
        assert stale or eviction.key not in in_use(scene)


@given(scenes())
@settings(max_examples=100, deadline=None)
def test_nothing_is_evicted_for_a_want_of_equal_or_lower_rank(scene: Scene) -> None:
    made = plan(scene.request)
    ranks: dict[FileKey, tuple[int, int]] = {}
    for one in sorted(scene.request.wants, key=lambda one: one.rank):
        ranks.setdefault(one.key, (one.kind, one.ahead))
    lost = {eviction.key for eviction in made.evictions if eviction.for_space} & set(ranks)
    assert not lost & {copy.key for copy in made.copies}
    if scene.request.inventory.space.room_bytes >= 0:
        for loser in lost:
            if ranks.get(key(loser.path.replace(".en.srt", ".mkv"))) is not None and loser.path.endswith(".srt"):
                continue  # it left with its video
            assert any(ranks[copy.key] < ranks[loser] for copy in made.copies)


@given(scenes())
@settings(max_examples=100, deadline=None)
def test_every_want_has_one_outcome_and_everything_a_reason(scene: Scene) -> None:
    made = plan(scene.request)
    cached_now = {entry.key for entry in scene.request.inventory.entries if entry.state is EntryState.CACHED}
    copied, skips = {copy.key for copy in made.copies}, {skip.key for skip in made.skips}
    gone, kept = {eviction.key for eviction in made.evictions}, {one.key for one in made.kept}
    for one in scene.request.wants:
        outcomes = (one.key in copied, one.key in skips, one.key in kept & cached_now, one.key in gone - copied - skips)
        assert sum(outcomes) == 1
    reasons = [each.reason for group in (made.copies, made.evictions, made.skips) for each in group]
    assert all(reasons)


def test_planner_imports_nothing_that_could_do_anything() -> None:
    tree = ast.parse(Path(cachefs.planner.__file__).read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"cachefs.model", "cachefs.sidecars", "cachefs.units"}
    assert modules <= allowed | {"__future__", "collections.abc", "dataclasses", "itertools"}
