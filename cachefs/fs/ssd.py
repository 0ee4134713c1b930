"""Reads of entries from the SSD for ``routing``: any failure gives the entry up and is the source's to answer."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple

import trio

from cachefs.descriptors import Descriptor, open_below
from cachefs.fs import reach
from cachefs.fs.openfiles import OpenInode, SsdSide
from cachefs.fs.stat import Stat, look
from cachefs.jobs import Job
from cachefs.model import CacheEntry, EntryState

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SSD_TIMEOUT_S = 3.0
"""A healthy SSD answers within milliseconds; past this the source is asked and the entry is given up."""
_THREADS = 16


class Entries(Protocol):
    """What is needed of the store."""

    @property
    def life(self) -> int: ...

    def file_of(self, entry: CacheEntry) -> str: ...

    def fail(self, entry: CacheEntry, error: OSError) -> None: ...


class Ssd:
    """The SSD as readers see it."""

    def __init__(self, store: Entries) -> None:
        self._store = store
        self._limiter = trio.CapacityLimiter(_THREADS)

    async def read(self, inode: OpenInode, entry: CacheEntry, start: int, size: int) -> bytes | bytearray | None:
        """Exactly ``size`` bytes of an entry; None, with the entry given up, when the SSD does not have them."""
        try:
            descriptor = await self._side(inode, entry)
            with descriptor.use():  # another task may swap the inode to a newer entry meanwhile
                data: bytes | bytearray | None = read_at_once(descriptor, start, size)
                if data is None:
                    data = await self.run(reach.read_exactly, descriptor, size, start)
            if len(data) != size:
                raise OSError(errno.EIO, f"the file ends early, at {start + len(data)} of {entry.size} bytes")
        except OSError as error:
            self._store.fail(entry, error)
            _judge(inode, entry, whole=False)
            return None
        _judge(inode, entry, whole=entry.state is EntryState.CACHED)
        return data

    async def open(self, inode: OpenInode, entry: CacheEntry) -> bool:
        """Open a complete entry's file and see that it is all there; False, with the entry given up, when it is not."""
        try:
            descriptor = await self._side(inode, entry)
            size = await self.run(_size_of, descriptor)
            if size != entry.size:
                raise OSError(errno.EIO, f"the file has {size} bytes instead of {entry.size}")
        except OSError as error:
            self._store.fail(entry, error)
            _judge(inode, entry, whole=False)
            return False
        _judge(inode, entry, whole=True)
        return True

    async def open_moved(self, inode: OpenInode, entry: CacheEntry) -> tuple[int, int]:
        """Open a moved file, whatever it is by now; returns its size and mtime. Raises ``OSError``: there is no
        other."""
        seen = await self.run(_seen, await self._side(inode, entry))
        _judge(inode, entry, whole=True)
        return seen.size, seen.mtime_ns

    async def read_moved(self, inode: OpenInode, entry: CacheEntry, start: int, size: int) -> bytes | bytearray:
        """Up to ``size`` bytes of a moved file; fewer only at its end. Raises ``OSError``."""
        descriptor = await self._side(inode, entry)
        with descriptor.use():
            data: bytes | bytearray | None = read_at_once(descriptor, start, size)
            return data if data is not None else await self.run(reach.read_exactly, descriptor, size, start)

    async def _side(self, inode: OpenInode, entry: CacheEntry) -> Descriptor:
        side = inode.from_ssd
        if side is not None and self._is_of(side, entry):
            return side.descriptor
        async with inode.opening:
            side = inode.from_ssd
            if side is None or not self._is_of(side, entry):
                life = self._store.life
                opened = await self.run(_open_file, self._store.file_of(entry))
                old, side = side, SsdSide(entry.id, opened, life)
                inode.from_ssd = side
                if old is not None:
                    await self.close(old.descriptor.close)
        return side.descriptor

    def _is_of(self, side: SsdSide, entry: CacheEntry) -> bool:
        return (side.entry_id, side.life) == (entry.id, self._store.life)

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """``function`` in a thread that may touch the SSD; EIO when that does not answer."""
        job = Job(lambda: function(*args))
        with job.done_or_abandoned():
            with trio.move_on_after(SSD_TIMEOUT_S):
                return await trio.to_thread.run_sync(job.run, abandon_on_cancel=True, limiter=self._limiter)
            raise OSError(errno.EIO, f"no answer within {SSD_TIMEOUT_S:g} s")

    async def close(self, close: Callable[[], None]) -> None:
        """Close a file in a thread. What the SSD says to it is no matter of the reader's."""
        try:
            await self.run(close)
        except OSError as error:
            log.debug("closing a file of the SSD failed: %s", error)

    @property
    def threads_busy(self) -> int:
        """Threads that are waiting for the SSD."""
        return self._limiter.borrowed_tokens


def _judge(inode: OpenInode, entry: CacheEntry, *, whole: bool) -> None:
    side = inode.from_ssd
    if side is not None and side.entry_id == entry.id:
        side.whole = whole


def read_at_once(descriptor: Descriptor, offset: int, size: int) -> bytearray | None:
    """All ``size`` bytes if the kernel has them in memory; None when a thread must read them.

    RWF_NOWAIT never waits for a disk; it may come back short, which is not the end of the file, or be unknown to the
    file system (EOPNOTSUPP on FUSE).
    """
    buffer = bytearray(size)
    try:
        done = os.preadv(descriptor.number, (buffer,), offset, os.RWF_NOWAIT)
    except OSError:
        return None
    return buffer if done == size else None


def _open_file(path: str) -> Descriptor:
    return Descriptor(open_below(path, os.O_RDONLY))


def _seen(descriptor: Descriptor) -> Stat:
    with descriptor.use() as number:
        return look(number)


def _size_of(descriptor: Descriptor) -> int:
    with descriptor.use() as number:
        return os.fstat(number).st_size
