"""Moved files: how a published copy becomes the only one, and how it ceases to be that.

The half of ``cache.store`` that ``cache.moving`` and ``fs`` work with, reached through the store. Runs on the event
loop; see ``cache.shelf`` for the rules. It touches the SSD and memory only: what happens at the source between two of
these steps is the caller's, who goes on only when the step before is durable.

What the file itself says (``cache.label``) is the truth; the row is what recovery would make of it. So the label goes
first, but for the end of a file, where the row does: a file with a label and without a row is found again.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache import moved_disk
from cachefs.cache.full import NO_ROOM
from cachefs.cache.label import Label
from cachefs.cache.shelf import Shelf
from cachefs.errors import CacheError, IndexFull
from cachefs.model import CacheEntry, DropCause, EntryState, FileKey, Fingerprint, Home, Phase, SourceFile, SourceName
from cachefs.ranges import Ranges

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Moves:
    """Every method is durable when it returns and raises ``CacheError`` when the SSD fails; then nothing has changed
    that recovery would not put right. Each waits for its work whatever is cancelled."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def get(self, key: FileKey) -> CacheEntry | None:
        """The moved file of this name; of an SSD that is away, too: it is not there, but it is no other file."""
        for holdings in (self._shelf.holdings, self._shelf.absent):
            entry = holdings.live.get(key)
            if entry is not None and entry.state is EntryState.MOVED:
                return entry
        return None

    def below(self, folder: FileKey) -> list[CacheEntry]:
        """All moved files below a folder."""
        found = [*self._shelf.holdings.below(folder), *self._shelf.absent.below(folder)]
        return [entry for entry in found if entry.state is EntryState.MOVED]

    def names_in(self, folder: FileKey) -> dict[str, FileKey]:
        """The moved files in a folder itself, by name."""
        if not self._shelf.holdings.holds_in(folder) and not self._shelf.absent.holds_in(folder):
            return {}
        found = {}
        for entry in self.below(folder):
            above, _, name = entry.key.path.rpartition("/")
            if above == folder.path:
                found[name] = entry.key
        return found

    def all(self) -> list[CacheEntry]:
        """Every moved file that is there."""
        return [entry for entry in self._shelf.holdings.live.values() if entry.state is EntryState.MOVED]

    def absent(self) -> list[CacheEntry]:
        """Every moved file that is away with the SSD."""
        return [entry for entry in self._shelf.absent.live.values() if entry.state is EntryState.MOVED]

    def is_kept_from(self, key: FileKey) -> bool:
        """Whether no moved file can have this name: one that may be the only one of its kind is in the way."""
        return bool(self._shelf.kept_in_the_way(key))

    def has_number(self, inode: int) -> bool:
        """Whether this is a moved file's inode number."""
        found = [entry for held in (self._shelf.holdings, self._shelf.absent) for entry in held.of_number(inode)]
        return any(entry.state is EntryState.MOVED for entry in found)

    async def leave(self, entry: CacheEntry, home: Home) -> CacheEntry | None:
        """From here on the SSD's copy is the file; its source may give up its own. None when the entry is another one
        by now, or the SSD's file cannot say whose it is: then nothing has changed."""
        async with self._turn():
            current = self._current(entry.id)
            if current is None or current.state is not EntryState.CACHED:
                return None
            ledger = self._shelf.ledger
            await ledger.set_moved_from(ledger.moved_from | {entry.key.source})
            moved = await self._write(current, replace(current, state=EntryState.MOVED, home=home))
            if moved is not None and self._current(entry.id) is not moved:  # dropped on the way: the source has it
                await self._label(current)
                return None
            return moved

    def knows(self, source: SourceName) -> bool:
        """Whether files of this source have moved to this very folder. Where its source has given files up, and this is
        not so, it is another folder: that of an SSD that is not mounted."""
        return source in self._shelf.ledger.moved_from

    async def all_home(self, source: SourceName) -> None:
        """Nothing is left of what has moved, neither here nor at the source. An SSD that fails is told of."""
        ledger = self._shelf.ledger
        try:
            await ledger.set_moved_from(ledger.moved_from - {source})
        except CacheError as error:
            await self._shelf.trouble(error)

    async def set_home(self, entry: CacheEntry, home: Home) -> CacheEntry | None:
        """A moved file's home is another one, or in another phase. None when it is moved no more."""
        async with self._turn():
            current = self._current(entry.id)
            if current is None or current.home is None or current.home == home:
                return current
            return self._written(await self._write(current, replace(current, home=home)))

    async def returned(self, entry: CacheEntry, file: SourceFile) -> CacheEntry | None:
        """The source has the file, with the same bytes: what is on the SSD is a copy again."""
        async with self._turn():
            current = self._current(entry.id)
            if current is None or current.home is None:
                return None
            ranges = Ranges.of([(0, file.size)])  # it may have another size than when it moved
            cached = replace(current, source_file=file, state=EntryState.CACHED, ranges=ranges, home=None)
            self._shelf.seen_at[file.key] = trio.current_time()
            return self._written(await self._write(current, cached))

    async def changed(self, key: FileKey) -> None:
        """A moved file is about to be written to: its digest is not its content's any more. Raises ``OSError``: EBUSY
        where another file may have its name already, at the source; what is written would go with this one."""
        entry = self._present(key)
        if entry is not None and entry.home is not None and entry.home.phase is Phase.YIELDING:
            raise OSError(errno.EBUSY, "it is not known yet whether another file has its place", key.path)
        if entry is not None and entry.home is not None and entry.home.digest:
            await self.set_home(entry, replace(entry.home, digest=""))

    async def delete(self, key: FileKey) -> bool:
        """A person deletes the file; False when it is moved no more. On a full SSD it makes room for the end of its
        row."""
        async with self._turn():
            entry = self._present(key)
            if entry is None:
                return False
            self._shelf.drop([entry], DropCause.DELETED)
            with suppress(IndexFull):
                await self._shelf.ledger.forget_dead()
            await self._on_disk(moved_disk.remove, self._shelf.folder, key)
            await self._shelf.forget_rows()
            return True

    async def rename(self, old: FileKey, new: FileKey) -> bool:
        """Another name, in the place of whatever file has it; a copy of that one goes first, for it is read by name.
        False when it is moved no more."""
        shelf = self._shelf
        async with self._turn():
            entry = self._present(old)
            if entry is None or old == new:
                return entry is not None
            if self.is_kept_from(new):
                text = (
                    f"the cache folder {shelf.folder.root} keeps a file that may be the only one in the place of {new}"
                )
                raise CacheError(text, errno.EEXIST)
            copy = shelf.holdings.live.get(new)
            if copy is not None and copy.state is not EntryState.MOVED:
                shelf.drop([copy], DropCause.REPLACED)
            await self._on_disk(moved_disk.rename, shelf.folder, old, new)
            there = shelf.holdings.live.get(new)
            if there is not None and there is not entry:
                shelf.drop([there], DropCause.DELETED)
            shelf.drop(shelf.holdings.in_the_way(new), DropCause.REPLACED)
            renamed = replace(entry, source_file=replace(entry.source_file, key=new))
            shelf.holdings.rename(entry, renamed)
            shelf.owners.pop(old, None)
            shelf.owners[new] = entry.id
            for key in (old, new):
                shelf.tell(key)
            shelf.note_change()
            await shelf.ledger.put(renamed)
            return True

    async def replacing(self, key: FileKey, there: Fingerprint) -> None:
        """It is about to be renamed over a file of its source."""
        await self._set_phase(key, Phase.REPLACING, there)

    async def yielding(self, key: FileKey, coming: Fingerprint) -> None:
        """A file of its source is about to be renamed over it."""
        await self._set_phase(key, Phase.YIELDING, coming)

    async def settled(self, key: FileKey) -> None:
        """Its source has no file of its name."""
        await self._set_phase(key, Phase.AWAY, None)

    async def stays(self, key: FileKey, home: Home) -> None:
        """Nothing came of what it was about to do: its home is what it was."""
        entry = self._present(key)
        if entry is not None:
            await self.set_home(entry, home)

    async def _set_phase(self, key: FileKey, phase: Phase, there: Fingerprint | None) -> None:
        entry = self._present(key)
        if entry is not None and entry.home is not None:
            fingerprint = there if there is not None else entry.home.fingerprint
            await self.set_home(entry, replace(entry.home, phase=phase, fingerprint=fingerprint))

    def observe(self, key: FileKey, size: int, mtime_ns: int) -> None:
        """What the SSD's file was seen to be: writers change it."""
        entry = self.get(key)
        if entry is None or (entry.size, entry.fingerprint.mtime_ns) == (size, mtime_ns):
            return
        if self._current(entry.id) is not entry:
            return  # it went away with the SSD meanwhile
        file = replace(entry.source_file, fingerprint=Fingerprint(size, mtime_ns))
        self._shelf.holdings.resize(replace(entry, source_file=file))

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """No file of the SSD gets another name meanwhile; what is begun is finished."""
        with trio.CancelScope(shield=True):
            async with self._shelf.tree:
                yield

    def _present(self, key: FileKey) -> CacheEntry | None:
        """As ``get``, of an SSD that is there. Raises ``CacheError`` for one that is away."""
        entry = self.get(key)
        if entry is not None and self._current(entry.id) is not entry:
            raise CacheError(f"the cache folder {self._shelf.folder.root} is away, and with it {key}")
        return entry

    def _current(self, entry_id: int) -> CacheEntry | None:
        return self._shelf.holdings.by_id(entry_id)

    async def _write(self, before: CacheEntry, after: CacheEntry) -> CacheEntry | None:
        """Label, then row. Where there is no room for the row of a moved file, it is written later; that of a copy is
        needed, and its label says again what it said. None when the file cannot be labelled."""
        if not await self._label(after):
            return None
        try:
            await self._shelf.ledger.save_home(after)
        except CacheError as error:
            if before.home is None or not isinstance(error, IndexFull):
                with suppress(CacheError):
                    await self._label(before)
                raise
            self._shelf.ledger.later(after)
        return self._saved(after)

    def _written(self, entry: CacheEntry | None) -> CacheEntry:
        if entry is None:
            text = f"the cache folder {self._shelf.folder.root} has no room for what a moved file says of itself"
            raise CacheError(text, errno.ENOSPC)
        return entry

    async def _label(self, entry: CacheEntry) -> bool:
        moved = entry.home is not None
        said = Label(entry.source_file, entry.begun_at, entry.home, entry.id if moved else 0)
        return await self._on_disk(moved_disk.relabel, self._shelf.folder, said)

    def _saved(self, entry: CacheEntry) -> CacheEntry:
        now = self._shelf.holdings.by_id(entry.id)
        if now is not None:  # what was read and wanted meanwhile stays
            entry = replace(now, source_file=entry.source_file, state=entry.state, ranges=entry.ranges, home=entry.home)
            self._shelf.holdings.resize(entry)
        self._shelf.tell(entry.key)
        self._shelf.note_change()
        return entry

    async def _on_disk(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        try:
            return await self._shelf.on_disk(function, *args)
        except OSError as error:
            number = error.errno if error.errno in NO_ROOM else errno.EIO
            text = f"the cache folder {self._shelf.folder.root} failed: {error.strerror or error}"
            raise CacheError(text, number) from error
