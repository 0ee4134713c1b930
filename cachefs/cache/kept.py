"""What the sources keep of moved files (``fs.homes``), so that it takes no more room there than it must.

Used by ``cache.moving``. Each keeps an empty file, which has the moved one's inode number; what a restoration has
brought is in it until that file has its name again. Whatever keeps it from that, and be it a crash, it is emptied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from cachefs.cache.places import Homes
from cachefs.cache.store import Store
from cachefs.model import CacheEntry, FileKey, Phase, SourceName

log = logging.getLogger(__name__)

_CLEARED_S = 2.0


class Kept:
    """See the module. Use from the event loop only."""

    def __init__(self, store: Store, homes: Homes) -> None:
        self._store = store
        self._homes = homes
        moved = store.moves.all() if store.recovery.after_crash else ()
        self._in_doubt: set[SourceName] = {entry.key.source for entry in moved}

    async def empty(self, entry: CacheEntry) -> None:
        """Whatever keeps a file from coming home: also somebody who does not want to wait for it any more."""
        with trio.move_on_after(_CLEARED_S, shield=True):
            try:
                await self._homes.let_go(entry.key, entry.source_file.inode, keep=True)
            except OSError as error:
                log.debug("%s: %s", entry.key, error)

    async def empty_after_crash(self, turn: Callable[[FileKey | int], AbstractAsyncContextManager[None]]) -> None:
        """What was coming home when cachefs died. Within ``turn`` nothing else is done to a file. A source that does
        not answer is asked again the next time."""
        for source in tuple(self._in_doubt):
            moved = [entry for entry in self._store.moves.all() if entry.key.source == source]
            try:
                filled = await self._homes.filled(moved[0].key) if moved else frozenset[int]()
            except OSError as error:
                log.debug("%s: %s", source, error)
                continue
            self._in_doubt.discard(source)
            for entry in moved:
                if entry.source_file.inode in filled:
                    async with turn(entry.key), turn(entry.source_file.inode):
                        await self._empty_if_away(entry)

    async def _empty_if_away(self, entry: CacheEntry) -> None:
        now = self._store.moves.get(entry.key)
        if now is not None and now.id == entry.id and now.home is not None and now.home.phase is Phase.AWAY:
            await self.empty(now)

    async def tidy(self, source: SourceName) -> None:
        """Remove what is left at a source of deleted files, since cachefs ended before the kernel had forgotten them.
        Only while a person restores: what is kept there may be another cache folder's, and only its inode numbers would
        tell."""
        try:
            await self._homes.tidy(source, self._numbers)
            if not any(entry.key.source == source for entry in self._store.moves.all()):
                await self._store.moves.all_home(source)
        except OSError as error:
            log.debug("%s: %s", source, error)

    def _numbers(self) -> frozenset[int]:
        return frozenset(entry.source_file.inode for entry in self._store.moves.all())
