"""Plex's notifications, over a real websocket of the stand-in."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from cachefs.errors import PlexAnswer, PlexError, PlexRefused, PlexUnreachable
from cachefs.model import PlexEvent, PlexEventKind
from cachefs.plex.values import PlexSettings
from cachefs.plex.watcher import Notices, listen
from tests.engine.plexkit import fill, settings
from tests.standin.plex import StandInPlex, run_stand_in_plex
from tests.standin.plex_http import CERTIFICATE

PLAYBACK, LIBRARY, POLL, CONNECTED = (
    PlexEventKind.PLAYBACK,
    PlexEventKind.LIBRARY,
    PlexEventKind.POLL,
    PlexEventKind.CONNECTED,
)


@pytest.fixture
def plex() -> Iterator[StandInPlex]:
    with run_stand_in_plex() as standin:
        yield standin


@asynccontextmanager
async def listening(plex: StandInPlex, poll_every_s: float = 60) -> AsyncIterator[trio.MemoryReceiveChannel[PlexEvent]]:
    """What a listener emits, until the end of the block."""
    send, receive = trio.open_memory_channel[PlexEvent](100)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, settings(plex), send.send_nowait, poll_every_s)
            yield receive
            nursery.cancel_scope.cancel()


async def test_playback_and_library_changes_are_told(plex: StandInPlex) -> None:
    shelf = fill(plex)
    async with listening(plex) as events:
        assert (await events.receive()).kind is CONNECTED
        playing = plex.play(None, shelf.heat)
        assert await events.receive() == PlexEvent(PLAYBACK, f"playing {shelf.heat.rating_key}")
        playing.pause()
        assert (await events.receive()).detail.startswith("paused")
        playing.stop()
        assert (await events.receive()).detail.startswith("stopped")
        plex.on_deck(None, shelf.alien)
        assert (await events.receive()).kind is LIBRARY
        plex.scanned(shelf.films)
        assert (await events.receive()).kind is LIBRARY


async def test_the_token_is_in_a_header_and_not_in_the_address(
    plex: StandInPlex, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with listening(plex) as events:
        await events.receive()
    (handshake,) = plex.requests
    assert handshake.headers["x-plex-token"] == plex.token
    assert plex.token not in handshake.target
    assert plex.token not in caplog.text


async def test_polling_goes_on_while_nothing_is_heard(plex: StandInPlex) -> None:
    async with listening(plex, poll_every_s=0.02) as events:
        kinds = [(await events.receive()).kind for _ in range(4)]
    assert kinds == [CONNECTED, POLL, POLL, POLL]


async def fails(plex: StandInPlex, ping_every_s: float = 30.0) -> tuple[PlexError, list[PlexEventKind]]:
    """How a listener ends, and what it told before."""
    told: list[PlexEvent] = []
    with trio.fail_after(10), pytest.raises(PlexError) as raised:
        await listen(settings(plex), told.append, 60, ping_every_s)
    assert raised.value.__cause__ is None
    return raised.value, [event.kind for event in told]


async def test_a_server_that_is_away_ends_the_listener_with_one_poll(plex: StandInPlex) -> None:
    plex.stop_server()
    error, told = await fails(plex)
    assert isinstance(error, PlexUnreachable)
    assert "Connection refused" in str(error)
    assert told == [POLL]


async def test_a_connection_that_breaks_ends_the_listener(plex: StandInPlex) -> None:
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            assert await trio.to_thread.run_sync(plex.wait_until_listening)
            await trio.to_thread.run_sync(plex.stop_server)

        nursery.start_soon(stop)
        error, told = await fails(plex)
    assert isinstance(error, PlexUnreachable)
    assert told == [CONNECTED, POLL]


async def test_a_wrong_token_is_refused(plex: StandInPlex) -> None:
    told: list[PlexEvent] = []
    with pytest.raises(PlexRefused):
        await listen(replace(settings(plex), token="wrong"), told.append, 60)


async def listener_told_by_hand(said: bytes, *, welcome: bool = True) -> tuple[PlexError, list[PlexEventKind]]:
    """How a listener ends whose server says ``said`` after the handshake (or instead of it), and nothing more."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    where = PlexSettings(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", "owner-token")

    async def answer(stream: trio.SocketStream) -> None:
        accepted = await _handshake(stream)
        await stream.send_all((accepted if welcome else b"") + said)
        await trio.sleep_forever()

    told: list[PlexEvent] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, listeners)
            with pytest.raises(PlexError) as raised:
                await listen(where, told.append, 60, ping_every_s=0.05)
            nursery.cancel_scope.cancel()
    return raised.value, [event.kind for event in told]


async def test_a_server_that_vanished_without_a_word_is_noticed_by_the_ping() -> None:
    error, told = await listener_told_by_hand(b"")
    assert isinstance(error, PlexUnreachable)
    assert "does not answer" in str(error)
    assert told == [CONNECTED, POLL]


@pytest.mark.parametrize(
    ("said", "welcome"),
    [
        (b"\xff\xff\xff\xff", True),
        (b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff", True),
        (b"\x81\x03\xff\xfe\xfd", True),
        (b"\x88\x01x", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", False),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", False),
    ],
    ids=["no frame", "endless frame", "no text", "bad close", "a page", "a redirect", "no key"],
)
async def test_a_server_that_speaks_no_websocket_ends_the_listener(said: bytes, welcome: bool) -> None:
    _, told = await listener_told_by_hand(said, welcome=welcome)
    assert told == ([CONNECTED, POLL] if welcome else [POLL])


async def test_a_message_that_is_too_large_ends_the_listener(plex: StandInPlex) -> None:
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            assert await trio.to_thread.run_sync(plex.wait_until_listening)
            await trio.to_thread.run_sync(plex.send_raw, "x" * (2 * 1024 * 1024))

        nursery.start_soon(send)
        error, told = await fails(plex)
    assert isinstance(error, PlexUnreachable)
    assert told == [CONNECTED, POLL]


async def test_an_address_without_a_notification_channel_is_a_plex_answer(plex: StandInPlex) -> None:
    told: list[PlexEvent] = []
    with trio.fail_after(10), pytest.raises(PlexAnswer):
        await listen(replace(settings(plex), url=f"{plex.url}/elsewhere"), told.append, 60)


async def test_https_is_spoken_where_the_certificate_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_stand_in_plex(tls=True) as plex:
        error, told = await fails(plex)
        assert isinstance(error, PlexUnreachable)
        assert told == [POLL]
        assert plex.requests == ()
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        async with listening(plex) as events:
            assert (await events.receive()).kind is CONNECTED


async def test_a_cancelled_listener_leaves_no_connection(plex: StandInPlex) -> None:
    async with listening(plex) as events:
        await events.receive()
    assert await trio.to_thread.run_sync(plex.wait_until_nobody_listens)


async def test_tls_with_a_server_that_has_none_is_unreachable(plex: StandInPlex) -> None:
    where = replace(settings(plex), url=plex.url.replace("http:", "https:"))
    with trio.fail_after(10), pytest.raises(PlexUnreachable):
        await listen(where, lambda event: None, 60)


async def test_a_message_that_cannot_be_understood_changes_nothing(plex: StandInPlex) -> None:
    shelf = fill(plex)
    async with listening(plex) as events:
        await events.receive()
        for text in ("", "no JSON", "[" * 100_000, "[1]", "{}", '{"NotificationContainer": 5}', _odd()):
            plex.send_raw(text)
        plex.play(None, shelf.heat)
        assert (await events.receive()).detail == f"playing {shelf.heat.rating_key}"


def test_a_position_is_news_only_after_a_minute() -> None:
    notices = Notices()

    def told(position_s: float, state: str = "playing", item: str = "7") -> int:
        entry = {"sessionKey": "1", "state": state, "ratingKey": item, "viewOffset": int(position_s * 1000)}
        message = {"NotificationContainer": {"type": "playing", "PlaySessionStateNotification": [entry]}}
        return len(list(notices.events(json.dumps(message))))

    assert [told(at) for at in (0, 10, 59, 60, 70, 3000, 0)] == [1, 0, 0, 1, 0, 1, 1]
    assert told(0, item="8") == 1
    assert told(0, item="8", state="paused") == 1
    assert told(0, item="8", state="stopped") == 1
    assert told(0, item="8", state="stopped") == 1


@pytest.mark.parametrize(
    ("identifier", "state", "told"),
    [
        ("com.plexapp.plugins.library", 5, 1),
        ("com.plexapp.plugins.library", 9, 1),
        ("com.plexapp.plugins.library", 3, 0),
        ("com.plexapp.system", 5, 0),
    ],
)
def test_only_settled_changes_of_the_library_are_told(identifier: str, state: int, told: int) -> None:
    message = {"NotificationContainer": {"TimelineEntry": [{"identifier": identifier, "state": state}] * 3}}
    assert len(list(Notices().events(json.dumps(message)))) == told


async def _handshake(stream: trio.SocketStream) -> bytes:
    """Read the request for a websocket; the answer that accepts it."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += await stream.receive_some()
    lines = dict(line.split(": ", 1) for line in request.decode().split("\r\n")[1:-2])
    key = {name.lower(): value for name, value in lines.items()}["sec-websocket-key"]
    accept = base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
    head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    return f"{head}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()


def _odd() -> str:
    entries: list[object] = [5, None, {}, {"state": ["x"]}]
    names = ("PlaySessionStateNotification", "TimelineEntry", "ActivityNotification")
    return json.dumps({"NotificationContainer": dict.fromkeys(names[1:], entries) | {names[0]: "x"}})


async def test_a_server_that_is_away_is_said_in_plain_words(plex: StandInPlex) -> None:
    plex.stop_server()
    with trio.fail_after(10), pytest.raises(PlexUnreachable) as raised:
        await listen(settings(plex), lambda event: None, 60)
    assert str(raised.value) == f"{plex.url} cannot be reached: Connection refused"
