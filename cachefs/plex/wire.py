"""The HTTP adapter under plexapi's session: how much, from where and for how long an answer may come.

Used by ``connection`` only. It keeps the size limit, judges the status before plexapi writes it into an error text,
refuses redirects (requests would carry the token along), sends what is meant for plex.tv to ``cloud_url`` when that
is set, and can break every connection from another thread.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from http.client import RemoteDisconnected
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from cachefs.errors import PlexAnswer, PlexRefused, PlexUnreachable
from cachefs.plex.causes import within
from cachefs.plex.values import PlexSettings, origin_of

MAX_BODY_BYTES = 16 * 1024 * 1024
"""A page of 100 items takes well under 1 MiB."""
RECEIVE_TIMEOUT_S = 30.0
CLOUD_HOSTS = frozenset({"plex.tv", "clients.plex.tv", "discover.provider.plex.tv", "metadata.provider.plex.tv"})
"""As in ``plexapi/myplex.py``."""
_CLOUD_SHARE = 1 / 3
"""Of the deadline: when plex.tv hangs, the server's own lists must still come through."""
_RESOLVE_WITHIN_S = 5.0
"""A resolver that swallows every question keeps its caller for half a minute, whatever timeout a connection has."""
_AWAY = frozenset({429, 502, 503, 504})
"""Overloaded, starting up, or a reverse proxy with nothing behind it."""


class Adapter(HTTPAdapter):
    """Limits what requests does: the size and kind of an answer, where it goes, how long it takes."""

    def __init__(self, settings: PlexSettings) -> None:
        self._cloud_url = settings.cloud_url
        self._lines: list[socket.socket] = []
        self._lock = threading.Lock()
        self._aborted = False
        started = time.monotonic()
        self._ends_at = started + settings.deadline_s
        self._cloud_ends_at = started + settings.deadline_s * _CLOUD_SHARE
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": self._pools(), "https": self._tls_pools()}

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        host = urlsplit(request.url or "").netloc
        cloud = host in CLOUD_HOSTS
        party = "plex.tv" if cloud else origin_of(str(request.url))
        ends_at = self._cloud_ends_at if cloud else self._ends_at
        remaining = ends_at - time.monotonic()
        if self._aborted or remaining <= 0:
            raise PlexUnreachable(f"{party} does not answer in time")
        if cloud and self._cloud_url:
            request = _sent_to(request, host, self._cloud_url)
        elif cloud:
            _resolve(host, min(_RESOLVE_WITHIN_S, remaining))
        kwargs |= {"stream": True, "timeout": min(RECEIVE_TIMEOUT_S, remaining)}
        with self._cut_off(remaining) if cloud else nullcontext():
            try:
                response = super().send(request, *args, **kwargs)
            except requests.ConnectionError as error:
                if time.monotonic() >= ends_at or not self._worth_another(request, error):
                    raise
                response = super().send(request, *args, **kwargs)
            with closing(response):
                _judge(response.status_code, party)
                _read(response, party)
        return response

    def _worth_another(self, request: requests.PreparedRequest, error: requests.ConnectionError) -> bool:
        """Whether the server only closed a line that had been idle, at the moment when it was used again."""
        closed = any(isinstance(each, RemoteDisconnected) for each in within(error))
        return closed and request.method == "GET" and not self._aborted

    def abort(self) -> None:
        """Make every receive return now, and every new connection fail. Any thread."""
        self._aborted = True
        self._shut_lines()

    def close(self) -> None:
        super().close()
        with self._lock:
            for line in self._lines:
                line.close()
            self._lines.clear()

    def _shut_lines(self) -> None:
        with self._lock:
            for line in self._lines:
                _shut(line)

    @contextmanager
    def _cut_off(self, after_s: float) -> Iterator[None]:
        """Break the line when the answer is not complete in time; requests' own timeout starts anew at every byte.
        Only what one thread does at a time is on the line, so that breaking all lines breaks the right one."""
        timer = threading.Timer(after_s, self._shut_lines)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _opened(self, line: HTTPConnection) -> None:
        """Keep a descriptor of our own: http.client drops its socket while the answer is still being read, and a
        number that another thread may close must not be shut."""
        if line.sock is None:
            return
        own = socket.socket(fileno=os.dup(line.sock.fileno()))
        with self._lock:
            self._lines.append(own)
        if self._aborted:
            _shut(own)

    def _pools(self) -> type[HTTPConnectionPool]:
        opened = self._opened

        class Line(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                opened(self)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Line

        return Pool

    def _tls_pools(self) -> type[HTTPSConnectionPool]:
        opened = self._opened

        class Line(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                opened(self)

        class Pool(HTTPSConnectionPool):
            ConnectionCls = Line

        return Pool


def _sent_to(request: requests.PreparedRequest, host: str, address: str) -> requests.PreparedRequest:
    """The same request to another address, saying in ``Host`` for whom it was meant."""
    request = request.copy()
    parts = urlsplit(request.url or "")
    request.url = address.rstrip("/") + (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request.headers["Host"] = host
    return request


def _resolve(host: str, within_s: float) -> None:
    """See that a name can be resolved soon. What it is is left to the connection; a thread that hangs is left alone."""
    found = threading.Event()

    def ask() -> None:
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            pass  # the connection says it
        finally:
            found.set()

    threading.Thread(target=ask, daemon=True).start()
    if not found.wait(within_s):
        raise PlexUnreachable(f"plex.tv cannot be reached: no answer from the name server within {within_s:g} s")


def _judge(status: int, party: str) -> None:
    """What a status means; 404 is left to plexapi."""
    if status in (200, 201, 204, 404):
        return
    if status in (401, 403):
        raise PlexRefused(f"{party} does not accept the token ({status})")
    if status in _AWAY:
        raise PlexUnreachable(f"{party} is not ready ({status})")
    if 300 <= status < 400:
        raise PlexAnswer(f"{party} redirects elsewhere ({status}); write the address that it leads to")
    raise PlexAnswer(f"{party} answers with an error ({status})")


def _read(response: requests.Response, party: str) -> None:
    """Read the body up to the limit, and leave it where requests looks for it."""
    body = bytearray()
    for piece in response.iter_content(64 * 1024):
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise PlexAnswer(f"{party} gives answers larger than {MAX_BODY_BYTES // 2**20} MiB")
    response._content = bytes(body)


def _shut(line: socket.socket) -> None:
    """End both directions of the connection, for every descriptor of it."""
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side was first
        return
