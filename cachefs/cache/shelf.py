"""The state that all parts of the store share, and the few ways in which it changes.

Used by ``cache.store`` and ``cache.intake`` only, on the event loop.

Concurrency, for whoever adds an ``await``:

* ``holdings`` changes in synchronous blocks only. After every await ask again whether the entry still lives (by id).
* Disk work runs in threads that are waited for whatever is cancelled, until the SSD is said to be away
  (``cache.presence``). Then nothing is held any more: ids, ``ledger`` and ``folder`` are others when it is back.
* The index is called in the order in which the calls were made (``cache.ledger``): an entry dropped after its row was
  asked for still loses it.
* ``tree`` is held by whoever makes, renames or removes files; ``owners`` says whose file stands at a published name,
  and changes only under it. So a late removal can never take the file of a newer copy.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.adoption import moved_entry, only_copy
from cachefs.cache.bars import Bars
from cachefs.cache.folder import Folder, Mark, StepHook, no_hook
from cachefs.cache.holdings import Holdings
from cachefs.cache.label import Label
from cachefs.cache.ledger import Ledger
from cachefs.cache.moved_disk import relabel
from cachefs.cache.presence import NO_ANSWER_S, Presence
from cachefs.cache.recovery import Opened
from cachefs.cache.room import Limits, Room
from cachefs.errors import CacheError, IndexFull
from cachefs.model import Asked, CacheEntry, DropCause, EntryState, FileKey, SourceFile, Space, Targets
from cachefs.paths import cache_path
from cachefs.units import format_size

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

RETRY_S = 30.0
"""How long to leave a failing SSD alone."""
_QUIET_S = 10 * RETRY_S
"""How long after the last failure the next one is news again."""
FORGET_S = 2.0
"""How long somebody who changes a file waits for its row to go: after a restart the fingerprint tells as well."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What tests put in the place of the world: the clock, and a call after each step of a publication."""

    now: Callable[[], float] = time.time
    on_step: StepHook = no_hook


Reopen = Callable[[Mark, frozenset[int]], Opened]
"""Opens a cache folder that was away, in a thread; see ``recovery.open_again``."""


class Shelf:
    """Entries, limits, bars, index and folder of one open cache."""

    def __init__(self, opened: Opened, limits: Limits, hooks: Hooks, reopen: Reopen) -> None:
        self.presence = Presence(opened.folder, self._leave)
        self.ledger = Ledger(self.presence, opened)
        self.hooks = hooks
        self.holdings = Holdings(opened.entries)
        self.absent = Holdings()
        """What it held when it went away."""
        self.next_id = opened.next_id
        self.back = trio.Event()
        """Set, and replaced by a new one, when an SSD that was away is there again."""
        self.room = Room(limits)
        self.bars = Bars()
        self.seen_at: dict[FileKey, float] = {}
        """trio time at which the source last confirmed an entry."""
        self.owners = _owners(opened)
        self.aside = dict(opened.aside)
        """Files below the cache folder that are nobody's and must not be removed, with their sizes."""
        self.unlike: set[str] = set()
        """Those of them that have other bytes than the source's file of their name, as a copy of that has shown."""
        self.tree = trio.Lock()
        self.changed = trio.Event()
        self.tell: Callable[[FileKey], object] = lambda _: None
        """Who is told at once of an entry that was published or dropped."""
        self._unsaved: set[int] = set()
        self._removed_bytes = 0
        """Since the SSD was measured last."""
        self._quiet_until = float("-inf")
        self._reopen = reopen
        self._gone: set[int] = set()

    @property
    def folder(self) -> Folder:
        return self.presence.folder

    # --- memory: complete when it returns ---

    def observe(self, file: SourceFile) -> bool:
        """See ``Store.observe``."""
        entry = self.holdings.live.get(file.key)
        if entry is None or entry.state is EntryState.MOVED:
            return True  # a moved file is its own source
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
        quiet = (DropCause.EVICTED, DropCause.ABANDONED, DropCause.DELETED)
        level = logging.DEBUG if cause in quiet else logging.INFO
        for entry in entries:
            if entry.state is EntryState.MOVED and cause is not DropCause.DELETED:
                continue  # there is no other
            self.holdings.doom(entry)
            self.seen_at.pop(entry.key, None)
            self.room.unclaim(entry.id)
            self._unsaved.discard(entry.id)
            self.ledger.dead_rows.add(entry.id)
            log.log(level, "%s is not on the SSD any more: %s", entry.key, cause.value)
            self.note_change()
            self.tell(entry.key)

    def living(self, entry: CacheEntry) -> list[CacheEntry]:
        """The entry as it is now, after an ``await``; none when it is gone."""
        now = self.holdings.by_id(entry.id)
        return [now] if now is not None else []

    def failed(self, entry: CacheEntry, error: OSError | CacheError) -> CacheError:
        """Drop the entry because the SSD failed, and say so to the one who asked."""
        current = self.holdings.by_id(entry.id)
        if current is not None and not self.presence.is_stopping:  # then it may only be that it was not waited for
            self.drop([current], DropCause.FAILED)
        text = (isinstance(error, OSError) and error.strerror) or str(error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = f"{text}: neither for bytes (df -h) nor for files (df -i) may it be full"
        return CacheError(f"the cache folder {self.folder.root} failed on {entry.key}: {text}")

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

    def space_soon(self) -> Space:
        """As it will be once everything that was dropped is removed, and the SSD measured again. A plan that did not
        know would evict more with every look, for room that is as good as there."""
        space, doomed = self.space(), self.holdings.doomed.values()
        used_bytes = space.used_bytes - sum(entry.size for entry in doomed)
        free_bytes = space.free_bytes + sum(entry.ranges.total for entry in doomed) + self._removed_bytes
        return replace(space, used_bytes=used_bytes, free_bytes=free_bytes)

    def kept_in_the_way(self, key: FileKey) -> list[str]:
        """The files that are nobody's, must not be removed, and are where this one's copy would be, or on the way."""
        name = cache_path(key)
        return [other for other in self.aside if _lies_in_the_way(other, name)]

    # --- disk ---

    async def on_disk(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run disk work in a thread, with turns of our own: hung sources cannot use them up. Raises what it raises,
        and EIO when the SSD is away or gives no answer."""
        return await self.presence.run(function, *args)

    async def refresh_space(self) -> None:
        """See ``Store.refresh_space``."""
        written_before = self.room.written_bytes
        try:
            disk = await self.on_disk(self.folder.space)
        except OSError as error:
            raise CacheError(f"the cache folder {self.folder.root} cannot be reached: {error.strerror}") from error
        self.room.measured(disk, written_before)
        self._removed_bytes = 0

    async def forget_rows(self, within_s: float = NO_ANSWER_S) -> None:
        """Return once the rows of what was dropped are durably gone, or the SSD has failed and that was said."""
        if self.presence.away:
            return
        try:
            await self.ledger.forget_dead(within_s)
        except IndexFull as error:
            log.debug("%s", error)  # the files that go make room for it, or the next copy says that there is none
        except CacheError as error:
            await self._failed_within(within_s, error)

    async def forget_rows_soon(self) -> None:
        """As ``forget_rows``, for somebody who must not wait long: not at all when an earlier call hangs."""
        if not self.presence.overdue(FORGET_S):
            await self.forget_rows(FORGET_S)

    async def keep_asked(self, said: tuple[Asked, ...], within_s: float) -> bool:
        """Write what people said of single files; whether the SSD took it. It is waited for as in ``forget_rows``."""
        if self.presence.away:
            return False
        try:
            await self.ledger.change_kept(self.ledger.index.set_asked, said, within_s=within_s)
        except IndexFull as error:
            log.debug("%s", error)
            return False
        except CacheError as error:
            await self._failed_within(within_s, error)
            return False
        return True

    async def _failed_within(self, within_s: float, error: CacheError) -> None:
        if within_s < NO_ANSWER_S and self.presence.overdue(within_s):
            self.presence.suspect.set()  # whoever finds out what it is keeps nobody waiting
        else:
            await self.trouble(error)

    async def save_details(self) -> None:
        """Write what changed since the last batch; what the SSD does not take is tried with the next."""
        self.settle_reads()
        entries = [entry for entry_id in self._unsaved if (entry := self.holdings.by_id(entry_id)) is not None]
        try:
            await self.ledger.catch_up()
            if not entries:
                return
            await self.ledger.call(self.ledger.index.save_details, entries)
        except CacheError as error:
            await self.trouble(error)
            return
        self._unsaved.difference_update(entry.id for entry in entries if self.holdings.by_id(entry.id) is entry)

    async def remove_doomed(self) -> None:
        """See ``Store.remove_doomed``."""
        await self.forget_rows()
        for entry in list(self.holdings.doomed.values()):
            if entry.id in self.ledger.dead_rows and not self.ledger.full:
                continue  # the row goes first, unless only the file can make room for that
            try:
                await self._remove_files(entry)
            except OSError as error:
                await self.trouble(error)

    async def _remove_files(self, entry: CacheEntry) -> None:
        moved = None
        async with self.tree:
            if entry.id not in self.holdings.doomed:
                return
            await self.on_disk(self.folder.remove_partial, entry.id)
            if self.owners.get(entry.key) == entry.id:
                if entry.state is not EntryState.MOVED:  # else a person has deleted it
                    moved = await self.on_disk(only_copy, self.folder.place, cache_path(entry.key))
                if moved is None:
                    await self.on_disk(self.folder.remove_published, entry.key)
                self.owners.pop(entry.key, None)
            self.holdings.removed(entry.id)
            if moved is None:
                self._removed_bytes += entry.ranges.total
            else:
                await self._keep_moved(moved)
        self.note_change()

    async def _keep_moved(self, said: Label) -> None:
        """What was about to be removed says that it is the only copy: that is the truth, whatever the index said."""
        entry = moved_entry(self.next_id, said)
        self.next_id += 1
        log.error("%s was moved to the SSD, and the index does not know it: it is found again", entry.key)
        there = self.holdings.live.get(entry.key)
        self.drop([there] if there is not None else [], DropCause.REPLACED)
        self.holdings.add(entry)
        self.owners[entry.key] = entry.id
        self.tell(entry.key)
        await self.on_disk(relabel, self.folder, Label(said.file, said.begun_at, entry.home, entry.id))
        try:
            await self.ledger.put(entry)
        except CacheError as error:
            log.debug("the row of %s waits: %s", entry.key, error)

    # --- when the SSD fails ---

    async def trouble(self, error: OSError | CacheError) -> None:
        """One warning for as long as the SSD fails; files go on being served from where they can be."""
        await self.presence.examine()
        if self.presence.away:
            log.debug("the cache folder %s is away: %s", self.folder.root, error)
            return  # that was said
        if self.presence.is_stopping:
            log.info("the cache folder %s is left as it is; the next start puts it right: %s", self.folder.root, error)
            return
        now = trio.current_time()
        level = logging.DEBUG if now < self._quiet_until else logging.WARNING
        self._quiet_until = now + _QUIET_S
        text = "the cache folder %s fails: copying pauses and is tried again every %g s: %s"
        log.log(level, text, self.folder.root, RETRY_S, error)

    def works(self) -> None:
        """The SSD took a whole copy after it had failed."""
        self._quiet_until = float("-inf")
        log.info("the SSD works again: copying goes on")

    def _leave(self) -> str:
        """Forget what is held, as an SSD goes away: nothing may be asked of it, nor written where it was."""
        self._gone = {*self.ledger.dead_rows, *self.holdings.doomed}
        self.absent, self.holdings = self.holdings, Holdings()
        self.owners, self.seen_at, self._unsaved = {}, {}, set()
        for key, entry in self.absent.live.items():
            self.room.unclaim(entry.id)
            self.tell(key)
        self.note_change()
        trio.lowlevel.spawn_system_task(self.ledger.abandon, self.presence.leaving(self.folder))
        return self.without_it()

    def without_it(self) -> str:
        """What it means for people that the SSD is away."""
        sizes = [entry.size for entry in self.absent.live.values() if entry.state is EntryState.MOVED]
        if not sizes:
            return "everything comes from the sources"
        files = "1 file that was moved" if len(sizes) == 1 else f"{len(sizes)} files that were moved"
        there = f"({format_size(sum(sizes))}) {'is' if len(sizes) == 1 else 'are'} away with it"
        return f"{files} {there}, and cannot be read until it is back; everything else comes from the sources"

    def drop_absent(self, targets: Targets) -> None:
        """What is changed while the SSD is away is not taken for what it was when it is back."""
        for entry in self.absent.matching(targets):
            if entry.state is EntryState.MOVED:
                continue
            self.absent.doom(entry)
            self._gone.add(entry.id)

    async def try_again(self) -> Opened | None:
        """Look whether an SSD that is away is back; what it holds is compared then as at a start, and returned."""
        try:
            if not await self.presence.may_return():
                return None
            gone = frozenset(self._gone)
            opened = await trio.to_thread.run_sync(self._reopen, self.folder.mark, gone, abandon_on_cancel=True)
        except (OSError, CacheError) as error:
            log.debug("the cache folder %s is still away: %s", self.folder.root, error)
            return None
        late = frozenset(self._gone) - gone
        self._begin_at(opened)
        self.drop([entry for entry in opened.entries if entry.id in late], DropCause.CHANGED)
        return opened

    def _begin_at(self, opened: Opened) -> None:
        self.presence.begin_at(opened.folder)
        self.ledger = Ledger(self.presence, opened)
        self.holdings, self.absent, self._gone = Holdings(opened.entries), Holdings(), set()
        self.owners, self.aside, self.unlike = _owners(opened), dict(opened.aside), set()
        self.next_id = max(self.next_id, opened.next_id)
        self._quiet_until = float("-inf")
        log.info("the cache folder %s is back, with %d copies", self.folder.root, len(opened.entries))
        for entry in opened.entries:
            self.tell(entry.key)
        self.note_change()
        self.back.set()
        self.back = trio.Event()

    async def close(self) -> None:
        """Write what memory knows better, then let go of index and lock, come what may."""
        self.presence.finish()
        if self.presence.away:
            return
        try:
            await self.save_details()
            await self.remove_doomed()
            await self.ledger.close()
        except CacheError as error:
            await self.trouble(error)
        finally:
            with suppress(OSError):  # it is away, or hangs: the lock ends with this process
                await self.presence.run(self.folder.close)


def _owners(opened: Opened) -> dict[FileKey, int]:
    return {entry.key: entry.id for entry in opened.entries if entry.state.is_whole}


def _lies_in_the_way(other: str, name: str) -> bool:
    return other == name or other.startswith(f"{name}/") or name.startswith(f"{other}/")
