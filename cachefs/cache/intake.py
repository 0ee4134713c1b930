"""How a copy becomes an entry: room is reserved, bytes are recorded, and the whole is published.

The half of ``cache.store`` that ``cache.populate`` works with, reached through the store. Runs on the event loop; see
``cache.shelf`` for the rules.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import replace
from functools import partial

import trio

from cachefs.cache.adoption import only_copy
from cachefs.cache.folder import Step, no_hook
from cachefs.cache.label import Label
from cachefs.cache.shelf import Shelf
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, DropCause, EntryState, SourceFile
from cachefs.paths import cache_path
from cachefs.ranges import Ranges

log = logging.getLogger(__name__)

_PIECE_BYTES = 16 * 1024**2
"""Of what is compared in one call: the SSD has to answer within a time."""


class Refused(enum.Enum):
    """Why a copy may not begin."""

    NO_ROOM = "there is no room for it"
    BARRED = "it is being changed just now"
    EXISTS = "it is cached already"
    UNNAMEABLE = "its name or path is too long for the cache folder"
    KEPT_THERE = "a file that says nothing of itself has its place in the cache folder; see cachefs verify"
    MOVED_THERE = "a moved file has its place in the cache folder"


class Intake:
    """Begin, record, checkpoint, publish. All that fails on the SSD drops the entry and raises ``CacheError``."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._publishing: set[int] = set()

    def is_publishing(self, entry_id: int) -> bool:
        """Whether its partial file may have been renamed already."""
        return entry_id in self._publishing

    async def begin(self, file: SourceFile, reason: str, now: float) -> CacheEntry | Refused:
        """See ``Store.begin``."""
        shelf = self._shelf
        await shelf.refresh_space()
        answer = self._may_begin(file)
        if answer is not None:
            return answer
        entry = self._reserve(file, reason, now)
        try:
            with trio.CancelScope(shield=True):
                async with shelf.tree:
                    await shelf.on_disk(shelf.folder.create_partial, entry.id, entry.size)
                    if shelf.holdings.by_id(entry.id) is not None:
                        await shelf.ledger.insert(entry)
        except (OSError, CacheError) as error:
            raise shelf.failed(entry, error) from error
        return shelf.holdings.by_id(entry.id) or Refused.BARRED

    def _may_begin(self, file: SourceFile) -> CacheEntry | Refused | None:
        """The copy to go on with, or why there may be none; None: begin a new one."""
        shelf = self._shelf
        if shelf.bars.forbids(file.key, file.inode):
            return Refused.BARRED
        if shelf.observe(file) and (entry := shelf.holdings.live.get(file.key)) is not None:
            return entry if entry.state is EntryState.COPYING else Refused.EXISTS
        if (never := self.never(file)) is not None:
            return never
        if any(entry.state is EntryState.MOVED for entry in shelf.holdings.in_the_way(file.key)):
            return Refused.MOVED_THERE
        return Refused.NO_ROOM if file.size > shelf.space().room_bytes else None

    def never(self, file: SourceFile) -> Refused | None:
        """See ``Store.why_never``."""
        if not self._shelf.folder.can_name(file.key):
            return Refused.UNNAMEABLE
        return None if self._may_take_place_of_kept(file) else Refused.KEPT_THERE

    def _may_take_place_of_kept(self, file: SourceFile) -> bool:
        """Whether no file that must not be removed is in the way, or one that may be the same: that is seen when the
        copy is there."""
        shelf, name = self._shelf, cache_path(file.key)
        kept = shelf.kept_in_the_way(file.key)
        return not kept or (kept == [name] and shelf.aside[name] == file.size and name not in shelf.unlike)

    def _reserve(self, file: SourceFile, reason: str, now: float) -> CacheEntry:
        entry = CacheEntry(self._shelf.next_id, file, EntryState.COPYING, Ranges(), reason, begun_at=now)
        self._shelf.next_id += 1
        self._shelf.holdings.add(entry)
        self._shelf.seen_at[file.key] = trio.current_time()
        self._shelf.note_change()
        return entry

    async def open_partial(self, entry: CacheEntry) -> Descriptor | None:
        """See ``Store.open_partial``."""
        shelf = self._shelf
        try:
            return await shelf.on_disk(shelf.folder.open_partial, entry.id)
        except OSError as error:
            if shelf.holdings.by_id(entry.id) is None:
                return None  # dropped, and its file removed, on the way here
            raise shelf.failed(entry, error) from error

    def claim(self, entry: CacheEntry, length: int) -> bool:
        """See ``Store.claim``."""
        return self._shelf.holdings.by_id(entry.id) is not None and self._shelf.room.claim(entry.id, length)

    def record(self, entry_id: int, start: int, end: int) -> CacheEntry | None:
        """See ``Store.record``."""
        shelf = self._shelf
        shelf.room.unclaim(entry_id)
        entry = shelf.holdings.by_id(entry_id)
        if entry is None or entry.state is not EntryState.COPYING:
            return None
        ranges = entry.ranges.insert(start, min(end, entry.size))
        shelf.room.written_bytes += ranges.total - entry.ranges.total
        entry = replace(entry, ranges=ranges)
        shelf.holdings.update(entry)
        return entry

    async def checkpoint(self, entry: CacheEntry) -> None:
        """See ``Store.checkpoint``."""
        shelf = self._shelf
        current = shelf.holdings.by_id(entry.id)
        if current is None or current.state is not EntryState.COPYING:
            return
        ranges = current.ranges
        try:
            await shelf.on_disk(shelf.folder.sync_data, entry.id)
            await shelf.ledger.call(shelf.ledger.index.save_ranges, entry.id, ranges)
        except (OSError, CacheError) as error:
            if shelf.holdings.by_id(entry.id) is not None:
                raise shelf.failed(current, error) from error

    async def publish(self, entry: CacheEntry, file_now: SourceFile) -> CacheEntry | None:
        """See ``Store.publish``."""
        shelf = self._shelf
        current = shelf.holdings.by_id(entry.id)
        if current is None or shelf.bars.forbids(current.key, current.source_file.inode):
            return None
        if not shelf.observe(file_now):
            return None
        if not current.ranges.covers(0, current.size):
            raise ValueError(f"publication of an incomplete copy of {current.key}")
        published = None
        try:
            if await self._differs_from_kept(current):
                return None
            label = Label(current.source_file, current.begun_at)
            labelled = await shelf.on_disk(shelf.folder.label, current.id, label)
            await self._step(Step.LABELLED)
            await shelf.on_disk(shelf.folder.sync_file, current.id, current.size)
            await self._step(Step.FILE_SYNCED)
            with trio.CancelScope(shield=True):  # from the rename on a stop would cost the whole copy
                published = await self._put_in_place(current.id, labelled)
        except (OSError, CacheError) as error:
            if shelf.holdings.by_id(entry.id) is not None:
                raise shelf.failed(current, error) from error
        return published  # None: dropped, and its file perhaps removed, while we worked on it

    async def _differs_from_kept(self, entry: CacheEntry) -> bool:
        """Whether a file that must not be removed has the copy's place, and other bytes; then it stays."""
        shelf, name = self._shelf, cache_path(entry.key)
        if name not in shelf.aside:
            return False
        for start in range(0, entry.size, _PIECE_BYTES):
            if not await shelf.on_disk(shelf.folder.holds_the_same, entry.id, entry.key, start, _PIECE_BYTES):
                shelf.unlike.add(name)
                text = "%s is not cached: %s in the cache folder may be an only copy, and has other bytes"
                log.warning(text, entry.key, name)
                shelf.drop(shelf.living(entry), DropCause.ABANDONED)
                return True
        return False

    async def _put_in_place(self, entry_id: int, labelled: bool) -> CacheEntry | None:
        """Rename, sync the folders, write the row; then, and only then, memory says cached."""
        shelf = self._shelf
        async with shelf.tree:
            current = self._publishable(entry_id)
            if current is None:
                return None
            in_the_way = shelf.holdings.in_the_way(current.key)
            if any(entry.state is EntryState.MOVED for entry in in_the_way):
                shelf.drop([current], DropCause.REPLACED)
                return None
            shelf.drop(in_the_way, DropCause.REPLACED)
            if await shelf.on_disk(only_copy, shelf.folder.place, cache_path(current.key)) is not None:
                # The one whose file that was, is about to find it again.
                shelf.drop(shelf.living(current), DropCause.REPLACED)
                return None
            self._publishing.add(entry_id)
            try:
                shelf.owners[current.key] = entry_id  # whether or not the rename comes off: what is there is rubbish
                folders = await shelf.on_disk(shelf.folder.rename, entry_id, current.key)
                shelf.aside.pop(cache_path(current.key), None)
                await self._step(Step.RENAMED)
                await shelf.on_disk(shelf.folder.sync_folders, folders)
                await self._step(Step.FOLDERS_SYNCED)
                return await self._write_row(entry_id, labelled)
            finally:
                self._publishing.discard(entry_id)

    async def _write_row(self, entry_id: int, labelled: bool) -> CacheEntry | None:
        shelf = self._shelf
        current = self._publishable(entry_id)
        if current is None:
            return None
        published_at = shelf.hooks.now()
        publish = partial(shelf.ledger.index.publish, labelled=labelled)
        await shelf.ledger.call(publish, current.id, published_at)
        await self._step(Step.ROW_WRITTEN)
        current = self._publishable(entry_id)
        if current is None:
            return None
        whole = Ranges.of([(0, current.size)])
        cached = replace(current, state=EntryState.CACHED, ranges=whole, published_at=published_at)
        shelf.holdings.update(cached)
        shelf.note_change()
        shelf.tell(cached.key)
        return cached

    def _publishable(self, entry_id: int) -> CacheEntry | None:
        """The entry, unless it was dropped or barred. A bar that came after the rename costs the copy its life."""
        shelf = self._shelf
        current = shelf.holdings.by_id(entry_id)
        if current is None or not shelf.bars.forbids(current.key, current.source_file.inode):
            return current
        if entry_id in self._publishing:
            shelf.drop([current], DropCause.CHANGED)
        return None

    async def _step(self, step: Step) -> None:
        """Tell whoever wants to know; nobody does outside of tests."""
        if self._shelf.hooks.on_step is not no_hook:
            await trio.to_thread.run_sync(self._shelf.hooks.on_step, step)
