"""One copy, from the source's first missing byte to the published entry.

Used by ``cache.populate``, which decides what to copy and when to stop. Runs on the event loop. A chunk is read in a
thread of the file's source and written in one of the SSD's: a slow SSD must not use up the source's deadline, nor a
hung source the SSD's threads. The second hop costs 0.2 ms for 4 MiB.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, TypeVarTuple

import trio

from cachefs.cache.copying import look, read_attributes, read_chunk, write_attributes, write_chunk
from cachefs.cache.pacing import READING_WINDOW_S, chunk_bytes, pause_after
from cachefs.cache.store import Store
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, DropCause, EntryState, FileKey, SourceFile, SourceName, Targets
from cachefs.ranges import Span

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CHECKPOINT_BYTES = 64 << 20
"""How much of a copy a power cut may cost; also bounds what the SSD's last fsync has to write."""
_CLOSE_S = 2.0


class SourceFiles(Protocol):
    """The slow side, as copying needs it. Everything raises ``OSError``, ``SourceError`` included."""

    async def stat(self, key: FileKey, /) -> SourceFile:
        """The file as its source shows it now."""

    async def open(self, key: FileKey, /) -> Descriptor:
        """The file, open for reading; the caller closes it."""

    async def run(self, source: SourceName, function: Callable[[*Ts], T], /, *args: *Ts) -> T:
        """``function`` in a thread of this source, abandoned past its deadline."""

    def reading_since(self, source: SourceName, /) -> float:
        """trio time of the last read of this source that a person waited for; minus infinity when there was none."""


class Outcome(enum.Enum):
    """How a copy ended. The text completes "... is not copied further:" for people."""

    PUBLISHED = "it is complete"
    STOPPED = "it was told to stop"
    DROPPED = "it was dropped while it was being copied"
    CHANGED = "its source shows another file now"
    SSD_FULL = "others have filled the SSD up to cache.min_free"


@dataclass(frozen=True, slots=True)
class Share:
    """What one copy may take of what all share, at this moment."""

    bandwidth: int | None
    copies_on_source: int


class FileCopy:
    """The copy of one entry. ``copied_bytes`` grows while it runs."""

    def __init__(
        self, store: Store, files: SourceFiles, entry: CacheEntry, share: Callable[[], Share], stop: Callable[[], bool]
    ) -> None:
        self.entry = entry
        self.copied_bytes = 0
        self._store = store
        self._files = files
        self._share = share
        self._stop = stop
        self._life = store.life
        self._uncertain_bytes = 0

    @property
    def key(self) -> FileKey:
        return self.entry.key

    async def run(self) -> Outcome:
        """Copy what is missing and publish. Raises ``CacheError`` when the SSD fails and ``OSError`` when the source
        does; what was copied by then stays for the next time. Cancelled between chunks it leaves the same."""
        source = await self._files.open(self.key)
        try:
            outcome = await self._copy_from(source)
        finally:
            await close_at_source(self._files, self.key, source)
        if outcome is not Outcome.PUBLISHED:
            return outcome
        if self._current() is None:
            return Outcome.DROPPED
        published = await self._store.publish(self.entry, await self._files.stat(self.key))
        if published is not None:
            return Outcome.PUBLISHED
        return Outcome.DROPPED if self._current() is None else Outcome.STOPPED

    async def _copy_from(self, source: Descriptor) -> Outcome:
        seen = await self._files.run(self.key.source, look, source)
        fingerprint = self.entry.fingerprint
        if (seen.size, seen.mtime_ns) != (fingerprint.size, fingerprint.mtime_ns):
            return Outcome.CHANGED
        target = await self._store.open_partial(self.entry)
        if target is None:
            return Outcome.DROPPED
        try:
            outcome = await self._copy_missing(source, target)
            if outcome is Outcome.PUBLISHED and await self._files.run(self.key.source, look, source) != seen:
                # What the union knows of it may be older.
                self._store.demote(Targets(keys=frozenset((self.key,))), DropCause.REPLACED)
                return Outcome.CHANGED
            if outcome is Outcome.PUBLISHED:
                attributes = await self._files.run(self.key.source, read_attributes, source)
                await self._on_ssd(write_attributes, target, attributes)
        finally:
            with trio.CancelScope(shield=True):
                await self._save()
                await self._store.close_on_ssd(target)
        return outcome

    async def _copy_missing(self, source: Descriptor, target: Descriptor) -> Outcome:
        """Chunk by chunk; PUBLISHED stands for "nothing is missing"."""
        while (current := self._current()) is not None:
            missing = current.ranges.missing(0, current.size)
            if not missing:
                return Outcome.PUBLISHED
            if self._stop():
                return Outcome.STOPPED
            outcome = await self._copy_span(source, target, missing[0])
            if outcome is not None:
                return outcome
            if self._uncertain_bytes >= CHECKPOINT_BYTES:
                self._uncertain_bytes = 0
                await self._store.checkpoint(self.entry)
        return Outcome.DROPPED

    async def _copy_span(self, source: Descriptor, target: Descriptor, span: Span) -> Outcome | None:
        """The first chunk of a missing span, and the pause after it."""
        length = min(span.length, chunk_bytes(self._someone_reads(), self._share().bandwidth))
        await self._store.refresh_space()
        if not self._store.claim(self.entry, length):
            return Outcome.DROPPED if self._current() is None else Outcome.SSD_FULL
        try:
            chunk = await self._files.run(self.key.source, read_chunk, source, span.start, length)
            await self._on_ssd(write_chunk, target, chunk)
            self._account(span.start, chunk.end)
        finally:
            self._store.unclaim(self.entry)
        if chunk.end < span.start + length:
            self._store.observe(await self._files.stat(self.key))
            return Outcome.CHANGED
        share = self._share()
        someone_reads = self._someone_reads()
        await trio.sleep(pause_after(chunk.took_s, length, share.bandwidth, someone_reads, share.copies_on_source))
        return None

    async def _on_ssd(self, write: Callable[[Descriptor, T], None], target: Descriptor, what: T) -> None:
        try:
            await self._store.on_ssd(write, target, what)
        except OSError as error:
            raise CacheError(f"writing the copy of {self.key} failed: {error}") from error

    def _account(self, start: int, end: int) -> None:
        if self._store.life != self._life:
            return  # it was written where the SSD was
        self._store.record(self.entry.id, start, end)
        self.copied_bytes += end - start
        self._uncertain_bytes += end - start

    def _someone_reads(self) -> bool:
        return trio.current_time() - self._files.reading_since(self.key.source) < READING_WINDOW_S

    def _current(self) -> CacheEntry | None:
        """The entry as it is now, while it is this one."""
        current = self._store.get(self.key)
        same = current is not None and current.id == self.entry.id and self._store.life == self._life
        return current if same else None

    async def _save(self) -> None:
        """The last checkpoint of this run, whatever ended it: what is lost then is only work."""
        current = self._current()
        if current is None or current.state is not EntryState.COPYING or not self._uncertain_bytes:
            return
        try:
            await self._store.checkpoint(self.entry)
        except CacheError as error:
            log.debug("%s", error)


async def close_at_source(files: SourceFiles, key: FileKey, source: Descriptor) -> None:
    """Close in a thread, since a close may hang: then the thread is left alone. A source known to be away refuses to
    be asked, so that goes to a thread of its own."""
    with trio.move_on_after(_CLOSE_S, shield=True):
        try:
            await files.run(key.source, source.close)
        except OSError as error:
            log.debug("closing %s: %s", key, error)
            own = trio.CapacityLimiter(1)
            await trio.to_thread.run_sync(source.close, abandon_on_cancel=True, limiter=own)
