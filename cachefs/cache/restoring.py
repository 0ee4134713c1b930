"""``cachefs restore``: many moved files on their way home, one after the other.

Made by ``engine`` for one restoration, run by ``control.api``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cachefs.cache.moving import Movers
from cachefs.cache.places import Stays, why_not_home
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, SourceName
from cachefs.restoration import HomeProgress, HomeReport, NotHome


class Restoration:
    """Bringing many files home, from ``run`` to its report. ``progress`` may be looked at meanwhile."""

    def __init__(self, movers: Movers, entries: Iterable[CacheEntry], tidied: Iterable[SourceName] = ()) -> None:
        """``tidied``: sources at which nothing is to be left of deleted files either, moved ones or not."""
        self._movers = movers
        self._tidied = set(tidied)
        self._entries = sorted(entries, key=lambda entry: entry.key)
        total = sum(entry.size for entry in self._entries)
        self._done = HomeProgress(files=len(self._entries), bytes=total)

    @property
    def progress(self) -> HomeProgress:
        under_way = {item.key: item.done_bytes for item in self._movers.restoring()}
        key = self._done.key
        now = under_way.get(key, 0) if key is not None else 0
        return replace(self._done, bytes_done=self._done.bytes_done + now)

    async def run(self) -> HomeReport:
        """Restore what can be; what cannot is said and does not keep the others."""
        restored, left = [], []
        for entry in self._entries:
            self._done = replace(self._done, key=entry.key)
            try:
                await self._movers.restore(entry.key)
                self._movers.leave_at_home(entry.id)
            except (Stays, OSError, CacheError) as error:
                left.append(NotHome(entry.key, why_not_home(error)))
            else:
                restored.append(entry.key)
            done = self._done
            self._done = replace(
                done, files_done=done.files_done + 1, bytes_done=done.bytes_done + entry.size, key=None
            )
        for source in sorted(self._tidied | {key.source for key in restored}):
            if source in self._tidied or not any(entry.key.source == source for entry in self._movers.moved()):
                await self._movers.kept.tidy(source)
        return HomeReport(tuple(restored), tuple(left))
