"""The index as the event loop sees it: one call at a time, in the order in which they were made.

Used by ``cache.store`` only. Rows of dropped entries are remembered here until some transaction has removed them,
whoever gets to it first, so that neither a cancelled task nor a failing SSD loses one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.index import Index
from cachefs.cache.keepsake import NAME, Keepsake, save
from cachefs.model import CacheEntry

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Ledger:
    """One index, its queue, and the rows that have to go. Every method raises ``CacheError`` when the SSD fails."""

    def __init__(self, index: Index, root: str, kept: Keepsake | None) -> None:
        self.index = index
        self._root = root
        self._kept = kept
        self.dead_rows: set[int] = set()
        self._turn = trio.CapacityLimiter(1)

    async def call(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run one method of the index. The queue is first in, first out; what runs is not abandoned."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._turn)

    async def insert(self, entry: CacheEntry) -> None:
        """Add a row; the rows that have to go, go first: one of them may have its name."""
        gone = tuple(self.dead_rows)
        await self.call(self.index.insert, entry, gone)
        self.dead_rows.difference_update(gone)

    async def forget_dead(self) -> None:
        """Return once the rows that were dead at the call are durably gone."""
        gone = tuple(self.dead_rows)
        if gone:
            await self.call(self.index.delete, gone)
            self.dead_rows.difference_update(gone)

    async def change_kept(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """As ``call``, for what is written down a second time, in the same turn."""
        return await self.call(self._change_kept, partial(function, *args))

    def _change_kept(self, function: Callable[[], T]) -> T:
        result = function()
        kept = self.index.keepsake()
        if kept != self._kept:
            try:
                save(self._root, kept)
            except OSError as error:  # the index has it; an SSD that fails is told of by those who need it
                log.debug("%s cannot be written: %s", NAME, error)
            else:
                self._kept = kept
        return result

    async def close(self) -> None:
        await self.call(self.index.close)
