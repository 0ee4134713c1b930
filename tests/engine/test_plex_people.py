"""Whose lists are read, in whose name, and what happens while plex.tv is away."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import trio

from cachefs.model import InterestKind
from cachefs.plex.client import Ask, PlexClient, PlexSettings
from tests.engine.plexkit import ON_DECK, client, fill, of_kind, problem_of, settings, titles
from tests.standin.plex import StandInPlex, run_stand_in_plex

PLAYING, DECK, WATCHLIST = InterestKind.PLAYING, InterestKind.ON_DECK, InterestKind.WATCHLIST


@pytest.fixture
def plex() -> Iterator[StandInPlex]:
    with run_stand_in_plex() as standin:
        yield standin


async def test_every_home_user_is_read_in_the_own_name(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.add_user("friend", "friend-token", home=False)
    plex.on_deck("kid", shelf.heat)
    plex.on_deck("friend", shelf.alien)
    snapshot = await client(plex).snapshot(ON_DECK)
    assert [(one.user, one.title) for one in of_kind(snapshot, DECK)] == [("kid", "Heat (1995)")]
    assert [report.user for report in snapshot.users] == ["owner", "kid"]
    assert snapshot.complete


async def test_a_user_has_one_name_whatever_server_and_plex_tv_call_him(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid@example.com", "kid-token", title="Kid")
    plex.on_deck("kid@example.com", shelf.heat)
    plex.mark_watched("kid@example.com", shelf.alien)
    plex.play("kid@example.com", shelf.heat)
    one = client(plex)
    for _ in range(2):
        snapshot = await one.snapshot(ON_DECK)
        users = {*(fact.user for fact in snapshot.interests), *(view.user for view in snapshot.views)}
        assert users | {session.user for session in snapshot.sessions} == {"Kid"}


async def test_two_users_of_one_name_are_told_apart(plex: StandInPlex) -> None:
    shelf = fill(plex)
    one = plex.add_user("one", "one-token", title="Kid")
    two = plex.add_user("two", "two-token", title="Kid")
    plex.on_deck("one", shelf.heat)
    plex.on_deck("two", shelf.alien)
    found = of_kind(await client(plex).snapshot(ON_DECK), DECK)
    assert [fact.user for fact in found] == [f"Kid ({one.cloud_id})", f"Kid ({two.cloud_id})"]


async def test_what_is_unknown_of_a_friend_is_said(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("friend", "friend-token", home=False)
    plex.play("friend", shelf.first[0])
    plex.misbehave(f"/library/metadata/{shelf.first[0].season.rating_key}/children", status=500)
    snapshot = await client(plex).snapshot(Ask())
    assert not snapshot.complete
    assert "what follows Severance S01E01" in problem_of(snapshot, "friend")


async def test_a_user_whose_server_talks_nonsense_leaves_the_others_alone(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.on_deck(None, shelf.heat)
    one = client(plex)
    await one.snapshot(ON_DECK)
    plex.misbehave("/", status=500, token="kid-token")
    snapshot = await one.snapshot(ON_DECK)
    assert titles(of_kind(snapshot, DECK)) == ["Heat (1995)"]
    assert "answers with an error" in problem_of(snapshot, "kid")
    assert not snapshot.complete


async def test_a_user_without_a_token_is_skipped_with_the_reason(plex: StandInPlex) -> None:
    """plexapi would build a server with no token, and that speaks for somebody else."""
    shelf = fill(plex)
    plex.add_user("kid", None)
    plex.on_deck(None, shelf.heat)
    snapshot = await client(plex).snapshot(ON_DECK)
    assert titles(of_kind(snapshot, DECK, "kid")) == []
    assert "no token" in problem_of(snapshot, "kid")
    assert problem_of(snapshot, "owner") == ""
    assert snapshot.complete
    assert all(request.token for request in plex.requests)


async def test_a_user_with_a_pin_has_on_deck_but_no_watchlist(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token", protected=True)
    plex.on_deck("kid", shelf.heat)
    plex.watchlist("kid", shelf.alien)
    snapshot = await client(plex).snapshot(Ask())
    assert titles(of_kind(snapshot, DECK, "kid")) == ["Heat (1995)"]
    assert of_kind(snapshot, WATCHLIST) == []
    assert "PIN" in problem_of(snapshot, "kid")


async def test_people_are_remembered_and_a_refused_token_is_renewed_at_once(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.on_deck("kid", shelf.heat)
    one = client(plex)
    await one.snapshot(ON_DECK)
    plex.clear_requests()
    await one.snapshot(ON_DECK)
    assert plex.count("/api/") == 0
    plex.set_token("kid", "another-token")
    snapshot = await one.snapshot(ON_DECK)
    assert titles(of_kind(snapshot, DECK, "kid")) == ["Heat (1995)"]
    assert snapshot.complete


async def test_a_token_that_stays_refused_makes_the_snapshot_incomplete(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.on_deck(None, shelf.heat)
    one = client(plex)
    await one.snapshot(ON_DECK)
    plex.set_token("kid", "another-token")
    plex.misbehave("/api/", status=503, host="plex.tv")
    snapshot = await one.snapshot(ON_DECK)
    assert not snapshot.complete
    assert "does not accept the token" in problem_of(snapshot, "kid")
    assert titles(of_kind(snapshot, DECK)) == ["Heat (1995)"]


async def test_without_plex_tv_the_owner_is_read_and_the_reason_is_said(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.on_deck(None, shelf.heat)
    plex.play(None, shelf.alien)
    snapshot = await PlexClient(settings(plex, cloud=False)).snapshot(Ask())
    assert titles(of_kind(snapshot, DECK)) == ["Heat (1995)"]
    assert titles(of_kind(snapshot, PLAYING)) == ["Alien (1979)"]
    assert not snapshot.complete
    assert "plex.tv cannot be reached" in problem_of(snapshot, "owner")


async def test_plex_tv_is_left_alone_after_it_failed(plex: StandInPlex) -> None:
    fill(plex)
    plex.misbehave("/", status=500, host="plex.tv")
    one = PlexClient(settings(plex, cloud_retry_s=600))
    await one.snapshot(Ask())
    plex.clear_requests()
    snapshot = await one.snapshot(Ask())
    assert [request.host for request in plex.requests if request.cloud] == []
    assert not snapshot.complete
    assert "plex.tv answers with an error (500)" in problem_of(snapshot, "owner")


async def test_home_users_are_found_when_plex_tv_is_back(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.on_deck("kid", shelf.heat)
    plex.misbehave("/", status=500, host="plex.tv")
    one = client(plex)
    assert not (await one.snapshot(ON_DECK)).complete
    plex.behave()
    snapshot = await one.snapshot(ON_DECK)
    assert snapshot.complete
    assert titles(of_kind(snapshot, DECK, "kid")) == ["Heat (1995)"]


async def test_known_home_users_are_read_while_plex_tv_is_away(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.on_deck("kid", shelf.heat)
    plex.watchlist("kid", shelf.alien)
    one = client(plex)
    await one.snapshot(Ask())
    for host in ("plex.tv", "discover.provider.plex.tv", "metadata.provider.plex.tv"):
        plex.misbehave("/", status=502, host=host)
    snapshot = await one.snapshot(Ask())
    assert titles(of_kind(snapshot, DECK, "kid")) == ["Heat (1995)"]
    assert titles(of_kind(snapshot, WATCHLIST, "kid")) == ["Alien (1979)"]
    assert not snapshot.complete


async def test_plex_tv_that_hangs_leaves_time_for_the_server(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.on_deck(None, shelf.heat)
    plex.misbehave("/", drip_s=0.05, drip_head=True, host="plex.tv")
    with trio.fail_after(15):
        snapshot = await PlexClient(settings(plex, deadline_s=3)).snapshot(ON_DECK)
    assert titles(of_kind(snapshot, DECK)) == ["Heat (1995)"]
    assert not snapshot.complete


async def test_one_refused_watchlist_leaves_the_others_alone(plex: StandInPlex) -> None:
    shelf = fill(plex)
    for name in ("kid", "sister"):
        plex.add_user(name, f"{name}-token")
        plex.watchlist(name, shelf.heat)
    one = PlexClient(settings(plex, cloud_retry_s=600))
    await one.snapshot(Ask())
    plex.revoke_cloud_token("kid")
    for _ in range(2):
        snapshot = await one.snapshot(Ask())
        assert "watchlist: plex.tv does not accept the token" in problem_of(snapshot, "kid")
        assert problem_of(snapshot, "sister") == problem_of(snapshot, "owner") == ""
        assert [one.user for one in of_kind(snapshot, WATCHLIST)] == ["kid", "sister"]
        assert not snapshot.complete


async def test_a_user_who_lost_access_is_skipped_from_then_on(plex: StandInPlex) -> None:
    """The server refuses the old token, plex.tv has no new one: from then on the user is skipped, with the reason."""
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.on_deck("kid", shelf.heat)
    one = client(plex)
    await one.snapshot(ON_DECK)
    plex.set_token("kid", None)
    snapshot = await one.snapshot(ON_DECK)
    assert "no token" in problem_of(snapshot, "kid")
    assert of_kind(snapshot, DECK) == []
    assert snapshot.complete


async def test_lists_that_take_plex_long_are_not_read_with_every_look(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.on_deck("kid", shelf.heat)
    one = PlexClient(settings(plex, lists_valid=1e6))
    first = await one.snapshot(ON_DECK)
    plex.clear_requests()
    plex.play("kid", shelf.alien)
    second = await one.snapshot(ON_DECK)
    assert of_kind(second, DECK) == of_kind(first, DECK)
    assert [session.title for session in second.sessions] == ["Alien (1979)"]
    assert plex.count("/library/onDeck") == 0
    await one.snapshot(replace(ON_DECK, next_episodes_on_deck=4))
    assert plex.count("/library/onDeck") == 2, "another question"


async def test_lists_that_do_not_come_in_time_are_taken_as_they_were_and_read_first_the_next_time(
    plex: StandInPlex, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = fill(plex)
    for name in ("kid", "sister"):
        plex.add_user(name, f"{name}-token")
        plex.on_deck(name, shelf.heat)
    one = client(plex)
    monkeypatch.setattr("cachefs.plex.gather._LISTS_WITHIN", 0.0)
    early = await one.snapshot(ON_DECK)
    assert not early.complete
    assert "not read yet" in problem_of(early, "kid")
    monkeypatch.setattr("cachefs.plex.gather._LISTS_WITHIN", 1.0)
    assert (await one.snapshot(ON_DECK)).complete
    plex.off_deck("kid", shelf.heat)
    monkeypatch.setattr("cachefs.plex.gather._LISTS_WITHIN", 0.0)
    late = await one.snapshot(ON_DECK)
    assert late.complete
    assert [fact.user for fact in of_kind(late, DECK)] == ["kid", "sister"]


async def test_a_list_that_could_not_be_read_is_read_again(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.on_deck(None, shelf.heat)
    one = PlexClient(settings(plex, lists_valid=1e6))
    plex.misbehave("/library/onDeck", status=500)
    assert not (await one.snapshot(ON_DECK)).complete
    plex.behave()
    snapshot = await one.snapshot(ON_DECK)
    assert snapshot.complete
    assert titles(of_kind(snapshot, DECK)) == ["Heat (1995)"]


async def test_a_name_server_that_swallows_questions_does_not_keep_plex_waiting(
    plex: StandInPlex, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, answered = fill(plex), threading.Event()
    plex.on_deck(None, shelf.heat)
    ask = socket.getaddrinfo

    def swallow(host: str, *args: Any, **named: Any) -> Any:
        if host.endswith("plex.tv"):
            answered.wait(20)
            raise OSError("no answer")
        return ask(host, *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", swallow)
    monkeypatch.setattr("cachefs.plex.wire._RESOLVE_WITHIN_S", 0.1)
    snapshot = await PlexClient(PlexSettings(plex.url, plex.token)).snapshot(ON_DECK)
    answered.set()
    assert titles(of_kind(snapshot, DECK)) == ["Heat (1995)"]
    assert "no answer from the name server" in problem_of(snapshot, "owner")
