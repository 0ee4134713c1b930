"""The rules of cachefs.wanting: which interests count, how they merge, and what people are told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cachefs.model import (
    Interest,
    InterestKind,
    PlexFile,
    PlexPath,
    Session,
    Skip,
    Snapshot,
    UserName,
    View,
)
from cachefs.wanting import Policy, WantedItem, wanted_items, watched_files

NOW = 1_700_000_000.0
DAY = 86400.0
ANNA, BEN, CLEO = UserName("Anna"), UserName("Ben"), UserName("Cleo")
ALL = Policy(
    playing_after_s=30.0,
    on_deck_max_age_s=60 * DAY,
    watchlist_max_age_s=90 * DAY,
    recently_added=True,
    recently_added_max_age_s=7 * DAY,
)


def plex_file(name: str) -> PlexFile:
    return PlexFile(PlexPath(f"/data/{name}"), 1000)


EPISODE = plex_file("Severance/S02E05.mkv")
FILM = plex_file("Heat.mkv")


def interest(kind: InterestKind, user: UserName = ANNA, file: PlexFile = EPISODE, **changes: object) -> Interest:
    title = "Heat (1995)" if file is FILM else "Severance S02E05"
    key = "7" if file is FILM else "205"
    fact = Interest(kind=kind, user=user, title=title, files=(file,), since=NOW - DAY, rating_key=key)
    return replace(fact, **changes)  # type: ignore[arg-type]


def session(started_ago_s: float, user: UserName = ANNA, file: PlexFile = EPISODE) -> Session:
    return Session(
        key="1",
        user=user,
        title="Severance S02E05",
        files=(file,),
        started_at=NOW - started_ago_s,
        position_s=60,
        duration_s=3000,
        state="playing",
        rating_key="205",
    )


def only(*interests: Interest, policy: Policy = ALL) -> WantedItem:
    result = wanted_items(Snapshot(NOW, interests=interests), policy, NOW)
    assert result.skips == ()
    (item,) = result.items
    return item


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        (interest(InterestKind.PLAYING), "Severance S02E05: Anna is watching it"),
        (interest(InterestKind.PLAYING, ahead=1), "Severance S02E05: next after what Anna is watching"),
        (interest(InterestKind.PLAYING, ahead=2), "Severance S02E05: 2 episodes after what Anna is watching"),
        (interest(InterestKind.ON_DECK), "Severance S02E05: On Deck for Anna"),
        (
            interest(InterestKind.ON_DECK, ahead=1, after_title="Severance S02E04"),
            "Severance S02E05: next after Severance S02E04, On Deck for Anna",
        ),
        (
            interest(InterestKind.ON_DECK, ahead=3, after_title="Severance S02E02"),
            "Severance S02E05: 3 episodes after Severance S02E02, On Deck for Anna",
        ),
        (interest(InterestKind.WATCHLIST, BEN, FILM), "Heat (1995): on Ben's watchlist"),
        (interest(InterestKind.RECENTLY_ADDED, BEN, FILM, since=NOW - 2.7 * DAY), "Heat (1995): recently added 2d ago"),
        (interest(InterestKind.RECENTLY_ADDED, BEN, FILM, since=0.0), "Heat (1995): recently added"),
        (interest(InterestKind.PINNED, UserName(""), FILM), "Heat (1995): pinned"),
        (interest(InterestKind.ON_DECK, UserName("")), "Severance S02E05: On Deck for somebody"),
    ],
)
def test_reason_is_one_sentence_that_a_person_understands(fact: Interest, reason: str) -> None:
    assert only(fact).reason == reason


def test_people_with_the_same_reason_are_named_together() -> None:
    kinds = InterestKind.ON_DECK, InterestKind.WATCHLIST, InterestKind.PLAYING
    texts = [only(*(interest(kind, user) for user in (ANNA, BEN, CLEO))).reason for kind in kinds]
    assert texts == [
        "Severance S02E05: On Deck for Anna, Ben and Cleo",
        "Severance S02E05: on the watchlists of Anna, Ben and Cleo",
        "Severance S02E05: Anna, Ben and Cleo are watching it",
    ]


def test_strongest_reason_comes_first_and_everybody_is_kept() -> None:
    item = only(
        interest(InterestKind.PINNED, UserName(""), since=NOW - 7.0),
        interest(InterestKind.WATCHLIST, CLEO, since=NOW - 5.0),
        interest(InterestKind.ON_DECK, BEN, ahead=2, after_title="Severance S02E03"),
        interest(InterestKind.ON_DECK, ANNA, since=NOW - 9.0),
    )
    assert (item.kind, item.ahead, item.since, item.pinned) == (InterestKind.PINNED, 0, NOW - 7.0, True)
    assert item.users == (ANNA, BEN, CLEO)
    assert item.reason == "Severance S02E05: pinned; also On Deck for Anna; also on Cleo's watchlist"


def test_items_come_most_urgent_first_with_every_version_of_an_item() -> None:
    other = plex_file("Severance/S02E05 - 4K.mkv")
    result = wanted_items(
        Snapshot(
            NOW,
            interests=(
                interest(InterestKind.WATCHLIST, BEN, FILM),
                interest(InterestKind.ON_DECK, files=(EPISODE, other)),
            ),
        ),
        ALL,
        NOW,
    )
    assert [item.file for item in result.items] == [other, EPISODE, FILM]


# --- playing ---------------------------------------------------------------------------------------------------------


def test_session_counts_only_after_it_has_lasted() -> None:
    snapshot = Snapshot(NOW, interests=(interest(InterestKind.PLAYING, rating_key="205"),), sessions=(session(10),))
    early = wanted_items(snapshot, ALL, NOW)
    assert early.items == ()
    assert early.next_change_at == NOW + 20
    assert early.skips == (
        Skip("Severance S02E05", "Anna has been watching for 10s; it counts after 30s (policy.playing.after)"),
    )
    due = wanted_items(snapshot, ALL, early.next_change_at)
    assert [item.kind for item in due.items] == [InterestKind.PLAYING]
    assert due.next_change_at is None
    assert due.skips == ()


def test_next_episodes_wait_for_their_own_session() -> None:
    following = interest(
        InterestKind.PLAYING, file=FILM, ahead=1, after_title="Severance S02E05", title="Severance S02E06"
    )
    long_ago, just_now = session(600, BEN, plex_file("other.mkv")), session(10)
    result = wanted_items(Snapshot(NOW, interests=(following,), sessions=(long_ago, just_now)), ALL, NOW)
    assert [item.file.path for item in result.items] == ["/data/other.mkv"]
    assert result.next_change_at == NOW + 20


def test_session_alone_makes_its_item_wanted() -> None:
    result = wanted_items(Snapshot(NOW, sessions=(session(60),)), ALL, NOW)
    assert [item.reason for item in result.items] == ["Severance S02E05: Anna is watching it"]


def test_on_deck_counts_while_the_session_is_too_young() -> None:
    result = wanted_items(Snapshot(NOW, interests=(interest(InterestKind.ON_DECK),), sessions=(session(1),)), ALL, NOW)
    assert [item.kind for item in result.items] == [InterestKind.ON_DECK]
    assert result.skips == ()
    assert result.next_change_at == NOW + 29


# --- what does not count ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        (
            interest(InterestKind.ON_DECK, since=NOW - 75 * DAY),
            "On Deck for Anna since 75d, older than policy.on_deck.max_age (60d)",
        ),
        (
            interest(InterestKind.WATCHLIST, BEN, since=NOW - 91 * DAY),
            "on Ben's watchlist since 91d, older than policy.watchlist.max_age (90d)",
        ),
        (
            interest(InterestKind.RECENTLY_ADDED, since=NOW - 8 * DAY),
            "recently added 8d ago, older than policy.recently_added.max_age (7d)",
        ),
        (interest(InterestKind.ON_DECK, files=()), "On Deck for Anna, but Plex names no file for it"),
    ],
)
def test_what_the_policy_excludes_is_said(fact: Interest, reason: str) -> None:
    result = wanted_items(Snapshot(NOW, interests=(fact,)), ALL, NOW)
    assert result.items == ()
    assert result.skips == (Skip("Severance S02E05", reason),)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (InterestKind.PLAYING, "playing"),
        (InterestKind.ON_DECK, "on_deck"),
        (InterestKind.WATCHLIST, "watchlist"),
        (InterestKind.RECENTLY_ADDED, "recently_added"),
    ],
)
def test_switched_off_kind_does_not_count(kind: InterestKind, key: str) -> None:
    nothing = Policy(playing=False, on_deck=False, watchlist=False, recently_added=False)
    result = wanted_items(Snapshot(NOW, interests=(interest(kind),)), nothing, NOW)
    assert result.items == ()
    assert result.next_change_at is None
    assert [skip.reason.endswith(f"but policy.{key} is switched off") for skip in result.skips] == [True]


def test_pins_count_whatever_the_policy_and_the_age() -> None:
    nothing = Policy(playing=False, on_deck=False, watchlist=False, recently_added=False)
    assert only(interest(InterestKind.PINNED, since=1.0), policy=nothing).pinned


def test_age_exactly_at_the_limit_still_counts_and_an_unknown_age_too() -> None:
    assert only(interest(InterestKind.ON_DECK, since=NOW - 60 * DAY)).kind is InterestKind.ON_DECK
    assert only(interest(InterestKind.ON_DECK, since=0.0)).kind is InterestKind.ON_DECK


def test_no_skip_for_a_file_that_somebody_else_wants() -> None:
    old = interest(InterestKind.ON_DECK, ANNA, since=NOW - 75 * DAY)
    assert only(old, interest(InterestKind.WATCHLIST, BEN)).users == (BEN,)


# --- what was watched ------------------------------------------------------------------------------------------------


def view(user: UserName, at: float, file: PlexFile = EPISODE) -> View:
    return View(user, "Severance S02E05", (file,), at, "7" if file is FILM else "205")


@pytest.mark.parametrize("kind", [InterestKind.ON_DECK, InterestKind.WATCHLIST, InterestKind.RECENTLY_ADDED])
def test_finished_item_is_no_longer_wanted_by_that_user(kind: InterestKind) -> None:
    snapshot = Snapshot(NOW, interests=(interest(kind),), views=(view(ANNA, NOW - 7200),))
    result = wanted_items(snapshot, ALL, NOW)
    assert result.items == ()
    assert [skip.reason.endswith(", but Anna finished it 2h ago") for skip in result.skips] == [True]


@pytest.mark.parametrize(
    ("fact", "seen"),
    [
        (interest(InterestKind.ON_DECK, ANNA), view(BEN, NOW - 7200)),
        (interest(InterestKind.ON_DECK, ANNA), view(ANNA, NOW - 7200, FILM)),
        (interest(InterestKind.ON_DECK, ANNA, rating_key="206"), view(ANNA, NOW - 7200)),
        (interest(InterestKind.ON_DECK, ANNA), view(ANNA, NOW - 2 * DAY)),
        (interest(InterestKind.PLAYING, ANNA), view(ANNA, NOW - 60)),
        (interest(InterestKind.PINNED, ANNA), view(ANNA, NOW - 60)),
    ],
    ids=[
        "another user",
        "another file",
        "the second episode of one file",
        "rewatch",
        "credits still running",
        "pinned",
    ],
)
def test_view_does_not_spend(fact: Interest, seen: View) -> None:
    result = wanted_items(Snapshot(NOW, interests=(fact,), views=(seen,)), ALL, NOW)
    assert [item.kind for item in result.items] == [fact.kind]


def test_watched_files_give_the_latest_view_of_each_user() -> None:
    both = replace(view(ANNA, NOW - 50), files=(EPISODE, FILM))
    snapshot = Snapshot(NOW, views=(both, view(ANNA, NOW - 90), view(BEN, NOW - 10)))
    found = {(one.file.path, one.user): one.at for one in watched_files(snapshot)}
    assert found == {
        (EPISODE.path, ANNA): NOW - 50,
        (FILM.path, ANNA): NOW - 50,
        (EPISODE.path, BEN): NOW - 10,
    }
