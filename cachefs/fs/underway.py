"""The writes of one open file that its source has not answered yet.

A page that a write(2) has filled can be dropped before the write has reached the source: the kernel unlocks it before
it sends the request (fuse_fill_write_pages(), fs/fuse/file.c), and whatever drops clean pages then (an open, a new
mtime, a shortage of memory) takes it away. Who reads next asks the daemon, and the answer becomes the page: it must not
be what was there before the write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Underway:
    """Use from the event loop only."""

    __slots__ = ("_writes",)

    def __init__(self) -> None:
        self._writes: dict[trio.Event, tuple[int, int]] = {}

    @contextmanager
    def writing(self, start: int, end: int) -> Iterator[None]:
        """Around a write of the bytes from ``start`` to ``end``."""
        over = trio.Event()
        self._writes[over] = (start, end)
        try:
            yield
        finally:
            del self._writes[over]
            over.set()

    async def settled(self, start: int, end: int) -> None:
        """Returns when no write of these bytes that has begun by now is under way any more."""
        if self._writes:
            for over in [over for over, (begin, stop) in self._writes.items() if begin < end and start < stop]:
                await over.wait()
