"""What the daemon answers to a person: every wish in words, every refusal with its reason."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from cachefs.cache.moving import Movers
from cachefs.cache.populate import Copiers, CopySettings
from cachefs.cache.store import Limits, Store
from cachefs.config import PolicyConfig
from cachefs.engine import DaemonEngine, Parts
from cachefs.errors import CacheError, PlexError, UserError
from cachefs.fs.homes import Homes
from cachefs.fs.routing import Routing
from cachefs.fs.union import Union
from cachefs.model import (
    CacheEntry,
    FileKey,
    Home,
    Phase,
    Plan,
    PlannedEviction,
    Snapshot,
    SourceName,
    UnionPath,
    UserName,
    Visible,
)
from cachefs.planning import PLEX, Planning
from cachefs.plex.client import Ask, PlexClient, PlexSettings
from cachefs.status import Counters, HealthRegistry
from cachefs.verification import Flaw
from tests.engine.cachekit import ROOMY, begun, limited
from tests.engine.cachekit import write as write_bytes
from tests.engine.plankit import MEDIA, MOUNT, copies, key, real, resolver, skips, write
from tests.standin.plex import StandInPlex, run_stand_in_plex
from tests.standin.plex_world import Film

HEAT, HEAT_SRT, ALIEN = "Films/Heat/Heat.mkv", "Films/Heat/Heat.srt", "Films/Alien.mkv"
NOBODY = ("nobody wants it: not playing, on deck, on a watchlist or pinned",)


class Never:
    """Hours that are always to come."""

    start = datetime.time(1)

    def contains(self, moment: datetime.time, /) -> bool:
        return False


@dataclass(slots=True)
class Daemon:
    """The engine over real parts, without a mount and without background tasks: ``plan`` is one turn of planning."""

    engine: DaemonEngine
    parts: Parts
    store: Store
    union: Union
    planning: Planning

    async def plan(self) -> Plan:
        """Plan as the task does, and hand over."""
        self.planning.plan = await self.planning.dry_run()
        self.parts.copiers.follow(self.planning.plan)
        return self.planning.plan

    async def partial(self, path: str, copied: int = 4) -> CacheEntry:
        entry = await begun(self.store, await self.union.files.stat(self.key(path)))
        await write_bytes(self.store, entry, b"x" * copied)
        return entry

    async def cached(self, *paths: str) -> None:
        for path in paths:
            entry = await self.partial(path, 10)
            assert await self.store.publish(entry, await self.union.files.stat(entry.key))

    async def moved(self, path: str) -> None:
        """A cached file, whose source goes on having it, is moved as far as the SSD knows."""
        entry = self.store.get(self.key(path))
        assert entry is not None
        assert await self.store.moves.leave(entry, Home(entry.fingerprint, Phase.AWAY))

    def key(self, path: str) -> FileKey:
        found = self.union.layout.key(UnionPath(path))
        assert found is not None
        return found

    def is_cached(self, path: str) -> bool:
        return self.store.get(self.key(path)) is not None


@asynccontextmanager
async def daemon(
    tmp_path: Path,
    *names: str,
    plex: StandInPlex | None = None,
    limits: Limits = ROOMY,
    hours: Never | None = None,
    moves: bool = False,
) -> AsyncIterator[Daemon]:
    async with real(tmp_path, *names, limits=limits) as (store, union):
        settings = PlexSettings(plex.url, plex.token, plex.url, deadline_s=20.0) if plex is not None else None
        client = PlexClient(settings) if settings is not None else None

        async def ask(pinned: tuple[str, ...]) -> Snapshot:
            assert client is not None
            return await client.snapshot(Ask(next_episodes_on_deck=1, pinned=pinned))

        health, counters = HealthRegistry(), Counters()
        copiers = Copiers(store, union.files, CopySettings(workers=1, hours=hours))
        found = resolver(union.files, sources=names or (MEDIA,))
        planning = Planning(ask if client else None, found, store, PolicyConfig(), health, copiers.follow)
        routing = Routing(union, store, counters)
        parts = Parts(
            MOUNT,
            union,
            store,
            routing,
            copiers,
            Movers(store, union.files, Homes(union), routing.hold, lambda: None, on=moves),
            planning,
            client,
            settings,
            health,
            counters,
            started_at=time.time(),
        )
        with trio.fail_after(30):
            yield Daemon(DaemonEngine(parts, lambda: None), parts, store, union, planning)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    write(tmp_path / MEDIA, HEAT, HEAT_SRT, ALIEN)
    return tmp_path


def targets(daemon: Daemon) -> list[str]:
    return [pin.target for pin in daemon.engine.pins()]


def films(plex: StandInPlex) -> Film:
    """Two films; returns Heat."""
    library = plex.add_library("Films", "movie", "/data/Films")
    plex.add_film(library, "Alien", 1979, f"/data/{ALIEN}", 10)
    return plex.add_film(library, "Heat", 1995, f"/data/{HEAT}", 10)


# --- explain ---------------------------------------------------------------------------------------------------------


async def test_explain_a_file_that_nobody_wants(media: Path) -> None:
    async with daemon(media) as it:
        await it.plan()
        told = await it.engine.explain(HEAT)
    assert (told.path, told.state, told.size, told.on_ssd_bytes) == (HEAT, Visible.SOURCE, 10, 0)
    assert (told.reasons, told.wanted, told.planned_position) == (NOBODY, False, None)


async def test_explain_what_waits_to_be_copied_and_its_place(media: Path) -> None:
    async with daemon(media) as it:
        await it.engine.pin("Films")
        plan = await it.plan()
        places = {path: (await it.engine.explain(f"{MOUNT}/{path}")).planned_position for path in copies(plan)}
        told = await it.engine.explain(HEAT)
    assert sorted(places.values(), key=str) == [1, 2, 3]
    assert (told.state, told.wanted, told.reasons) == (Visible.SOURCE, True, ("to be copied: pinned",))


async def test_explain_what_is_on_the_ssd_asks_no_disk(media: Path) -> None:
    async with daemon(media) as it:
        await it.engine.pin(HEAT)
        await it.cached(HEAT)
        await it.partial(ALIEN)
        await it.plan()
        for source in it.union.sources.values():
            source.close()  # whoever asks now fails
        cached, partial = await it.engine.explain(HEAT), await it.engine.explain(ALIEN)
    assert (cached.state, cached.on_ssd_bytes, cached.wanted) == (Visible.CACHED, 10, True)
    assert cached.reasons == ("pinned",)
    assert partial.reasons[0] == "nobody is known to want it now; it was copied because: because"
    assert (partial.state, partial.size, partial.on_ssd_bytes, partial.wanted) == (Visible.PARTIAL, 10, 4, False)


async def test_explain_says_that_a_file_is_wanted_and_what_is_in_the_way_of_it(media: Path) -> None:
    async with daemon(media, limits=limited(15)) as it:
        await it.engine.pin(HEAT)
        await it.cached(HEAT)
        await it.engine.pin(ALIEN)
        await it.plan()
        told = await it.engine.explain(ALIEN)
    no_room = "not copied: needs 10 B, only 5 B can be freed for it; in the way: 10 B pinned"
    assert (told.wanted, told.reasons) == (True, ("pinned", no_room))


async def test_reasons_shown_are_those_of_now(media: Path) -> None:
    async with daemon(media) as it:
        await it.engine.pin(ALIEN)
        await it.cached(ALIEN)
        await it.plan()
        assert [entry.reason for entry in it.engine.entries()] == ["pinned"]
        await it.engine.unpin(ALIEN)
        await it.plan()
        unwanted = "nobody is known to want it now; it was copied because: because"
        assert [entry.reason for entry in it.engine.entries()] == [unwanted]


async def test_outside_of_the_hours_everybody_is_told_when_copies_begin(media: Path) -> None:
    closed = "copies begin at 01:00 (copying.hours); only what is playing is copied now"
    async with daemon(media, hours=Never()) as it:
        await it.engine.pin(ALIEN)
        await it.plan()
        told = await it.engine.explain(ALIEN)
        assert (it.engine.status().waiting, (await it.engine.plan()).waiting, told.waiting) == (closed,) * 3
        assert told.reasons == ("to be copied: pinned", f"waiting: {closed}")
        await it.engine.copy(ALIEN)
        assert (await it.engine.explain(ALIEN)).waiting == ""


async def test_an_ssd_that_is_away_is_said(media: Path, expected_warnings: list[str]) -> None:
    expected_warnings.append("is away")
    async with daemon(media) as it:
        (media / "ssd").rename(media / "unplugged")
        await it.store.probe()
        status = it.engine.status()
        assert "is away" in status.cache_problem
        assert status.waiting == status.cache_problem
        await it.engine.copy(ALIEN)
        assert (await it.engine.explain(ALIEN)).waiting == status.cache_problem
        (media / "unplugged").rename(media / "ssd")


async def test_explain_what_is_to_be_evicted(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT)
        it.planning.plan = Plan(1.0, evictions=(PlannedEviction(key(HEAT), 10, "watched by Anna", False),))
        told = await it.engine.explain(HEAT)
    before = "nobody is known to want it now; it was copied because: because"
    assert told.reasons == (before, "to be evicted: watched by Anna")


async def test_explain_why_a_session_does_not_count_yet(media: Path) -> None:
    with run_stand_in_plex() as plex:
        films(plex)
        library = plex.add_library("More", "movie", "/data/Films")
        plex.play(None, plex.add_film(library, "Ronin", 1998, f"/data/{HEAT}", 10))
        async with daemon(media, plex=plex) as it:
            await it.plan()
            [reason] = (await it.engine.explain(HEAT)).reasons
    assert reason.startswith("not copied: owner has been watching for ")
    assert "it counts after 30s" in reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Films/Nothing.mkv", "Films/Nothing.mkv: No such file or directory"),
        ("", "name a file or folder below /mnt/cachefs"),
        ("../etc/passwd", "../etc/passwd is not below the mount /mnt/cachefs"),
        ("/etc/passwd", "/etc/passwd is not below the mount /mnt/cachefs"),
        ("x" * 300, "File name too long"),
        ("a\0b", "name a file or folder below /mnt/cachefs"),
    ],
)
async def test_what_is_no_file_of_the_mount_is_refused_in_words(media: Path, text: str, said: str) -> None:
    async with daemon(media) as it:
        for act in (it.engine.explain, it.engine.copy):
            with pytest.raises(UserError) as raised:
                await act(text)
            assert said in str(raised.value)


async def test_of_a_folder_is_said_which_command_takes_one(media: Path) -> None:
    os.mkfifo(media / MEDIA / "pipe")
    async with daemon(media) as it:
        for text in ("Films", str(MOUNT)):
            with pytest.raises(UserError, match=f"^{text} is a folder: explain says why one file .* cachefs ls lists"):
                await it.engine.explain(text)
            with pytest.raises(UserError, match=f"^{text} is a folder: copy takes one file; cachefs pin keeps"):
                await it.engine.copy(text)
        with pytest.raises(UserError, match=r"^pipe: not a regular file$"):
            await it.engine.explain("pipe")


async def test_the_root_of_several_sources_is_no_file(tmp_path: Path) -> None:
    async with daemon(tmp_path, "A", "B") as it:
        with pytest.raises(UserError, match="is the mount's root; name a file below it"):
            await it.engine.explain(str(MOUNT))
        with pytest.raises(UserError, match="the first folder below the mount is one of A, B"):
            await it.engine.explain("C/x.mkv")


# --- pins ------------------------------------------------------------------------------------------------------------


async def test_pin_a_file_a_folder_and_the_root_by_any_of_their_names(media: Path) -> None:
    async with daemon(media) as it:
        for text in (HEAT, f"{MOUNT}/Films/", "./Films/Heat", str(MOUNT)):
            await it.engine.pin(text)
        assert targets(it) == [HEAT, "Films", "Films/Heat", ""]
        assert set(copies(await it.plan())) == {HEAT, HEAT_SRT, ALIEN}
        for text in (f"{MOUNT}/{HEAT}", "Films/", "Films//Heat", "."):
            assert await it.engine.unpin(text)
        assert targets(it) == []
        await it.engine.pin(".")
        assert await it.engine.unpin("/"), "as the list shows it"
        assert targets(it) == []
        assert copies(await it.plan()) == {}


async def test_unpin_of_a_path_leaves_others_that_differ_in_capitals(media: Path) -> None:
    write(media / MEDIA, "films/heat.mkv")
    async with daemon(media) as it:
        await it.engine.pin("Films")
        await it.engine.pin("films")
        assert await it.engine.unpin("films")
        assert targets(it) == ["Films"]


async def test_pins_of_several_sources(tmp_path: Path) -> None:
    write(tmp_path / "A", "1.mkv")
    write(tmp_path / "B", "2.mkv")
    async with daemon(tmp_path, "A", "B") as it:
        await it.engine.pin("A")
        assert set(copies(await it.plan())) == {"1.mkv"}
        await it.engine.pin(str(MOUNT))
        plan = await it.plan()
        assert {copy.key for copy in plan.copies} == {key("1.mkv", "A"), key("2.mkv", "B")}


async def test_a_pin_outlives_the_daemon(media: Path) -> None:
    async with daemon(media) as it:
        await it.engine.pin(HEAT)
    async with daemon(media) as it:
        assert targets(it) == [HEAT]
        assert set(copies(await it.plan())) == {HEAT, HEAT_SRT}


@pytest.mark.parametrize("text", ["heat", "Heat (1995)", "HEAT (1995)"])
async def test_pin_a_title_and_let_it_go_with_and_without_its_year(media: Path, text: str) -> None:
    with run_stand_in_plex() as plex:
        films(plex)
        async with daemon(media, plex=plex) as it:
            pin = await it.engine.pin("Heat")
            assert (pin.pin.target, pin.problem) == ("Heat (1995)", "")
            plan = await it.plan()
            assert set(copies(plan)) == {HEAT, HEAT_SRT}
            assert "Heat (1995): pinned" in copies(plan)[HEAT]
            plex.stop_server()
            assert await it.engine.unpin(text)
            assert targets(it) == []


async def test_what_is_neither_a_path_nor_a_title_cannot_be_pinned(media: Path) -> None:
    with run_stand_in_plex() as plex:
        films(plex)
        async with daemon(media, plex=plex) as it:
            with pytest.raises(UserError, match="neither a file or folder in the mount nor a title in Plex"):
                await it.engine.pin("Ronin")
            assert not await it.engine.unpin("Ronin")
            plex.stop_server()
            with pytest.raises(PlexError):
                await it.engine.pin("Heat")
    async with daemon(media) as it:
        with pytest.raises(UserError, match="no Plex is configured to look for a title"):
            await it.engine.pin("Heat")
        assert not await it.engine.unpin("Heat")


@pytest.mark.expected_warnings("cannot be found in the mount")
async def test_a_title_that_plex_has_twice_is_asked_for_in_full(media: Path) -> None:
    with run_stand_in_plex() as plex:
        films(plex)
        plex.add_film(plex.add_library("More", "movie", "/data/More"), "Heat", 1986, "/data/More/x.mkv", 10)
        async with daemon(media, plex=plex) as it:
            with pytest.raises(UserError, match=r"several such titles: Heat \(1995\) \(movie\), Heat \(1986\)"):
                await it.engine.pin("heat")
            assert (await it.engine.pin("Heat (1986)")).pin.target == "Heat (1986)"


@pytest.mark.expected_warnings("cannot be found in the mount")
async def test_a_title_in_two_libraries_is_one_pin(media: Path) -> None:
    with run_stand_in_plex() as plex:
        films(plex)
        plex.add_film(plex.add_library("UHD", "movie", "/data/UHD"), "Heat", 1995, "/data/UHD/x.mkv", 10)
        async with daemon(media, plex=plex) as it:
            pin = (await it.engine.pin("heat")).pin
            assert (pin.target, pin.rating_key.count(",")) == ("Heat (1995)", 1)
            assert HEAT in copies(await it.plan())
            assert await it.engine.unpin("Heat")
            assert targets(it) == []


async def test_a_typo_pins_and_unpins_nothing(media: Path) -> None:
    with run_stand_in_plex() as plex:
        films(plex)
        async with daemon(media, plex=plex) as it:
            with pytest.raises(UserError, match=r"nor a title in Plex; Plex has: Heat \(1995\) \(movie\)"):
                await it.engine.pin("Hea")
            await it.engine.pin("Heat")
            assert not await it.engine.unpin("Hea")
            assert targets(it) == ["Heat (1995)"]


async def test_a_pin_that_the_ssd_does_not_take_is_said(media: Path) -> None:
    async with daemon(media) as it:
        await it.store._shelf.ledger.close()
        with pytest.raises(CacheError):
            await it.engine.pin(HEAT)
        assert targets(it) == []


async def test_a_pin_without_room_is_said_at_once(media: Path) -> None:
    async with daemon(media, limits=limited(5)) as it:
        made = await it.engine.pin(ALIEN)
        assert targets(it) == [ALIEN]
    needs = "needs 10 B, only 5 B can be freed for it"
    assert made.problem == f"1 pinned file (10 B) cannot be copied now, the first is {ALIEN}: {needs}"


async def test_sidecars_of_a_film_that_is_cached_already_follow_its_pin(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT)
        await it.plan()
        await it.engine.pin(HEAT)
        assert copies(await it.plan()) == {HEAT_SRT: "pinned (goes with Heat.mkv)"}


# --- evict and copy --------------------------------------------------------------------------------------------------


async def test_evict_a_folder_and_hold_it_back(media: Path) -> None:
    with run_stand_in_plex() as plex:
        heat = films(plex)
        plex.on_deck(None, heat)
        async with daemon(media, plex=plex) as it:
            await it.cached(HEAT, HEAT_SRT, ALIEN)
            assert set((await it.engine.evict("Films/Heat")).keys) == {key(HEAT), key(HEAT_SRT)}
            assert [it.is_cached(path) for path in (HEAT, HEAT_SRT, ALIEN)] == [False, False, True]
            plan = await it.plan()
            assert copies(plan) == {}
            assert "you evicted it" in skips(plan)[HEAT]
            assert "cachefs copy brings it back" in (await it.engine.explain(HEAT)).reasons[0]
            await it.engine.copy(HEAT)
            by_hand = "asked for with cachefs copy"
            assert copies(it.planning.plan) == {HEAT: by_hand, HEAT_SRT: f"{by_hand} (goes with Heat.mkv)"}
            assert not it.planning.plan.skips


async def test_evict_does_not_take_a_folder_for_one_whose_name_it_begins(media: Path) -> None:
    write(media / MEDIA, "Films 2/x.mkv")
    async with daemon(media) as it:
        await it.cached("Films 2/x.mkv")
        with pytest.raises(UserError, match="Films: nothing of it is cached"):
            await it.engine.evict("Films")


async def test_pinned_files_are_not_evicted_by_hand(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT, HEAT_SRT, ALIEN)
        await it.engine.pin(HEAT)
        await it.plan()
        with pytest.raises(UserError, match=r"^Films/Heat stays: it is pinned \(.*\); unpin it first$"):
            await it.engine.evict("Films/Heat")
        made = await it.engine.evict(str(MOUNT))
        assert made.keys == (key(ALIEN),)
        assert {skip.key for skip in made.left} == {key(HEAT), key(HEAT_SRT)}
        assert all("pinned" in skip.reason for skip in made.left)
        await it.engine.unpin(HEAT)
        assert set((await it.engine.evict(HEAT)).keys) == {key(HEAT)}


async def test_what_a_title_stood_for_is_evicted_by_hand_as_soon_as_it_is_unpinned(media: Path) -> None:
    with run_stand_in_plex() as plex:
        films(plex)
        async with daemon(media, plex=plex) as it:
            await it.cached(HEAT, HEAT_SRT, ALIEN)
            await it.engine.pin("Heat")
            await it.engine.pin("Alien")
            await it.plan()
            with pytest.raises(UserError, match="it is pinned"):
                await it.engine.evict("Films/Heat")
            await it.engine.unpin("Heat")
            assert set((await it.engine.evict("Films/Heat")).keys) == {key(HEAT), key(HEAT_SRT)}
            with pytest.raises(UserError, match="it is pinned"):
                await it.engine.evict(ALIEN)


async def test_moved_files_stay_and_what_is_beside_them_is_evicted(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT, HEAT_SRT, ALIEN)
        await it.moved(HEAT)
        made = await it.engine.evict("Films/Heat")
        assert (made.keys, [skip.key for skip in made.left]) == ((key(HEAT_SRT),), [key(HEAT)])
        assert made.left[0].reason == "it was moved: the SSD holds its only copy; cachefs restore brings it home"
        assert [it.is_cached(path) for path in (HEAT, HEAT_SRT, ALIEN)] == [True, False, True]
        for text in (HEAT, "Films/Heat"):
            with pytest.raises(UserError, match=f"^{text} stays: it was moved"):
                await it.engine.evict(text)
        await it.engine.pin(ALIEN)
        await it.plan()
        with pytest.raises(UserError, match=r"Films stays: it was moved[^\n]*\nFilms stays: it is pinned"):
            await it.engine.evict("Films")
        with pytest.raises(UserError, match="name a file or folder below"):
            await it.engine.evict("")
        assert it.is_cached(HEAT)


async def test_copy_now_says_when_there_is_no_room(media: Path) -> None:
    async with daemon(media, limits=limited(5)) as it:
        with pytest.raises(UserError, match="needs 10 B, only 5 B can be freed for it"):
            await it.engine.copy(HEAT)


async def test_copy_of_what_is_cached_is_fine(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT)
        assert await it.engine.copy(HEAT) == key(HEAT)
        assert (await it.engine.explain(HEAT)).reasons == ("asked for with cachefs copy",)


async def test_what_a_person_said_of_a_file_outlives_a_kill_as_soon_as_it_was_taken(media: Path) -> None:
    ssd, killed = media / "ssd", media / "as the kill left it"
    with run_stand_in_plex() as plex:
        plex.on_deck(None, films(plex))
        async with daemon(media, plex=plex) as it:
            await it.cached(HEAT)
            await it.engine.evict(HEAT)
            await it.engine.copy(ALIEN)
            shutil.copytree(ssd, killed)
        shutil.rmtree(ssd)
        killed.rename(ssd)
        async with daemon(media, plex=plex) as it:
            plan = await it.plan()
            assert copies(plan) == {ALIEN: "asked for with cachefs copy"}
            assert "you evicted it" in skips(plan)[HEAT]
            await it.cached(ALIEN)
            await it.engine.evict(ALIEN)
            await it.engine.copy(HEAT)
        async with daemon(media, plex=plex) as it:
            assert set(copies(await it.plan())) == {HEAT, HEAT_SRT}


async def test_a_wish_of_a_source_that_is_configured_no_more_ends(tmp_path: Path) -> None:
    write(tmp_path / "A", "1.mkv")
    write(tmp_path / "B", "2.mkv")
    async with daemon(tmp_path, "A", "B") as it:
        await it.engine.copy("A/1.mkv")
        await it.engine.copy("B/2.mkv")
    async with daemon(tmp_path, "A", "C") as it:
        assert set(copies(await it.plan())) == {"1.mkv"}


# --- moved files -----------------------------------------------------------------------------------------------------


async def test_moved_files_are_named_as_such_and_what_is_none_is_told_apart(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT, ALIEN)
        assert (it.engine.status().entries_moved, (await it.engine.explain(HEAT)).moved) == (0, False)
        assert (await (await it.engine.restoration("Films")).run()).restored == ()
        await it.moved(HEAT)
        status, told = it.engine.status(), await it.engine.explain(HEAT)
        assert (status.entries_cached, status.entries_moved, status.moved_bytes) == (2, 1, 10)
        assert (told.state, told.moved, (await it.engine.explain(ALIEN)).moved) == (Visible.CACHED, True, False)
        for text, count in (("", 1), ("Films/Heat", 1), (ALIEN, 0)):
            assert (await it.engine.restoration(text)).progress.files == count
        with pytest.raises(UserError, match="Films/nope: no such file or folder in the mount"):
            await it.engine.restoration("Films/nope")


async def test_explain_says_why_a_cached_file_was_not_moved(media: Path) -> None:
    os.link(media / MEDIA / HEAT, media / MEDIA / "other")
    async with daemon(media, moves=True) as it:
        await it.cached(HEAT, ALIEN)
        assert not [why for why in (await it.engine.explain(HEAT)).reasons if "not moved" in why]
        home = it.store.get(key(ALIEN))
        assert home is not None
        it.parts.movers.leave_at_home(home.id)
        await it.parts.movers.round()
        assert (await it.engine.explain(HEAT)).reasons[
            -1
        ] == "not moved: it has several names at its source (hard links)"
        assert "brought home with cachefs restore" in (await it.engine.explain(ALIEN)).reasons[-1]
    async with daemon(media) as it:
        await it.parts.movers.round()
        assert not [why for why in (await it.engine.explain(HEAT)).reasons if "not moved" in why]


async def test_moved_files_of_an_ssd_that_is_away_are_not_said_to_be_at_home(
    media: Path, expected_warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_warnings.append("is away")
    async with daemon(media) as it:
        await it.cached(HEAT, ALIEN)
        await it.moved(HEAT)
        (media / "ssd").rename(media / "unplugged")
        await it.store.probe()
        told, status = await it.engine.explain(HEAT), it.engine.status()
        assert (told.moved, told.reasons[0]) == (True, it.store.problem)
        lost = "1 file that was moved (10 B) is away with it, and cannot be read until it is back"
        assert status.cache_problem.endswith(f": {lost}; everything else comes from the sources")
        assert f"{lost}; everything else comes from the sources; probing" in caplog.text
        assert (status.entries_cached, status.entries_moved, status.moved_away, status.moved_bytes) == (0, 1, 1, 10)
        [shown] = it.engine.entries()
        assert (shown.key, shown.reason) == (key(HEAT), "away with the SSD: it cannot be read until that is back")
        with pytest.raises(UserError, match=r"is away.*; nothing of it can be verified before it is back"):
            it.engine.verification("", content=False, repair=False)
        for text in (HEAT, ALIEN):
            with pytest.raises(UserError, match="is away"):
                await it.engine.evict(text)
        for text in ("", HEAT):
            with pytest.raises(UserError, match=r"is away.*; what was moved there cannot come home before it is back"):
                await it.engine.restoration(text)
        (media / "unplugged").rename(media / "ssd")
        while it.store.away:
            await it.store.probe()
        status = it.engine.status()
        assert (status.entries_cached, status.entries_moved, status.moved_away) == (2, 1, 0)


@pytest.mark.expected_warnings("is away", "is offline")
async def test_a_source_comes_back_while_the_ssd_is_away_and_is_no_other_disk_unasked(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT)
        await it.moved(HEAT)
        (media / "ssd").rename(media / "unplugged")
        await it.store.probe()
        [source] = it.parts.union.sources.values()
        source.doubt("another folder has its place")
        with pytest.raises(UserError, match="the only copy of one file of source"):
            await it.engine.accept(source.name, moved=False)
        assert not source.online
        await source.probe_once()
        assert source.online


# --- verify ----------------------------------------------------------------------------------------------------------


async def test_verify_everything_or_what_is_named(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT, ALIEN)
        (media / MEDIA / HEAT).write_bytes(b"y" * 10)
        assert [
            it.engine.verification(text, False, False).entries for text in ("", "Films/Heat", f"{MOUNT}/Films")
        ] == [
            2,
            1,
            2,
        ]
        report = await it.engine.verification("", content=True, repair=False).run()
    assert [(finding.flaw, finding.key) for finding in report.findings] == [(Flaw.CHANGED, key(HEAT))]


async def test_verify_of_what_is_not_cached_says_so(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT)
        for text in (ALIEN, "Nothing"):
            with pytest.raises(UserError, match=f"^{text}: nothing of it is cached$"):
                it.engine.verification(text, content=False, repair=False)
        with pytest.raises(UserError, match="is not below the mount"):
            it.engine.verification("/etc/passwd", content=False, repair=False)


async def test_a_source_that_is_not_mounted_keeps_its_copies_when_verified(media: Path) -> None:
    async with daemon(media) as it:
        await it.cached(HEAT)
        shutil.rmtree(media / MEDIA / "Films")
        report = await it.engine.verification("", content=True, repair=True).run()
        assert [finding.flaw for finding in report.findings] == [Flaw.UNCOMPARED]
        assert it.is_cached(HEAT)


# --- status ----------------------------------------------------------------------------------------------------------


async def test_status_counts_what_there_is(media: Path) -> None:
    with run_stand_in_plex() as plex:
        heat = films(plex)
        plex.play(None, heat)
        async with daemon(media, plex=plex) as it:
            await it.cached(HEAT, HEAT_SRT)
            await it.partial(ALIEN)
            it.parts.counters.add_cache_read(7)
            await it.plan()
            status = it.engine.status()
            assert [entry.key for entry in it.engine.entries()] == [key(HEAT), key(HEAT_SRT), key(ALIEN)]
    assert (status.entries_cached, status.entries_copying, status.space.used_bytes) == (2, 1, 30)
    assert (status.plex.name, status.plex.problem, status.plex_url) == (PLEX, "", plex.url)
    assert [session.title for session in status.sessions] == ["Heat (1995)"]
    assert [report.user for report in status.users] == [UserName("owner")]
    assert [(source.name, source.online) for source in status.sources] == [(SourceName(MEDIA), True)]
    assert (status.reads.cache_reads, status.reads.cache_bytes) == (1, 7)
    assert status.notes[0].endswith("is /Films of the mount")
    assert status.mountpoint == str(MOUNT)
