"""The index as the event loop sees it: one call at a time, in the order in which they were made.

Used by ``cache.store`` only. Rows of dropped entries are remembered here until some transaction has removed them,
whoever gets to it first, so that neither a cancelled task nor a failing SSD loses one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.index import Index
from cachefs.model import CacheEntry

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Ledger:
    """One index, its queue, and the rows that have to go. Every method raises ``CacheError`` when the SSD fails."""

    def __init__(self, index: Index) -> None:
        self.index = index
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

    async def close(self) -> None:
        await self.call(self.index.close)
