"""Servers that lie, drip, hang and redirect: what comes out is a ``PlexError``, in time, and never a token."""

from __future__ import annotations

import gzip
import logging
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio

from cachefs.errors import PlexAnswer, PlexError, PlexRefused, PlexUnreachable
from cachefs.model import InterestKind
from cachefs.plex.client import Ask, PlexClient
from tests.engine.plexkit import NOTHING, ON_DECK, client, fill, of_kind, problem_of, settings, titles
from tests.standin.plex import HTML_LOGIN, StandInPlex, run_stand_in_plex
from tests.standin.plex_http import CERTIFICATE

XML = "text/xml;charset=utf-8"
TOKENS = ("owner-token", "kid-token", "cloud-90")


@pytest.fixture
def plex() -> Iterator[StandInPlex]:
    with run_stand_in_plex() as standin:
        yield standin


async def all_threads_ended(one: PlexClient) -> None:
    """Returns when no worker thread of this client runs any more; fails when one stays."""
    with trio.fail_after(5):
        for _ in range(int(one._limiter.total_tokens)):
            await one._limiter.acquire_on_behalf_of(object())
    for borrower in one._limiter.statistics().borrowers:
        one._limiter.release_on_behalf_of(borrower)


NONSENSE = {
    "an HTML page": HTML_LOGIN,
    "HTML that is XML": b"<html><body/></html>",
    "half an answer": b'<?xml version="1.0"?><MediaContainer size="1"><Video ',
    "nothing": b"",
    "blanks": b"   \n",
    "JSON": b'{"MediaContainer": {"size": 0}}',
    "binary": bytes(range(256)) * 10,
    "another root": b"<Playlist><Video type='movie' ratingKey='1'/></Playlist>",
    "deep nesting": b"<MediaContainer>" + b"<a>" * 200_000,
    "an entity bomb": b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))
    + b"]><MediaContainer>&j;</MediaContainer>",
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("path", ["/", "/status/sessions"])
async def test_nonsense_is_a_plex_answer(plex: StandInPlex, path: str, body: bytes) -> None:
    fill(plex)
    one = client(plex)
    plex.misbehave(path, body=body, content_type=XML)
    with pytest.raises(PlexAnswer):
        await one.snapshot(Ask())


_FILM = b'<Video type="movie" ratingKey="5" title="x"><Media %s><Part file="/x" size="%s"/></Media></Video>'
WRONG_TYPES = {
    "a size that is a word": _FILM % (b"", b"big"),
    "a negative size": _FILM % (b"", b"-4"),
    "a flag that is none": _FILM % (b'optimizedForStreaming="maybe"', b"4"),
    "an index that is a word": b'<Video type="episode" ratingKey="5" parentRatingKey="6" index="x" parentIndex="one"/>',
}


@pytest.mark.parametrize("item", WRONG_TYPES.values(), ids=WRONG_TYPES)
async def test_wrong_types_in_a_list_are_noted_on_its_user(plex: StandInPlex, item: bytes) -> None:
    shelf = fill(plex)
    plex.play(None, shelf.heat)
    plex.misbehave("/library/onDeck", body=b'<MediaContainer size="1">' + item + b"</MediaContainer>", content_type=XML)
    snapshot = await client(plex).snapshot(replace(ON_DECK, playing=True))
    assert titles(of_kind(snapshot, InterestKind.PLAYING)) == ["Heat (1995)"]
    assert of_kind(snapshot, InterestKind.ON_DECK) == []
    assert "cannot be understood" in problem_of(snapshot, "owner") or "Plex " in problem_of(snapshot, "owner")
    assert not snapshot.complete


async def test_what_is_not_in_the_library_is_left_out(plex: StandInPlex) -> None:
    """Live television and online titles are no items of the server's; people watch them all the same."""
    fill(plex)
    user = b'<User id="1" title="owner"/>'
    body = (
        b'<MediaContainer><Video type="episode" ratingKey="plex%%3A%%2F%%2Fx" sessionKey="1">%s</Video><Video type='
        b'"movie" title="x" sessionKey="2">%s</Video><Track type="track" ratingKey="4">%s</Track></MediaContainer>'
    ) % (user, user, user)
    for path in ("/status/sessions", "/library/onDeck", "/hubs/continueWatching"):
        plex.misbehave(path, body=body, content_type=XML)
    snapshot = await client(plex).snapshot(replace(ON_DECK, playing=True))
    assert (snapshot.sessions, snapshot.interests) == ((), ())
    assert snapshot.complete


async def test_a_session_without_a_user_is_nonsense(plex: StandInPlex) -> None:
    fill(plex)
    body = b'<MediaContainer size="1"><Video type="movie" ratingKey="5" sessionKey="1"/></MediaContainer>'
    plex.misbehave("/status/sessions", body=body, content_type=XML)
    with pytest.raises(PlexAnswer):
        await client(plex).snapshot(NOTHING)


async def test_a_date_out_of_this_world_is_none(plex: StandInPlex) -> None:
    fill(plex)
    item = b'<Video type="movie" ratingKey="5" title="x" lastViewedAt="99999999999999999999"/>'
    plex.misbehave("/library/onDeck", body=b"<MediaContainer>" + item + b"</MediaContainer>", content_type=XML)
    snapshot = await client(plex).snapshot(ON_DECK)
    assert titles(of_kind(snapshot, InterestKind.ON_DECK)) == ["x"]


async def test_every_list_that_is_nonsense_leaves_the_others(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.play(None, shelf.heat)
    for path in ("/library/onDeck", "/library/all", "/library/sections", "/status/sessions/history"):
        plex.misbehave(path)
    for host in ("plex.tv", "discover.provider.plex.tv"):
        plex.misbehave("/", host=host)
    snapshot = await client(plex).snapshot(replace(Ask(), recently_added_max_age_s=1e6, pinned=("1", "2")))
    assert [session.title for session in snapshot.sessions] == ["Heat (1995)"]
    assert not snapshot.complete
    for what in ("On Deck", "libraries", "watch history", "home users"):
        assert what in problem_of(snapshot, "owner")


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_huge_answer_is_cut_off(plex: StandInPlex, compressed: bool) -> None:
    fill(plex)
    body = b"<MediaContainer>" + b" " * (17 * 1024 * 1024) + b"</MediaContainer>"
    headers = (("Content-Encoding", "gzip"),) if compressed else ()
    plex.misbehave(
        "/status/sessions", body=gzip.compress(body) if compressed else body, content_type=XML, headers=headers
    )
    with pytest.raises(PlexAnswer, match="larger than 16 MiB"):
        await client(plex).snapshot(NOTHING)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, PlexRefused),
        (403, PlexRefused),
        (500, PlexAnswer),
        (503, PlexUnreachable),
        (520, PlexAnswer),
        (418, PlexAnswer),
    ],
)
async def test_every_status_is_an_error_of_ours(plex: StandInPlex, status: int, error: type[PlexError]) -> None:
    plex.misbehave("/", status=status, body=b"owner-token")
    with pytest.raises(error, match=str(status)):
        await client(plex).snapshot(NOTHING)


async def test_a_wrong_token_is_refused(plex: StandInPlex) -> None:
    with pytest.raises(PlexRefused):
        await PlexClient(replace(settings(plex), token="wrong")).snapshot(NOTHING)


async def test_an_empty_token_is_never_replaced_by_another(plex: StandInPlex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLEXAPI_AUTH_SERVER_TOKEN", plex.token)
    with pytest.raises(PlexRefused):
        await PlexClient(replace(settings(plex), token="")).snapshot(NOTHING)
    assert plex.requests == ()


async def test_a_server_that_is_away_is_unreachable_and_comes_back(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.on_deck(None, shelf.heat)
    one = client(plex)
    await one.snapshot(ON_DECK)
    plex.stop_server()
    with pytest.raises(PlexUnreachable, match="Connection refused"):
        await one.snapshot(ON_DECK)
    plex.start_server()
    assert titles(of_kind(await one.snapshot(ON_DECK), InterestKind.ON_DECK)) == ["Heat (1995)"]


async def test_a_connection_that_was_closed_while_idle_is_made_anew(plex: StandInPlex) -> None:
    shelf = fill(plex)
    plex.play(None, shelf.heat)
    plex.misbehave("/status/sessions", hang_up=True)
    snapshot = await client(plex).snapshot(NOTHING)
    assert [session.title for session in snapshot.sessions] == ["Heat (1995)"]
    assert plex.count("/status/sessions") == 4  # sessions and history: hung up, and answered


@pytest.mark.parametrize(
    "how", [{"hang": True}, {"drip_s": 0.05}, {"drip_s": 0.05, "drip_head": True}], ids=["silence", "body", "head"]
)
async def test_a_slow_answer_ends_at_the_deadline_and_its_thread_too(plex: StandInPlex, how: dict[str, float]) -> None:
    """requests' own timeout starts anew with every byte."""
    fill(plex)
    plex.misbehave("/status/sessions", body=b"<MediaContainer>" + b" " * 10_000, content_type=XML, **how)  # type: ignore[arg-type]
    one = PlexClient(settings(plex, deadline_s=1.0))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.sleep(0.01)
            turns += 1

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            with pytest.raises(PlexUnreachable, match="within 1 s"):
                await one.snapshot(NOTHING)
            nursery.cancel_scope.cancel()
    assert turns > 20
    await all_threads_ended(one)


async def test_https_is_spoken_where_the_certificate_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_stand_in_plex(tls=True) as plex:
        shelf = fill(plex)
        plex.on_deck(None, shelf.heat)
        with pytest.raises(PlexUnreachable, match="certificate"):
            await client(plex).snapshot(ON_DECK)
        assert plex.requests == ()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
        plex.misbehave("/hubs", hang=True)
        with pytest.raises(PlexUnreachable, match="within 1 s"):
            await PlexClient(settings(plex, deadline_s=1.0)).snapshot(ON_DECK)
        plex.behave()
        assert titles(of_kind(await client(plex).snapshot(ON_DECK), InterestKind.ON_DECK)) == ["Heat (1995)"]


async def test_tls_with_a_server_that_has_none_is_unreachable(plex: StandInPlex) -> None:
    with trio.fail_after(10), pytest.raises(PlexUnreachable, match="TLS"):
        await PlexClient(replace(settings(plex), url=plex.url.replace("http:", "https:"))).snapshot(NOTHING)


async def test_a_deadline_is_said_in_the_log(plex: StandInPlex, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="cachefs.plex.client")
    plex.misbehave("/", hang=True)
    with pytest.raises(PlexUnreachable):
        await PlexClient(settings(plex, deadline_s=0.2)).snapshot(NOTHING)
    assert [record.getMessage() for record in caplog.records if record.name == "cachefs.plex.client"] == [
        f"Plex at {plex.url} does not help: {plex.url} has not given a complete answer within 0.2 s"
    ]


async def test_a_cancelled_snapshot_ends_its_thread(plex: StandInPlex) -> None:
    fill(plex)
    plex.misbehave("/status/sessions", hang=True)
    one = client(plex)
    with trio.move_on_after(0.3):
        await one.snapshot(NOTHING)
    await all_threads_ended(one)
    plex.behave()
    assert (await one.snapshot(NOTHING)).complete


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_no_redirect_is_followed(plex: StandInPlex, status: int) -> None:
    """requests would take the X-Plex-Token header along to any host."""
    with run_stand_in_plex() as elsewhere:
        for host in ("", "plex.tv"):
            plex.misbehave("/", status=status, headers=(("Location", f"{elsewhere.url}/"),), host=host)
        with pytest.raises(PlexAnswer, match="redirects"):
            await client(plex).snapshot(Ask())
        assert elsewhere.requests == ()


async def test_a_key_in_an_answer_leads_to_no_other_host(plex: StandInPlex) -> None:
    """``http://plex:32400`` + ``@elsewhere/`` is an address elsewhere: only our own paths are asked for."""
    fill(plex)
    with run_stand_in_plex() as elsewhere:
        bad = f"@{elsewhere.url.removeprefix('http://')}/library/metadata/1"
        item = (
            f'<Video type="episode" ratingKey="5" key="{bad}" parentKey="{bad}" grandparentKey="{bad}" parentIndex="1"'
            f' index="1" title="x"/><Directory type="show" key="{bad}" ratingKey="7" title="y"/>'
        ).encode()
        body = b'<MediaContainer size="2">' + item + b"</MediaContainer>"
        for path in ("/library/onDeck", "/hubs", "/library/metadata", "/library/sections/"):
            plex.misbehave(path, body=body, content_type=XML)
        await client(plex).snapshot(replace(Ask(), pinned=("5", "7")))
        assert elsewhere.requests == ()


async def test_no_token_in_logs_errors_and_reprs(plex: StandInPlex, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, from plexapi, urllib3 and ourselves, through good answers and every kind of failure."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("plexapi").setLevel(logging.DEBUG)
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.watchlist("kid", shelf.heat)
    plex.on_deck("kid", shelf.first[0])
    one = client(plex)
    texts = [repr(settings(plex)), str(settings(plex)), repr(one), repr(await one.snapshot(Ask()))]
    texts += [repr(await one.check()), repr(one._memory)]
    echo = b"owner-token kid-token"
    failures: list[dict[str, object]] = [
        {"status": 400, "body": echo},
        {"status": 404, "body": echo},
        {"status": 401, "body": echo},
        {"body": b"<MediaContainer " + echo},
        {"body": b"", "headers": (("Content-Length", "100"),)},
        {"status": 302, "headers": (("Location", "http://127.0.0.1:1/?X-Plex-Token=owner-token"),)},
    ]
    for failure in failures:
        plex.misbehave("/", **failure)  # type: ignore[arg-type]
        texts.append(await _failure(one))
        plex.behave()
    plex.stop_server()
    texts.append(await _failure(one))
    texts.append(await _failure(PlexClient(replace(settings(plex), url="http://user:owner-token@127.0.0.1:1/"))))
    texts.append(await _failure(PlexClient(replace(settings(plex), url="http://127.0.0.1:1?X-Plex-Token=owner-token"))))
    assert "GET http" in caplog.text
    for text in (*texts, caplog.text):
        assert not [token for token in TOKENS if token in text]


async def _failure(one: PlexClient) -> str:
    with pytest.raises(PlexError) as raised:
        await one.snapshot(Ask())
    shown = "".join(traceback.format_exception(raised.value))
    return shown + repr(raised.value) + repr(pickle.dumps(raised.value.args))


async def test_no_request_has_a_token_in_its_address(plex: StandInPlex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLEXAPI_LOG_SHOW_SECRETS", "true")
    shelf = fill(plex)
    plex.add_user("kid", "kid-token")
    plex.watchlist("kid", shelf.heat)
    await client(plex).snapshot(Ask())
    assert len(plex.requests) > 10
    assert [request.target for request in plex.requests if "token" in request.target.lower()] == []


async def test_one_line_is_logged_when_plex_goes_and_one_when_it_is_back(
    plex: StandInPlex, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="cachefs.plex.client")
    one = client(plex)
    for _ in range(2):
        await one.snapshot(NOTHING)
    plex.stop_server()
    for _ in range(3):
        with pytest.raises(PlexUnreachable):
            await one.snapshot(NOTHING)
    plex.start_server()
    for _ in range(2):
        await one.snapshot(NOTHING)
    lines = [record.getMessage() for record in caplog.records if record.name == "cachefs.plex.client"]
    assert len(lines) == 3
    assert "does not help" in lines[1]
    assert lines[0] == lines[2] == f"Plex at {plex.url} answers"
