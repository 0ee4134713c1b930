"""Moved files: members of the union that live on the SSD alone.

Used by ``union``, ``changes`` and ``routing``. To everybody else a moved file is a file like any other, of a source of
its own: the SSD's folder that mirrors its source, with threads and a deadline of its own. What it shows of itself is
what the SSD's file is, but for the inode number, the device and the birth, which are those that it had.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import trio

from cachefs.fs import reach
from cachefs.fs.found import BELIEVED_S, Found, Place, absent_dev
from cachefs.fs.inodes import Inodes, Link, Node, inode_of, tag_of
from cachefs.fs.reach import Ref
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat
from cachefs.model import CacheEntry, FileKey, Fingerprint, Home, SourceName

log = logging.getLogger(__name__)

T = TypeVar("T")

_TIMEOUT_S = 10.0


class Moved(Protocol):
    """What is moved; the store's side. Synchronous and quick."""

    def get(self, key: FileKey, /) -> CacheEntry | None: ...

    def below(self, folder: FileKey, /) -> list[CacheEntry]: ...

    def names_in(self, folder: FileKey, /) -> Mapping[str, FileKey]: ...

    def is_kept_from(self, key: FileKey, /) -> bool: ...

    def observe(self, key: FileKey, size: int, mtime_ns: int, /) -> None: ...

    async def changed(self, key: FileKey, /) -> None: ...

    async def delete(self, key: FileKey, /) -> bool: ...

    async def rename(self, old: FileKey, new: FileKey, /) -> bool: ...

    async def replacing(self, key: FileKey, there: Fingerprint, /) -> None: ...

    async def yielding(self, key: FileKey, coming: Fingerprint, /) -> None: ...

    async def settled(self, key: FileKey, /) -> None: ...

    async def stays(self, key: FileKey, home: Home, /) -> None: ...


class NothingMoved:
    """Where there is no cache."""

    def get(self, key: FileKey) -> None: ...

    def below(self, folder: FileKey) -> list[CacheEntry]:
        return []

    def names_in(self, folder: FileKey) -> Mapping[str, FileKey]:
        return {}

    def is_kept_from(self, key: FileKey) -> bool:
        return False

    def observe(self, key: FileKey, size: int, mtime_ns: int) -> None: ...

    async def changed(self, key: FileKey) -> None: ...

    async def delete(self, key: FileKey) -> bool:
        return False

    async def rename(self, old: FileKey, new: FileKey) -> bool:
        return False

    async def replacing(self, key: FileKey, there: Fingerprint) -> None: ...

    async def yielding(self, key: FileKey, coming: Fingerprint) -> None: ...

    async def settled(self, key: FileKey) -> None: ...

    async def stays(self, key: FileKey, home: Home) -> None: ...


class Elsewhere:
    """See the module. Use from the event loop only."""

    def __init__(
        self, moved: Moved | None = None, path_of: Callable[[SourceName], str] = str, names: Iterable[SourceName] = ()
    ) -> None:
        """``path_of`` a source: the SSD's folder that mirrors it, which is there."""
        self.files = moved if moved is not None else NothingMoved()
        self._path_of = path_of
        self.sources = {
            name: Source(
                SourceName(f"the SSD for {name}"), path_of(name), timeout_s=_TIMEOUT_S, ttl_s=1.0, watch_changes=False
            )
            for name in names
        }

    async def open(self) -> None:
        for source in self.sources.values():
            await source.open()

    def close(self) -> None:
        for source in self.sources.values():
            source.close()

    async def follow(self, back: Callable[[], trio.Event]) -> None:
        """An SSD that was away is reached by another way when it is back. Runs for ever."""
        while True:
            await back().wait()
            for name, source in self.sources.items():
                source.path = self._path_of(name)
                try:
                    await source.open()
                except OSError as error:
                    log.debug("%s: %s", source.name, error)  # it is probed

    def place(self, key: FileKey, node: Node | None = None) -> Place | None:
        """Where a moved file is; None for any other, or when it is not this node's."""
        entry = self.files.get(key)
        source = self.sources.get(key.source)
        if entry is None or source is None or (node is not None and not _is(node, entry)):
            return None
        return Place(source, (key,), Ref(source.folders, (key.path,), 0, 0, 0, 0, anything=True), moved=entry)

    def names_in(self, folder: FileKey) -> dict[str, int]:
        """The names of the moved files in a folder itself, and their numbers."""
        found = ((name, self.files.get(key)) for name, key in self.files.names_in(folder).items())
        return {name: entry.source_file.inode for name, entry in found if entry is not None}

    def those_in(self, folder: FileKey, names: Sequence[str]) -> dict[str, int]:
        """As ``names_in``, of these names: without a look at all that is in the folder."""
        above = f"{folder.path}/" if folder.path else ""
        found = ((name, self.files.get(FileKey(folder.source, above + name))) for name in names)
        return {name: entry.source_file.inode for name, entry in found if entry is not None}

    async def wherever(self, keys: Sequence[FileKey], act: Callable[[], Awaitable[T]]) -> T:
        """Do it again when it did not find a file that has moved, or come home, meanwhile; once more also where it is
        again where it was before."""
        again = True
        while True:
            before = self._ids(keys)
            try:
                return await act()
            except OSError as error:
                unmoved = self._ids(keys) == before
                if error.errno != errno.ESTALE and (error.errno != errno.ENOENT or unmoved):
                    raise
                if unmoved and not again:
                    raise
                again = not unmoved

    def _ids(self, keys: Sequence[FileKey]) -> list[int]:
        return [entry.id for key in keys if (entry := self.files.get(key)) is not None]

    async def find(self, place: Place, inodes: Inodes, link: Link) -> Found:
        """The node of a moved file, as it is now; ESTALE for another."""
        if place.moved is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        seen = self.noted(place.moved, await place.source.call(reach.stat_node, place.ref))
        return Found(inodes.meet(place.moved.source_file.inode, seen, link), seen, BELIEVED_S, BELIEVED_S)

    def noted(self, moved: CacheEntry, seen: Stat) -> Stat:
        """A moved file was seen on the SSD; returns what is shown of it."""
        self.files.observe(moved.key, seen.size, seen.mtime_ns)
        return shown(moved, seen)

    def any_source(self) -> Source | None:
        """One whose threads may touch files of the SSD that have no name any more."""
        return next(iter(self.sources.values()), None)


def identity_of(entry: CacheEntry) -> tuple[int, int]:
    """The number of a moved file, and when it was born."""
    return entry.source_file.inode, entry.home.birth_ns if entry.home is not None else 0


def _is(node: Node, entry: CacheEntry) -> bool:
    """The kernel may know the file by another number, while it knows an earlier file by this one."""
    number, home = entry.source_file.inode, entry.home
    return node.number == number or (
        node.ino == inode_of(number) and home is not None and node.born_ns == home.birth_ns
    )


def shown(entry: CacheEntry, seen: Stat) -> Stat:
    """The attributes of a moved file as the mount shows them."""
    number, home = entry.source_file.inode, entry.home
    birth_ns = home.birth_ns if home is not None else 0
    return seen._replace(dev=absent_dev(tag_of(number)), ino=inode_of(number), birth_ns=birth_ns)
