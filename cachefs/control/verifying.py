"""The answer to ``verify``: lines of JSON that say how far it is, the last one with the report. Used by ``api`` only.

It ends with its client: whoever interrupts ``cachefs verify`` stops the verification.
"""

from __future__ import annotations

from typing import Protocol

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cachefs.control import wire
from cachefs.control.messages import Failure, VerifyLine
from cachefs.errors import CachefsError
from cachefs.verification import Progress, Report

_TELL_EVERY_S = 0.5


class Running(Protocol):
    """A verification."""

    @property
    def progress(self) -> Progress: ...

    async def run(self) -> Report: ...


class Verifying(Response):
    """Runs a verification for as long as its client listens."""

    media_type = "application/x-ndjson"

    def __init__(self, verification: Running) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._verification = verification

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_with_client, receive, nursery.cancel_scope)
            last = await self._run(send)
            await send({"type": "http.response.body", "body": _line(last), "more_body": False})
            nursery.cancel_scope.cancel()

    async def _run(self, send: Send) -> VerifyLine:
        """The last line, once all others have been sent: a line is never cut short."""
        ended = trio.Event()
        await self._say(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, send, ended)
            try:
                last = VerifyLine(report=await self._verification.run())
            except CachefsError as error:
                last = VerifyLine(failure=Failure(str(error)))
            ended.set()
        return last

    async def _tell(self, send: Send, ended: trio.Event) -> None:
        while not ended.is_set():
            with trio.move_on_after(_TELL_EVERY_S):
                await ended.wait()
            await self._say(send)

    async def _say(self, send: Send) -> None:
        line = _line(VerifyLine(progress=self._verification.progress))
        await send({"type": "http.response.body", "body": line, "more_body": True})


async def _end_with_client(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _line(value: VerifyLine) -> bytes:
    return f"{wire.dumps(value)}\n".encode()
