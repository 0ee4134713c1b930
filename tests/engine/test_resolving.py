"""Plex's files are found in the mount, with their sidecars, and the disks are left in peace."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio

from cachefs import lookups, resolving
from cachefs.errors import SourceOffline
from cachefs.model import CacheEntry, InterestKind, Pin, PlexFile, PlexPath, UnionPath
from cachefs.paths import PathMap, PathRule
from cachefs.resolving import Resolved, Resolver
from cachefs.wanting import WantedItem
from tests.engine.plankit import (
    DATA,
    MOUNT,
    NOW,
    CountingLibrary,
    entry_of,
    folder,
    key,
    plex_file,
    real,
    resolver,
    seen,
    write,
)

FILM = "Films/Heat/Heat.mkv"


def item(path: str, *, plex: str | None = None) -> WantedItem:
    file = plex_file(path) if plex is None else PlexFile(PlexPath(plex), 10)
    return WantedItem(file, InterestKind.ON_DECK, 0, f"{path}: On Deck for Anna", NOW)


async def resolve(
    found: Resolver, *paths: str, pins: tuple[str, ...] = (), entries: Iterable[CacheEntry] = ()
) -> Resolved:
    wanted = [item(path) for path in paths]
    return await found.resolve(wanted, [Pin(target, created_at=NOW) for target in pins], entries)


def wanted(resolved: Resolved) -> list[str]:
    return [want.key.path for want in resolved.wants]


def pinned(resolved: Resolved) -> set[str]:
    return {key.path for key in resolved.pinned}


# --- what is wanted --------------------------------------------------------------------------------------------------


async def test_a_video_brings_its_sidecars_and_its_folder_of_subtitles() -> None:
    library = CountingLibrary()
    beside = ("Heat.en.srt", "Heat.nfo", "Heat-poster.jpg", "Subs/2_English.srt", "Subs/liner notes.txt")
    library.add(FILM, *(f"Films/Heat/{name}" for name in (*beside, "Heat trailer.avi.part")))
    resolved = await resolve(resolver(library), FILM)
    expected = {FILM, *(f"Films/Heat/{name}" for name in beside if not name.endswith(".txt"))}
    assert set(wanted(resolved)) == expected
    follows = {want.key.path: want.follows for want in resolved.wants}
    assert follows.pop(FILM) is None
    assert set(follows.values()) == {key(FILM)}


async def test_sidecars_can_be_switched_off() -> None:
    library = CountingLibrary()
    library.add(FILM, "Films/Heat/Heat.srt")
    found = resolver(library)
    found.with_sidecars = False
    assert wanted(await resolve(found, FILM)) == [FILM]
    assert not any(question.startswith("list") for question in library.asked)


async def test_sidecars_in_the_root_of_a_source() -> None:
    library = CountingLibrary()
    library.add("Heat.mkv", "Heat.srt", "Subs/English.srt")
    assert set(wanted(await resolve(resolver(library), "Heat.mkv"))) == {"Heat.mkv", "Heat.srt", "Subs/English.srt"}


async def test_a_file_that_is_not_there_is_skipped_with_both_its_names() -> None:
    resolved = await resolve(resolver(CountingLibrary()), FILM)
    [skip] = resolved.skips
    assert (resolved.wants, skip.key) == ((), key(FILM))
    assert f"Plex's /data/{FILM} would be /{FILM}, which is not there" in skip.reason
    assert resolved.complete


@pytest.mark.parametrize("path", ["/data/../etc/passwd", "/data/Films/../../x", "/elsewhere/x.mkv", "relative.mkv"])
async def test_a_path_that_maps_outside_is_no_file(path: str) -> None:
    library = CountingLibrary()
    found = resolver(library)
    resolved = await found.resolve([item("x", plex=path)], (), ())
    assert found.locate(PlexFile(PlexPath(path), 10)) is None
    assert "no path mapping leads" in resolved.skips[0].reason
    assert not library.asked


async def test_the_root_itself_is_no_file() -> None:
    resolved = await resolver(CountingLibrary()).resolve([item("x", plex="/data")], (), ())
    assert (resolved.wants, len(resolved.skips)) == ((), 1)


# --- pins ------------------------------------------------------------------------------------------------------------


async def test_a_pinned_video_takes_its_sidecars_along_and_nothing_else() -> None:
    library = CountingLibrary()
    library.add(FILM, "Films/Heat/Heat.srt", "Films/Heat/Other.mkv")
    resolved = await resolve(resolver(library), pins=(FILM,))
    assert set(wanted(resolved)) == {FILM, "Films/Heat/Heat.srt"} == pinned(resolved)


async def test_a_pinned_folder_is_pinned_to_its_depths() -> None:
    library = CountingLibrary()
    library.add("TV/A/S1/1.mkv", "TV/A/S2/x/2.mkv", "TV/A/poster.jpg", "TV/B/1.mkv", "TV/AA/1.mkv")
    expected = {"TV/A/S1/1.mkv", "TV/A/S2/x/2.mkv", "TV/A/poster.jpg"}
    assert pinned(await resolve(resolver(library), pins=("TV/A",))) == expected


async def test_a_pinned_root_is_everything_of_all_sources() -> None:
    library = CountingLibrary()
    library.add("1.mkv", "x/2.mkv", source="A")
    library.add("3.mkv", source="B")
    both = await resolve(resolver(library, sources=("A", "B")), pins=("",))
    assert pinned(both) == {"1.mkv", "x/2.mkv", "3.mkv"}
    assert pinned(await resolve(resolver(library, sources=("A",)), pins=("",))) == {"1.mkv", "x/2.mkv"}


async def test_a_pin_of_a_source_that_is_no_more_pins_nothing() -> None:
    library = CountingLibrary()
    library.add("1.mkv", source="A")
    library.add("2.mkv", source="B")
    resolved = await resolve(resolver(library, sources=("A", "B")), pins=("Old/TV",))
    assert (wanted(resolved), dict(library.asked)) == ([], {})


async def test_very_many_pinned_files_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "_MOST_PINNED", 5)
    library = CountingLibrary()
    library.add(*(f"{number}.mkv" for number in range(9)))
    assert len(pinned(await resolve(resolver(library), pins=("",)))) == 5


async def test_what_is_pinned_and_cached_stays_pinned_while_its_source_is_away() -> None:
    library = CountingLibrary()
    library.error = SourceOffline("Media", "no answer")
    entries = [entry_of(seen(f"TV/A/{number}.mkv")) for number in (1, 2)]
    resolved = await resolve(resolver(library), pins=("TV/A",), entries=[*entries, entry_of(seen("TV/B.mkv"))])
    assert pinned(resolved) == {"TV/A/1.mkv", "TV/A/2.mkv"}
    assert not resolved.complete


async def test_order_of_pinned_files_is_the_same_each_time() -> None:
    library = CountingLibrary()
    library.add("b.mkv", "a.mkv", "c.mkv")
    found = resolver(library)
    first, second = [await resolve(found, pins=("",)) for _ in range(2)]
    assert first.wants == second.wants


# --- the disks are left in peace -------------------------------------------------------------------------------------


async def test_what_was_seen_is_not_asked_again_within_ten_minutes(autojump_clock: trio.abc.Clock) -> None:
    library = CountingLibrary()
    library.add(FILM, "Films/Heat/Heat.srt")
    found = resolver(library)
    await resolve(found, FILM, "missing.mkv", pins=("Films",))
    before = library.asked.copy()
    await trio.sleep(599)
    await resolve(found, FILM, "missing.mkv", pins=("Films",))
    assert library.asked == before
    assert set(before.values()) == {1}
    await trio.sleep(2)
    await resolve(found, FILM)
    assert library.asked[f"stat {FILM}"] == 2


async def test_when_the_library_changes_it_is_looked_at_again() -> None:
    library = CountingLibrary()
    found = resolver(library)
    assert wanted(await resolve(found, FILM)) == []
    library.add(FILM)
    assert wanted(await resolve(found, FILM)) == []
    found.forget()
    assert wanted(await resolve(found, FILM)) == [FILM]


async def test_beside_a_cached_video_no_disk_is_asked(autojump_clock: trio.abc.Clock) -> None:
    library = CountingLibrary()
    files = [seen(path) for path in (FILM, "Films/Heat/Heat.srt", "Films/Heat/Subs/English.srt")]
    entries = [entry_of(file) for file in files]
    found = resolver(library)
    for _ in range(3):
        assert set(wanted(await resolve(found, FILM, entries=entries))) == {file.key.path for file in files}
        found.forget()
        await trio.sleep(3600)
    assert not library.asked


async def test_sidecars_that_wait_for_their_turn_are_not_forgotten_once_the_video_is_cached(
    autojump_clock: trio.abc.Clock,
) -> None:
    library = CountingLibrary()
    library.add(FILM, "Films/Heat/Heat.srt")
    found = resolver(library)
    await resolve(found, FILM)
    found.forget()
    await trio.sleep(3600)
    library.asked.clear()
    cached = await resolve(found, FILM, entries=[entry_of(seen(FILM))])
    assert set(wanted(cached)) == {FILM, "Films/Heat/Heat.srt"}
    assert not library.asked


async def test_beside_a_video_that_is_being_copied_its_sidecars_are_looked_for() -> None:
    library = CountingLibrary()
    library.add(FILM, "Films/Heat/Heat.srt")
    resolved = await resolve(resolver(library), FILM, entries=[entry_of(seen(FILM), copied=3)])
    assert set(wanted(resolved)) == {FILM, "Films/Heat/Heat.srt"}


async def test_a_folder_of_the_same_path_on_another_source_is_not_searched() -> None:
    library = CountingLibrary()
    entries = [entry_of(seen("Show/1.mkv", source="A")), entry_of(seen("Show/1.srt", source="B"))]
    rules = PathMap((PathRule(PlexPath("/data"), UnionPath("A")),))
    resolved = await resolve(resolver(library, rules, sources=("A", "B")), "Show/1.mkv", entries=entries)
    assert [str(want.key) for want in resolved.wants] == ["A:Show/1.mkv"]
    assert not library.asked


async def test_a_source_that_is_away_is_asked_again_as_soon_as_there_is_a_plan() -> None:
    library = CountingLibrary()
    library.add(FILM)
    library.error = SourceOffline("Media", "no answer")
    found = resolver(library)
    away = await resolve(found, FILM)
    assert not away.complete
    assert "source Media does not answer" in away.skips[0].reason
    library.error = None
    back = await resolve(found, FILM)
    assert (wanted(back), back.complete) == ([FILM], True)


async def test_a_disk_that_fails_on_a_file_is_not_asked_with_every_plan() -> None:
    library = CountingLibrary()
    library.error = OSError(errno.EIO, "Input/output error")
    found = resolver(library)
    for _ in range(3):
        assert wanted(await resolve(found, FILM)) == []
    assert dict(library.asked) == {f"stat {FILM}": 1}


async def test_what_nobody_has_wanted_for_ten_minutes_is_given_up_and_what_is_wanted_stays(
    autojump_clock: trio.abc.Clock,
) -> None:
    library = CountingLibrary()
    library.add(FILM, "Films/Heat/Heat.srt")
    found = resolver(library)
    for number in range(100):
        gone = f"Films/passing {number}/film.mkv"
        library.add(gone)
        await resolve(found, FILM, gone, entries=[entry_of(seen(FILM))] if number else [])
        await trio.sleep(60)
    assert len(found._files) == len(found._folders) == 12, "of the last ten minutes, and beside what is wanted"
    cached = await resolve(found, FILM, entries=[entry_of(seen(FILM))])
    assert set(wanted(cached)) == {FILM, "Films/Heat/Heat.srt"}


async def test_what_is_remembered_is_bounded_in_one_plan_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_MOST", 100)
    library = CountingLibrary()
    found = resolver(library)
    await resolve(found, *(f"{number}.mkv" for number in range(300)))
    assert 0 < len(found._files) <= 100


async def test_a_large_library_in_the_cache_does_not_hold_up_the_event_loop() -> None:
    entries = [entry_of(seen(f"TV/Show {number // 20}/{number}.mkv")) for number in range(1000)]
    found = resolver(CountingLibrary())
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await resolve(found, *(entry.key.path for entry in entries), entries=entries)
        nursery.cancel_scope.cancel()
    assert turns > 900


# --- where Plex's folders are ----------------------------------------------------------------------------------------


async def test_the_mapping_is_learned_from_real_files(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    library = CountingLibrary()
    library.add("TV/Show/1.mkv", "Films/Heat.mkv")
    found = resolver(library, learns=True)
    folders = (folder("/data/TV", "Show/1.mkv"), folder("/data/Films", "Heat.mkv", library="Films"))
    for _ in range(3):
        await found.settle_paths(folders)
    assert found.locate(plex_file("TV/Show/2.mkv")) == key("TV/Show/2.mkv")
    assert "Plex's /data/TV (TV) is /TV of the mount" in found.notes[0]
    assert len(caplog.messages) == len(found.notes) == 2


async def test_the_mapping_is_learned_below_a_folder_of_one_of_several_sources() -> None:
    library = CountingLibrary()
    library.add("Video/Serien/Show/1.mkv", source="Disk2")
    library.add("Video/Filme/Heat.mkv", source="Disk1")
    found = resolver(library, sources=("Disk1", "Disk2"), learns=True)
    await found.settle_paths((folder("/tv", "Show/1.mkv"),))
    assert found.locate(PlexFile(PlexPath("/tv/Show/2.mkv"), 10)) == key("Video/Serien/Show/2.mkv", "Disk2")


@pytest.mark.expected_warnings("cannot be found in the mount")
async def test_two_places_with_the_same_files_are_for_a_person_to_decide() -> None:
    library = CountingLibrary()
    library.add("A/Show/1.mkv", "B/Show/1.mkv")
    found = resolver(library, learns=True)
    await found.settle_paths((folder("/tv", "Show/1.mkv"),))
    [note] = found.notes
    assert found.locate(PlexFile(PlexPath("/tv/Show/1.mkv"), 10)) is None
    assert "/A and /B of the mount hold the same files" in note
    assert "Plex has /tv/Show/1.mkv" in note
    assert "path_map: [{plex: /tv, mount: /A}]" in note


@pytest.mark.expected_warnings("cannot be found in the mount")
async def test_a_file_of_another_size_is_another_file() -> None:
    library = CountingLibrary()
    library.add("TV/Show/1.mkv", size=11)
    found = resolver(library, learns=True)
    await found.settle_paths((folder("/data/TV", "Show/1.mkv"),))
    assert found.locate(plex_file("TV/Show/1.mkv")) is None
    assert "no such file is where it would be" in found.notes[0]


@pytest.mark.expected_warnings("cannot be found in the mount")
async def test_given_rules_are_checked_against_real_files_and_followed_all_the_same() -> None:
    library = CountingLibrary()
    library.add("TV/Show/1.mkv")
    rules = PathMap((*DATA.rules, PathRule(PlexPath("/wrong"), UnionPath("Films"))))
    found = resolver(library, rules)
    await found.settle_paths((folder("/data/TV", "Show/1.mkv"), folder("/wrong", "Heat.mkv", library="Films")))
    right, wrong = found.notes
    assert "Plex's /data/TV (TV) is /TV of the mount" in right
    assert "/wrong/Heat.mkv" in wrong
    assert str(MOUNT) in wrong
    assert found.rules is rules


@pytest.mark.expected_warnings("cannot be found in the mount")
async def test_a_library_that_is_not_in_the_mount_is_not_looked_for_with_every_plan(
    autojump_clock: trio.abc.Clock,
) -> None:
    library = CountingLibrary()
    library.add("TV/Show/1.mkv", *(f"Films/{number}/{number}.mkv" for number in range(300)))
    found = resolver(library, learns=True)
    folders = (folder("/data/TV", "Show/1.mkv"), folder("/other/Kids", "a/1.mkv", "b/2.mkv", library="Kids"))
    await found.settle_paths(folders)
    first = library.asked.copy()
    assert sum(first.values()) < 30
    found.forget()
    await trio.sleep(1200)
    await found.settle_paths(folders)
    assert library.asked == first


async def test_a_root_that_is_a_library_itself_is_not_entered_folder_by_folder() -> None:
    library = CountingLibrary()
    library.add(*(f"Film {number}/{number}.mkv" for number in range(300)))
    found = resolver(library, learns=True)
    await found.settle_paths((folder("/films", "Film 7/7.mkv", "Film 8/8.mkv"),))
    assert found.locate(PlexFile(PlexPath("/films/Film 9/9.mkv"), 10)) == key("Film 9/9.mkv")
    assert sum(library.asked.values()) < 20


@pytest.mark.expected_warnings("cannot be found in the mount")
async def test_a_disk_that_goes_away_takes_no_mapping_with_it() -> None:
    library = CountingLibrary()
    library.add("TV/Show/1.mkv", "Kids/a.mkv")
    found = resolver(library, learns=True)
    tv, kids = folder("/data/TV", "Show/1.mkv"), folder("/data/Kids", "a.mkv", library="Kids")
    await found.settle_paths((tv,))
    library.error = SourceOffline("Media", "no answer")
    found.forget()
    await found.settle_paths((tv, kids))
    assert found.locate(plex_file("TV/Show/1.mkv")) == key("TV/Show/1.mkv")
    library.error = None
    await found.settle_paths((tv, kids))
    assert found.locate(plex_file("Kids/a.mkv")) == key("Kids/a.mkv")
    assert not any("cannot be found" in note for note in found.notes)


@pytest.mark.expected_warnings("cannot be found in the mount")
async def test_while_nothing_of_the_library_is_found_nothing_is_known_to_be_unwanted() -> None:
    library = CountingLibrary()
    found = resolver(library, learns=True)
    await found.settle_paths((folder("/data/TV", "Show/1.mkv"),))
    assert not (await resolve(found, "TV/Show/1.mkv")).complete


async def test_a_library_that_is_filled_later_is_found_later() -> None:
    library = CountingLibrary()
    library.add("TV/Show/1.mkv")
    found = resolver(library, learns=True)
    await found.settle_paths((folder("/data/TV", "Show/1.mkv"), folder("/data/Kids", library="Kids")))
    library.add("Kids/a.mkv")
    await found.settle_paths((folder("/data/TV", "Show/1.mkv"), folder("/data/Kids", "a.mkv", library="Kids")))
    assert found.locate(plex_file("Kids/b.mkv")) == key("Kids/b.mkv")
    assert found.locate(plex_file("TV/b.mkv")) == key("TV/b.mkv")


# --- over real folders -----------------------------------------------------------------------------------------------


async def test_real_folders_are_learned_pinned_and_searched(tmp_path: Path) -> None:
    write(tmp_path / "Media", "TV/Show/S1/1.mkv", "TV/Show/S1/1.en.srt", "TV/Show/S1/Subs/1.forced.srt", "Films/a.mkv")
    (tmp_path / "Media" / "TV" / "Show" / "again").symlink_to("..")
    async with real(tmp_path) as (_, union):
        found = resolver(union.files, learns=True)
        await found.settle_paths((folder("/data/TV", "Show/S1/1.mkv"),))
        resolved = await resolve(found, "TV/Show/S1/1.mkv")
        expected = ["TV/Show/S1/1.mkv", "TV/Show/S1/1.en.srt", "TV/Show/S1/Subs/1.forced.srt"]
        assert wanted(resolved) == expected
        assert pinned(await resolve(found, pins=("TV",))) == set(expected)
        assert pinned(await resolve(found, pins=("",))) == {*expected, "Films/a.mkv"}
