"""The sources' own folders: whether each is the one that it was, and which file systems lie below them.

Used by ``union``. An empty folder where there was a library, or another one than before, is a lost disk and no
deletion: the source is missing then, until its folder is back or accepted.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import trio

from cachefs.errors import SourceError
from cachefs.fs import devices
from cachefs.fs.found import Tagged, absent, tag_in
from cachefs.fs.inodes import Inodes
from cachefs.fs.nested import Mark, Mounted, mounted_below
from cachefs.fs.remembered import Remembered
from cachefs.fs.source import Root, Source, is_empty
from cachefs.fs.stat import Stat
from cachefs.model import FileKey, SourceName

log = logging.getLogger(__name__)

_LOOK_AT_MOUNTS_EVERY_S = 2.0
_EMPTY = "the folder is empty; is its disk mounted?"


@dataclass(frozen=True, slots=True)
class Shown:
    """What is mounted below a source, and what of it is missing, as it was said last."""

    table: Mounted
    marks: dict[str, Mark]
    missing: dict[str, str]


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
        self._mounted: dict[SourceName, Mounted] = {}
        self._shown: dict[SourceName, Shown] = {}

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

    def present(self, source: SourceName, dev: int) -> int:
        """The device of a file that was not there, now that it may be again: that of the same tag."""
        tag = tag_in(dev)
        same = (known for (name, known), device in self._devices.items() if name == source and device.tag == tag)
        return next(same, dev)

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
            source.folders.nested.begin(await self._remembered.marks(source.name))
            try:
                await source.open()
                await self._look_at_mounts(source)
            except OSError as error:
                if source.in_place or not await self._recall_root(source):
                    raise
                source.missing(error)
            if source.name in self._local:
                source.watch()  # here or never: the daemon listens to what is watched when it starts

    async def foresee(self, source: Source) -> str:
        """What a start would say against the folder that is in the source's place now; empty when nothing. OSError when
        there is none that can be read."""
        found = await source.look_anew()
        try:
            return await self._judge_root(source, found.root)
        finally:
            found.close()

    async def _judge_root(self, source: Source, root: Root) -> str:
        """Whether this is the folder that was known; if so it is the source's from now on."""
        device = await self.learn(source, root.stat.dev, root.device)
        source.is_local = device.local
        if device.local or source.hears_all:
            self._local.add(source.name)
        known = await self._remembered.folder(FileKey(source.name, ""))
        if known is not None:
            before = known.own
            meant = f"(if that is meant: cachefs accept {source.name})"
            if root.empty and not known.listing.is_empty:
                return f"{_EMPTY} {meant}"
            lasting = device.filesystem is not None
            known_device = self.device(source.name, before.dev)
            if known_device is None or known_device.tag != device.tag:
                return f"the folder is on another file system than before {meant}"
            if lasting and before.ino != root.stat.ino:
                return f"it is another folder than before {meant}"
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

    # --- what is mounted below them ---

    async def mounts_changed(self, source: Source) -> None:
        """As in ``union``. Looks at the mount table now and then, and at disks only when it has changed."""
        while True:
            await trio.sleep(_LOOK_AT_MOUNTS_EVERY_S)
            before = self._shown.get(source.name)
            await self._look_at_mounts(source)
            if self._shown.get(source.name) != before:
                return

    async def _look_at_mounts(self, source: Source) -> None:
        nested, known = source.folders.nested, self._mounted.get(source.name)
        try:
            table = await trio.to_thread.run_sync(_mounted_below, source)
            if table != known and source.online:
                self._mounted[source.name] = table  # looked at once: what hangs there may hang for good
                await source.call_gently(_look_at_nested, source, table)
        except OSError as error:
            log.debug("source %s: what is mounted below it cannot be looked at: %s", source.name, error)
            return
        self._show(source, Shown(table, nested.marks, nested.missing))

    def _show(self, source: Source, now: Shown) -> None:
        before, self._shown[source.name] = self._shown.get(source.name), now
        if before is None or now.marks != before.marks:
            self._remembered.mark(source.name, source.folders.nested.saved())
        for path in now.marks.keys() - (before.marks if before is not None else now.marks).keys():
            log.info(
                "source %s: a disk is mounted at %s; without it that part is missing, not empty", source.name, path
            )
        missing = before.missing if before is not None else {}
        for path in now.missing.keys() - missing.keys():
            why = now.missing[path]
            log.warning("source %s: %s is missing (%s); it shows what was seen last", source.name, path, why)
        for path in missing.keys() - now.missing.keys():
            log.info("source %s: %s is missing no more", source.name, path)

    # --- that it is so is meant ---

    async def accept(self, source: Source) -> None:
        """Whatever is in the source's place, or in the places of what is missing below it, is the source from now
        on. Raises OSError, with nothing changed, when the source's place has no folder that can be read."""
        if source.online:
            for path in source.folders.nested.accept():
                for folder in (path, path.rpartition("/")[0]):
                    self._remembered.forget(FileKey(source.name, folder))
            return
        await source.take(partial(self._forget, source))

    def _forget(self, source: Source) -> None:
        self._was_full.discard(source.name)
        self._remembered.forget(FileKey(source.name, ""))

    async def note_names(self, source: Source, *, empty: bool) -> None:
        """Its folder was read; ``empty``: it has no name that the mount shows. Raises SourceError when it had some
        before, and there is nothing at all now: where all files have moved, what keeps their numbers is left."""
        if not empty:
            self._was_full.add(source.name)
        elif source.name in self._was_full:
            await self.refuse_emptied(source)

    async def refuse_emptied(self, source: Source) -> None:
        """Raises SourceError when there is nothing in it any more, and nobody has wanted that meanwhile."""
        was_full = self.was_full(source)
        if await source.call(_root_is_empty, source) and was_full == self.was_full(source):
            source.doubt(_EMPTY)
            raise SourceError(errno.EIO, f"source {source.name}: {source.path}: {_EMPTY}")

    def emptied(self, source: Source) -> None:
        """As in ``tree``."""
        self._was_full.discard(source.name)


# --- in the source's threads -----------------------------------------------------------------------------------------


def _mounted_below(source: Source) -> Mounted:
    with source.folders.at("") as root:
        return mounted_below(root)


def _look_at_nested(source: Source, table: Mounted) -> None:
    """Mark what is mounted now, and look whether what was is there. Nothing is looked at for its own sake that comes
    and goes by itself: to look would be to call it."""
    folders, nested = source.folders, source.folders.nested
    nested.forget_right()
    for path in list(nested.marks):
        if path in table.ids or not table.goes_by_itself(path):
            folders.forget(path)
            with suppress(OSError), folders.at(path):
                pass
    for path in table.ids.keys() - nested.marks.keys():
        folders.forget(path)  # which may still mean the folder below the mount
        with suppress(OSError), folders.at(path) as place:
            if devices.mount_id(place) == table.ids[path]:
                nested.add(path, place)


def _root_is_empty(source: Source) -> bool:
    with source.folders.at("") as folder:
        return is_empty(folder)
