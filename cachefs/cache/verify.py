"""``cachefs verify``: every entry against its source and against its own file on the SSD; what is wrong is mended.

Made by ``engine`` for one verification, run by ``control.api``. The source is the truth: what differs from it is
dropped, and copied again if somebody still wants it. A source that does not answer costs nothing: what cannot be
compared stays. Nothing here is in a hurry: a source is left alone while somebody reads from it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import trio

from cachefs.cache import inside
from cachefs.cache.adoption import key_of
from cachefs.cache.copying import Chunk, read_chunk
from cachefs.cache.filecopy import SourceFiles, close_at_source
from cachefs.cache.moving import Movers
from cachefs.cache.pacing import READING_WINDOW_S, chunk_bytes, gentle_pause
from cachefs.cache.places import FOLDER_GONE, TAKEN
from cachefs.cache.store import Store
from cachefs.cache.upkeep import Besides, Broken, Whole, name_of
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, DropCause, FileKey, SourceName
from cachefs.paths import cache_path
from cachefs.ranges import Span
from cachefs.verification import Finding, Flaw, Progress, Report

log = logging.getLogger(__name__)

_GONE = (errno.ENOENT, errno.ENOTDIR)
_NO_FILE = (errno.EISDIR, errno.EINVAL)
"""There is something, and no regular file."""
_CAUSES = {
    Flaw.CHANGED: DropCause.REPLACED,
    Flaw.GONE: DropCause.GONE,
}
_AT_HOME = {TAKEN: Flaw.TAKEN, FOLDER_GONE: Flaw.HOMELESS}
_DROPPED = "dropped; it is copied again if it is still wanted"
_REMOVED = "removed"
_AT_SOURCE = "the source has a file of its name, which is shown from now on"


class Library(SourceFiles, Protocol):
    """The slow side, as verifying needs it."""

    async def list_folder(self, key: FileKey, /) -> list[str]:
        """The names in a folder; the empty path is the source's root."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to verify: everything, or what ``below`` says, down to the bytes with ``content``; and whether to mend."""

    below: FileKey | None = None
    content: bool = False
    repair: bool = False

    def covers(self, key: FileKey) -> bool:
        if self.below is None:
            return True
        return key == self.below or (
            key.source == self.below.source and (not self.below.path or key.path.startswith(f"{self.below.path}/"))
        )


class Verification:
    """One verification, from ``run`` to its report. ``progress`` may be looked at meanwhile."""

    def __init__(
        self, store: Store, files: Library, moved: Movers, wish: Wish, bandwidth: Callable[[], int | None]
    ) -> None:
        self._moved = moved
        self._upkeep = store.upkeep
        self._store = store
        self._files = files
        self._wish = wish
        self._bandwidth = bandwidth
        self._entries = sorted(
            (entry for entry in self._upkeep.entries() if wish.covers(entry.key)), key=lambda entry: entry.key
        )
        self._findings: list[Finding] = []
        self._uncompared: set[tuple[str, str]] = set()
        self._compared_bytes = 0
        total = sum(entry.ranges.total for entry in self._entries) if wish.content else 0
        self.progress = Progress(entries=len(self._entries), bytes=total)

    @property
    def entries(self) -> int:
        """How many entries there are to verify."""
        return len(self._entries)

    async def run(self) -> Report:
        """Verify, and mend as wished. Raises ``CacheError`` when the SSD's folders cannot even be listed. Cancelled
        between any two steps it leaves nothing half done."""
        began = trio.current_time()
        for entry in self._entries:
            self.progress = replace(self.progress, key=entry.key)
            done = self.progress.bytes_done + (entry.ranges.total if self._wish.content else 0)
            await self._verify(entry)
            self.progress = replace(self.progress, entries_done=self.progress.entries_done + 1, bytes_done=done)
        await self._look_besides()
        if self._wish.repair:
            await self._store.remove_doomed()
        mended = sum(bool(finding.mended) for finding in self._findings)
        log.info("verified %d entries: %d findings, %d mended", len(self._entries), len(self._findings), mended)
        return Report(len(self._entries), self._compared_bytes, tuple(self._findings), trio.current_time() - began)

    # --- one entry ---

    async def _verify(self, entry: CacheEntry) -> None:
        if entry.home is not None:
            await self._verify_moved(entry)
            return
        looked = await self._upkeep.look(entry.id)
        if looked is None:
            return  # evicted meanwhile
        if isinstance(looked, Broken):
            await self._judge(entry, looked.flaw, looked.detail)
            return
        try:
            if await self._is_its_sources(entry):
                await self._compare(entry, looked)
        finally:
            with trio.CancelScope(shield=True):
                await self._store.close_on_ssd(looked.file)

    async def _verify_moved(self, entry: CacheEntry) -> None:
        """The only copy: it can be read, it has the bytes that were moved, and its place is there for it. Nothing of
        it is ever mended here; one that somebody has brought home by hand is forgotten."""
        try:
            problem = await self._moved.look_at_home(entry.key)
            if problem == TAKEN and await self._upkeep.forget_missing(entry.id):
                self._note(entry, Flaw.MISSING, "somebody has removed it", _AT_SOURCE)
                return
            if problem:
                self._note(entry, _AT_HOME[problem], "", "")
        except OSError as error:
            self._note(entry, Flaw.UNCOMPARED, error.strerror or str(error), "")
        try:
            if not self._wish.content:
                await self._moved.soundness.look(entry.key)
            elif not await self._moved.soundness.has_its_bytes(entry.key, self._account):
                self._note(entry, Flaw.ROTTEN, "", "")
        except OSError as error:
            self._note(entry, Flaw.LOST, error.strerror or str(error), "")

    async def _is_its_sources(self, entry: CacheEntry) -> bool:
        """Whether the source shows the very file that was copied; what is found otherwise is noted."""
        try:
            file = await self._files.stat(entry.key)
        except OSError as error:
            await self._judge_absent(entry, error)
            return False
        self._store.observe(file)
        if entry.fingerprint.same_file(file.fingerprint):
            return True
        # Whoever sees that a copy is not its source's file drops it at once: it must not be served any longer.
        self._note(entry, Flaw.CHANGED, _difference(entry, file.fingerprint.size), _DROPPED)
        return False

    async def _judge_absent(self, entry: CacheEntry, error: OSError) -> None:
        """Missing is not empty: a source without any file is a disk that is not mounted."""
        if error.errno in _NO_FILE:
            await self._judge(entry, Flaw.CHANGED, "it is no regular file any more")
            return
        detail = error.strerror or str(error)
        if error.errno in _GONE:
            try:
                if await self._files.list_folder(FileKey(entry.key.source, "")):
                    await self._judge(entry, Flaw.GONE)
                    return
                detail = f"source {entry.key.source} is empty; is its disk mounted?"
            except OSError as other:
                detail = other.strerror or str(other)
        await self._judge(entry, Flaw.UNCOMPARED, detail)

    async def _judge(self, entry: CacheEntry, flaw: Flaw, detail: str = "") -> None:
        """Note what is wrong with an entry, and drop it when that was wished and is safe."""
        if self._upkeep.current(entry.id) is None:
            return
        mended = ""
        if self._wish.repair and flaw is not Flaw.UNCOMPARED:
            await self._upkeep.give_up(entry.id, _CAUSES.get(flaw, DropCause.DAMAGED))
            mended = _DROPPED
        self._note(entry, flaw, detail, mended)

    def _note(self, entry: CacheEntry, flaw: Flaw, detail: str, mended: str) -> None:
        first = flaw is not Flaw.UNCOMPARED or (entry.key.source, detail) not in self._uncompared
        self._uncompared.add((entry.key.source, detail))
        level = logging.INFO if first else logging.DEBUG  # of a source that is away, one line is enough
        log.log(level, "verify: %s: %s%s", entry.key, flaw.value, f" ({detail})" if detail else "")
        place = self._upkeep.place(name_of(self._upkeep.current(entry.id) or entry))
        self._findings.append(Finding(flaw, place, entry.key, detail, mended))

    # --- bytes ---

    async def _compare(self, entry: CacheEntry, looked: Whole) -> None:
        """Compare all bytes, or only those that the SSD has holes for: those would be read as zeros."""
        spans: Sequence[Span] = entry.ranges.spans if self._wish.content else looked.holes
        if not spans:
            return
        try:
            source = await self._files.open(entry.key)
            try:
                is_current = partial(self._upkeep.current, entry.id)
                differs_at = await self._first_difference(entry.key, looked.file, source, spans, is_current)
            finally:
                await close_at_source(self._files, entry.key, source)
            if differs_at is not None and await self._is_its_sources(entry):
                await self._judge(entry, Flaw.UNEQUAL, f"from byte {differs_at} on")
        except CacheError as error:
            await self._judge(entry, Flaw.UNREADABLE, str(error))
        except OSError as error:
            await self._judge(entry, Flaw.UNCOMPARED, error.strerror or str(error))

    async def _first_difference(
        self,
        key: FileKey,
        file: Descriptor,
        source: Descriptor,
        spans: Sequence[Span],
        is_current: Callable[[], object],
    ) -> int | None:
        """Where source and SSD differ first; None, too, once it is not current any more. Raises ``CacheError`` when the
        SSD fails, ``OSError`` when the source does."""
        for span in spans:
            position = span.start
            while position < span.end:
                if not is_current():
                    return None  # changed or evicted meanwhile
                await self._wait_for_readers(key.source)
                length = min(span.end - position, chunk_bytes(False, self._bandwidth()))
                chunk = await self._files.run(key.source, read_chunk, source, position, length)
                differs_at = await self._differs_at(file, chunk, position, length)
                if differs_at is not None:
                    return differs_at
                position += length
                self._account(length)
                await trio.sleep(gentle_pause(chunk.took_s, length, self._bandwidth()))
        return None

    async def _differs_at(self, file: Descriptor, chunk: Chunk, start: int, length: int) -> int | None:
        if chunk.end < start + length:
            return chunk.end
        try:
            return await self._store.on_ssd(first_difference, file, chunk, start)
        except OSError as error:
            raise CacheError(error.strerror or str(error)) from error

    async def _wait_for_readers(self, source: SourceName) -> None:
        while (left := self._files.reading_since(source) + READING_WINDOW_S - trio.current_time()) > 0:
            self.progress = replace(self.progress, waiting=f"somebody reads from {source}")
            await trio.sleep(left)
        if self.progress.waiting:
            self.progress = replace(self.progress, waiting="")

    def _account(self, length: int) -> None:
        self._compared_bytes += length
        if self._wish.content:
            self.progress = replace(self.progress, bytes_done=self.progress.bytes_done + length)

    # --- what belongs to no entry ---

    async def _look_besides(self) -> None:
        try:
            besides = await self._upkeep.besides()
        except OSError as error:
            raise CacheError(f"the cache folder {self._upkeep.place('')} cannot be listed: {error}") from error
        for name in besides.leftovers:
            if self._covers_name(name):
                await self._judge_leftover(name)
        for name in besides.foreign:
            if self._covers_name(name):
                self._findings.append(Finding(Flaw.FOREIGN, self._upkeep.place(name)))
        if self._wish.below is None:
            await self._judge_index(besides)

    def _covers_name(self, name: str) -> bool:
        below = self._wish.below
        if below is None:
            return True
        folder = cache_path(below)
        return name == folder or name.startswith(f"{folder}/")

    async def _judge_leftover(self, name: str) -> None:
        size = self._upkeep.aside_bytes(name)
        if size is not None:
            key = key_of(name)
            try:
                is_home = key is not None and await self._is_same_at_home(key, name, size)
            except (OSError, CacheError) as error:
                detail = (error.strerror if isinstance(error, OSError) else None) or str(error)
                self._findings.append(Finding(Flaw.UNCOMPARED, self._upkeep.place(name), detail=detail))
                return
            if not is_home:
                self._findings.append(Finding(Flaw.ALONE, self._upkeep.place(name)))
                return
        mended, detail = "", ""
        if self._wish.repair:
            try:
                mended = _REMOVED if await self._upkeep.remove(name) else ""
            except OSError as error:
                detail = f"it cannot be removed: {error.strerror or error}"
        self._findings.append(Finding(Flaw.LEFTOVER, self._upkeep.place(name), detail=detail, mended=mended))

    async def _is_same_at_home(self, key: FileKey, name: str, size: int) -> bool:
        """Whether the source's file of this name has every byte of a leftover. Raises ``OSError`` or ``CacheError``
        when one of them does not tell."""
        if await self._size_at_home(key) != size:
            return False
        source = await self._files.open(key)
        try:
            file = await self._store.on_ssd(_open, self._upkeep.place(""), name)
            try:
                return await self._first_difference(key, file, source, [Span(0, size)], lambda: True) is None
            finally:
                await self._store.close_on_ssd(file)
        finally:
            await close_at_source(self._files, key, source)

    async def _judge_index(self, besides: Besides) -> None:
        if besides.index_problem:
            finding = Finding(Flaw.INDEX, self._upkeep.place("index.sqlite"), detail=besides.index_problem)
            self._findings.append(finding)
        for entry in besides.unrecorded:
            await self._judge(entry, Flaw.UNRECORDED)
        for row in besides.unclaimed_rows:
            at_home = row.home is not None and await self._is_at_home(row.key)
            mended = ""
            if self._wish.repair or at_home:
                await self._upkeep.remove_rows((row,))
                mended = _REMOVED
            flaw = Flaw.UNCLAIMED_ROW if row.home is None or at_home else Flaw.LOST
            self._findings.append(Finding(flaw, self._upkeep.place(name_of(row)), row.key, mended=mended))

    async def _is_at_home(self, key: FileKey) -> bool:
        try:
            return await self._size_at_home(key) is not None
        except OSError:
            return False

    async def _size_at_home(self, key: FileKey) -> int | None:
        """How large the source's file of this name is; None when it has none. Raises ``OSError`` when it does not
        tell."""
        try:
            return (await self._files.stat(key)).size
        except OSError as error:
            if error.errno not in (*_GONE, *_NO_FILE):
                raise
            return None


def _open(root: str, name: str) -> Descriptor:
    return Descriptor(inside.open_file(root, name))


def first_difference(file: Descriptor, chunk: Chunk, start: int) -> int | None:
    """Where the bytes of a file from ``start`` on are not those of a chunk of its source, whose gaps are zeros.

    They are read from the disk itself, as far as the kernel lets go of what it has in memory.
    """
    with file.use() as number:
        os.posix_fadvise(number, start, chunk.end - start, os.POSIX_FADV_DONTNEED)
        position = start
        for piece in chunk.pieces:
            zeros = bytes(piece.start - position)
            for expected, at in ((zeros, position), (piece.data, piece.start)):
                differs_at = _unequal_at(number, expected, at)
                if differs_at is not None:
                    return differs_at
            position = piece.start + len(piece.data)
        return _unequal_at(number, bytes(chunk.end - position), position)


def _unequal_at(number: int, expected: bytes, start: int) -> int | None:
    done = 0
    while done < len(expected):
        found = os.pread(number, len(expected) - done, start + done)
        if not found:
            return start + done
        if found != expected[done : done + len(found)]:
            pairs = enumerate(zip(found, expected[done:], strict=False))
            return start + done + next(index for index, (mine, theirs) in pairs if mine != theirs)
        done += len(found)
    return None


def _difference(entry: CacheEntry, size: int) -> str:
    if size != entry.size:
        return f"{size} bytes instead of {entry.size}"
    return "it was modified, or another file has its name"
