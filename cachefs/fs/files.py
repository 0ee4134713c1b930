"""Files and folders of sources by their keys: for planning, verifying and the copiers.

Where it is certain what a folder holds, its source is not asked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar, TypeVarTuple

from cachefs.descriptors import Descriptor
from cachefs.fs import devices, reach
from cachefs.fs.elsewhere import Elsewhere
from cachefs.fs.found import RESERVED, Witness, source_file
from cachefs.fs.inodes import number_of
from cachefs.fs.remembered import Known
from cachefs.fs.roots import Roots
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat, look
from cachefs.model import FileKey, SourceFile, SourceName

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Certain = Callable[[FileKey], Awaitable[Known | None]]


class Files:
    """See the module. Use from the event loop only."""

    def __init__(
        self,
        sources: Mapping[SourceName, Source],
        roots: Roots,
        witness: Witness,
        certain: Certain,
        elsewhere: Elsewhere,
    ) -> None:
        """``certain`` says what is in a folder where that needs no asking."""
        self._elsewhere = elsewhere
        self._sources = sources
        self._roots = roots
        self._witness = witness
        self._certain = certain

    async def stat(self, key: FileKey) -> SourceFile:
        """The regular file under this key, as its source shows it now; OSError when there is none: EISDIR for a folder,
        EINVAL for anything else."""
        moved = self._elsewhere.files.get(key)
        if moved is not None:
            return moved.source_file
        source = self._source(key.source)
        seen = await self._certain_file(key)
        if seen is None:
            seen = await source.call_gently(_stat_path, source, key.path)
        if seen.is_folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(key))
        if not seen.is_file:
            raise OSError(errno.EINVAL, "not a regular file", str(key))
        file = await self.identified(key, seen)
        self._witness.observe(file)
        return file

    async def identified(self, key: FileKey, seen: Stat) -> SourceFile:
        """A file that was seen, or is about to be, under this key."""
        source = self._source(key.source)
        device = self._roots.device(key.source, seen.dev)
        if device is None:
            identified = await source.call_gently(_identify_path, source, key.path)
            device = await self._roots.learn(source, seen.dev, identified)
        return source_file(key, number_of(device.tag, seen.ino), seen, device)

    async def _certain_file(self, key: FileKey) -> Stat | None:
        """A file of one name, without asking its source; None where it is none, or that is not certain."""
        folder, _, name = key.path.rpartition("/")
        known = await self._certain(FileKey(key.source, folder)) if name else None
        seen = known.listing.named(name) if known is not None else None
        return seen if seen is not None and seen.is_file and seen.nlink == 1 else None

    async def exists(self, key: FileKey) -> bool:
        """Whether there is anything under this key."""
        if self._elsewhere.files.get(key) is not None:
            return True
        if await self._certain_file(key) is not None or await self._certain(key) is not None:
            return True
        source = self._source(key.source)
        try:
            await source.call_gently(_stat_path, source, key.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def open(self, key: FileKey) -> Descriptor:
        """The file under this key, open for reading."""
        moved = self._elsewhere.place(key)
        source = moved.source if moved is not None else self._source(key.source)
        return await source.call_gently(_open_path, source, key.path)

    async def list_folder(self, key: FileKey) -> list[str]:
        """The names in the folder under this key."""
        known = await self._certain(key)
        if known is not None:
            names = [name for name, _ in known.listing.items()]
        else:
            source = self._source(key.source)
            names = await source.call_gently(_list_path, source, key.path)
        return list(dict.fromkeys([*names, *self._elsewhere.files.names_in(key)]))

    async def list_subfolders(self, key: FileKey) -> list[str]:
        """The folders among them."""
        known = await self._certain(key)
        if known is not None:
            return [name for name, seen in known.listing.items() if seen.is_folder]
        source = self._source(key.source)
        return await source.call_gently(_list_subfolders, source, key.path)

    async def run(self, source: SourceName, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """``function`` in a thread of this source, in the share that copying has."""
        return await self._source(source).call_gently(function, *args)

    def reading_since(self, source: SourceName) -> float:
        """trio time of the last read of this source that a person waited for; minus infinity when there was none."""
        return self._source(source).reading_since

    def _source(self, name: SourceName) -> Source:
        source = self._sources.get(name)
        if source is None:
            raise OSError(errno.ENOENT, "no such source", name)
        return source


# --- in the source's threads -----------------------------------------------------------------------------------------


def _identify_path(source: Source, path: str) -> devices.Device:
    with source.folders.at(reach.split(path)[0]) as folder:
        return devices.identify(folder)


def _stat_path(source: Source, path: str) -> Stat:
    folder_path, name = reach.split(path)
    with source.folders.at(folder_path) as folder:
        source.folders.nested.vouch(folder, path)
        return look(folder, name)


def _open_path(source: Source, path: str) -> Descriptor:
    folder_path, name = reach.split(path)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with source.folders.at(folder_path) as folder:
        try:
            return Descriptor(os.open(name, flags | os.O_NOATIME, dir_fd=folder))  # to copy a film is not to watch it
        except PermissionError:  # it is somebody else's
            return Descriptor(os.open(name, flags, dir_fd=folder))


def _list_path(source: Source, path: str) -> list[str]:
    readable = _readable(source, path)
    try:
        return [name for name in os.listdir(readable) if name != RESERVED]
    finally:
        os.close(readable)


def _list_subfolders(source: Source, path: str) -> list[str]:
    readable = _readable(source, path)
    try:
        with os.scandir(readable) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return [name for name in folders if name != RESERVED]
    finally:
        os.close(readable)


def _readable(source: Source, path: str) -> int:
    with source.folders.at(path) as folder:
        source.folders.nested.vouch_in(folder, path)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
