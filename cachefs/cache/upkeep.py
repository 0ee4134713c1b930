"""What the SSD really holds for each entry, what it holds besides, and letting go of what is wrong.

The half of ``cache.store`` that ``cache.verify`` works with, reached through the store. Runs on the event loop; see
``cache.shelf`` for the rules. It looks at the SSD and at memory only: sources are ``cache.verify``'s business.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

from cachefs.cache import inside, label
from cachefs.cache.adoption import opened
from cachefs.cache.shelf import Shelf
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, DropCause, EntryState, FileKey, SourceName
from cachefs.paths import cache_path
from cachefs.ranges import Ranges, Span
from cachefs.verification import Flaw

_FLAW_OF = {
    errno.ENOENT: Flaw.MISSING,
    errno.ENOTDIR: Flaw.MISSING,
    errno.ELOOP: Flaw.STRANGE,
    errno.EINVAL: Flaw.STRANGE,
    errno.EXDEV: Flaw.STRANGE,
}


@dataclass(frozen=True, slots=True)
class Whole:
    """An entry's file, open for reading, that looks as it should. ``holes`` of what counts as copied take up no space
    on the SSD: fine where the source has a hole too, or nothing but zeros. Whoever gets it closes the file."""

    file: Descriptor
    holes: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Broken:
    """An entry's file is not what it should be."""

    flaw: Flaw
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Besides:
    """What is on the SSD and belongs to no entry, by its name below the cache folder, and rows and entries that do not
    know of each other."""

    leftovers: tuple[str, ...]
    foreign: tuple[str, ...]
    unclaimed_rows: tuple[CacheEntry, ...]
    unrecorded: tuple[CacheEntry, ...]
    index_problem: str


class Upkeep:
    """Looks and mends; every method may be called while the daemon serves, copies and evicts."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def place(self, name: str) -> str:
        """The path on the SSD of a name below the cache folder."""
        return f"{self._shelf.folder.root}/{name}"

    def entries(self) -> tuple[CacheEntry, ...]:
        return tuple(self._shelf.holdings.live.values())

    def current(self, entry_id: int) -> CacheEntry | None:
        """The entry as it is now, while it lives."""
        return self._shelf.holdings.by_id(entry_id)

    async def look(self, entry_id: int) -> Whole | Broken | None:
        """Whether the entry's file is there, of the right size, and allocated; None when the entry is gone."""
        shelf = self._shelf
        async with shelf.tree:  # no file changes its name meanwhile
            entry = self.current(entry_id)
            if entry is None:
                return None
            return await shelf.on_disk(_look, shelf.folder.place, name_of(entry), entry.size, entry.ranges)

    async def besides(self) -> Besides:
        """Everything on the SSD that no entry accounts for. Raises ``OSError``; an index that cannot be read is a part
        of the answer."""
        shelf = self._shelf
        async with shelf.tree:
            contents = await shelf.on_disk(shelf.folder.contents)
            found = {**contents.published, **contents.partial}
            accounted = self._accounted()
            strays = [name for name in found if name not in accounted]
            problem, rows = await self._rows()
            known = {entry.id for entry in self.entries()} | shelf.holdings.doomed.keys() | shelf.ledger.dead_rows
            recorded = {row.id for row in rows}
            cached = [entry for entry in self.entries() if entry.state.is_whole]
        return Besides(
            leftovers=tuple(name for name in strays if found[name] >= 0),
            foreign=(*(name for name in strays if found[name] < 0), *contents.elsewhere),
            unclaimed_rows=tuple(row for row in rows if row.id not in known),
            unrecorded=() if problem else tuple(entry for entry in cached if entry.id not in recorded),
            index_problem=problem,
        )

    async def _rows(self) -> tuple[str, tuple[CacheEntry, ...]]:
        """What is wrong with the index, and its rows; none when it cannot be read."""
        ledger = self._shelf.ledger
        try:
            return await ledger.call(ledger.index.problem), await ledger.call(ledger.index.entries)
        except CacheError as error:
            return str(error), ()

    def _accounted(self) -> set[str]:
        """The names of all files that are ours by now, those included that are about to be removed."""
        shelf = self._shelf
        names = {cache_path(key) for key in shelf.owners}
        names.update(name_of(entry) for entry in shelf.holdings.live.values())
        names.update(f"partial/{entry_id}" for entry_id in shelf.holdings.doomed)
        return names

    async def give_up(self, entry_id: int, cause: DropCause) -> bool:
        """Drop an entry: in memory at once, its row when this returns, its files later. False when it was gone."""
        entry = self.current(entry_id)
        if entry is None:
            return False
        self._shelf.drop([entry], cause)
        await self._shelf.forget_rows()
        return True

    async def forget_missing(self, entry_id: int) -> bool:
        """Let a moved file's entry go whose file is not on the SSD any more, since its source has one of its name."""
        shelf = self._shelf
        async with shelf.tree:
            entry = self.current(entry_id)
            if entry is None or entry.state is not EntryState.MOVED:
                return False
            if not await shelf.on_disk(_is_missing, shelf.folder.published(entry.key)):
                return False
            shelf.drop([entry], DropCause.DELETED)
        await shelf.forget_rows()
        return True

    async def remove(self, name: str) -> bool:
        """Remove a leftover, unless it belongs to an entry by now, is no regular file, or a moved one. Raises
        ``OSError``."""
        shelf = self._shelf
        async with shelf.tree:
            if name in self._accounted():
                return False
            if not await shelf.on_disk(_is_rubbish, shelf.folder.place, name):
                return False
            await shelf.on_disk(shelf.folder.remove, name)
            shelf.aside.pop(name, None)
            return True

    def aside_bytes(self, name: str) -> int | None:
        """The size of a leftover that may be the only file of its name; None for any other leftover."""
        return self._shelf.aside.get(name)

    async def remove_rows(self, rows: Iterable[CacheEntry]) -> None:
        """Remove rows that no entry stands for. Raises ``CacheError``."""
        ledger = self._shelf.ledger
        await ledger.call(ledger.index.delete, [row.id for row in rows])


def name_of(entry: CacheEntry) -> str:
    """Where an entry's bytes are, below the cache folder."""
    return cache_path(entry.key) if entry.state.is_whole else f"partial/{entry.id}"


# --- in the SSD's threads --------------------------------------------------------------------------------------------


def _look(root: str, name: str, size: int, ranges: Ranges) -> Whole | Broken:
    try:
        file = Descriptor(inside.open_file(root, name))
    except OSError as error:
        flaw = _FLAW_OF.get(error.errno or 0, Flaw.UNREADABLE)
        return Broken(flaw, "" if flaw is Flaw.MISSING else error.strerror or str(error))
    found = os.fstat(file.number).st_size
    if found != size:
        file.close()
        return Broken(Flaw.WRONG_SIZE, f"{found} bytes instead of {size}")
    return Whole(file, tuple(_holes(file.number, ranges)))


def _holes(number: int, ranges: Ranges) -> list[Span]:
    """The parts of ``ranges`` that the file system has nothing for; none where it knows no holes."""
    holes = []
    for span in ranges.spans:
        position = span.start
        while position < span.end:
            try:
                hole_at = os.lseek(number, position, os.SEEK_HOLE)
                data_at = _data_after(number, hole_at, span.end) if hole_at < span.end else span.end
            except OSError:
                return []
            if hole_at >= span.end:
                break
            holes.append(Span(hole_at, data_at))
            position = data_at
    return holes


def _data_after(number: int, position: int, end: int) -> int:
    try:
        return min(os.lseek(number, position, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # none up to the end of the file
            return end
        raise


def _is_missing(path: str) -> bool:
    """For sure: a disk that does not answer just now says nothing of what is on it."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)
    return False


def _is_rubbish(root: str, name: str) -> bool:
    """Whether it is a regular file, and none that says of itself that it is the only one of its kind. Raises
    ``OSError`` when nobody can tell."""
    number = opened(root, name)
    if number is None:
        return False
    try:
        said = label.read(number, FileKey(SourceName(""), name))
    finally:
        os.close(number)
    return said is None or said.home is None
