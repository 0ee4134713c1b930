"""What happens in Plex becomes a plan, soon and once; what Plex does not say takes nothing away."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs import building, daemon
from cachefs.cache.folder import unmake
from cachefs.cache.wishes import Wishes
from cachefs.config import Config, PolicyConfig, build
from cachefs.errors import CacheBusy, SourceOffline, UserError
from cachefs.model import (
    CacheEntry,
    DropCause,
    FileKey,
    InterestKind,
    Pin,
    PinnedTitle,
    Plan,
    PlexEvent,
    PlexEventKind,
    Snapshot,
    Targets,
    UserName,
    View,
)
from cachefs.planning import MOST_AT_ONCE, PLEX, Planning, aside
from cachefs.resolving import PathNote, Resolved, Resolver
from tests.engine.cachekit import begun
from tests.engine.cachekit import write as write_bytes
from tests.engine.plankit import (
    NOW,
    Followed,
    PlexByHand,
    Room,
    copies,
    entry_of,
    evictions,
    folder,
    interest,
    key,
    plex_file,
    real,
    resolver,
    seen,
    session,
    skips,
    write,
    written,
)
from tests.standin.plex import StandInPlex, run_stand_in_plex

HOUR_S = 3600.0
PLAYBACK = PlexEvent(PlexEventKind.PLAYBACK)
LIBRARY = PlexEvent(PlexEventKind.LIBRARY)
POLL = PlexEvent(PlexEventKind.POLL)
HEAT, ALIEN = "Films/Heat.mkv", "Films/Alien.mkv"


Clock = trio.abc.Clock
"""Asked for by a test itself, ``autojump_clock`` lets time pass at once: nothing in ``Room`` uses a thread."""


@pytest.fixture
def room() -> Room:
    room = Room()
    room.library.add(HEAT, ALIEN)
    return room


def has(*paths: str) -> Callable[[Plan], bool]:
    """Whether a plan copies just these."""
    return lambda plan: set(copies(plan)) == set(paths)


def kept(plan: Plan) -> dict[str, str]:
    return {want.key.path: want.reason for want in plan.kept}


# --- what wakes it ---------------------------------------------------------------------------------------------------


async def test_an_item_put_on_deck_is_planned_at_once_with_its_reason(room: Room, autojump_clock: Clock) -> None:
    async with room.running() as planning:
        await room.followed.until(has())
        await trio.sleep(10)
        room.plex.says(interest(HEAT))
        heard_at = trio.current_time()
        planning.on_event(LIBRARY)
        plan = await room.followed.until(has(HEAT))
        assert trio.current_time() - heard_at < 1
    assert copies(plan) == {HEAT: f"{HEAT}: On Deck for Anna"}


async def test_plex_is_not_asked_more_than_once_in_five_seconds(room: Room, autojump_clock: Clock) -> None:
    async with room.running() as planning:
        for _ in range(200):
            planning.on_event(PLAYBACK)
            await trio.sleep(0.25)
    asked = room.plex.asked_at
    assert 8 <= len(asked) <= 11
    assert all(later - earlier >= 5 for earlier, later in pairwise(asked))


async def test_notices_for_which_plex_is_not_asked_make_no_plan(room: Room, autojump_clock: Clock) -> None:
    async with room.running() as planning:
        for _ in range(200):
            planning.on_event(PLAYBACK)
            await trio.sleep(0.25)
    assert len(room.followed.plans) <= len(room.plex.asked_at) + 2  # and one every half minute


async def test_an_event_while_plex_answers_is_not_lost(room: Room, autojump_clock: Clock) -> None:
    async with room.running() as planning:
        await room.followed.until(has())
        planning.on_event(PLAYBACK)
        room.plex.says(interest(HEAT))
        planning.on_event(PLAYBACK)
        await room.followed.until(has(HEAT))
    assert len(room.plex.asked_at) == 2


async def test_an_event_is_not_lost_by_a_failure_of_ours(room: Room, autojump_clock: Clock) -> None:
    room.plex.says(interest(HEAT))
    room.plex.bug = True
    planning = room.planning()
    with pytest.raises(ZeroDivisionError):
        await planning.run()
    room.plex.bug = False
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(planning.run)
            await room.followed.until(has(HEAT))
            nursery.cancel_scope.cancel()


async def test_nothing_new_is_planned_again_only_now_and_then(room: Room, autojump_clock: Clock) -> None:
    async with room.running():
        await trio.sleep(300)
    assert len(room.followed.plans) <= 11
    assert len(room.plex.asked_at) == 1


async def test_a_session_counts_when_it_comes_of_age_without_any_event(room: Room, autojump_clock: Clock) -> None:
    room.plex.says(sessions=(session(HEAT, started_at=room.now() - 10),))
    async with room.running():
        young = await room.followed.until(has())
        assert "counts after 30s" in skips(young)[HEAT]
        plan = await room.followed.until(has(HEAT))
        assert 19 <= trio.current_time() <= 22
    assert copies(plan)[HEAT] == f"{HEAT}: Anna is watching it"
    assert len(room.plex.asked_at) == 1


async def test_a_pin_is_planned_at_once_and_asked_of_plex(room: Room, autojump_clock: Clock) -> None:
    async with room.running() as planning:
        await room.followed.until(has())
        planning.on_event(PLAYBACK)  # may not be asked about yet
        room.store.pinned += [Pin(HEAT), Pin("Alien", rating_key="7")]
        planning.wake()
        await room.followed.until(has(HEAT))
        assert trio.current_time() < 2
    assert room.plex.pinned[-1] == ("7",)


async def test_without_a_plex_pins_are_planned(room: Room, autojump_clock: Clock) -> None:
    room.with_plex = False
    room.store.pinned.append(Pin("Films"))
    async with room.running() as planning:
        plan = await room.followed.until(has(HEAT, ALIEN))
        planning.on_event(POLL)
        await trio.sleep(60)
    assert copies(plan) == {HEAT: "pinned", ALIEN: "pinned"}


async def test_without_a_plex_what_is_no_longer_pinned_makes_room(room: Room, autojump_clock: Clock) -> None:
    room.with_plex = False
    room.store.room = 15
    room.store.hold(entry_of(seen(ALIEN)))
    room.store.pinned.append(Pin(HEAT))
    plan = await room.planning().dry_run()
    assert set(copies(plan)) == {HEAT}
    assert set(evictions(plan)) == {ALIEN}


async def test_library_events_make_it_look_again(room: Room, autojump_clock: Clock) -> None:
    async with room.running() as planning:
        room.plex.says(interest("Films/New.mkv"))
        plan = await room.followed.until(lambda plan: "Films/New.mkv" in skips(plan))
        assert "/data/Films/New.mkv would be /Films/New.mkv, which is not there" in skips(plan)["Films/New.mkv"]
        room.library.add("Films/New.mkv")
        planning.on_event(LIBRARY)
        await room.followed.until(has("Films/New.mkv"))


async def test_a_change_of_the_cache_makes_a_new_plan(room: Room, autojump_clock: Clock) -> None:
    room.plex.says(interest(HEAT))
    room.store.hold(entry_of(seen(HEAT)))
    async with room.running():
        plan = await room.followed.until(lambda plan: kept(plan))
        assert copies(plan) == {}
        room.store.drop(key(HEAT))
        await room.followed.until(has(HEAT))
        assert trio.current_time() < 2
    assert len(room.plex.asked_at) == 1


async def test_planning_twice_changes_nothing(room: Room, autojump_clock: Clock) -> None:
    """Carried out, a plan leaves nothing to do: it does not flap, and the cache is not written to again."""
    room.store.room = 25
    room.library.add("Films/A.mkv", "Films/B.mkv", "Films/A.srt", size=5)
    room.plex.says(interest(HEAT, since=NOW - 50), interest("Films/A.mkv"), interest(ALIEN, since=NOW - 99))
    room.store.pinned.append(Pin("Films/B.mkv"))
    async with room.running():
        first = await room.followed.until(lambda plan: plan.copies)
        room.store.hold(*(entry_of(copy.file, reason=copy.reason) for copy in first.copies))
        await room.followed.until(lambda plan: not plan.copies)
        await trio.sleep(100)
        room.store.reasons.clear()
        await trio.sleep(500)
    later = room.followed.plans[-10:]
    assert all((plan.copies, plan.evictions) == ((), ()) for plan in later)
    assert len({(plan.kept, plan.skips) for plan in later}) == 1
    assert room.store.reasons == []


# --- Plex is away ----------------------------------------------------------------------------------------------------


@pytest.mark.expected_warnings("the cache stays as it is until Plex answers")
async def test_while_plex_is_away_its_last_word_holds(
    room: Room, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    room.plex.says(interest(HEAT))
    async with room.running() as planning:
        await room.followed.until(has(HEAT))
        room.plex.away = True
        for _ in range(3):
            planning.on_event(POLL)
            await trio.sleep(30)
        assert set(copies(room.followed.plans[-1])) == {HEAT}
        assert room.health.component(PLEX).problem == "Plex does not answer"
        room.plex.away = False
        room.plex.says(interest(ALIEN))
        planning.on_event(POLL)
        await room.followed.until(has(ALIEN))
        assert room.health.component(PLEX).problem == ""
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


@pytest.mark.expected_warnings("the cache stays as it is")
async def test_while_plex_is_away_nothing_is_evicted_for_time(room: Room, autojump_clock: Clock) -> None:
    view = View(UserName("Anna"), HEAT, (plex_file(HEAT),), NOW - 60)
    room.plex.snapshot = replace(room.plex.snapshot, views=(view,))
    long_ago = NOW - 1000 * HOUR_S
    watched = replace(entry_of(seen(HEAT), wanted_at=NOW - 1000), begun_at=long_ago)
    room.store.hold(watched, entry_of(seen(ALIEN), wanted_at=NOW - 60))
    async with room.running() as planning:
        await room.followed.until(lambda plan: plan)
        room.plex.away = True
        planning.on_event(POLL)
        await trio.sleep(30)
        room.shift = 48 * HOUR_S
        await trio.sleep(120)
        assert evictions(room.followed.plans[-1]) == {}
        room.plex.away = False
        planning.on_event(POLL)
        plan = await room.followed.until(lambda plan: plan.evictions)
    assert "watched by Anna" in evictions(plan)[HEAT]
    assert "nobody has wanted it" in evictions(plan)[ALIEN]


@pytest.mark.expected_warnings("the cache stays as it is")
async def test_before_the_first_word_of_plex_pins_work_and_nothing_goes(room: Room, autojump_clock: Clock) -> None:
    room.plex.away = True
    room.store.pinned.append(Pin(HEAT))
    old = replace(entry_of(seen(ALIEN), wanted_at=NOW - 100 * HOUR_S), watched_at=NOW - 90 * HOUR_S)
    room.store.hold(old)
    async with room.running():
        plan = await room.followed.until(has(HEAT))
    assert evictions(plan) == {}


HEAT_PIN = Pin("Heat (1995)", "7", 1.0)


def old(path: str) -> CacheEntry:
    return entry_of(seen(path), wanted_at=NOW - 100 * HOUR_S)


async def test_what_a_pinned_title_stands_for_is_written_down(room: Room, autojump_clock: Clock) -> None:
    room.store.pinned.append(HEAT_PIN)
    room.plex.says(interest(HEAT, InterestKind.PINNED), titles=(PinnedTitle("7", (plex_file(HEAT),)),))
    async with room.running():
        await room.followed.until(has(HEAT))
        await trio.sleep(1)
    assert room.store.pinned == [replace(HEAT_PIN, stood_for=(key(HEAT),))]


@pytest.mark.expected_warnings("the cache stays as it is")
async def test_a_pinned_title_is_pinned_before_the_first_word_of_plex(room: Room, autojump_clock: Clock) -> None:
    room.plex.away = True
    room.store.pinned.append(replace(HEAT_PIN, stood_for=(key(HEAT),)))
    room.store.hold(old(HEAT), old(ALIEN))
    room.store.room = 1  # over its limit
    async with room.running() as planning:
        plan = await room.followed.until(lambda plan: plan.evictions)
        assert set(evictions(plan)) == {ALIEN}
        assert planning.pinned == {key(HEAT)}


async def test_a_pinned_title_that_plex_could_not_read_stays_pinned(room: Room, autojump_clock: Clock) -> None:
    room.store.pinned.append(replace(HEAT_PIN, stood_for=(key(HEAT),)))
    room.store.hold(old(HEAT))
    room.plex.snapshot = replace(room.plex.snapshot, complete=False)
    planning = room.planning()
    assert evictions(await planning.dry_run()) == {}
    assert planning.pinned == {key(HEAT)}
    assert planning.notes == ()


async def test_a_pinned_title_that_plex_has_no_more_keeps_its_files_and_is_named(
    room: Room, autojump_clock: Clock
) -> None:
    room.store.pinned.append(replace(HEAT_PIN, stood_for=(key(HEAT), key("Films/Gone.mkv"))))
    room.store.hold(old(HEAT))
    room.plex.snapshot = replace(room.plex.snapshot, unknown_titles=frozenset({"7"}))
    planning = room.planning()
    assert evictions(await planning.dry_run()) == {}
    (note,) = planning.notes
    assert note.startswith("pinned title Heat (1995): Plex has no such item any more")


async def test_a_pinned_title_follows_what_plex_says(room: Room, autojump_clock: Clock) -> None:
    room.store.pinned.append(replace(HEAT_PIN, stood_for=(key(HEAT),)))
    room.store.hold(old(HEAT))
    room.plex.says(interest(ALIEN, InterestKind.PINNED), titles=(PinnedTitle("7", (plex_file(ALIEN),)),))
    planning = room.planning()
    plan = await planning.dry_run()
    assert (set(copies(plan)), set(evictions(plan))) == ({ALIEN}, {HEAT})
    assert planning.pinned == {key(ALIEN)}


async def test_a_title_that_is_unpinned_while_plex_answers_is_pinned_no_more(room: Room, autojump_clock: Clock) -> None:
    room.store.pinned.append(HEAT_PIN)
    titles = (PinnedTitle("7", (plex_file(HEAT),)),)
    room.plex.says(interest(HEAT, InterestKind.PINNED), interest(ALIEN), titles=titles)
    planning = room.planning()
    ask = planning.plex
    assert ask is not None

    async def answer(pinned: tuple[str, ...]) -> Snapshot:
        told = await ask(pinned)
        room.store.pinned.clear()
        return told

    planning.plex = answer
    assert set(copies(await planning.dry_run())) == {ALIEN}
    assert planning.pinned == frozenset()


async def test_a_plan_that_was_begun_before_pins_went_does_not_bring_them_back(
    room: Room, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.store.pinned.append(Pin(HEAT))
    planning = room.planning()
    resolve = Resolver.resolve

    async def late(resolver: Resolver, *args: Any) -> Resolved:
        resolved = await resolve(resolver, *args)
        if room.store.pinned:
            room.store.pinned.clear()
            await planning.pins_went()
        return resolved

    monkeypatch.setattr(Resolver, "resolve", late)
    await planning.dry_run()
    assert planning.pinned == frozenset()


async def test_a_source_that_is_away_evicts_nothing(room: Room, autojump_clock: Clock) -> None:
    room.store.pinned.append(Pin("Films"))
    room.store.hold(entry_of(seen(HEAT), wanted_at=NOW - 100 * HOUR_S))
    room.store.hold(entry_of(seen("Other.mkv"), wanted_at=NOW - 100 * HOUR_S))
    room.library.error = SourceOffline("Media", "no answer")
    assert evictions(await room.planning().dry_run()) == {}
    room.library.error = None
    assert set(evictions(await room.planning().dry_run())) == {"Other.mkv"}


# --- what a person says ----------------------------------------------------------------------------------------------


async def test_what_was_evicted_by_hand_is_held_back_with_a_reason(room: Room, autojump_clock: Clock) -> None:
    room.plex.says(interest(HEAT))
    planning = room.planning()
    planning.hold_back(key(HEAT))
    room.shift = 120
    plan = await planning.dry_run()
    assert copies(plan) == {}
    assert skips(plan)[HEAT] == (f"{HEAT}: On Deck for Anna; but you evicted it 2m ago (cachefs copy brings it back)")


async def test_what_was_evicted_by_hand_is_copied_again_in_time(room: Room, autojump_clock: Clock) -> None:
    room.plex.says(interest(HEAT))
    planning = room.planning()
    planning.hold_back(key(HEAT))
    room.shift = 12 * HOUR_S + 1
    assert set(copies(await planning.dry_run())) == {HEAT}


async def test_subtitles_of_what_was_evicted_by_hand_are_not_copied_either(room: Room, autojump_clock: Clock) -> None:
    room.library.add("Films/Heat.srt")
    room.plex.says(interest(HEAT))
    planning = room.planning()
    assert set(copies(await planning.dry_run())) == {HEAT, "Films/Heat.srt"}
    planning.hold_back(key(HEAT))
    assert copies(await planning.dry_run()) == {}


async def test_copy_now_brings_back_what_was_evicted_by_hand(room: Room, autojump_clock: Clock) -> None:
    planning = room.planning()
    planning.hold_back(key(HEAT))
    await planning.copy_now(seen(HEAT))
    [plan] = room.followed.plans
    assert copies(plan) == {HEAT: "asked for with cachefs copy"}
    assert plan.copies[0].kind is InterestKind.PLAYING  # at once, whatever copying.hours says


@pytest.mark.parametrize("pin", [Pin(HEAT), Pin("Films"), Pin("Heat", rating_key="7")])
async def test_a_pin_brings_back_what_was_evicted_by_hand(room: Room, autojump_clock: Clock, pin: Pin) -> None:
    room.store.pinned.append(pin)
    room.plex.says(interest(HEAT), *([interest(HEAT, InterestKind.PINNED)] if pin.rating_key else []))
    planning = room.planning()
    planning.hold_back(key(HEAT))
    plan = await planning.dry_run()
    assert HEAT in copies(plan)
    assert HEAT not in skips(plan)


async def test_what_goes_with_a_pinned_title_is_pinned(room: Room, autojump_clock: Clock) -> None:
    room.library.add("Films/Heat.srt")
    room.plex.says(interest(HEAT, InterestKind.PINNED))
    planning = room.planning()
    await planning.dry_run()
    assert planning.pinned == {key(HEAT), key("Films/Heat.srt")}


async def test_a_copy_by_hand_lasts_as_long_as_watched_files_are_kept(room: Room, autojump_clock: Clock) -> None:
    room.policy = PolicyConfig.model_validate({"keep_watched": "2h"})
    planning = room.planning()
    await planning.copy_now(seen(HEAT))
    room.shift = 1.9 * HOUR_S
    assert set(copies(await planning.dry_run())) == {HEAT}
    room.shift = 2.1 * HOUR_S
    assert copies(await planning.dry_run()) == {}


async def test_a_copy_by_hand_that_gets_no_room_is_refused_and_forgotten(room: Room, autojump_clock: Clock) -> None:
    room.store.room = 15
    room.plex.says(sessions=(session(ALIEN, started_at=NOW - 600),))
    room.store.hold(entry_of(seen(ALIEN)))
    planning = room.planning()
    await planning.dry_run()
    planning.hold_back(key(HEAT))
    with pytest.raises(UserError, match=f"{HEAT}: needs 10 B, only 5 B can be freed for it"):
        await planning.copy_now(seen(HEAT))
    assert room.followed.plans == []
    room.store.room = 100
    room.plex.says(interest(HEAT))
    assert "you evicted it" in skips(await planning.dry_run())[HEAT]


async def test_a_wish_for_a_file_that_is_gone_ends_and_is_said_once(
    room: Room, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    planning = room.planning()
    missing: set[FileKey] = set()
    planning.missing = lambda: frozenset(missing)
    for path in (HEAT, ALIEN):
        await planning.copy_now(seen(path))
    room.store.hold(entry_of(seen(HEAT), copied=4))
    del room.library.files[key(HEAT)]
    assert set(copies(await planning.dry_run())) == {HEAT, ALIEN}, "nobody has looked for it yet"
    missing.update((key(HEAT), key(ALIEN)))  # the other is there again
    assert set(copies(await planning.dry_run())) == {ALIEN}
    missing.clear()
    assert set(copies(await planning.dry_run())) == {ALIEN}
    assert caplog.text.count("Heat.mkv is not there any more: what cachefs copy asked for ends with it") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
async def test_a_wish_outlives_an_error_of_the_disk_that_its_file_is_on(
    room: Room, autojump_clock: Clock, number: int
) -> None:
    planning = room.planning()
    await planning.copy_now(seen(HEAT))
    planning.resolver.look_again((key(HEAT),))
    room.library.error = OSError(number, os.strerror(number))
    await planning.dry_run()
    room.library.error = None
    await trio.sleep(601)
    assert set(copies(await planning.dry_run())) == {HEAT}


async def test_a_wish_whose_file_has_another_name_since_it_was_looked_for_goes_on(
    room: Room, autojump_clock: Clock
) -> None:
    new = "Films/Heat (1995).mkv"
    room.plex.says(interest(new))
    planning = room.planning()
    await planning.copy_now(seen(HEAT))
    assert "is not there" in skips(await planning.dry_run())[new]
    room.library.files[key(new)] = seen(new)
    assert room.store.wishes.renamed(key(HEAT), key(new), exchanged=False)
    assert copies(await planning.dry_run()) == {new: "asked for with cachefs copy"}


async def test_a_wish_does_not_end_while_its_file_gets_another_name(room: Room, autojump_clock: Clock) -> None:
    renaming = {key(HEAT)}
    room.store.wishes = Wishes((), written, renaming.__contains__)
    planning = room.planning()
    await planning.copy_now(seen(HEAT))
    del room.library.files[key(HEAT)]
    planning.missing = lambda: frozenset((key(HEAT),))
    await planning.dry_run()
    assert room.store.wishes.get(key(HEAT)) is not None
    renaming.clear()
    await planning.dry_run()
    assert room.store.wishes.get(key(HEAT)) is None


async def test_copy_of_a_file_that_has_only_just_appeared(room: Room, autojump_clock: Clock) -> None:
    new = "Films/New.mkv"
    room.plex.says(interest(new))
    planning = room.planning()
    assert "is not there" in skips(await planning.dry_run())[new]
    room.library.add(new)
    await planning.copy_now(room.library.files[key(new)])
    assert set(copies(room.followed.plans[-1])) == {new}


async def test_what_can_never_be_copied_is_no_copy_and_says_so(room: Room, autojump_clock: Clock) -> None:
    odd = "Films/odd.mkv"
    room.library.add(odd)
    room.plex.says(interest(odd))
    planning = room.planning()
    plan = await planning.dry_run()
    assert not copies(plan)
    assert "it is too odd" in str(plan.skips)
    with pytest.raises(UserError, match="it is too odd"):
        await planning.copy_now(room.library.files[key(odd)])


async def test_a_dry_run_hands_nothing_over(room: Room, autojump_clock: Clock) -> None:
    room.plex.says(interest(HEAT))
    planning = room.planning()
    plan = await planning.dry_run()
    assert set(copies(plan)) == {HEAT}
    assert (room.followed.plans, planning.plan.copies) == ([], ())


# --- what is remembered ----------------------------------------------------------------------------------------------


async def test_who_watched_what_and_who_wants_it_is_written_down(room: Room, autojump_clock: Clock) -> None:
    view = View(UserName("Ben"), HEAT, (plex_file(HEAT),), NOW - 50)
    room.plex.says(interest(HEAT))
    room.plex.snapshot = replace(room.plex.snapshot, views=(view,))
    room.store.hold(entry_of(seen(HEAT), wanted_at=NOW - 500), entry_of(seen(ALIEN), wanted_at=NOW - 500))
    async with room.running():
        await trio.sleep(5)
    heat, alien = (room.store.entries[key(path)] for path in (HEAT, ALIEN))
    assert (heat.watched_at, heat.reason) == (NOW - 50, f"{HEAT}: On Deck for Anna")
    assert (heat.last_wanted_at or 0) >= NOW
    assert (alien.watched_at, alien.last_wanted_at) == (None, NOW - 500)


async def test_planning_says_nothing_of_its_own(
    room: Room, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Who carries a decision out logs it; a plan is none."""
    caplog.set_level("INFO")
    room.plex.says(interest(HEAT), interest("Films/Missing.mkv"))
    async with room.running() as planning:
        for _ in range(5):
            planning.on_event(LIBRARY)
            await trio.sleep(10)
    assert caplog.messages == []


# --- with a real store, real folders and the stand-in ----------------------------------------------------------------


async def until(holds: Callable[[Planning], object], planning: Planning, followed: Followed) -> Plan:
    with trio.fail_after(20):
        while not holds(planning):
            await followed.came.wait()
    return planning.plan


async def test_a_file_rewritten_through_the_mount_is_copied_again(tmp_path: Path) -> None:
    write(tmp_path / "Media", HEAT)
    plex, room = PlexByHand(), Room()
    plex.says(interest(HEAT), folders=(folder("/data/Films", "Heat.mkv"),))
    async with real(tmp_path) as (store, union), trio.open_nursery() as nursery:
        planning = Planning(
            plex, resolver(union.files), store, PolicyConfig(), room.health, room.followed, now=lambda: NOW
        )
        nursery.start_soon(planning.run)
        await until(lambda planning: copies(planning.plan), planning, room.followed)
        file = await union.files.stat(key(HEAT))
        entry = await begun(store, file)
        await write_bytes(store, entry, b"x" * 10)
        assert await store.publish(entry, file)
        plan = await until(lambda planning: kept(planning.plan), planning, room.followed)
        assert copies(plan) == {}
        write(tmp_path / "Media", HEAT, size=33)
        await store.drop(Targets(keys=frozenset({key(HEAT)})), DropCause.CHANGED)
        await until(lambda planning: copies(planning.plan), planning, room.followed)
        nursery.cancel_scope.cancel()


def configured(tmp_path: Path, server: StandInPlex, **changes: object) -> Config:
    for name in ("mnt", "Media"):
        (tmp_path / name).mkdir(exist_ok=True)
    data: dict[str, object] = {
        "mountpoint": f"{tmp_path}/mnt",
        "sources": [{"path": f"{tmp_path}/Media"}],
        "cache": {"path": f"{tmp_path}/ssd", "min_free": "1"},
        "control": {"socket": f"{tmp_path}/c.sock"},
        "plex": {"url": server.url, "token": server.token, "cloud_url": server.url},
    }
    return build(data | changes, tmp_path, {}, "test")


async def test_plan_once_plans_over_real_folders_without_a_daemon(tmp_path: Path) -> None:
    write(tmp_path / "Media", "Filme/Heat (1995)/Heat.mkv", "Filme/Heat (1995)/Heat.de.srt", "Filme/Alien.mkv")
    with run_stand_in_plex() as plex:
        films = plex.add_library("Films", "movie", "/data/Films")
        heat = plex.add_film(films, "Heat", 1995, "/data/Films/Heat (1995)/Heat.mkv", 10)
        gone = plex.add_film(films, "Gone", 1999, "/data/Films/Gone.mkv", 10)
        plex.on_deck(None, heat)
        plex.on_deck(None, gone)
        with trio.fail_after(30):
            plan = await daemon.plan_once(configured(tmp_path, plex))
    reason = "Heat (1995): On Deck for owner"
    assert copies(plan) == {
        "Filme/Heat (1995)/Heat.mkv": reason,
        "Filme/Heat (1995)/Heat.de.srt": f"{reason} (goes with Heat.mkv)",
    }
    [skip] = [skip for skip in plan.skips if skip.what.endswith("Gone.mkv")]
    assert "Plex's /data/Films/Gone.mkv would be /Filme/Gone.mkv, which is not there" in skip.reason
    assert not (tmp_path / "ssd").exists()


@pytest.mark.parametrize("there", [("ssd",), ("ssd", "ssd/lost+found", "ssd/files"), ("ssd", "ssd/lock")])
async def test_plan_once_makes_nothing_of_a_cache_folder_that_was_never_used(
    tmp_path: Path, there: tuple[str, ...]
) -> None:
    write(tmp_path / "Media", "Heat.mkv")
    for name in there:
        (tmp_path / name).touch() if name.endswith("lock") else (tmp_path / name).mkdir()
    with run_stand_in_plex() as plex, trio.fail_after(30):
        await daemon.plan_once(configured(tmp_path, plex))
    if "ssd/lock" not in there:
        assert sorted(f"ssd/{path.name}" for path in (tmp_path / "ssd").iterdir()) == sorted(there[1:])


async def test_plan_once_leaves_a_cache_folder_that_was_used_or_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "Media", "Heat.mkv")
    with run_stand_in_plex() as plex, trio.fail_after(30):
        config = configured(tmp_path, plex)
        async with building.open_cache(config):
            pass  # as a first start does
        there = sorted(path.name for path in (tmp_path / "ssd").iterdir())
        monkeypatch.setattr(daemon, "names_in", lambda root: None)  # the SSD is mounted just then
        await daemon.plan_once(config)
        unmake(str(tmp_path / "ssd"), "the mark of another one", None)
    assert {"lock", "index.sqlite"} < set(there)
    assert {path.name for path in (tmp_path / "ssd").iterdir()} >= set(there)


async def test_plan_once_says_who_has_the_cache_folder(tmp_path: Path) -> None:
    write(tmp_path / "Media", "Heat.mkv")
    with run_stand_in_plex() as plex, trio.fail_after(30):
        config = configured(tmp_path, plex)
        async with building.open_cache(config):
            with pytest.raises(CacheBusy):
                await daemon.plan_once(config)
            assert (tmp_path / "ssd" / "lock").exists()


@pytest.mark.expected_warnings("the cache stays as it is until Plex answers")
async def test_plan_once_without_an_answer_of_plex(tmp_path: Path) -> None:
    write(tmp_path / "Media", "Heat.mkv")
    with run_stand_in_plex() as plex:
        config = configured(tmp_path, plex)
        plex.stop_server()
        with trio.fail_after(30):
            assert (await daemon.plan_once(config)).copies == ()


async def test_check_says_how_plex_s_paths_are_found(tmp_path: Path) -> None:
    write(tmp_path / "Media", "Filme/Heat.mkv")
    with run_stand_in_plex() as plex, trio.fail_after(30):
        films = plex.add_library("Films", "movie", "/data/Films")
        plex.add_film(films, "Heat", 1995, "/data/Films/Heat.mkv", 10)
        config = configured(tmp_path, plex)
        assert await building.path_report(config) == (
            PathNote("path mapping: Plex's /data/Films (Films) is /Filme of the mount", found=True),
        )
        plex.stop_server()
        assert await building.path_report(config) == ()
    assert not (tmp_path / "ssd").exists()


@pytest.mark.expected_warnings("cannot be found in the mount")
async def test_check_says_which_given_rule_is_wrong(tmp_path: Path) -> None:
    write(tmp_path / "Media", "Filme/Heat.mkv")
    with run_stand_in_plex() as plex, trio.fail_after(30):
        films = plex.add_library("Films", "movie", "/data/Films")
        plex.add_film(films, "Heat", 1995, "/data/Films/Heat.mkv", 10)
        rules = [{"plex": "/data", "mount": "/"}]
        given = {"url": plex.url, "token": plex.token, "cloud_url": plex.url, "path_map": rules}
        [note] = await building.path_report(configured(tmp_path, plex, plex=given))
    assert not note.found
    assert "Plex has /data/Films/Heat.mkv, but no such file" in note.text
    assert "path_map: [{plex: /data/Films, mount: /}]" in note.text


# --- large libraries -------------------------------------------------------------------------------------------------


async def test_only_a_large_plan_is_made_in_a_thread() -> None:
    here = threading.get_ident()
    assert await aside(MOST_AT_ONCE, threading.get_ident) == here
    assert await aside(MOST_AT_ONCE + 1, threading.get_ident) != here


async def test_a_large_plan_is_made_of_all_that_is_wanted() -> None:
    room = Room()
    paths = [f"Films/{number}.mkv" for number in range(MOST_AT_ONCE + 1)]
    room.library.add(*paths)
    room.plex.says(*map(interest, paths))
    with trio.fail_after(60):
        assert set(copies(await room.planning().dry_run())) == set(paths)
