"""The cache: what it holds, what it may take, and how a copy becomes an entry and ceases to be one.

On the event loop's side. ``fs.routing`` asks it on every read, ``cache.populate`` fills and empties it, the daemon
opens it and shows it. **Memory decides at once, the disk follows**: a method without ``async`` touches memory only and
its effect is complete when it returns; an ``async`` one says what is durable when it returns. Sources are never
touched from here. ``cache.shelf`` has the state and the rules for whoever changes it, ``cache.intake`` the way in.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.bars import Bar
from cachefs.cache.facts import Facts
from cachefs.cache.folder import Step
from cachefs.cache.intake import Intake, Refused
from cachefs.cache.moves import Moves
from cachefs.cache.presence import LOOK_S
from cachefs.cache.recovery import Opened, Recovery, open_again, open_folder
from cachefs.cache.room import Amount, Limits
from cachefs.cache.shelf import RETRY_S, Hooks, Shelf
from cachefs.cache.upkeep import Upkeep
from cachefs.cache.wishes import Wishes
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.model import (
    CacheEntry,
    DropCause,
    EntryState,
    FileKey,
    Inventory,
    Pin,
    SourceFile,
    SourceName,
    Space,
    Targets,
)
from cachefs.ownership import ours

__all__ = [
    "RETRY_S",
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

PROBE_EVERY_S = 2.0
"""How soon an SSD that is back is seen."""
HOUSEKEEPING_S = 30.0
"""How far the index may be behind on what was read and wanted, and the measurement of the SSD behind the truth."""


class EvictResult(enum.Enum):
    """What became of an eviction."""

    EVICTED = "evicted"
    OPEN = "somebody has it open"
    NOT_CACHED = "it is not cached"
    MOVED = "it is the only copy"


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
    folder, made_for = os.fspath(root), dict(sources)
    opened = await trio.to_thread.run_sync(open_folder, folder, made_for)
    shelf = Shelf(opened, limits, hooks or Hooks(), partial(open_again, folder, made_for))
    try:
        await shelf.refresh_space()
        yield Store(shelf, Intake(shelf), opened)
    finally:
        with trio.CancelScope(shield=True):
            await shelf.close()


class Store:
    """See the module. Made by ``open_store`` only."""

    def __init__(self, shelf: Shelf, intake: Intake, opened: Opened) -> None:
        self.recovery = opened.recovery
        self.moves = Moves(shelf)
        """For whoever moves files, and shows them."""
        self._shelf = shelf
        self._intake = intake
        self._facts = Facts(shelf, opened)
        self._open: Counter[FileKey] = Counter()
        self._lingering: Callable[[], Iterable[FileKey]] = tuple

    @property
    def changed(self) -> trio.Event:
        """Set, and replaced by a new one, whenever an entry begins, is published, dropped or removed."""
        return self._shelf.changed

    @property
    def new(self) -> str:
        """By what the cache folder is known again that nobody had used before this start, and that holds nothing yet;
        empty for any other."""
        used = self._shelf.folder.token_before or self.inventory().entries or self.moves.all() or self.pins()
        return "" if used else self._shelf.folder.mark.token

    # --- for routing: memory only ---

    @property
    def life(self) -> int:
        """How often the SSD has come back. An entry that was there before has the same id, and its file may be another:
        nothing that was opened in an earlier life is it."""
        return self._shelf.presence.life

    def get(self, key: FileKey) -> CacheEntry | None:
        """The live entry of this file."""
        return self._shelf.holdings.live.get(key)

    def holds_in(self, folder: FileKey) -> bool:
        """Whether anything of a file in this folder itself is held."""
        return self._shelf.holdings.holds_in(folder)

    def file_of(self, entry: CacheEntry) -> str:
        """Where the entry's bytes are on the SSD. A copying entry's file is renamed when it is published: who then
        finds nothing here asks ``get`` again."""
        folder = self._shelf.folder
        return folder.published(entry.key) if entry.state.is_whole else folder.partial(entry.id)

    def touch(self, key: FileKey, now: float) -> None:
        """Somebody read this file at ``now``; reaches the index with the next batch."""
        self._shelf.holdings.read(key, now)

    def observe(self, file: SourceFile) -> bool:
        """Compare the entry with what its source showed just now.

        The same file, or no entry: True, and the entry is fresh from now on. Another file: the entry is dropped, and
        the answer is False.
        """
        return self._shelf.observe(file)

    def is_fresh(self, key: FileKey, ttl_s: float) -> bool:
        """Whether the source confirmed the entry within ``ttl_s``. One of an earlier run was not, at first."""
        seen_at = self._shelf.seen_at.get(key)
        return seen_at is not None and trio.current_time() - seen_at <= ttl_s

    def is_confirmed(self, key: FileKey, size: int, mtime_ns: int) -> bool:
        """Whether there is an entry of this very file that its source has confirmed since the start."""
        entry = self.get(key)
        same = entry is not None and (entry.size, entry.fingerprint.mtime_ns) == (size, mtime_ns)
        return same and key in self._shelf.seen_at

    def seen_ago_s(self, key: FileKey) -> float:
        """How long ago the source confirmed the entry: infinity when it did not; 0 when there is none."""
        if key not in self._shelf.holdings.live:
            return 0.0
        seen_at = self._shelf.seen_at.get(key)
        return float("inf") if seen_at is None else trio.current_time() - seen_at

    def gone(self, key: FileKey) -> None:
        """The source has no such file (or folder) any more."""
        names = frozenset((key,))
        self.demote(Targets(keys=names, folders=names), DropCause.GONE)

    def fail(self, entry: CacheEntry, error: OSError) -> None:
        """The SSD failed on this entry's file: it is dropped, its source serves it.

        Not when the file was only renamed by its publication under the reader's feet.
        """
        current = self._shelf.holdings.by_id(entry.id)
        if current is None:
            return
        if current.state is EntryState.MOVED:
            log.error("the SSD failed on the only copy of %s: %s", entry.key, error.strerror or error)
            self._shelf.presence.suspect.set()
            return
        renamed = current.state is not entry.state or self._intake.is_publishing(entry.id)
        if renamed and error.errno == errno.ENOENT:
            return
        self._shelf.drop([current], DropCause.FAILED)
        self._shelf.presence.suspect.set()
        text = error.strerror or str(error)
        log.warning("the SSD copy of %s cannot be used (%s): it is served from its source", entry.key, text)

    def bar(self, targets: Targets) -> Bar:
        """Refuse to begin or publish copies of these, from now until the bar is released."""
        return self._shelf.bars.bar(targets)

    def is_barred(self, entry: CacheEntry) -> bool:
        """Whether somebody is changing this file, or a folder that it is in."""
        return self._shelf.bars.forbids(entry.key, entry.source_file.inode)

    def demote(self, targets: Targets, cause: DropCause) -> tuple[CacheEntry, ...]:
        """The memory half of ``drop``: no read that begins later goes to the SSD. Returns what was dropped."""
        entries = self._shelf.holdings.matching(targets)
        self._shelf.drop(entries, cause)
        self._shelf.drop_absent(targets)
        return tuple(entries)

    async def renamed(self, old: FileKey, new: FileKey, *, exchanged: bool) -> None:
        """A file or folder was renamed through the mount: what people said of it, or of what is in it, goes along. It
        is durable when this returns, unless the SSD is slow, which is then waited for as in ``drop``."""
        await self._facts.renamed(old, new, exchanged=exchanged)

    async def perhaps_renamed(self, old: FileKey, new: FileKey) -> None:
        """As ``renamed``, by a source that has not come back yet: it may still be done."""
        await self._facts.perhaps_renamed(old, new)

    def opened(self, key: FileKey) -> None:
        """Somebody opened this file through the mount. Balanced by ``closed``."""
        self._open[key] += 1

    def closed(self, key: FileKey) -> None:
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def follow(self, tell: Callable[[FileKey], object], lingering: Callable[[], Iterable[FileKey]]) -> None:
        """``tell`` is called with every entry that is published or dropped, at that moment; ``lingering`` says which of
        the open files nobody has really open."""
        self._shelf.tell = tell
        self._lingering = lingering

    def _in_use(self) -> frozenset[FileKey]:
        return frozenset(self._open).difference(self._lingering())

    async def drop(self, targets: Targets, cause: DropCause) -> tuple[CacheEntry, ...]:
        """Drop entries: in memory before the first await, durably when this returns; their files go later.

        When the SSD cannot even remove a row, or not within two seconds, this returns all the same, after a warning: a
        reader or writer does not suffer for the SSD, and after a restart the fingerprint still tells the old copy from
        the new file.
        """
        entries = self.demote(targets, cause)
        await self._shelf.forget_rows_soon()
        return entries

    # --- for copying ---

    async def begin(self, file: SourceFile, reason: str, now: float) -> CacheEntry | Refused:
        """Reserve room for a file and make its empty partial file, or go on with a copy of the same file.

        ``file`` as its source shows it just now. One caller per file at a time. Raises ``CacheError``.
        """
        return await self._intake.begin(file, reason, now)

    def why_never(self, file: SourceFile) -> str:
        """Why no copy of this file can be made before a person has done something; empty when one can."""
        never = self._intake.never(file)
        return never.value if never is not None else ""

    async def open_partial(self, entry: CacheEntry) -> Descriptor | None:
        """The partial file of a copying entry, for writing; None when the entry was dropped meanwhile. Raises
        ``CacheError``; the entry is dropped then."""
        return await self._intake.open_partial(entry)

    async def on_ssd(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run disk work on the SSD in a thread, not cancelled. Raises what it raises; EIO when there is no answer."""
        return await self._shelf.on_disk(function, *args)

    async def close_on_ssd(self, descriptor: Descriptor) -> None:
        """Close a file of the SSD, not cancelled. What the SSD says to that is nobody's concern: what must be durable
        is made so by the checkpoints."""
        try:
            await self._shelf.on_disk(descriptor.close)
        except OSError as error:  # the SSD was not even asked, maybe
            log.debug("closing a file of the SSD failed: %s", error)
            trio.lowlevel.start_thread_soon(descriptor.close, lambda _: None)

    def claim(self, entry: CacheEntry, length: int) -> bool:
        """Whether the copy may write ``length`` bytes next without passing ``min_free``, others' files considered.

        They count as written until ``record`` or ``unclaim``. The measurement is that of ``refresh_space``. False,
        too, for an entry that was dropped.
        """
        return self._intake.claim(entry, length)

    def unclaim(self, entry: CacheEntry) -> None:
        """What was claimed is not being written after all."""
        self._shelf.room.unclaim(entry.id)

    def record(self, entry_id: int, start: int, end: int) -> CacheEntry | None:
        """These bytes are in the partial file now, and are served from there. None when the entry was dropped."""
        return self._intake.record(entry_id, start, end)

    async def checkpoint(self, entry: CacheEntry) -> None:
        """Make what was copied so far survive a power cut. Raises ``CacheError``; the entry is dropped then, for after
        a failed fdatasync nobody knows which bytes are on the disk."""
        await self._intake.checkpoint(entry)

    async def publish(self, entry: CacheEntry, file_now: SourceFile) -> CacheEntry | None:
        """Turn a complete copy into a cached entry; durable when this returns.

        ``file_now`` is what the source shows now, after the last byte was copied. None when the entry was dropped or
        barred meanwhile, or the source's file is another one. Raises ``CacheError`` when the SSD fails; the entry is
        dropped then.
        """
        return await self._intake.publish(entry, file_now)

    async def evict(self, key: FileKey, *, force: bool = False) -> EvictResult:
        """Drop an entry because it is no longer wanted. An open file is not evicted, unless forced; a moved one never:
        it is restored before."""
        entry = self.get(key)
        if entry is None:
            return EvictResult.NOT_CACHED
        if entry.state is EntryState.MOVED:
            return EvictResult.MOVED
        if not force and key in self._in_use():
            return EvictResult.OPEN
        cause = DropCause.EVICTED if entry.state is EntryState.CACHED else DropCause.ABANDONED
        self._shelf.drop([entry], cause)
        await self._shelf.forget_rows()
        return EvictResult.EVICTED

    # --- what there is ---

    def inventory(self) -> Inventory:
        """Everything the planner wants to know, at this moment."""
        self._shelf.settle_reads()
        return Inventory(tuple(self._shelf.holdings.live.values()), self._in_use(), self._shelf.space_soon())

    def space(self) -> Space:
        """The limits against what is used: exact on our side, as of the last ``refresh_space`` on that of others."""
        return self._shelf.space()

    def place_of(self, source: SourceName) -> str:
        """The folder of the SSD that mirrors a source. Another path when the SSD was away."""
        return self._shelf.folder.published(FileKey(source, ""))

    def make_place_of(self, source: SourceName) -> str:
        """As ``place_of``, in a thread: made where it is missing. Raises ``OSError``."""
        place = self.place_of(source)
        with suppress(FileExistsError):
            ours().make_folder(place)
        return place

    def in_use(self, key: FileKey) -> bool:
        """Whether somebody has this file open."""
        return key in self._in_use()

    async def refresh_space(self) -> None:
        """Ask the SSD's file system what it has left. Raises ``CacheError``."""
        await self._shelf.refresh_space()

    @property
    def wishes(self) -> Wishes:
        """What people said of single files."""
        return self._facts.wishes

    def pins(self) -> tuple[Pin, ...]:
        return self._facts.pins()

    async def add_pin(self, pin: Pin) -> None:
        """Durable when this returns. Raises ``CacheError``; then nothing has changed."""
        await self._facts.add_pin(pin)

    async def remove_pin(self, target: str) -> bool:
        """Forget the pins of this path or title; False when there are none. Raises ``CacheError``."""
        return await self._facts.remove_pin(target)

    async def note_wanted(self, keys: Iterable[FileKey], now: float) -> None:
        """A plan of ``now`` wants these; reaches the index with the next batch."""
        for key in keys:
            if (entry := self.get(key)) is not None:
                self._shelf.change(replace(entry, last_wanted_at=now))
        await trio.lowlevel.checkpoint()

    async def note_watched(self, key: FileKey, at: float) -> None:
        """Somebody finished this file. Durable when this returns, unless the SSD fails."""
        if (entry := self.get(key)) is not None and entry.watched_at != at:
            self._shelf.change(replace(entry, watched_at=at))
            await self._shelf.save_details()

    async def set_reason(self, key: FileKey, reason: str) -> None:
        """Why the file is on the SSD has changed. Durable when this returns, unless the SSD fails."""
        if (entry := self.get(key)) is not None and entry.reason != reason:
            self._shelf.change(replace(entry, reason=reason))
            await self._shelf.save_details()

    async def device_tag(self, identity: str) -> int:
        """The persisted number of a device, for inode numbers: 0 for the first, then 1, 2, … Raises ``CacheError``, for
        a device that was never seen before only: sources come back while the SSD is away."""
        return await self._facts.device_tag(identity)

    @property
    def upkeep(self) -> Upkeep:
        """For whoever verifies what is on the SSD."""
        return Upkeep(self._shelf)

    # --- when the SSD fails ---

    @property
    def away(self) -> str:
        """Why the SSD is gone; empty while it is there. Nothing is held then, and every call that needs it raises at
        once."""
        return self._shelf.presence.away

    @property
    def problem(self) -> str:
        """What keeps it from being filled, for people; empty when nothing does."""
        if self.away:
            return f"the cache folder {self._shelf.folder.root} is away ({self.away}): {self._shelf.without_it()}"
        return "the SSD is full: not even the index can be written" if self._shelf.ledger.full else ""

    @property
    def back(self) -> trio.Event:
        """Set, and replaced by a new one, when an SSD that was away is there again."""
        return self._shelf.back

    async def probe(self) -> None:
        """Look whether the SSD is still there, or is back."""
        if not self.away:
            await self._shelf.presence.examine()
            return
        opened = await self._shelf.try_again()
        if opened is not None:
            await self._facts.keep(opened)

    async def trouble(self, error: CacheError) -> None:
        """The SSD fails: find out how badly, and say so once."""
        await self._shelf.trouble(error)

    def works(self) -> None:
        """It does not fail any more."""
        self._shelf.works()

    # --- background ---

    async def run_removals(self) -> None:
        """Remove the files of dropped entries as they come; an SSD that fails is tried again later."""
        while True:
            changed = self.changed
            await self.remove_doomed()
            with trio.move_on_after(RETRY_S if self._shelf.holdings.doomed else float("inf")):
                await changed.wait()

    async def remove_doomed(self) -> None:
        """Remove the files of all entries dropped so far: their room is free when this returns, if the SSD obeys."""
        await self._shelf.remove_doomed()

    async def run_housekeeping(self) -> None:
        """Save what was read and wanted, and measure the SSD, now and then; look whether it is there."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_saving)
                nursery.start_soon(self._run_probe)
        finally:
            if trio.current_effective_deadline() == float("-inf"):  # cancelled, not failed: everything stops
                self._shelf.presence.hurry()

    async def _run_saving(self) -> None:
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            await self._shelf.presence.examine()
            if self.away:
                continue
            await self._shelf.save_details()
            await self.wishes.save()
            try:
                await self.refresh_space()
            except CacheError as error:
                await self.trouble(error)

    async def _run_probe(self) -> None:
        """Find out soon that the SSD is gone, and that it is back."""
        presence = self._shelf.presence
        while True:
            with trio.move_on_after(PROBE_EVERY_S):
                await (trio.Event() if self.away else presence.suspect).wait()
            if self.away or presence.suspect.is_set() or presence.overdue(LOOK_S):
                await self.probe()
