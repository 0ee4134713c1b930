"""Who may change which moved file: nobody, in the moment in which it becomes its source's again.

Used by ``routing``. Whoever brings a file home must know that nobody is changing it in that moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from cachefs.fs.elsewhere import Moved
from cachefs.model import FileKey


class Turns:
    """Who may change which moved file. Use from the event loop only."""

    def __init__(self, files: Moved) -> None:
        self._files = files
        self._held: dict[FileKey, trio.Event] = {}
        self._changing: Counter[FileKey] = Counter()

    @asynccontextmanager
    async def changing(self, key: FileKey, *, content: bool) -> AsyncIterator[None]:
        """Around a change of a file that may be moved. ``content``: of its bytes, so that its digest is forgotten."""
        while (held := self._held.get(key)) is not None:
            await held.wait()
        self._changing[key] += 1
        try:
            if content:
                await self._files.changed(key)
            yield
        finally:
            self._changing[key] -= 1
            if not self._changing[key]:
                del self._changing[key]

    def is_changing(self, key: FileKey) -> bool:
        return key in self._changing

    @asynccontextmanager
    async def held(self, key: FileKey) -> AsyncIterator[None]:
        """No change of the file begins within; one that is under way is ``is_changing``."""
        released = self._held[key] = trio.Event()
        try:
            yield
        finally:
            if self._held.get(key) is released:
                del self._held[key]
            released.set()
