"""Writes to open files: to the source, and to what the kernel reads of the file meanwhile.

Used by ``routing``, which decides that a file is written and takes its cached copy out of service first (``change``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol, TypeVar, TypeVarTuple

from cachefs.descriptors import Descriptor
from cachefs.fs import backing, reach
from cachefs.fs.openfiles import Handle, OpenInode
from cachefs.fs.source import Source
from cachefs.fs.ssd import Ssd
from cachefs.fs.syncing import sync
from cachefs.model import DropCause, Targets

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Change(Protocol):
    """``Routing.change``."""

    async def __call__(
        self, source: Source, targets: Targets, function: Callable[[*Ts], T], *args: *Ts, cause: DropCause
    ) -> T: ...


class Writing:
    """What is written to open files. Use from the event loop only."""

    def __init__(self, ssd: Ssd, change: Change) -> None:
        self._ssd = ssd
        self._change = change

    async def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Write to the source, and to what the kernel reads. The handle's bar keeps the file out of the cache."""
        inode, own = handle.inode, _own(handle)
        held = inode.backing
        if held is None or held.same or held.lost:
            write = backing.write if held is None else backing.write_itself
            return await self._change_open(inode, write, own, data, offset, handle.appends)
        async with held.lock, self._mirrored(held):
            mirror = await self._mirror(held)
            written, held.seen = await self._change_open(
                inode, backing.write_both, own, mirror, data, offset, handle.appends
            )
            return written

    async def truncate(self, handle: Handle, size: int) -> None:
        """ftruncate(2)."""
        async with self.truncating(handle.inode, size):
            await self._change_open(handle.inode, _truncate, _own(handle), size)

    @asynccontextmanager
    async def truncating(self, inode: OpenInode, size: int) -> AsyncIterator[None]:
        """Around a truncation of the file at its source: what the kernel reads follows, and is not copied back in
        between, when it has the old size still."""
        held = inode.backing
        if held is None or held.same or held.lost:
            yield
            return
        async with held.lock, self._mirrored(held):
            yield
            held.seen = await inode.source.call(backing.seen_of, held.home) if held.home is not None else None
            if inode.backing is held:  # else nobody had it open any more, and the change has let go of it
                await self._ssd.run(_truncate, await self._mirror(held), size)

    @asynccontextmanager
    async def _mirrored(self, held: backing.Backing) -> AsyncIterator[None]:
        """Around what is written to the backing file otherwise than by a mapping. To be called under its lock."""
        if not held.is_truth:
            yield
            return
        held.written = held.written or await self._ssd.run(backing.was_written, held.descriptor)
        held.mixed = True
        yield
        await self._ssd.run(backing.mark, held.descriptor)

    async def _mirror(self, held: backing.Backing) -> Descriptor:
        """The backing file, open for writing. To be called under its lock, before the first change."""
        if held.mirror is None:
            held.mirror = await self._ssd.run(backing.open_again, held.descriptor)
        return held.mirror

    async def _change_open(self, inode: OpenInode, function: Callable[[*Ts], T], *args: *Ts) -> T:
        targets = Targets(keys=frozenset(inode.keys), inodes=frozenset((inode.node.number,)))
        return await self._change(inode.source, targets, function, *args, cause=DropCause.CHANGED)

    async def flush(self, handle: Handle) -> None:
        """close(2) of one descriptor of a handle: the source reports what it could not write."""
        if handle.own is not None:
            await self.copy_back(handle.inode)
            await handle.inode.source.call(_flush, handle.own)

    async def fsync(self, handle: Handle, datasync: bool) -> None:
        """fsync(2) or fdatasync(2)."""
        if handle.own is not None:
            await self.copy_back(handle.inode)
            await sync(handle.inode.source, handle.own, datasync=datasync)

    # --- mappings that write the backing file --------------------------------------------------------------------

    async def follow_mappings(self, inode: OpenInode, own: Descriptor) -> None:
        """What a handle may map is the backing file from here on. It has to be what the source has: somebody may have
        changed that behind the mount since the copy was made."""
        held = inode.backing
        if held is None or held.same or held.lost or held.is_truth:
            return
        home = await inode.source.call(backing.open_again, own)
        try:
            async with held.lock:
                if held.is_truth or held.lost:
                    return
                seen = await inode.source.call(backing.seen_of, home)
                if held.seen != seen:
                    await self._catch_up(inode, held, home)
                await self._ssd.run(backing.mark, held.descriptor)
                held.seen, held.written, held.mixed = seen, False, False
                held.home = home
        finally:
            if held.home is not home:
                await inode.source.discard(home)

    async def _catch_up(self, inode: OpenInode, held: backing.Backing, home: Descriptor) -> None:
        mirror, start = await self._mirror(held), 0
        while True:
            data = await inode.source.call(reach.read_exactly, home, backing.CATCH_UP_BYTES, start)
            await self._ssd.run(backing.catch_up, mirror, start, data)
            if not data:
                return
            start += len(data)

    async def copy_back(self, inode: OpenInode, *, finally_: bool = False) -> None:
        """Bring what a mapping wrote to the source. ``finally_``: none can any more."""
        held = inode.backing
        if held is None or not held.is_truth:
            return
        async with held.lock:  # and no later write overtakes one that is given up
            held.written = held.written or await self._ssd.run(backing.was_written, held.descriptor)
            if held.home is None or not (held.written or (finally_ and await self._may_differ(inode, held))):
                return
            held.written = True  # until all of it is there
            size = await self._ssd.run(backing.begin_copy, held.descriptor)
            for start in range(0, size, backing.COPY_BACK_BYTES):
                end = min(size, start + backing.COPY_BACK_BYTES)
                held.seen = await self._change_open(inode, partial(_copy_back, held, start, end))
            held.written = held.mixed = False

    async def _may_differ(self, inode: OpenInode, held: backing.Backing) -> bool:
        """Whether a write of a mapping may have been missed, and nobody has changed the source's file meanwhile."""
        if not held.mixed or held.home is None:
            return False
        return await inode.source.call(backing.seen_of, held.home) == held.seen

    async def look_at_mapping(self, inode: OpenInode) -> bool:
        """See whether a mapping can still write the backing file; if not it is given back, and the answer is True."""
        held = inode.backing
        if held is None:
            return False
        over = not inode.writers and await self._nobody_writes(held)
        await self.copy_back(inode, finally_=over)
        if not over or inode.writers or held.home is None:
            return False
        home, held.home = held.home, None
        unbar, held.unbar = held.unbar, []
        for release in unbar:
            release()
        await inode.source.discard(home)
        return True

    async def _nobody_writes(self, held: backing.Backing) -> bool:
        async with held.lock:
            mirror, held.mirror = held.mirror, None
            if mirror is not None:
                await self._ssd.close(mirror.close)
            return await self._ssd.run(backing.nobody_writes, held.descriptor)


def _own(handle: Handle) -> Descriptor:
    if handle.own is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return handle.own


# --- in threads ------------------------------------------------------------------------------------------------------


def _copy_back(held: backing.Backing, start: int, end: int) -> backing.Seen | None:
    """Nothing, when the SSD went away meanwhile."""
    home = held.home
    return held.seen if home is None else backing.copy_back(held.descriptor, home, start, end)


def _truncate(descriptor: Descriptor, size: int) -> None:
    with descriptor.use() as number:
        os.ftruncate(number, size)


def _flush(descriptor: Descriptor) -> None:
    """Closing a duplicate makes network file systems report errors of earlier writes."""
    with descriptor.use() as number:
        os.close(os.dup(number))
