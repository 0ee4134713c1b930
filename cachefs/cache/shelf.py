"""The state that all parts of the store share, and the few ways in which it changes.

Used by ``cache.store`` and ``cache.intake`` only, on the event loop.

Concurrency, for whoever adds an ``await``:

* ``holdings`` changes in synchronous blocks only. After every await ask again whether the entry still lives (by id).
* Disk work runs in threads that are never abandoned: SSD calls are short, and a half-known disk is worse than a wait.
* The index is called in the order in which the calls were made (``cache.ledger``): an entry dropped after its row was
  asked for still loses it.
* ``tree`` is held by whoever makes, renames or removes files; ``owners`` says whose file stands at a published name,
  and changes only under it. So a late removal can never take the file of a newer copy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.bars import Bars
from cachefs.cache.folder import Folder, StepHook, no_hook
from cachefs.cache.holdings import Holdings
from cachefs.cache.ledger import Ledger
from cachefs.cache.recovery import Opened
from cachefs.cache.room import Limits, Room
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, DropCause, EntryState, FileKey, SourceFile, Space

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

RETRY_S = 30.0
"""How long to leave a failing SSD alone."""
_QUIET_S = 10 * RETRY_S
"""How long after the last failure the next one is news again."""
_DISK_THREADS = 8


@dataclass(frozen=True, slots=True)
class Hooks:
    """What tests put in the place of the world: the clock, and a call after each step of a publication."""

    now: Callable[[], float] = time.time
    on_step: StepHook = no_hook


class Shelf:
    """Entries, limits, bars, index and folder of one open cache."""

    def __init__(self, opened: Opened, limits: Limits, hooks: Hooks) -> None:
        self.folder: Folder = opened.folder
        self.ledger = Ledger(opened.index, opened.folder.root, opened.kept)
        self.hooks = hooks
        self.holdings = Holdings(opened.entries)
        self.room = Room(limits)
        self.bars = Bars()
        self.seen_at: dict[FileKey, float] = {}
        """trio time at which the source last confirmed an entry."""
        self.owners = {entry.key: entry.id for entry in opened.entries if entry.state is EntryState.CACHED}
        self.tree = trio.Lock()
        self.changed = trio.Event()
        self.tell: Callable[[FileKey], object] = lambda _: None
        """Who is told at once of an entry that was published or dropped."""
        self._unsaved: set[int] = set()
        self._quiet_until = float("-inf")
        self._disk_turns = trio.CapacityLimiter(_DISK_THREADS)

    # --- memory: complete when it returns ---

    def observe(self, file: SourceFile) -> bool:
        """See ``Store.observe``."""
        entry = self.holdings.live.get(file.key)
        if entry is None:
            return True
        if not entry.fingerprint.same_file(file.fingerprint):
            self.drop([entry], DropCause.REPLACED)
            return False
        self.seen_at[file.key] = trio.current_time()
        known = entry.source_file
        if (known.inode, known.links) != (file.inode, file.links):
            self.change(replace(entry, source_file=replace(known, inode=file.inode, links=file.links)))
        return True

    def drop(self, entries: Iterable[CacheEntry], cause: DropCause) -> None:
        """Forget entries, and leave a note for those who forget them on the disk."""
        level = logging.DEBUG if cause in (DropCause.EVICTED, DropCause.ABANDONED) else logging.INFO
        for entry in entries:
            self.holdings.doom(entry)
            self.seen_at.pop(entry.key, None)
            self.room.unclaim(entry.id)
            self._unsaved.discard(entry.id)
            self.ledger.dead_rows.add(entry.id)
            log.log(level, "%s is not on the SSD any more: %s", entry.key, cause.value)
            self.note_change()
            self.tell(entry.key)

    def failed(self, entry: CacheEntry, error: OSError | CacheError) -> CacheError:
        """Drop the entry because the SSD failed, and say so to the one who asked."""
        current = self.holdings.by_id(entry.id)
        if current is not None:
            self.drop([current], DropCause.FAILED)
        return CacheError(f"the cache folder {self.folder.root} failed on {entry.key}: {error}")

    def change(self, entry: CacheEntry) -> None:
        """A new value that the index gets with the next batch."""
        self.holdings.update(entry)
        self._unsaved.add(entry.id)

    def note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def settle_reads(self) -> None:
        """Bring the entries' times of reading up to date."""
        self._unsaved.update(entry.id for entry in self.holdings.settle_reads())

    def space(self) -> Space:
        """See ``Store.space``."""
        return self.room.space(self.holdings.used_bytes, self.holdings.unwritten_bytes)

    # --- disk ---

    async def on_disk(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run disk work in a thread, with turns of our own: hung sources cannot use them up."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._disk_turns)

    async def refresh_space(self) -> None:
        """See ``Store.refresh_space``."""
        written_before = self.room.written_bytes
        try:
            disk = await self.on_disk(self.folder.space)
        except OSError as error:
            raise CacheError(f"the cache folder {self.folder.root} cannot be reached: {error.strerror}") from error
        self.room.measured(disk, written_before)

    async def forget_rows(self) -> None:
        """Return once the rows of what was dropped are durably gone, or the SSD has failed and that was said."""
        try:
            await self.ledger.forget_dead()
        except CacheError as error:
            self.trouble(error)

    async def save_details(self) -> None:
        """Write what changed since the last batch; what the SSD does not take is tried with the next."""
        self.settle_reads()
        entries = [entry for entry_id in self._unsaved if (entry := self.holdings.by_id(entry_id)) is not None]
        if not entries:
            return
        try:
            await self.ledger.call(self.ledger.index.save_details, entries)
        except CacheError as error:
            self.trouble(error)
            return
        self._unsaved.difference_update(entry.id for entry in entries if self.holdings.by_id(entry.id) is entry)

    async def remove_doomed(self) -> None:
        """See ``Store.remove_doomed``."""
        await self.forget_rows()
        for entry in list(self.holdings.doomed.values()):
            if entry.id in self.ledger.dead_rows:
                continue  # the row goes first
            try:
                await self._remove_files(entry)
            except OSError as error:
                self.trouble(error)

    async def _remove_files(self, entry: CacheEntry) -> None:
        async with self.tree:
            if entry.id not in self.holdings.doomed:
                return
            await self.on_disk(self.folder.remove_partial, entry.id)
            if self.owners.get(entry.key) == entry.id:
                await self.on_disk(self.folder.remove_published, entry.key)
                del self.owners[entry.key]
            self.holdings.removed(entry.id)
        self.note_change()

    def trouble(self, error: OSError | CacheError) -> None:
        """One warning for as long as the SSD fails; files go on being served from where they can be."""
        now = trio.current_time()
        level = logging.DEBUG if now < self._quiet_until else logging.WARNING
        self._quiet_until = now + _QUIET_S
        log.log(level, "the cache folder %s fails and is tried again every %g s: %s", self.folder.root, RETRY_S, error)

    async def close(self) -> None:
        """Write what memory knows better, then let go of index and lock, come what may."""
        try:
            await self.save_details()
            await self.remove_doomed()
            await self.ledger.close()
        except CacheError as error:
            self.trouble(error)
        finally:
            self.folder.close()
