"""The cache: what it holds, what it may take, and how a copy becomes an entry and ceases to be one.

On the event loop's side. ``fs.routing`` asks it on every read, ``cache.populate`` fills and empties it, the daemon
opens it and shows it. **Memory decides at once, the disk follows**: a method without ``async`` touches memory only and
its effect is complete when it returns; an ``async`` one says what is durable when it returns. Sources are never
touched from here.

Concurrency, for whoever adds an ``await``:

* ``_holdings`` changes in synchronous blocks only. After every await ask again whether the entry still lives (by id).
* Disk work runs in threads that are never abandoned: SSD calls are short, and a half-known disk is worse than a wait.
* The index is called in the order in which the calls were made (``cache.ledger``): an entry dropped after its row was
  asked for still loses it.
* ``_tree`` is held by whoever makes, renames or removes files; ``_owners`` says whose file stands at a published name,
  and changes only under it. So a late removal can never take the file of a newer copy.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.bars import Bar, Bars, Targets
from cachefs.cache.folder import Step, StepHook, no_hook
from cachefs.cache.holdings import Holdings
from cachefs.cache.ledger import Ledger
from cachefs.cache.recovery import Opened, Recovery, open_folder
from cachefs.cache.room import Amount, Limits, Room
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, DropCause, EntryState, FileKey, Inventory, Pin, SourceFile, SourceName, Space
from cachefs.ranges import Ranges

__all__ = [
    "Amount",
    "Bar",
    "EvictResult",
    "Hooks",
    "Limits",
    "Recovery",
    "Refused",
    "Step",
    "Store",
    "Targets",
    "open_store",
]

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

HOUSEKEEPING_S = 30.0
"""How far the index may be behind on what was read and wanted, and the measurement of the SSD behind the truth."""
RETRY_S = 30.0
"""How long to leave a failing SSD alone."""
QUIET_S = 10 * RETRY_S
"""How long after the last failure the next one is news again."""


class Refused(enum.Enum):
    """Why a copy may not begin."""

    NO_ROOM = "there is no room for it"
    BARRED = "it is being changed just now"
    EXISTS = "it is cached already"
    UNNAMEABLE = "its path is too long for the cache folder"


class EvictResult(enum.Enum):
    """What became of an eviction."""

    EVICTED = "evicted"
    OPEN = "somebody has it open"
    NOT_CACHED = "it is not cached"


@dataclass(frozen=True, slots=True)
class Hooks:
    """What tests put in the place of the world: the clock, and a call after each step of a publication."""

    now: Callable[[], float] = time.time
    on_step: StepHook = no_hook


@asynccontextmanager
async def open_store(
    root: str | os.PathLike[str],
    limits: Limits,
    sources: Mapping[SourceName, str],
    *,
    hooks: Hooks | None = None,
) -> AsyncIterator[Store]:
    """Lock the cache folder, recover, and close it again at the end of the block.

    ``sources``: name and path of every source. Raises ``CacheBusy`` when another daemon has the folder, ``CacheError``
    when it cannot be used or was made for other sources.
    """
    opened = await trio.to_thread.run_sync(open_folder, os.fspath(root), dict(sources))
    store = Store(opened, limits, hooks or Hooks())
    try:
        await store.refresh_space()
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await store._close()


class Store:
    """See the module. Made by ``open_store`` only."""

    def __init__(self, opened: Opened, limits: Limits, hooks: Hooks) -> None:
        self.recovery = opened.recovery
        self.changed = trio.Event()
        """Set, and replaced by a new one, whenever an entry begins, is published, dropped or removed."""
        self._folder = opened.folder
        self._ledger = Ledger(opened.index)
        self._hooks = hooks
        self._holdings = Holdings(opened.entries)
        self._room = Room(limits)
        self._bars = Bars()
        self._pins = {(pin.target, pin.rating_key): pin for pin in opened.pins}
        self._next_id = opened.next_id
        self._seen_at: dict[FileKey, float] = {}
        self._open: Counter[FileKey] = Counter()
        self._owners = {entry.key: entry.id for entry in opened.entries if entry.state is EntryState.CACHED}
        self._publishing: set[int] = set()
        self._unsaved: set[int] = set()
        self._quiet_until = float("-inf")
        self._disk_turns = trio.CapacityLimiter(8)
        self._tree = trio.Lock()

    # --- for routing: memory only ---

    def get(self, key: FileKey) -> CacheEntry | None:
        """The live entry of this file."""
        return self._holdings.live.get(key)

    def file_of(self, entry: CacheEntry) -> str:
        """Where the entry's bytes are on the SSD. A copying entry's file is renamed when it is published: who then
        finds nothing here asks ``get`` again."""
        if entry.state is EntryState.CACHED:
            return self._folder.published(entry.key)
        return self._folder.partial(entry.id)

    def touch(self, key: FileKey, now: float) -> None:
        """Somebody read this file at ``now``; reaches the index with the next batch."""
        self._holdings.read(key, now)

    def observe(self, file: SourceFile) -> bool:
        """Compare the entry with what its source showed just now.

        The same file: the entry is fresh from now on. Another one: it is dropped, and the answer is False.
        """
        entry = self._holdings.live.get(file.key)
        if entry is None:
            return True
        if not entry.fingerprint.same_file(file.fingerprint):
            self._drop([entry], DropCause.REPLACED)
            return False
        self._seen_at[file.key] = trio.current_time()
        known = entry.source_file
        if (known.inode, known.links) != (file.inode, file.links):
            self._change(replace(entry, source_file=replace(known, inode=file.inode, links=file.links)))
        return True

    def is_fresh(self, key: FileKey, ttl_s: float) -> bool:
        """Whether the source confirmed the entry within ``ttl_s``. An entry of an earlier run was not, at first."""
        seen_at = self._seen_at.get(key)
        return seen_at is not None and trio.current_time() - seen_at <= ttl_s

    def gone(self, key: FileKey) -> None:
        """The source has no such file (or folder) any more."""
        names = frozenset((key,))
        self.demote(Targets(keys=names, folders=names), DropCause.GONE)

    def fail(self, entry: CacheEntry, error: OSError) -> None:
        """The SSD failed on this entry's file: it is dropped, its source serves it.

        Not when the file was only renamed by its publication under the reader's feet.
        """
        current = self._holdings.by_id(entry.id)
        if current is None:
            return
        renamed = current.state is not entry.state or entry.id in self._publishing
        if renamed and error.errno == errno.ENOENT:
            return
        self._drop([current], DropCause.FAILED)
        log.warning(
            "the SSD copy of %s cannot be used (%s): it is served from its source", entry.key, error.strerror or error
        )

    def bar(self, targets: Targets) -> Bar:
        """Refuse to begin or publish copies of these, from now until the bar is released."""
        return self._bars.bar(targets)

    def demote(self, targets: Targets, cause: DropCause) -> tuple[CacheEntry, ...]:
        """The memory half of ``drop``: no read that begins later goes to the SSD. Returns what was dropped."""
        entries = self._holdings.matching(targets)
        self._drop(entries, cause)
        return tuple(entries)

    def opened(self, key: FileKey) -> None:
        """Somebody opened this file through the mount. Balanced by ``closed``."""
        self._open[key] += 1

    def closed(self, key: FileKey) -> None:
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    async def drop(self, targets: Targets, cause: DropCause) -> tuple[CacheEntry, ...]:
        """Drop entries: in memory before the first await, durably when this returns; their files go later.

        When the SSD cannot even remove a row this returns all the same, after a warning: a reader or writer does not
        suffer for the SSD, and after a restart the fingerprint still tells the old copy from the new file.
        """
        entries = self.demote(targets, cause)
        await self._forget_rows()
        return entries

    # --- for copying ---

    async def begin(self, file: SourceFile, reason: str, now: float) -> CacheEntry | Refused:
        """Reserve room for a file and make its empty partial file, or go on with a copy of the same file.

        For one caller per file at a time. Raises ``CacheError`` when the SSD fails.
        """
        await self.refresh_space()
        answer = self._may_begin(file)
        if answer is not None:
            return answer
        entry = self._reserve(file, reason, now)
        try:
            with trio.CancelScope(shield=True):
                async with self._tree:
                    await self._on_disk(self._folder.create_partial, entry.id, entry.size)
                    if self._holdings.by_id(entry.id) is not None:
                        await self._ledger.insert(entry)
        except (OSError, CacheError) as error:
            raise self._failed(entry, error) from error
        return self._holdings.by_id(entry.id) or Refused.BARRED

    async def open_partial(self, entry: CacheEntry) -> Descriptor:
        """The partial file of a copying entry, for writing. Raises ``CacheError``; the entry is dropped then."""
        try:
            number = await self._on_disk(os.open, self._folder.partial(entry.id), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed(entry, error) from error
        return Descriptor(number)

    def claim(self, entry: CacheEntry, length: int) -> bool:
        """Whether the copy may write ``length`` bytes next without passing ``min_free``, others' files considered.
        They count as written until ``record`` or ``unclaim``. The measurement is that of ``refresh_space``."""
        return self._holdings.by_id(entry.id) is not None and self._room.claim(entry.id, length)

    def unclaim(self, entry: CacheEntry) -> None:
        """What was claimed is not being written after all."""
        self._room.unclaim(entry.id)

    def record(self, entry_id: int, start: int, end: int) -> CacheEntry | None:
        """These bytes are in the partial file now, and are served from there. None when the entry was dropped."""
        self._room.unclaim(entry_id)
        entry = self._holdings.by_id(entry_id)
        if entry is None or entry.state is not EntryState.COPYING:
            return None
        ranges = entry.ranges.insert(start, min(end, entry.size))
        self._room.written_bytes += ranges.total - entry.ranges.total
        entry = replace(entry, ranges=ranges)
        self._holdings.update(entry)
        return entry

    async def checkpoint(self, entry: CacheEntry) -> None:
        """Make what was copied so far survive a power cut. Raises ``CacheError``; the entry is dropped then, for after
        a failed fdatasync nobody knows which bytes are on the disk."""
        current = self._holdings.by_id(entry.id)
        if current is None or current.state is not EntryState.COPYING:
            return
        ranges = current.ranges
        try:
            await self._on_disk(self._folder.sync_data, entry.id)
            await self._ledger.call(self._ledger.index.save_ranges, entry.id, ranges)
        except (OSError, CacheError) as error:
            if self._holdings.by_id(entry.id) is not None:
                raise self._failed(current, error) from error

    async def publish(self, entry: CacheEntry, file_now: SourceFile) -> CacheEntry | None:
        """Turn a complete copy into a cached entry; durable when this returns.

        ``file_now`` is what the source shows now, after the last byte was copied. None when the entry was dropped or
        barred meanwhile, or the source's file is another one. Raises ``CacheError`` when the SSD fails; the entry is
        dropped then.
        """
        current = self._holdings.by_id(entry.id)
        if current is None or self._bars.forbids(current.key, current.source_file.inode):
            return None
        if not self.observe(file_now):
            return None
        if not current.ranges.covers(0, current.size):
            raise ValueError(f"publication of an incomplete copy of {current.key}")
        published = None
        try:
            await self._on_disk(self._folder.sync_file, current.id, current.size)
            await self._on_disk(self._hooks.on_step, Step.FILE_SYNCED)
            with trio.CancelScope(shield=True):  # from the rename on a stop would cost the whole copy
                published = await self._put_in_place(current.id)
        except (OSError, CacheError) as error:
            if self._holdings.by_id(entry.id) is not None:
                raise self._failed(current, error) from error
        return published  # None: dropped, and its file perhaps removed, while we worked on it

    async def evict(self, key: FileKey, *, force: bool = False) -> EvictResult:
        """Drop an entry because it is no longer wanted. An open file is not evicted, unless forced."""
        entry = self._holdings.live.get(key)
        if entry is None:
            return EvictResult.NOT_CACHED
        if key in self._open and not force:
            return EvictResult.OPEN
        cause = DropCause.EVICTED if entry.state is EntryState.CACHED else DropCause.ABANDONED
        self._drop([entry], cause)
        await self._forget_rows()
        return EvictResult.EVICTED

    # --- what there is ---

    def inventory(self) -> Inventory:
        """Everything the planner wants to know, at this moment."""
        self._unsaved.update(entry.id for entry in self._holdings.settle_reads())
        return Inventory(tuple(self._holdings.live.values()), frozenset(self._open), self.space())

    def space(self) -> Space:
        """The limits against what is used: exact on our side, as of the last ``refresh_space`` on that of others."""
        return self._room.space(self._holdings.used_bytes, self._holdings.unwritten_bytes)

    async def refresh_space(self) -> None:
        """Ask the SSD's file system what it has left. Raises ``CacheError``."""
        written_before = self._room.written_bytes
        try:
            disk = await self._on_disk(self._folder.space)
        except OSError as error:
            raise CacheError(f"the cache folder {self._folder.root} cannot be reached: {error.strerror}") from error
        self._room.measured(disk, written_before)

    def pins(self) -> tuple[Pin, ...]:
        return tuple(self._pins.values())

    async def add_pin(self, pin: Pin) -> None:
        """Durable when this returns. Raises ``CacheError``; then nothing has changed."""
        await self._ledger.call(self._ledger.index.add_pin, pin)
        self._pins[pin.target, pin.rating_key] = pin

    async def remove_pin(self, target: str) -> bool:
        """Forget the pins of this path or title; False when there are none. Raises ``CacheError``."""
        found = [name for name in self._pins if name[0] == target]
        if found:
            await self._ledger.call(self._ledger.index.remove_pin, target)
            for name in found:
                self._pins.pop(name, None)
        return bool(found)

    async def note_wanted(self, keys: Iterable[FileKey], now: float) -> None:
        """A plan of ``now`` wants these; reaches the index with the next batch."""
        for key in keys:
            if (entry := self._holdings.live.get(key)) is not None:
                self._change(replace(entry, last_wanted_at=now))
        await trio.lowlevel.checkpoint()

    async def note_watched(self, key: FileKey, at: float) -> None:
        """Somebody finished this file. Durable when this returns, unless the SSD fails."""
        if (entry := self._holdings.live.get(key)) is not None:
            self._change(replace(entry, watched_at=at))
            await self._save_details()

    async def set_reason(self, key: FileKey, reason: str) -> None:
        """Why the file is on the SSD has changed. Durable when this returns, unless the SSD fails."""
        if (entry := self._holdings.live.get(key)) is not None and entry.reason != reason:
            self._change(replace(entry, reason=reason))
            await self._save_details()

    async def device_tag(self, identity: str) -> int:
        """The persisted number of a device, for inode numbers: 0 for the first, then 1, 2, … Raises ``CacheError``."""
        return await self._ledger.call(self._ledger.index.device_tag, identity)

    # --- background ---

    async def run_removals(self) -> None:
        """Remove the files of dropped entries as they come; an SSD that fails is tried again later."""
        while True:
            changed = self.changed
            await self.remove_doomed()
            with trio.move_on_after(RETRY_S if self._holdings.doomed else float("inf")):
                await changed.wait()

    async def run_housekeeping(self) -> None:
        """Save what was read and wanted, and measure the SSD, now and then."""
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            await self._save_details()
            try:
                await self.refresh_space()
            except CacheError as error:
                self._trouble(error)

    async def remove_doomed(self) -> None:
        """Remove the files of all entries dropped so far: their room is free when this returns, if the SSD obeys."""
        await self._forget_rows()
        for entry in list(self._holdings.doomed.values()):
            if entry.id in self._ledger.dead_rows:
                continue  # the row goes first
            try:
                await self._remove_files(entry)
            except OSError as error:
                self._trouble(error)

    # --- inside ---

    def _may_begin(self, file: SourceFile) -> CacheEntry | Refused | None:
        """The copy to go on with, or why there may be none; None: begin a new one."""
        if self._bars.forbids(file.key, file.inode):
            return Refused.BARRED
        if self.observe(file) and (entry := self.get(file.key)) is not None:
            return entry if entry.state is EntryState.COPYING else Refused.EXISTS
        if not self._folder.can_name(file.key):
            return Refused.UNNAMEABLE
        return Refused.NO_ROOM if file.size > self.space().room_bytes else None

    def _reserve(self, file: SourceFile, reason: str, now: float) -> CacheEntry:
        entry = CacheEntry(self._next_id, file, EntryState.COPYING, Ranges(), reason, begun_at=now)
        self._next_id += 1
        self._holdings.add(entry)
        self._seen_at[file.key] = trio.current_time()
        self._note_change()
        return entry

    async def _put_in_place(self, entry_id: int) -> CacheEntry | None:
        """Rename, sync the folders, write the row; then, and only then, memory says cached."""
        async with self._tree:
            current = self._publishable(entry_id)
            if current is None:
                return None
            self._drop(self._holdings.in_the_way(current.key), DropCause.REPLACED)
            self._publishing.add(entry_id)
            try:
                self._owners[current.key] = entry_id  # whether or not the rename comes off: what is there is rubbish
                folders = await self._on_disk(self._folder.rename, entry_id, current.key)
                await self._on_disk(self._hooks.on_step, Step.RENAMED)
                await self._on_disk(self._folder.sync_folders, folders)
                await self._on_disk(self._hooks.on_step, Step.FOLDERS_SYNCED)
                return await self._write_row(entry_id)
            finally:
                self._publishing.discard(entry_id)

    async def _write_row(self, entry_id: int) -> CacheEntry | None:
        current = self._publishable(entry_id)
        if current is None:
            return None
        whole = Ranges.of([(0, current.size)])
        cached = replace(current, state=EntryState.CACHED, ranges=whole, published_at=self._hooks.now())
        await self._ledger.call(self._ledger.index.publish, cached)
        await self._on_disk(self._hooks.on_step, Step.ROW_WRITTEN)
        current = self._publishable(entry_id)
        if current is None:
            return None
        cached = replace(current, state=EntryState.CACHED, ranges=whole, published_at=cached.published_at)
        self._holdings.update(cached)
        self._note_change()
        return cached

    def _publishable(self, entry_id: int) -> CacheEntry | None:
        """The entry, unless it was dropped or barred. A bar that came after the rename costs the copy its life."""
        current = self._holdings.by_id(entry_id)
        if current is None or not self._bars.forbids(current.key, current.source_file.inode):
            return current
        if entry_id in self._publishing:
            self._drop([current], DropCause.CHANGED)
        return None

    def _drop(self, entries: Iterable[CacheEntry], cause: DropCause) -> None:
        """Forget entries in memory, and leave a note for those who forget them on the disk."""
        for entry in entries:
            self._holdings.doom(entry)
            self._seen_at.pop(entry.key, None)
            self._room.unclaim(entry.id)
            self._unsaved.discard(entry.id)
            self._ledger.dead_rows.add(entry.id)
            level = logging.DEBUG if cause in (DropCause.EVICTED, DropCause.ABANDONED) else logging.INFO
            log.log(level, "%s is not on the SSD any more: %s", entry.key, cause.value)
            self._note_change()

    def _failed(self, entry: CacheEntry, error: OSError | CacheError) -> CacheError:
        """Drop the entry and say what happened, for the one who asked."""
        current = self._holdings.by_id(entry.id)
        if current is not None:
            self._drop([current], DropCause.FAILED)
        return CacheError(f"the cache folder {self._folder.root} failed on {entry.key}: {error}")

    def _change(self, entry: CacheEntry) -> None:
        self._holdings.update(entry)
        self._unsaved.add(entry.id)

    def _note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def _remove_files(self, entry: CacheEntry) -> None:
        async with self._tree:
            if entry.id not in self._holdings.doomed:
                return
            await self._on_disk(self._folder.remove_partial, entry.id)
            if self._owners.get(entry.key) == entry.id:
                await self._on_disk(self._folder.remove_published, entry.key)
                del self._owners[entry.key]
            self._holdings.removed(entry.id)
        self._note_change()

    async def _forget_rows(self) -> None:
        try:
            await self._ledger.forget_dead()
        except CacheError as error:
            self._trouble(error)

    async def _save_details(self) -> None:
        self._unsaved.update(entry.id for entry in self._holdings.settle_reads())
        entries = [entry for entry_id in self._unsaved if (entry := self._holdings.by_id(entry_id)) is not None]
        if not entries:
            return
        try:
            await self._ledger.call(self._ledger.index.save_details, entries)
        except CacheError as error:
            self._trouble(error)
            return
        saved = [entry.id for entry in entries if self._holdings.by_id(entry.id) is entry]
        self._unsaved.difference_update(saved)

    async def _on_disk(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run disk work in a thread that is never abandoned, with turns of our own: sources cannot use them up."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._disk_turns)

    def _trouble(self, error: OSError | CacheError) -> None:
        """One warning for as long as the SSD fails; files go on being served from where they can be."""
        now = trio.current_time()
        level = logging.DEBUG if now < self._quiet_until else logging.WARNING
        self._quiet_until = now + QUIET_S
        log.log(
            level, "the cache folder %s fails, which is tried again every %g s: %s", self._folder.root, RETRY_S, error
        )

    async def _close(self) -> None:
        """Write what memory knows better, then let go of index and lock, come what may."""
        try:
            await self._save_details()
            await self.remove_doomed()
            await self._ledger.close()
        except CacheError as error:
            self._trouble(error)
        finally:
            self._folder.close()
