"""Sees to it that the folders of cached files are remembered before their source goes away.

Run by the daemon. Folders that somebody lists are remembered anyway (``union``); this reads those that nobody has
listed since something in them was cached, and again those that have changed. Gently, and only while their source
answers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection

import trio

from cachefs.fs import leaves
from cachefs.fs.folders import Folders
from cachefs.fs.leaves import Listing
from cachefs.fs.remembered import Remembered
from cachefs.fs.source import Source
from cachefs.fs.watched import Watched
from cachefs.model import FileKey, SourceName

log = logging.getLogger(__name__)

_SETTLE_S = 15.0
"""A folder in which something happens is read again once in so long."""
_TRY_AGAIN_S = 60.0
_LOOK_AT_ONCE = 512


class Remembering:
    """Folders that are to be read, and when (trio time)."""

    def __init__(self, sources: dict[SourceName, Source], remembered: Remembered, watched: Watched) -> None:
        self._sources = sources
        self._remembered = remembered
        self._watched = watched
        self._due: dict[FileKey, float] = {}
        self._files: dict[FileKey, None] = {}
        self._unknown: dict[FileKey, None] = {}
        self._came = trio.Event()
        self._tell: Callable[[Collection[FileKey]], object] | None = None

    def follow(self, tell: Callable[[Collection[FileKey]], object]) -> None:
        """``tell`` is called with files that are cached, as this is."""
        self._tell = tell

    def cached(self, files: Collection[FileKey]) -> None:
        """These are cached: it must be known where they are."""
        self._files.update(dict.fromkeys(files))
        self._came.set()
        if self._tell is not None:
            self._tell(files)

    def changed(self, folder: FileKey) -> None:
        """Something in this folder is not as it was."""
        self._due.setdefault(folder, trio.current_time() + _SETTLE_S)
        self._came.set()

    async def run(self) -> None:
        """Read what is to be read. Runs for ever."""
        if not leaves.are_there():
            await trio.sleep_forever()
        for name in self._sources:
            self._due.setdefault(FileKey(name, ""), trio.current_time())
        while True:
            await self._find_unknown()
            now = trio.current_time()
            for folder in [folder for folder, due in self._due.items() if due <= now]:
                await self._read(folder)
            self._came = trio.Event()
            with trio.move_on_at(min(self._due.values(), default=float("inf"))):
                await self._came.wait()

    async def _find_unknown(self) -> None:
        """The folders above cached files that are not remembered, or without them."""
        self._unknown.update(self._files)
        self._files = {}
        while self._unknown:
            file = next(iter(self._unknown))
            path = file.path
            while path:
                path, _, name = path.rpartition("/")
                folder = FileKey(file.source, path)
                known = await self._remembered.folder(folder)
                if known is None or known.listing.named(name) is None:
                    self._due[folder] = trio.current_time()
            del self._unknown[file]

    async def _read(self, folder: FileKey) -> None:
        source = self._sources.get(folder.source)
        self._due.pop(folder, None)
        if source is None:
            return
        if not source.online:
            self._due[folder] = trio.current_time() + _TRY_AGAIN_S
            return
        changes = self._watched.changes_of(folder)
        try:
            listing = await source.call_gently(_begin, source.folders, folder.path)
            while listing.looked_at < len(listing):
                await source.call_gently(_go_on, source.folders, folder.path, listing)
            packed = await source.call_gently(_pack, source.folders, folder.path, listing)
        except OSError as error:
            log.debug("%s cannot be remembered: %s", folder, error)
            return
        is_news = packed is not None and self._watched.may_learn(folder, changes)
        if packed is not None and is_news and (folder.path or not listing.is_empty):
            self._remembered.remember(folder, packed)
            self._watched.relearned(folder, changes)


# --- in the source's threads -----------------------------------------------------------------------------------------


def _begin(folders: Folders, path: str) -> Listing:
    with folders.at(path) as folder:
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            return Listing.read(readable, _LOOK_AT_ONCE)
        finally:
            os.close(readable)


def _go_on(folders: Folders, path: str, listing: Listing) -> None:
    with folders.at(path) as folder:
        listing.look(folder, listing.looked_at, _LOOK_AT_ONCE)


def _pack(folders: Folders, path: str, listing: Listing) -> bytes | None:
    with folders.at(path) as folder:
        folders.nested.vouch_in(folder, path)
        return listing.pack(folder)
