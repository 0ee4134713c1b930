"""What the command line talks to the daemon through: one method per question, the same frozen values back.

Synchronous: the command line has nothing else to do meanwhile. Never reaches past the socket.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar
from urllib.parse import quote

import httpx

from cachefs.control import wire
from cachefs.control.messages import (
    MOUNTPOINT_HEADER,
    Accepting,
    Failure,
    RestoreLine,
    Target,
    VerifyLine,
    VerifyWish,
)
from cachefs.errors import CachefsError, NotRunning, UserError
from cachefs.model import CacheEntry, Evicted, Explanation, FileKey, Pin, Pinned, Plan, SourceHealth, Status
from cachefs.restoration import HomeProgress, HomeReport
from cachefs.verification import Progress, Report

_NOBODY = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ENOTDIR})

T = TypeVar("T")
P = TypeVar("P", covariant=True)
R = TypeVar("R", covariant=True)

_QUICK_S = 30.0
"""For answers that the daemon has in memory."""
_PATIENT_S = 300.0
"""For answers that wait for Plex (a whole snapshot has a minute) and for disks that wake up."""


class _Line(Protocol[P, R]):
    """One line of an answer that takes long, as in ``messages``."""

    @property
    def progress(self) -> P | None: ...

    @property
    def report(self) -> R | None: ...

    @property
    def failure(self) -> Failure | None: ...


class Client:
    """A connection to the daemon's control socket, opened by the first question.

    Every method raises ``NotRunning`` when nobody answers, ``UserError`` with the daemon's text when the question is
    wrong, and ``CachefsError`` when the daemon fails.
    """

    def __init__(self, socket: Path, mountpoint: Path | None = None) -> None:
        """``mountpoint``: of the daemon that is meant; another one that answers there refuses (``UserError``)."""
        self._socket = socket
        transport = httpx.HTTPTransport(uds=os.fspath(socket), verify=False)  # no TLS on a unix socket
        headers = {} if mountpoint is None else {MOUNTPOINT_HEADER: quote(os.fsencode(mountpoint))}
        self._http = httpx.Client(transport=transport, base_url="http://cachefs", trust_env=False, headers=headers)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def status(self, within_s: float = _QUICK_S) -> Status:
        return self._show(Status, "status", within_s)

    def plan(self) -> Plan:
        return self._show(Plan, "plan", _PATIENT_S)

    def entries(self) -> tuple[CacheEntry, ...]:
        return self._show(tuple[CacheEntry, ...], "entries", _QUICK_S)

    def pins(self) -> tuple[Pin, ...]:
        return self._show(tuple[Pin, ...], "pins", _QUICK_S)

    def explain(self, text: str) -> Explanation:
        return self._show(Explanation, f"explain?path={quote(text, safe='', errors='surrogateescape')}", _PATIENT_S)

    def pin(self, text: str) -> Pinned:
        return self._act(Pinned, "pin", text)

    def unpin(self, text: str) -> bool:
        return self._act(bool, "unpin", text)

    def evict(self, text: str) -> Evicted:
        return self._act(Evicted, "evict", text)

    def copy(self, text: str) -> FileKey:
        return self._act(FileKey, "copy", text)

    def accept(self, name: str, *, moved: bool = False) -> SourceHealth:
        return self._ask(SourceHealth, "POST", "accept", _PATIENT_S, wire.dumps(Accepting(name, moved)))

    def verify(self, text: str, content: bool, repair: bool, show: Callable[[Progress], None]) -> Report:
        """Verify and wait for the report, however long it takes; ``show`` is told how far it is about twice a second.
        The daemon stops when this is interrupted."""
        return self._report(VerifyLine, "verify", VerifyWish(text, content, repair), show)

    def restore(self, text: str, show: Callable[[HomeProgress], None]) -> HomeReport:
        """Bring moved files home; as ``verify``."""
        return self._report(RestoreLine, "restore", Target(text), show)

    def _report(self, kind: type[_Line[P, R]], route: str, wish: object, show: Callable[[P], None]) -> R:
        """The report at the end of an answer that takes long."""
        for line in self._follow(route, wire.dumps(wish)):
            told = self._understood(kind, line)
            if told.failure is not None:
                raise UserError(told.failure.error)
            if told.report is not None:
                return told.report
            if told.progress is not None:
                show(told.progress)
        raise CachefsError(f"the daemon on {self._socket} ended before it answered")

    def _follow(self, route: str, body: str) -> Iterator[str]:
        """The lines of an answer that takes long."""
        timeout = httpx.Timeout(_QUICK_S, connect=5.0)
        try:
            with self._http.stream("POST", f"/v1/{route}", content=body, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise _failure(response)
                yield from response.iter_lines()
        except httpx.TransportError as error:
            raise self._unanswered(error) from error

    def stop(self) -> None:
        """Ask the daemon to end; it may be gone before its answer is."""
        try:
            self._exchange("POST", "stop", _QUICK_S)
        except httpx.TransportError as error:
            if not _was_connected(error):
                raise self._unanswered(error) from error

    def _show(self, form: type[T], route: str, timeout_s: float) -> T:
        return self._ask(form, "GET", route, timeout_s)

    def _act(self, form: type[T], route: str, text: str) -> T:
        return self._ask(form, "POST", route, _PATIENT_S, wire.dumps(Target(text)))

    def _ask(self, form: type[T], method: str, route: str, timeout_s: float, body: str | None = None) -> T:
        try:
            response = self._exchange(method, route, timeout_s, body)
        except httpx.TransportError as error:
            raise self._unanswered(error) from error
        return self._understood(form, response.content)

    def _understood(self, form: type[T], content: str | bytes) -> T:
        try:
            return wire.loads(form, content)
        except wire.WireError as error:
            raise CachefsError(
                f"the daemon's answer cannot be understood ({error}); it runs another version of cachefs: restart it"
            ) from error

    def _exchange(self, method: str, route: str, timeout_s: float, body: str | None = None) -> httpx.Response:
        timeout = httpx.Timeout(timeout_s, connect=5.0)
        response = self._http.request(method, f"/v1/{route}", content=body, timeout=timeout)
        if not response.is_success:
            raise _failure(response)
        return response

    def _unanswered(self, error: httpx.TransportError) -> CachefsError:
        root = _root_cause(error)
        if isinstance(root, PermissionError):
            return UserError(f"{self._socket} belongs to another user; run this as the user who runs the daemon")
        if isinstance(error, httpx.TimeoutException):
            return CachefsError(f"the daemon on {self._socket} does not answer")
        if _was_connected(error):
            return CachefsError(f"the daemon on {self._socket} ended before it answered")
        if isinstance(root, OSError) and root.errno not in _NOBODY:  # its queue is full, say: it lives
            return CachefsError(f"the daemon on {self._socket} does not answer ({root.strerror})")
        return NotRunning(f"no cachefs daemon answers on {self._socket}; `cachefs mount` starts one")


def _failure(response: httpx.Response) -> CachefsError:
    """What the daemon says when it does not do what was asked."""
    try:
        text = wire.loads(Failure, response.content).error
    except wire.WireError:
        text = f"the daemon answered {response.status_code} {response.reason_phrase}"
    return UserError(text) if response.status_code == 400 else CachefsError(text)


def _was_connected(error: httpx.TransportError) -> bool:
    return not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))


def _root_cause(error: BaseException) -> BaseException:
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return error
