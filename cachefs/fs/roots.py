"""The sources' own folders: whether each is the one that it was, and which file systems lie below them.

Used by ``union``. An empty folder where there was a library, or another one than before, is a lost disk and no
deletion: the source is missing then, until its folder is back or accepted.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from cachefs.errors import SourceError
from cachefs.fs import devices
from cachefs.fs.found import Tagged, absent, tag_in
from cachefs.fs.inodes import Inodes
from cachefs.fs.remembered import Remembered
from cachefs.fs.source import Root, Source, is_empty
from cachefs.fs.stat import Stat
from cachefs.model import FileKey, SourceName

_EMPTY = "the folder is empty; is its disk mounted?"


class Roots:
    """The folders of all sources. Use from the event loop only."""

    def __init__(
        self,
        sources: Mapping[SourceName, Source],
        remembered: Remembered,
        inodes: Inodes,
        tag_of: Callable[[str], Awaitable[int]],
    ) -> None:
        self._sources = sources
        self._remembered = remembered
        self._inodes = inodes
        self._tag_of = tag_of
        self._seen: dict[SourceName, Stat] = {}
        self._devices: dict[tuple[SourceName, int], Tagged] = {}
        self._was_full: set[SourceName] = set()
        self._local: set[SourceName] = set()

    def get(self, name: SourceName) -> Stat | None:
        """A source's folder as it was seen last."""
        return self._seen.get(name)

    def was_full(self, source: Source) -> bool:
        """Whether there was anything in it."""
        return source.name in self._was_full

    # --- file systems ---

    def device(self, source: SourceName, dev: int) -> Tagged | None:
        """A file system of a source, if it was met before, or is only remembered."""
        return self._devices.get((source, dev)) or (absent(dev) if tag_in(dev) is not None else None)

    def on(self, dev: int) -> list[Source]:
        """The sources on this file system."""
        return [self._sources[name] for name, known in self._devices if known == dev]

    async def learn(self, source: Source, dev: int, device: devices.Device) -> Tagged:
        """A file system that was just met."""
        learned = Tagged(await self._tag_of(device.identity), device.filesystem, device.local)
        self._devices[source.name, dev] = learned
        self._inodes.leaves.add_device(dev, learned.tag)
        return learned

    # --- folders ---

    async def open(self) -> None:
        """Open every source's folder; OSError when one cannot be, and nothing is remembered of it."""
        for source in self._sources.values():
            source.judge = partial(self._judge_root, source)
            try:
                await source.open()
            except OSError as error:
                if source.in_place or not await self._recall_root(source):
                    raise
                source.missing(error)
            if source.name in self._local:
                source.watch()  # here or never: the daemon listens to what is watched when it starts

    async def _judge_root(self, source: Source, root: Root) -> str:
        """Whether this is the folder that was known; if so it is the source's from now on."""
        device = await self.learn(source, root.stat.dev, root.device)
        source.is_local = device.local
        if device.local or source.hears_all:
            self._local.add(source.name)
        known = await self._remembered.folder(FileKey(source.name, ""))
        if known is not None:
            before = known.own
            if root.empty and not known.listing.is_empty:
                return _EMPTY
            lasting = device.filesystem is not None
            known_device = self.device(source.name, before.dev)
            if known_device is None or known_device.tag != device.tag:
                return "the folder is on another file system than before; `cachefs accept` takes it for what it is now"
            if lasting and before.ino != root.stat.ino:
                return "it is another folder than before; `cachefs accept` takes it for what it is now"
        if not root.empty:
            self._was_full.add(source.name)
        self._begin_root(source, root.stat)
        return ""

    async def _recall_root(self, source: Source) -> bool:
        """Show a source that is not there as it was seen last, if it ever was."""
        known = await self._remembered.folder(FileKey(source.name, ""))
        if known is None:
            return False
        if not known.listing.is_empty:
            self._was_full.add(source.name)
        self._begin_root(source, known.own)
        return True

    def _begin_root(self, source: Source, seen: Stat) -> None:
        self._seen[source.name] = seen
        if len(self._sources) == 1:
            self._inodes.begin(seen)

    def accept(self, source: Source) -> None:
        """Whatever is in the source's place is the source from now on."""
        self._was_full.discard(source.name)
        self._remembered.forget(FileKey(source.name, ""))
        source.doubt("it was accepted as it is, and is looked at anew")

    def note_names(self, source: Source, *, empty: bool) -> None:
        """Its folder was read. Raises SourceError when there was something in it before, and is not now."""
        if not empty:
            self._was_full.add(source.name)
        elif source.name in self._was_full:
            source.doubt(_EMPTY)
            raise SourceError(errno.EIO, f"source {source.name}: {source.path}: {_EMPTY}")

    async def refuse_emptied(self, source: Source) -> None:
        """Raises SourceError when there is nothing in it any more."""
        if await source.call(_root_is_empty, source):
            source.doubt(_EMPTY)
            raise SourceError(errno.EIO, f"source {source.name}: {source.path}: {_EMPTY}")

    def emptied(self, source: Source) -> None:
        """The last name in a source's root was removed through the mount: that it is empty is what somebody wanted."""
        self._was_full.discard(source.name)


# --- in the source's threads -----------------------------------------------------------------------------------------


def _root_is_empty(source: Source) -> bool:
    with source.folders.at("") as folder:
        return is_empty(folder)
