"""The index as the event loop sees it: one call at a time, in the order in which they were made.

Used by ``cache.store`` only. Rows of dropped entries are remembered here until some transaction has removed them,
whoever gets to it first, so that neither a cancelled task nor a failing SSD loses one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.keepsake import NAME, save
from cachefs.cache.presence import NO_ANSWER_S, Presence
from cachefs.cache.recovery import Opened
from cachefs.errors import CacheError, IndexFull
from cachefs.model import CacheEntry, SourceName

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Ledger:
    """One index, its queue, and the rows that have to go. Every method raises ``CacheError`` when the SSD fails."""

    def __init__(self, presence: Presence, opened: Opened) -> None:
        self.index = opened.index
        self.full = opened.index.full
        """Whether the SSD had no room for the last change of a row."""
        self._presence = presence
        self._kept = opened.kept
        self.moved_from = opened.moved_from
        """The sources from which files have moved to this folder; see ``schema``."""
        self.dead_rows = set(opened.rows_left)
        self._late = {entry.id: entry for entry in opened.late}
        """Moved files whose rows are not written yet; a start finds them by what the files say."""
        self._turn = trio.CapacityLimiter(1)

    async def call(self, function: Callable[[*Ts], T], *args: *Ts, within_s: float = NO_ANSWER_S) -> T:
        """Run one method of the index. The queue is first in, first out; what runs is waited for up to ``within_s``,
        and the next one begins when it has really returned."""
        try:
            answer = await self._presence.run(function, *args, limiter=self._turn, within_s=within_s)
        except OSError as error:
            raise CacheError(f"the index cannot be used: {error.strerror or error}") from error
        except IndexFull:
            self.full = True
            raise
        self.full = False
        return answer

    async def insert(self, entry: CacheEntry) -> None:
        """Add a row; the rows that have to go, go first, and those of another name get it: one may have its name."""
        await self.catch_up()
        gone = tuple(self.dead_rows)
        await self.call(self.index.insert, entry, gone)
        self._forget(gone)

    async def put(self, entry: CacheEntry) -> None:
        """Make it the row of a moved file: now, or as soon as there is room for that."""
        self._late[entry.id] = entry
        try:
            await self.catch_up()
        except IndexFull as error:
            log.debug("the row of %s waits: %s", entry.key, error)

    async def catch_up(self) -> None:
        """Write the rows that could not be written."""
        gone = tuple(self.dead_rows)
        late = tuple(entry for number, entry in self._late.items() if number not in self.dead_rows)
        if late:
            await self.call(self.index.put, late, gone)
            self._forget(gone)
            self._late = {number: entry for number, entry in self._late.items() if entry not in late}

    async def save_home(self, entry: CacheEntry) -> None:
        """Write where a moved file's home is; with the whole row, where that is not written yet."""
        before = self._late.get(entry.id)
        if before is None:
            await self.call(self.index.save_home, entry)
            return
        self._late[entry.id] = entry
        try:
            await self.catch_up()
        except CacheError:
            self._late[entry.id] = before
            raise

    def later(self, entry: CacheEntry) -> None:
        """Write its row when there is room: memory knows it, and its file says the same."""
        self._late[entry.id] = entry

    def _forget(self, gone: Iterable[int]) -> None:
        self.dead_rows.difference_update(gone)
        for entry_id in gone:
            self._late.pop(entry_id, None)

    async def forget_dead(self, within_s: float = NO_ANSWER_S) -> None:
        """Return once the rows that were dead at the call are durably gone."""
        gone = tuple(self.dead_rows)
        if gone:
            await self.call(self.index.delete, gone, within_s=within_s)
            self._forget(gone)

    async def change_kept(self, function: Callable[[*Ts], T], *args: *Ts, within_s: float = NO_ANSWER_S) -> T:
        """As ``call``, for what is written down a second time, in the same turn."""
        return await self.call(self._change_kept, partial(function, *args), within_s=within_s)

    async def set_moved_from(self, sources: frozenset[SourceName]) -> None:
        if sources != self.moved_from:
            await self.change_kept(self.index.set_moved_from, sources)
            self.moved_from = sources

    def _change_kept(self, function: Callable[[], T]) -> T:
        result = function()
        kept = self.index.keepsake()
        if kept != self._kept:
            try:
                save(self._presence.folder.place, kept)
            except OSError as error:  # the index has it; an SSD that fails is told of by those who need it
                log.debug("%s cannot be written: %s", NAME, error)
            else:
                self._kept = kept
        return result

    async def close(self) -> None:
        if self._late:
            self.index.distrust()
        await self.call(self.index.close)

    async def abandon(self, finish: Callable[[], object]) -> None:
        """Close the index of an SSD that is gone once its last call has returned, then ``finish``, in a thread of its
        own. Raises nothing."""
        async with self._turn:
            await trio.to_thread.run_sync(self._abandon, finish, abandon_on_cancel=True)

    def _abandon(self, finish: Callable[[], object]) -> None:
        try:
            self.index.close()
        except CacheError as error:
            log.debug("%s", error)
        finish()
