"""What is known of a source while it is away: its folders as they were seen last.

Used by ``union`` when a source does not answer; ``remember`` is told of every folder that was read. Nothing here asks a
source or decides what the kernel is told.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from cachefs.errors import SourceError
from cachefs.fs import leaves
from cachefs.fs.leaves import Listing, folder_in
from cachefs.fs.stat import Stat
from cachefs.model import MOUNTS_BELOW, FileKey, SourceName

HOLDS_S = 1.0
"""How long the kernel may believe what is remembered: the source may be back at any time."""
_MOST_NAMES = 16384
_AWAY = frozenset(
    {
        errno.EIO,
        errno.ENOTCONN,
        errno.ENODEV,
        errno.ENXIO,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EREMOTEIO,
    }
)


class Memory(Protocol):
    """Where packed listings are kept."""

    def note(self, folder: FileKey, listing: bytes) -> None: ...

    def forget(self, folder: FileKey) -> None: ...

    async def recall(self, folder: FileKey) -> bytes | None: ...


class NoMemory:
    """Remembers nothing."""

    def note(self, folder: FileKey, listing: bytes) -> None: ...

    def forget(self, folder: FileKey) -> None: ...

    async def recall(self, folder: FileKey) -> bytes | None:
        return None


def is_away(error: OSError) -> bool:
    """Whether a source failed, rather than said something about the file."""
    return isinstance(error, SourceError) or error.errno in _AWAY


@dataclass(frozen=True, slots=True)
class Known:
    """A folder as it was seen last: its own attributes, and its names."""

    own: Stat
    listing: Listing


class Remembered:
    """Folders as they were seen last, some of them at hand."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._at_hand: OrderedDict[FileKey, Known] = OrderedDict()
        self._recalling: dict[FileKey, object] = {}
        """What is being recalled: not any more once it has been remembered anew."""
        self._names = 0

    def remember(self, folder: FileKey, packed: bytes) -> None:
        """The folder was read wholly."""
        self._drop(folder)
        self._memory.note(folder, packed)

    def forget(self, folder: FileKey) -> None:
        """What was known of it is not true any more."""
        self._drop(folder)
        self._memory.forget(folder)

    async def folder(self, folder: FileKey) -> Known | None:
        """What was in the folder; None when nobody knows."""
        known = self._at_hand.get(folder)
        if known is not None:
            self._at_hand.move_to_end(folder)
            return known
        recalling = self._recalling.setdefault(folder, object())
        packed = await self._memory.recall(folder) if leaves.are_there() else None
        if self._recalling.get(folder) is not recalling:
            return await self.folder(folder)
        listing = Listing.unpack(packed) if packed is not None else None
        own = folder_in(packed) if packed is not None else None
        self._drop(folder)
        if listing is None or own is None:
            return None
        known = self._at_hand[folder] = Known(own, listing)
        self._names += len(listing)
        while self._names > _MOST_NAMES and len(self._at_hand) > 1:
            self._drop(next(iter(self._at_hand)))
        return known

    def mark(self, source: SourceName, marks: bytes) -> None:
        """These are the marks of what is mounted below the source."""
        self._memory.note(FileKey(source, MOUNTS_BELOW), marks)

    async def marks(self, source: SourceName) -> bytes:
        return await self._memory.recall(FileKey(source, MOUNTS_BELOW)) or b""

    async def attributes(self, key: FileKey) -> Stat | None:
        """The attributes of a file or folder; None when nobody knows."""
        if not key.path:
            known = await self.folder(key)
            return known.own if known is not None else None
        folder, _, name = key.path.rpartition("/")
        known = await self.folder(FileKey(key.source, folder))
        return known.listing.named(name) if known is not None else None

    def _drop(self, folder: FileKey) -> None:
        self._recalling.pop(folder, None)
        known = self._at_hand.pop(folder, None)
        if known is not None:
            self._names -= len(known.listing)
