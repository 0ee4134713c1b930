"""The answer to what takes long: lines of JSON that say how far it is, the last one with the report. Used by ``api``.

It ends with its client: whoever interrupts ``cachefs verify`` or ``cachefs restore`` stops it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cachefs.control import wire
from cachefs.control.messages import Failure, RestoreLine, VerifyLine
from cachefs.errors import CachefsError

_TELL_EVERY_S = 0.5

Line = VerifyLine | RestoreLine
P_contra = TypeVar("P_contra", contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)
P = TypeVar("P")
R = TypeVar("R")
P_co = TypeVar("P_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)


class Running(Protocol[P_co, R_co]):
    """Something that takes long."""

    @property
    def progress(self) -> P_co: ...

    async def run(self) -> R_co: ...


class Making(Protocol[P_contra, R_contra]):
    """Makes one line, of one of the three."""

    def __call__(
        self, progress: P_contra | None = None, report: R_contra | None = None, failure: Failure | None = None
    ) -> Line: ...


class Following(Response, Generic[P, R]):
    """Runs something for as long as its client listens."""

    media_type = "application/x-ndjson"

    def __init__(self, running: Running[P, R], line: Making[P, R]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._running = running
        self._line = line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_with_client, receive, nursery.cancel_scope.cancel)
            last = await self._run(send)
            await send({"type": "http.response.body", "body": _encoded(last), "more_body": False})
            nursery.cancel_scope.cancel()

    async def _run(self, send: Send) -> Line:
        """The last line, once all others have been sent: a line is never cut short."""
        ended = trio.Event()
        await self._say(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, send, ended)
            try:
                last = self._line(report=await self._running.run())
            except CachefsError as error:
                last = self._line(failure=Failure(str(error)))
            ended.set()
        return last

    async def _tell(self, send: Send, ended: trio.Event) -> None:
        while not ended.is_set():
            with trio.move_on_after(_TELL_EVERY_S):
                await ended.wait()
            await self._say(send)

    async def _say(self, send: Send) -> None:
        line = self._line(progress=self._running.progress)
        await send({"type": "http.response.body", "body": _encoded(line), "more_body": True})


async def _end_with_client(receive: Receive, end: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    end()


def _encoded(value: Line) -> bytes:
    return f"{wire.dumps(value)}\n".encode()
