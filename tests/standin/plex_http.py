"""The wire of the stand-in: HTTP/1.1 and websockets on one port, in threads of its own, plus answers that misbehave.

Knows nothing of Plex's content: ``plex.StandInPlex`` gives it a function from requests to answers. Threads and not an
event loop, so that a test of a trio program (or none) can drive it with plain calls, and so that a stand-in which hangs
can never be the reason why the loop under test does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from tests.standin.plex_routes import Answer, Request, target_of

CERTIFICATE = Path(__file__).with_name("plex_tls.pem")
"""Key and certificate of ``localhost`` for tests; whoever is to believe it is told so by ``SSL_CERT_FILE``."""
NOTIFICATIONS = "/:/websockets/notifications"
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass(frozen=True)
class Misbehaviour:
    """What to say instead of the truth to requests whose path begins with ``prefix``."""

    prefix: str
    answer: Answer
    drip_s: float = 0.0
    """Pause between single bytes of the body, and of the head when ``drip_head``; 0: all at once."""
    drip_head: bool = False
    hang: bool = False
    """Say nothing at all."""
    hang_up: bool = False
    """Close a connection that was used before, as if it had been idle for too long; a new one gets ``answer``."""
    host: str = ""
    """Only requests for this host (``plex.tv``); empty: the server's own."""
    token: str = ""
    """Only requests in the name of who has this token."""

    def applies(self, request: Request) -> bool:
        own = request.host.split(":")[0] == self.host if self.host else not request.cloud
        return own and self.token in ("", request.token) and request.path.startswith(self.prefix)


class Wire:
    """One listening port. ``respond`` answers a request; ``admit`` says whether a websocket may be opened."""

    def __init__(
        self,
        port: int,
        respond: Callable[[Request], Answer | Misbehaviour],
        admit: Callable[[Request], bool],
        *,
        tls: bool = False,
    ) -> None:
        self.respond = respond
        self.admit = admit
        self.stopping = threading.Event()
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._listeners: list[_Listener] = []
        self._server = _Server(("127.0.0.1", port), self, _tls() if tls else None)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="stand-in Plex")
        self._thread.start()

    def close(self) -> None:
        """Stop listening and break every connection, as a killed server does."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self._changed:
            sockets = list(self._sockets)
        for connection in sockets:
            _shut(connection)

    def notify(self, kind: str, name: str, entries: list[dict[str, object]]) -> None:
        """Send one ``NotificationContainer`` to everybody who listens."""
        payload = {"NotificationContainer": {"type": kind, "size": len(entries), name: entries}}
        self.broadcast(json.dumps(payload))

    def broadcast(self, text: str) -> None:
        """Send any text to everybody who listens."""
        with self._changed:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.send(text)

    def drop_listeners(self) -> None:
        """Break every websocket, and only those."""
        with self._changed:
            listeners = list(self._listeners)
        for listener in listeners:
            _shut(listener.socket)

    def wait_for_listeners(self, count: int, timeout_s: float) -> bool:
        """Block until at least ``count`` websockets are open."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._listeners) >= count, timeout_s)

    def wait_for_silence(self, timeout_s: float) -> bool:
        """Block until no websocket is open."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._listeners, timeout_s)

    def opened(self, connection: socket.socket) -> None:
        with self._changed:
            self._sockets.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._changed:
            self._sockets.discard(connection)

    def listen(self, listener: _Listener, welcome: bytes) -> None:
        """Serve one websocket until it ends. Nothing is sent before the welcome, and nothing missed after it."""
        with listener.lock:
            with self._changed:
                self._listeners.append(listener)
                self._changed.notify_all()
            listener.socket.sendall(welcome)
        try:
            listener.serve()
        finally:
            with self._changed:
                self._listeners.remove(listener)
                self._changed.notify_all()


class _Listener:
    """The server's end of one websocket, after the handshake."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.lock = threading.Lock()
        self._protocol = Connection(ConnectionType.SERVER)

    def send(self, text: str) -> None:
        with self.lock:
            try:
                self.socket.sendall(self._protocol.send(TextMessage(text)))
            except (OSError, LocalProtocolError):
                _shut(self.socket)

    def serve(self) -> None:
        try:
            while data := self.socket.recv(65536):
                with self.lock:
                    self._protocol.receive_data(data)
                    for event in self._protocol.events():
                        if isinstance(event, Ping | CloseConnection):
                            self.socket.sendall(self._protocol.send(event.response()))
                        if isinstance(event, CloseConnection):
                            return
        except (OSError, RemoteProtocolError):
            return


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], wire: Wire, tls: ssl.SSLContext | None) -> None:
        self.wire = wire
        self._tls = tls
        super().__init__(address, _Handler)

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """In the connection's own thread: a TLS handshake that hangs keeps nobody else waiting."""
        if self._tls is None or not isinstance(request, socket.socket):
            super().finish_request(request, client_address)
            return
        try:
            secure = self._tls.wrap_socket(request, server_side=True)
        except OSError:
            return
        with secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away in mid-answer is no news; anything else is a bug of the stand-in."""
        if not self.wire.stopping.is_set():
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    _answers = 0

    def setup(self) -> None:
        super().setup()
        self.server.wire.opened(self.connection)

    def finish(self) -> None:
        self.server.wire.closed(self.connection)
        super().finish()

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, BrokenPipeError, ValueError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """The test reads ``StandInPlex.requests``; nothing goes to stderr."""

    def do_GET(self) -> None:
        path, query = target_of(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        if length := int(headers.get("content-length", "0")):
            self.rfile.read(length)
        token = headers.get("x-plex-token", query.get("X-Plex-Token", ""))
        request = Request(self.command, headers.get("host", ""), path, query, token, self.path, headers)
        if path == NOTIFICATIONS and headers.get("upgrade", "").lower() == "websocket":
            self._open_websocket(request)
        else:
            self._answer(self.server.wire.respond(request))

    do_POST = do_GET

    def _answer(self, what: Answer | Misbehaviour) -> None:
        self._answers += 1
        if isinstance(what, Answer):
            self._write(_head(what) + what.body)
            return
        self.close_connection = True
        if what.hang_up and self._answers > 1:
            return
        stopping = self.server.wire.stopping
        if what.hang:
            stopping.wait()
            return
        head, body = _head(what.answer, closing=True), what.answer.body
        slow = head + body if what.drip_head else body
        self._write(b"" if what.drip_head else head)
        if not what.drip_s:
            self._write(slow)
            return
        for position in range(len(slow)):
            self._write(slow[position : position + 1])
            if stopping.wait(what.drip_s):
                return

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _open_websocket(self, request: Request) -> None:
        self.close_connection = True
        if not self.server.wire.admit(request):
            self._write(_head(Answer(401)))
            return
        key = request.headers["sec-websocket-key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID).digest()).decode()
        welcome = (
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        self.server.wire.listen(_Listener(self.connection), welcome.encode())


def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def _head(answer: Answer, *, closing: bool = False) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} Stand-in", f"Content-Type: {answer.content_type}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    if not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in answer.headers):
        lines.append(f"Content-Length: {len(answer.body)}")
    if closing:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
