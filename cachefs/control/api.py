"""The control API: JSON over HTTP on a unix socket that only its owner can open.

``daemon`` opens the socket, runs ``serve`` under supervision and gives it an ``Engine``; ``control.client`` is its only
caller. Shows are GET, acts are POST. It decides nothing, and knows neither Plex nor the cache nor the file system:
every answer is the engine's, as ``control.wire`` writes it. An error the user can understand is 400 with its text;
anything else is a bug: 500, logged once with its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs, unquote_to_bytes

import hypercorn.config
import hypercorn.trio
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cachefs.control import wire
from cachefs.control.following import Following, Running
from cachefs.control.messages import (
    MOUNTPOINT_HEADER,
    Accepting,
    Failure,
    RestoreLine,
    Target,
    VerifyLine,
    VerifyWish,
    another_mount,
)
from cachefs.errors import CachefsError, UserError
from cachefs.model import CacheEntry, Evicted, Explanation, FileKey, Pin, Pinned, Plan, SourceHealth, Status
from cachefs.ownership import ours
from cachefs.restoration import HomeProgress, HomeReport
from cachefs.verification import Progress, Report

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 1024
"""A path is at most 4 KiB; JSON's escapes make six bytes of one."""

_GRACE_S = 1.0
"""How long answers under way may take once the daemon stops."""
_PROBE_S = 1.0


class Engine(Protocol):
    """What the daemon can be asked. Texts are what the user typed; ``UserError`` says what is wrong with them."""

    @property
    def mountpoint(self) -> Path: ...

    def status(self) -> Status: ...

    async def plan(self) -> Plan:
        """A fresh dry run."""
        ...

    def entries(self) -> tuple[CacheEntry, ...]: ...

    def pins(self) -> tuple[Pin, ...]: ...

    async def pin(self, text: str) -> Pinned: ...

    async def unpin(self, text: str) -> bool:
        """False when there was no such pin."""
        ...

    async def evict(self, text: str) -> Evicted:
        """The file, or all below the folder, but for what is pinned."""
        ...

    async def accept(self, name: str, *, moved: bool) -> SourceHealth:
        """Whatever is in the source's place now is the source; of files that have moved, too, if ``moved``."""
        ...

    async def copy(self, text: str) -> FileKey:
        """Begin now; returns at once."""
        ...

    async def explain(self, text: str) -> Explanation: ...

    def verification(self, text: str, content: bool, repair: bool) -> Running[Progress, Report]:
        """Of the file, of all below the folder, or of everything when the text is empty; begins with its ``run``."""
        ...

    async def restoration(self, text: str) -> Running[HomeProgress, HomeReport]:
        """Of the moved file, of all below the folder, or of all when the text is empty. Refused when there is neither
        such a file nor such a folder."""
        ...

    def request_stop(self) -> None: ...


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[socket.socket]:
    """The unix socket at ``path``, for ``serve``; connections wait while nobody serves. The file goes with the block.

    Raises ``UserError`` when the socket cannot be made or another daemon answers on it.
    """
    listener = await trio.to_thread.run_sync(listen, path)
    with listener:
        identity = _identity(path)
        try:
            yield listener
        finally:
            _remove(path, identity)


async def serve(
    engine: Engine, listener: socket.socket, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer until cancelled; may be begun again. Cancelling lets answers under way finish for a second, then cuts
    them."""
    await _serve_until_cancelled(build(engine, Path(listener.getsockname())), listener, task_status)


def listen(path: Path) -> socket.socket:
    """A listening unix socket at ``path``, nobody else's from its first moment; a dead daemon's is replaced. Blocks."""
    try:
        _make_folders(path.parent)
        _refuse_planted(path.parent)
        _clear_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # On Linux the file takes the socket's own mode, so there is no moment in which others could open it and
            # no need for umask, which belongs to the whole process (unix_bind() in net/unix/af_unix.c).
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fspath(path))
            ours().give(path, 0o660)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(f"control.socket: cannot listen on {path}: {error.strerror or error}") from error
    return listener


def _make_folders(folder: Path) -> None:
    """Each of them ours alone, whatever the umask: the server has none."""
    if not folder.is_dir():
        _make_folders(folder.parent)
        folder.mkdir(mode=0o700)


def _refuse_planted(folder: Path) -> None:
    """Where everybody may make folders, somebody else may have made this one before us: he could put a socket of his
    own in the place of ours."""
    found = folder.lstat()
    others_replace = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not others_replace
    if folder.parent.stat().st_mode & stat.S_IWOTH and not is_ours:
        raise UserError(
            f"control.socket: {folder} is not a folder that only you can change, and lies where everybody can make "
            "one; remove it, or write another control.socket"
        )


def build(engine: Engine, path: Path) -> Starlette:
    """The application, for any server; ``path`` of the socket, for people."""
    api = _Api(engine)
    shows = {"status": api.status, "plan": api.plan, "entries": api.entries, "pins": api.pins, "explain": api.explain}
    acts = {
        "pin": api.pin,
        "unpin": api.unpin,
        "evict": api.evict,
        "copy": api.copy,
        "accept": api.accept,
        "verify": api.verify,
        "restore": api.restore,
        "stop": api.stop,
    }

    def meant(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Only if this mount is meant: a second configuration may name the same socket."""

        async def asked(request: Request) -> Response:
            wanted = os.fsdecode(unquote_to_bytes(request.headers.get(MOUNTPOINT_HEADER, "")))
            if wanted not in ("", str(engine.mountpoint)):
                raise UserError(another_mount(path, str(engine.mountpoint), wanted))
            return await endpoint(request)

        return asked

    routes = [Route(f"/v1/{name}", meant(endpoint), methods=["GET"]) for name, endpoint in shows.items()]
    routes += [Route(f"/v1/{name}", meant(endpoint), methods=["POST"]) for name, endpoint in acts.items()]
    handlers = {
        CachefsError: _on_known_error,
        HTTPException: _on_http_error,
        ClientDisconnect: _on_gone,
        Exception: _on_bug,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # to wherever the request says it came to
    return app


class _Api:
    """One method per route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def status(self, request: Request) -> Response:
        return _answer(self._engine.status())

    async def plan(self, request: Request) -> Response:
        return _answer(await self._engine.plan())

    async def entries(self, request: Request) -> Response:
        return _answer(self._engine.entries())

    async def pins(self, request: Request) -> Response:
        return _answer(self._engine.pins())

    async def explain(self, request: Request) -> Response:
        query = request.scope["query_string"].decode("ascii", "replace")
        values = parse_qs(query, keep_blank_values=True, errors="surrogateescape").get("path", [])
        if len(values) != 1:
            raise HTTPException(400, "explain needs one path")
        return _answer(await self._engine.explain(values[0]))

    async def pin(self, request: Request) -> Response:
        return _answer(await self._engine.pin(await _target(request)))

    async def unpin(self, request: Request) -> Response:
        return _answer(await self._engine.unpin(await _target(request)))

    async def evict(self, request: Request) -> Response:
        return _answer(await self._engine.evict(await _target(request)))

    async def copy(self, request: Request) -> Response:
        return _answer(await self._engine.copy(await _target(request)))

    async def accept(self, request: Request) -> Response:
        wish = await _body(request, Accepting)
        return _answer(await self._engine.accept(wish.text, moved=wish.moved))

    async def verify(self, request: Request) -> Response:
        wish = await _body(request, VerifyWish)
        return Following(self._engine.verification(wish.text, wish.content, wish.repair), VerifyLine)

    async def restore(self, request: Request) -> Response:
        return Following(await self._engine.restoration(await _target(request)), RestoreLine)

    async def stop(self, request: Request) -> Response:
        self._engine.request_stop()
        return _answer(True)


async def _target(request: Request) -> str:
    return (await _body(request, Target)).text


async def _body(request: Request, form: type[T]) -> T:
    """The value in the body, of which no more than the limit is ever read."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request may have {MAX_BODY_BYTES} bytes")
    try:
        return wire.loads(form, bytes(body))
    except wire.WireError as error:
        raise HTTPException(400, f"the request cannot be understood: {error}") from error


def _answer(value: object, status: int = 200) -> Response:
    return Response(wire.dumps(value), status_code=status, media_type="application/json")


class _Unheard(Response):
    """No answer, not even an empty one: hypercorn may be sending its own just now, and fails on two at once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


async def _on_known_error(request: Request, error: Exception) -> Response:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _answer(Failure(text), 400)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(Failure(error.detail), error.status_code)


async def _on_gone(request: Request, error: Exception) -> Response:
    """Whoever asked has ended before the whole question was here."""
    return _Unheard()


async def _on_bug(request: Request, error: Exception) -> Response:
    """Starlette raises the error again after this answer, and hypercorn logs it."""
    return _answer(Failure(f"{type(error).__name__} in the daemon; its log has the details"), 500)


# --- the socket ------------------------------------------------------------------------------------------------------


async def _serve_until_cancelled(app: Starlette, listener: socket.socket, task_status: trio.TaskStatus[None]) -> None:
    """Run hypercorn shielded, and end it its own way when the caller cancels: it shields its writes, so that a
    client that has stopped reading would otherwise hold the daemon's end up for ever."""
    stop, ended = trio.Event(), trio.Event()
    path = listener.getsockname()

    async def stop_when_cancelled() -> None:
        try:
            await ended.wait()
        finally:
            stop.set()
            with trio.move_on_after(_GRACE_S, shield=True):
                await ended.wait()
            if not ended.is_set():
                _cut_connections(path)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_when_cancelled)
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as serving:
                    await serving.start(_hypercorn, app, listener, stop)
                    log.info("control socket ready: %s", path)
                    task_status.started()
        finally:
            ended.set()


async def _hypercorn(
    app: Any, listener: socket.socket, stop: trio.Event, *, task_status: trio.TaskStatus[list[str]]
) -> None:
    """Hypercorn's trio worker over a duplicate of ``listener``, which it closes."""
    config = hypercorn.config.Config()
    config.bind = [f"fd://{os.dup(listener.fileno())}"]
    config.graceful_timeout = _GRACE_S / 2
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = _server_log()
    await hypercorn.trio.serve(app, config, shutdown_trigger=stop.wait, mode="asgi", task_status=task_status)


def _server_log() -> logging.Logger:
    """Hypercorn's own log, without its greetings."""
    server_log = logging.getLogger(f"{__name__}.hypercorn")
    server_log.setLevel(logging.WARNING)
    return server_log


def _clear_stale(path: Path) -> None:
    """Remove the socket file of a daemon that is dead; raises ``UserError`` when it is alive or no socket."""
    if not path.is_socket():
        if path.exists() or path.is_symlink():
            raise UserError(f"control.socket: {path} exists and is no socket; remove it or choose another path")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        error = probe.connect_ex(os.fspath(path))
    if error == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
    elif error != errno.ENOENT:
        raise UserError(f"control.socket: another cachefs daemon answers on {path}; stop it or choose another path")


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is at ``path``, so that a successor's socket is not removed."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def _remove(path: Path, identity: tuple[int, int] | None) -> None:
    if _identity(path) == identity:
        path.unlink(missing_ok=True)


def _cut_connections(path: str) -> None:
    """End every connection made to the socket at ``path``, found by its name among this process's sockets; hypercorn
    has no way to say it. Only sockets are duplicated: closing a duplicate of a file could wait for its disk."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family == socket.AF_UNIX and connection.getsockname() == path:
                    connection.shutdown(socket.SHUT_RDWR)
