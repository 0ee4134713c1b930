"""What a snapshot holds, read by the real plexapi from a stand-in server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cachefs.model import InterestKind, PlexFile, PlexPath
from cachefs.plex.client import Ask, PlexClient
from tests.engine.plexkit import NOTHING, ON_DECK, client, fill, of_kind, settings, titles
from tests.standin.plex import StandInPlex, run_stand_in_plex

PLAYING, DECK, WATCHLIST = InterestKind.PLAYING, InterestKind.ON_DECK, InterestKind.WATCHLIST


@pytest.fixture
def plex() -> Iterator[StandInPlex]:
    with run_stand_in_plex() as standin:
        yield standin


# --- on deck ----------------------------------------------------------------------------------------------------------


async def test_next_episodes_go_on_over_the_end_of_a_season(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.on_deck(None, shelf.first[1], at=1_700_000_000)
    deck = of_kind(await client(plex).snapshot(ON_DECK), DECK)
    assert titles(deck) == ["Severance S01E02", "Severance S01E03", "Severance S02E01"]
    assert [(one.ahead, one.after_title) for one in deck] == [(0, ""), (1, "Severance S01E02"), (2, "Severance S01E02")]
    assert {one.since for one in deck} == {1_700_000_000.0}


async def test_a_special_is_followed_by_specials_only(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_episode(shelf.show, 0, 2, "Another", "/data/TV/Severance/Specials/S00E02.mkv", 7)
    plex.on_deck(None, shelf.special)
    deck = of_kind(await client(plex).snapshot(ON_DECK), DECK)
    assert titles(deck) == ["Severance S00E01", "Severance S00E02"]


async def test_the_last_episode_is_not_followed_by_a_special(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.on_deck(None, shelf.second[2])
    assert titles(of_kind(await client(plex).snapshot(ON_DECK), DECK)) == ["Severance S02E03"]


@pytest.mark.parametrize("of_season", [1, 2])
async def test_an_episode_that_is_next_up_is_as_old_as_the_view_before_it(plex: StandInPlex, of_season: int) -> None:
    """It was never played itself; the one before it may be in the season before."""
    shelf = fill(plex)
    watched, next_up = (shelf.first[0], shelf.first[1]) if of_season == 1 else (shelf.first[2], shelf.second[0])
    plex.mark_watched(None, watched, at=1_600_000_000)
    deck = of_kind(await client(plex).snapshot(ON_DECK), DECK)
    assert deck[0].rating_key == str(next_up.rating_key)
    assert {one.since for one in deck} == {1_600_000_000.0}


async def test_a_rewatch_counts_from_the_view_before_it(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.mark_watched(None, shelf.first[1], at=1_500_000_000)
    plex.mark_watched(None, shelf.first[0], at=1_700_000_000)
    deck = {one.title: one for one in of_kind(await client(plex).snapshot(ON_DECK), DECK) if not one.ahead}
    assert deck["Severance S01E02"].since == 1_700_000_000


async def test_every_version_and_part_is_named(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_part(shelf.heat, "/data/Films/Heat (1995)/Heat cd2.mkv", 5001)
    plex.add_version(shelf.heat, "/data/Films/Heat (1995)/Heat 4K.mkv", 50_000)
    plex.on_deck(None, shelf.heat)
    (deck,) = of_kind(await client(plex).snapshot(ON_DECK), DECK)
    assert deck.title == "Heat (1995)"
    assert deck.files == (
        PlexFile(PlexPath("/data/Films/Heat (1995)/Heat.mkv"), 5000),
        PlexFile(PlexPath("/data/Films/Heat (1995)/Heat cd2.mkv"), 5001),
        PlexFile(PlexPath("/data/Films/Heat (1995)/Heat 4K.mkv"), 50_000),
    )


async def test_an_on_deck_episode_costs_one_request_and_three_at_the_end_of_a_season(plex: StandInPlex) -> None:
    shelf = fill(plex)
    one = PlexClient(settings(plex))
    await one.snapshot(ON_DECK)
    plex.clear_requests()
    await one.snapshot(ON_DECK)
    without = plex.count()
    for episode, cost in ((shelf.first[0], 1), (shelf.first[1], 3)):
        plex.on_deck(None, episode)
        plex.clear_requests()
        await one.snapshot(ON_DECK)
        assert plex.count() - without == cost
        assert plex.count(f"/library/metadata/{shelf.show.rating_key}/allLeaves") == 0
        plex.off_deck(None, episode)


async def test_empty_attributes_cause_no_request(plex: StandInPlex) -> None:
    """plexapi asks for the whole item when an attribute is empty, unless it is told not to."""
    shelf = fill(plex)
    plex.on_deck(None, shelf.heat)
    shelf.heat.versions.clear()
    snapshot = await client(plex).snapshot(ON_DECK)
    assert [one.files for one in of_kind(snapshot, DECK)] == [()]
    assert plex.count("/library/metadata/") == 0


# --- sessions and views -----------------------------------------------------------------------------------------------


async def test_a_session_is_reported_at_once_with_files_although_it_is_transcoded(plex: StandInPlex) -> None:
    shelf = fill(plex)
    playing = plex.play(None, shelf.first[0])
    playing.advance(0.5)
    before = time.time()
    snapshot = await client(plex).snapshot(Ask(on_deck=False, watchlist=False, next_episodes_playing=1))
    (session,) = snapshot.sessions
    assert (session.user, session.title, session.state, session.progress) == (
        "owner",
        "Severance S01E01",
        "playing",
        0.5,
    )
    assert session.started_at >= before
    assert session.files == (PlexFile(PlexPath("/data/TV/Severance/Season 1/S01E01.mkv"), 1001),)
    wanted = of_kind(snapshot, PLAYING)
    assert titles(wanted) == ["Severance S01E01", "Severance S01E02"]
    assert {one.since for one in wanted} == {session.started_at}


async def test_a_session_keeps_its_beginning_until_something_else_is_played(plex: StandInPlex) -> None:
    shelf = fill(plex)
    one = client(plex)
    playing = plex.play(None, shelf.heat)
    (first,) = (await one.snapshot(NOTHING)).sessions
    playing.pause()
    (second,) = (await one.snapshot(NOTHING)).sessions
    assert (second.started_at, second.state) == (first.started_at, "paused")
    playing.stop()
    plex.play(None, shelf.alien)
    (third,) = (await one.snapshot(NOTHING)).sessions
    assert third.started_at > first.started_at


async def test_sessions_are_read_but_not_wanted_when_playing_is_switched_off(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.play(None, shelf.heat)
    snapshot = await client(plex).snapshot(NOTHING)
    assert (len(snapshot.sessions), snapshot.interests) == (1, ())


async def test_views_come_from_the_history_with_user_and_files(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    at = float(int(time.time())) - 3600
    plex.mark_watched("kid", shelf.heat, at=at)
    plex.mark_watched(None, shelf.alien, at=at - 100 * 86400)
    one = client(plex)
    (view,) = (await one.snapshot(NOTHING)).views
    assert (view.user, view.title, view.at) == ("kid", "Heat (1995)", at)
    assert [file.path for file in view.files] == ["/data/Films/Heat (1995)/Heat.mkv"]
    plex.clear_requests()
    assert (await one.snapshot(NOTHING)).views == (view,)
    assert plex.count("/library/metadata/") == 0


async def test_views_reach_back_as_far_as_wishes_and_only_news_is_asked_for(plex: StandInPlex) -> None:
    shelf = fill(plex)
    now = float(int(time.time()))
    plex.mark_watched(None, shelf.heat, at=now - 40 * 86400)
    plex.mark_watched(None, shelf.alien, at=now - 3600)
    one, ask = client(plex), replace(NOTHING, views_max_age_s=90 * 86400)
    views = (await one.snapshot(ask)).views
    assert {(view.rating_key, len(view.files)) for view in views} == {
        (str(shelf.heat.rating_key), 0),
        (str(shelf.alien.rating_key), 1),
    }
    plex.clear_requests()
    plex.mark_watched(None, shelf.first[0], at=now - 7200)  # on a train, and told of only now
    assert {view.title for view in (await one.snapshot(ask)).views} >= {"Severance S01E01", "Alien (1979)"}
    (asked,) = (request for request in plex.requests if request.path.startswith("/status/sessions/history"))
    assert float(asked.query["viewedAt>"]) > now - 2 * 86400


@pytest.mark.parametrize(("fraction", "seen"), [(0.95, True), (0.5, False)])
async def test_a_session_seen_to_reach_its_end_is_a_view(plex: StandInPlex, fraction: float, seen: bool) -> None:
    """Plex may keep no history (a setting, another user): what this program saw itself counts as well."""
    shelf = fill(plex)
    plex.misbehave("/status/sessions/history", status=404)
    one = client(plex)
    playing = plex.play(None, shelf.heat)
    playing.advance(fraction)
    assert not (await one.snapshot(NOTHING)).views
    playing.stop()
    views = (await one.snapshot(NOTHING)).views
    assert [view.title for view in views] == (["Heat (1995)"] if seen else [])


async def test_a_played_flag_is_no_view(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.mark_watched(None, shelf.heat, at=1_500_000_000)
    plex.on_deck(None, shelf.heat)
    snapshot = await client(plex).snapshot(ON_DECK)
    assert snapshot.views == ()
    assert titles(of_kind(snapshot, DECK)) == ["Heat (1995)"]


# --- watchlist, recently added, pins ----------------------------------------------------------------------------------


async def test_a_watchlist_is_matched_by_guid(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.mark_watched("kid", shelf.first[0])
    plex.watchlist("kid", shelf.heat, at=1_700_000_000)
    plex.watchlist("kid", shelf.show, at=1_700_000_500)
    elsewhere = replace(shelf.alien, guid="plex://movie/ffffffffffffffffffffffff", title="Not in the library")
    plex.watchlist("kid", elsewhere)
    wished = of_kind(await client(plex).snapshot(Ask(on_deck=False, watchlist_episodes=3)), WATCHLIST)
    assert [(one.user, one.title, one.since, one.ahead) for one in wished] == [
        ("kid", "Heat (1995)", 1_700_000_000, 0),
        ("kid", "Severance S01E02", 1_700_000_500, 0),
        ("kid", "Severance S01E03", 1_700_000_500, 1),
        ("kid", "Severance S02E01", 1_700_000_500, 2),
    ]


async def test_the_library_is_not_searched_again_for_a_known_watchlist(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.watchlist(None, shelf.heat)
    one = client(plex)
    await one.snapshot(Ask())
    plex.clear_requests()
    wished = of_kind(await one.snapshot(Ask()), WATCHLIST)
    assert titles(wished) == ["Heat (1995)"]
    assert plex.count("/library/all") == 0
    assert [request.target for request in plex.requests if request.host.startswith("metadata")] == []


async def test_recently_added_is_what_is_younger(plex: StandInPlex) -> None:
    shelf = fill(plex)
    shelf.heat.added_at = time.time() - 3 * 86400
    shelf.alien.added_at = time.time() - 10 * 86400
    for episode in (shelf.special, *shelf.first, *shelf.second):
        episode.added_at = time.time() - 20 * 86400
    shelf.second[2].added_at = time.time() - 60
    snapshot = await client(plex).snapshot(replace(NOTHING, recently_added_max_age_s=7 * 86400))
    added = of_kind(snapshot, InterestKind.RECENTLY_ADDED)
    assert sorted(titles(added)) == ["Heat (1995)", "Severance S02E03"]
    assert {one.title: one.since for one in added}["Heat (1995)"] == int(shelf.heat.added_at)


async def test_a_pin_stands_for_all_episodes_below_it(plex: StandInPlex) -> None:
    shelf = fill(plex)
    one = client(plex)

    async def pinned(*keys: int) -> list[str]:
        snapshot = await one.snapshot(replace(NOTHING, pinned=tuple(str(key) for key in keys)))
        assert snapshot.complete
        return titles(of_kind(snapshot, InterestKind.PINNED))

    assert await pinned(shelf.heat.rating_key) == ["Heat (1995)"]
    assert await pinned(shelf.show.seasons[2].rating_key) == [f"Severance S02E0{number}" for number in (1, 2, 3)]
    assert len(await pinned(shelf.show.rating_key)) == 7
    assert await pinned(shelf.first[0].rating_key, 987654) == ["Severance S01E01"]
    assert await pinned(987654) == []


async def test_a_pin_says_what_it_stands_for_and_what_the_library_has_no_more(plex: StandInPlex) -> None:
    shelf = fill(plex)
    uhd = plex.add_library("UHD", "movie", "/data/UHD")
    other = plex.add_film(uhd, "Heat", 1995, "/data/UHD/Heat.mkv", 9000)
    both = f"{shelf.heat.rating_key},{other.rating_key}"
    snapshot = await client(plex).snapshot(replace(NOTHING, pinned=(both, "987654")))
    (title,) = snapshot.titles
    assert (title.rating_key, len(title.files)) == (both, 2)
    assert snapshot.unknown_titles == {"987654"}
    plex.misbehave("/library/metadata", status=500)
    snapshot = await client(plex).snapshot(replace(NOTHING, pinned=(both,)))
    assert (snapshot.titles, snapshot.unknown_titles, snapshot.complete) == ((), frozenset(), False)


async def test_library_folders_have_samples_and_are_asked_for_once(plex: StandInPlex) -> None:
    shelf = fill(plex)
    shelf.films.locations.append("/data/Films 2")
    plex.add_film(shelf.films, "Ran", 1985, "/data/Films 2/Ran (1985)/Ran.mkv", 77)
    one = client(plex)
    folders = {folder.path: folder for folder in (await one.snapshot(NOTHING)).folders}
    assert {path: folder.library for path, folder in folders.items()} == {
        "/data/TV": "TV",
        "/data/Films": "Films",
        "/data/Films 2": "Films",
    }
    assert folders[PlexPath("/data/Films 2")].samples == (PlexFile(PlexPath("/data/Films 2/Ran (1985)/Ran.mkv"), 77),)
    assert len(folders[PlexPath("/data/TV")].samples) == 5
    plex.clear_requests()
    assert (await one.snapshot(NOTHING)).folders == tuple(folders.values())
    assert plex.count("/library/sections") == 0


async def test_wanted_files_are_samples_of_a_folder_that_comes_late_in_its_library(plex: StandInPlex) -> None:
    shelf = fill(plex)
    shelf.films.locations.append("/data/Films 2")
    for number in range(500):
        plex.add_film(shelf.films, f"A{number}", 2000, f"/data/Films/A{number}.mkv", number)
    late = plex.add_film(shelf.films, "Ran", 1985, "/data/Films 2/Ran (1985)/Ran.mkv", 77)
    one = client(plex)

    async def samples(folder: str) -> list[str]:
        snapshot = await one.snapshot(ON_DECK)
        return [file.path for one in snapshot.folders if one.path == folder for file in one.samples]

    assert await samples("/data/Films 2") == []
    plex.clear_requests()
    plex.on_deck(None, late)
    assert await samples("/data/Films 2") == ["/data/Films 2/Ran (1985)/Ran.mkv"]
    assert plex.count("/library/sections") == 0


async def test_a_library_that_is_new_is_read_once_something_in_it_is_wanted(
    plex: StandInPlex, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(plex)
    one = client(plex)
    await one.snapshot(ON_DECK)
    anime = plex.add_library("Anime", "movie", "/data/Anime")
    plex.on_deck(None, plex.add_film(anime, "Akira", 1988, "/data/Anime/Akira.mkv", 9))
    assert "/data/Anime" not in {folder.path for folder in (await one.snapshot(ON_DECK)).folders}
    monkeypatch.setattr("cachefs.plex.libraries._LACKING_VALID_S", 0.0)
    assert "/data/Anime" in {folder.path for folder in (await one.snapshot(ON_DECK)).folders}


# --- titles and facts -------------------------------------------------------------------------------------------------


async def test_titles_are_found_as_people_write_them(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_film(shelf.films, "Heat 2", 2030, "/data/Films/Heat 2.mkv", 1)
    one = client(plex)

    async def found(text: str) -> list[tuple[str, str]]:
        return [(match.kind, match.title) for match in await one.find(text)]

    assert await found("heat") == [("movie", "Heat (1995)")]
    assert await found("Heat (1995)") == [("movie", "Heat (1995)")]
    assert await found("Hea") == [("movie", "Heat (1995)"), ("movie", "Heat 2 (2030)")]
    assert await found("severance") == [("show", "Severance")]
    assert await found("Severance S02") == [("season", "Severance Season 2")]
    assert await found("severance season 1") == [("season", "Severance Season 1")]
    assert await found("Nothing like it") == []
    (match,) = await one.find("Heat")
    assert match.rating_key == str(shelf.heat.rating_key)


async def test_check_says_which_server_and_whose_lists(plex: StandInPlex) -> None:
    fill(plex)
    plex.add_user("kid", None)
    facts = await client(plex).check()
    assert (facts.name, facts.owner) == ("Stand-in", "owner")
    assert facts.version.startswith("1.")
    assert [(report.user, bool(report.problem)) for report in facts.users] == [("owner", False), ("kid", True)]
