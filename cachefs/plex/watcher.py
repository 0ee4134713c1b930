"""Plex's notifications over its websocket, turned into reasons to look again; and a look now and then regardless.

Run by the daemon under ``supervise``, which starts it again with back-off when it raises. plexapi's own listener is
not used: it runs in a thread outside every TLS setting, without ping or size limit, and has the token in its URL.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import NoReturn
from urllib.parse import urlsplit

import h11
import trio
import wsproto.utilities
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, WebSocketConnection, wrap_client_stream

from cachefs.errors import PlexAnswer, PlexError, PlexRefused, PlexUnreachable
from cachefs.model import PlexEvent, PlexEventKind
from cachefs.plex.causes import words_for
from cachefs.plex.values import PlexSettings

log = logging.getLogger(__name__)

Emit = Callable[[PlexEvent], None]
_Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

_PATH = "/:/websockets/notifications"
_CONNECT_TIMEOUT_S = 15.0
_PING_EVERY_S = 30.0
_MAX_MESSAGE_BYTES = 1024 * 1024
_LIBRARY = "com.plexapp.plugins.library"
_SETTLED = frozenset({5, 9})
"""Timeline states: an item was processed, an item was deleted. The others are steps on the way."""
_STEP_MS = 60_000
"""A position that is less than this away from the one told last is no news: Plex sends one every ten seconds."""


_FAILURES = (PlexError, HandshakeError, ConnectionClosed, h11.ProtocolError, wsproto.utilities.ProtocolError)
"""The last two come out of trio-websocket where it answers what is no websocket."""


async def listen(
    settings: PlexSettings, emit: Emit, poll_every_s: float, ping_every_s: float = _PING_EVERY_S
) -> NoReturn:
    """Tell ``emit`` whenever there is a reason to look at Plex, until the connection fails.

    CONNECTED when the websocket is up; POLL every ``poll_every_s`` while it is, and once when it could not be had or
    broke: where a reverse proxy lets no websocket through, the restarts are what polling is left. A ping that is not
    answered within ``ping_every_s`` is a broken connection. ``emit`` must not block. Raises ``PlexUnreachable``,
    ``PlexRefused`` or ``PlexAnswer``.
    """
    try:
        stream = await _connected(settings)
        try:
            async with trio.open_nursery() as nursery:
                websocket = await _welcomed(settings, stream, nursery)
                log.info("Listening to Plex at %s", settings.origin)
                emit(PlexEvent(PlexEventKind.CONNECTED))
                nursery.start_soon(_poll, emit, poll_every_s)
                nursery.start_soon(_ping, websocket, settings.origin, ping_every_s)
                await _receive(websocket, settings.origin, emit)
        finally:
            await trio.aclose_forcefully(stream)
    except (PlexError, BaseExceptionGroup) as raised:
        error = _the_error(raised, settings.origin)
    emit(PlexEvent(PlexEventKind.POLL, str(error)))
    raise error from None


async def _connected(settings: PlexSettings) -> _Stream:
    """A stream to the server, its TLS handshake done when the address is https."""
    try:
        parts = urlsplit(settings.url)
        host, tls = parts.hostname or "", parts.scheme == "https"
        with trio.fail_after(_CONNECT_TIMEOUT_S):
            stream = await trio.open_tcp_stream(host, parts.port or (443 if tls else 80))
            if not tls:
                return stream
            async with AsyncExitStack() as stack:
                stack.push_async_callback(trio.aclose_forcefully, stream)
                secure = trio.SSLStream(stream, ssl.create_default_context(), server_hostname=host)
                await secure.do_handshake()
                stack.pop_all()
            return secure
    except trio.TooSlowError:
        raise PlexUnreachable(f"{settings.origin} does not answer in time") from None
    except (OSError, trio.BrokenResourceError, ValueError) as error:
        raise PlexUnreachable(f"{settings.origin} cannot be reached{words_for(error)}") from None


async def _welcomed(settings: PlexSettings, stream: _Stream, nursery: trio.Nursery) -> WebSocketConnection:
    """The websocket on the stream. The token is in a header: a URL ends up in logs."""
    origin, parts = settings.origin, urlsplit(settings.url)
    try:
        with trio.fail_after(_CONNECT_TIMEOUT_S):
            return await wrap_client_stream(
                nursery,
                stream,
                parts.netloc.rpartition("@")[2],
                parts.path.rstrip("/") + _PATH,
                extra_headers=[(b"X-Plex-Token", settings.token.encode()), (b"X-Plex-Product", b"cachefs")],
                max_message_size=_MAX_MESSAGE_BYTES,
            )
    except (HandshakeError, ConnectionClosed, trio.TooSlowError):
        raise PlexUnreachable(f"{origin} does not open its notification channel") from None


async def _receive(websocket: WebSocketConnection, origin: str, emit: Emit) -> None:
    notices = Notices()
    while True:
        try:
            message = await websocket.get_message()
        except ConnectionClosed:
            raise PlexUnreachable(f"{origin} closed its notification channel") from None
        for event in notices.events(message):
            emit(event)


async def _poll(emit: Emit, every_s: float) -> None:
    while True:
        await trio.sleep(every_s)
        emit(PlexEvent(PlexEventKind.POLL))


async def _ping(websocket: WebSocketConnection, origin: str, every_s: float) -> None:
    """A server that vanished without a word is noticed by the ping that it does not answer."""
    while True:
        await trio.sleep(every_s)
        with trio.move_on_after(every_s) as scope:
            try:
                await websocket.ping()
            except ConnectionClosed:
                return  # the receiver says it
        if scope.cancelled_caught:
            raise PlexUnreachable(f"{origin} does not answer on its notification channel")


def _the_error(raised: BaseException, origin: str) -> PlexError:
    """What the failure comes to. Anything beside our own errors and the websocket's goes on as it is."""
    leaves = list(_leaves(raised))
    if not all(isinstance(leaf, _FAILURES) for leaf in leaves):
        raise raised
    for leaf in leaves:
        if isinstance(leaf, PlexError):
            return leaf
        if isinstance(leaf, ConnectionRejected):
            return _rejected(origin, leaf.status_code)
    return PlexUnreachable(f"{origin} closed its notification channel")


def _leaves(raised: BaseException) -> Iterator[BaseException]:
    if not isinstance(raised, BaseExceptionGroup):
        yield raised
        return
    for inner in raised.exceptions:
        yield from _leaves(inner)


def _rejected(origin: str, status: int) -> PlexError:
    if status in (401, 403):
        return PlexRefused(f"{origin} does not accept the token ({status})")
    if status >= 500:
        return PlexUnreachable(f"{origin} is not ready ({status})")
    return PlexAnswer(f"{origin} has no notification channel ({status}); is plex.url right?")


class Notices:
    """What Plex's messages amount to: pure but for remembering what was told last about each session."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, str, int]] = {}

    def events(self, message: str | bytes) -> Iterator[PlexEvent]:
        """The events in one message; what cannot be understood is none."""
        try:
            content = json.loads(message)
        except (ValueError, RecursionError):
            log.debug("A notification from Plex is not JSON")
            return
        container = content.get("NotificationContainer") if isinstance(content, dict) else None
        if not isinstance(container, dict):
            return
        for entry in _entries(container, "PlaySessionStateNotification"):
            yield from self._playing(entry)
        if any(_settled(entry) for entry in _entries(container, "TimelineEntry")):
            yield PlexEvent(PlexEventKind.LIBRARY, "items changed")
        if any(_scan_ended(entry) for entry in _entries(container, "ActivityNotification")):
            yield PlexEvent(PlexEventKind.LIBRARY, "a library was scanned")

    def _playing(self, entry: Mapping[str, object]) -> Iterator[PlexEvent]:
        """A change of state or item, or a position far from the last."""
        session, state = str(entry.get("sessionKey", "")), str(entry.get("state", ""))
        item, offset = str(entry.get("ratingKey", "")), entry.get("viewOffset")
        position = offset if isinstance(offset, int) else 0
        told = self._told.get(session)
        if told is not None and told[:2] == (state, item) and abs(position - told[2]) < _STEP_MS:
            return
        if state == "stopped":
            self._told.pop(session, None)
        else:
            self._told[session] = (state, item, position)
        yield PlexEvent(PlexEventKind.PLAYBACK, f"{state} {item}")


def _entries(container: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    listed = container.get(name)
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _settled(entry: Mapping[str, object]) -> bool:
    return entry.get("identifier") == _LIBRARY and entry.get("state") in _SETTLED


def _scan_ended(entry: Mapping[str, object]) -> bool:
    activity = entry.get("Activity")
    kind = activity.get("type") if isinstance(activity, dict) else None
    return entry.get("event") == "ended" and isinstance(kind, str) and kind.startswith("library.")
