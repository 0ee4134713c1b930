"""What is known of folders so that their source need not be asked: read once, and every change since was heard.

Used by ``union`` and what it hands this to, on the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping

from cachefs.fs.found import Place
from cachefs.fs.inodes import ROOT, FolderWatch, Node, number_of
from cachefs.fs.remembered import Known, Remembered
from cachefs.fs.roots import Roots
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat
from cachefs.fs.watched import Watched
from cachefs.model import FileKey, SourceName


class Certain:
    """Use from the event loop only."""

    def __init__(
        self, sources: Mapping[SourceName, Source], roots: Roots, remembered: Remembered, watched: Watched
    ) -> None:
        self._sources = sources
        self._roots = roots
        self._remembered = remembered
        self._watched = watched

    async def under(self, key: FileKey) -> Known | None:
        """What is in the folder under this key; None where that is not certain: every folder on the way must certainly
        be the one that was read under its name."""
        watch = self._watched.certain(key)
        if watch is None:
            return None
        if key.path:
            above, _, name = key.path.rpartition("/")
            known_above = await self.under(FileKey(key.source, above))
            seen = known_above.listing.named(name) if known_above is not None else None
        else:
            seen = self._roots.get(key.source)
        if seen is None or self.number(key.source, seen) != watch.folder:
            return None
        return await self._as_watched(key, watch)

    async def inside(self, folder: Node, place: Place) -> Known | None:
        """What is in this very folder; None where that is not certain."""
        watch = folder.watch if folder.watch is not None else self._watched.wake(folder)
        if not place.keys or watch is None or self._watched.certain(place.keys[0]) is not watch:
            return None
        return await self._as_watched(place.keys[0], watch)

    async def seen(self, key: FileKey, seen: Stat) -> Known | None:
        """What is in a folder that certainly has this name, and was seen to be this one; None where that is not
        certain."""
        watch = self._watched.certain(key)
        ours = watch is not None and watch.folder == self.number(key.source, seen)
        return await self._as_watched(key, watch) if watch is not None and ours else None

    async def _as_watched(self, key: FileKey, watch: FolderWatch) -> Known | None:
        known = await self._remembered.folder(key)
        return known if self._watched.certain(key) is watch else None

    def number(self, source: SourceName, seen: Stat) -> int | None:
        """The number of a folder that was seen; the root's where it is that."""
        root = self._roots.get(source)
        if len(self._sources) == 1 and root is not None and (root.dev, root.ino) == (seen.dev, seen.ino):
            return ROOT
        device = self._roots.device(source, seen.dev)
        return number_of(device.tag, seen.ino) if device is not None else None
