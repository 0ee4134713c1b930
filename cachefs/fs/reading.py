"""Reads of open files by the daemon: which descriptor answers, and what is counted. Used by ``routing``.

Between the store's answer and the use of a descriptor lies at most one ``await`` for opening it; an SSD descriptor
belongs to one entry id and its bytes never change, so a late use yields the bytes of the moment the read began.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from cachefs.descriptors import Descriptor
from cachefs.fs import reach
from cachefs.fs.backing import Backing
from cachefs.fs.openfiles import Handle, OpenInode
from cachefs.fs.segments import Segment, route
from cachefs.fs.ssd import Ssd, read_at_once
from cachefs.fs.union import Union
from cachefs.model import CacheEntry, EntryState
from cachefs.status import Counters


class Reading:
    """What is read of open files. ``entry_of`` an open file: what is cached of it now; ``touch``: it was used. Use from
    the event loop only."""

    def __init__(
        self,
        union: Union,
        ssd: Ssd,
        counters: Counters,
        entry_of: Callable[[OpenInode], CacheEntry | None],
        touch: Callable[[OpenInode, CacheEntry], None],
    ) -> None:
        self._union = union
        self._ssd = ssd
        self._counters = counters
        self._entry_of = entry_of
        self._touch = touch

    async def open_source(self, inode: OpenInode) -> tuple[int, int]:
        """Make sure that the inode can be read from its source; returns its size and mtime as now open."""
        async with inode.opening:
            place = self._union.place(inode.node)
            opened = await inode.source.call(reach.open_node, place.ref, os.O_RDONLY)
            spare: Descriptor | None = opened.descriptor
            if inode.from_source is None:
                inode.from_source, spare = spare, None
        if spare is not None:
            await inode.source.discard(spare)
        return (opened.stat.size, opened.stat.mtime_ns)

    async def read(self, handle: Handle, offset: int, size: int) -> bytes | bytearray:
        """``size`` bytes at ``offset``; fewer only at the end of the file."""
        inode = handle.inode
        if inode.writers:
            await inode.underway.settled(offset, offset + size)
        if inode.backing is not None and inode.backing.is_truth:
            return await self._read_truth(inode, inode.backing, offset, size)
        entry = self._entry_of(inode)
        if entry is not None and entry.state is EntryState.MOVED:
            return await self._read_moved(inode, entry, offset, size)
        segments = route(entry, offset, offset + size)
        if entry is not None:
            self._touch(inode, entry)
        if len(segments) == 1:
            return await self._read_segment(handle, entry, segments[0])
        parts = bytearray()
        for segment in segments:
            part = await self._read_segment(handle, entry, segment)
            parts += part
            if len(part) < segment.end - segment.start:
                break
        return parts

    async def _read_moved(self, inode: OpenInode, entry: CacheEntry, offset: int, size: int) -> bytes | bytearray:
        self._touch(inode, entry)
        data = await self._ssd.read_moved(inode, entry, offset, size)
        inode.cache_bytes += len(data)
        self._counters.add_cache_read(len(data))
        return data

    async def _read_truth(self, inode: OpenInode, held: Backing, offset: int, size: int) -> bytes:
        data = await self._ssd.run(reach.read_exactly, held.descriptor, size, offset)
        inode.cache_bytes += len(data)
        self._counters.add_cache_read(len(data))
        return data

    async def _read_segment(self, handle: Handle, entry: CacheEntry | None, segment: Segment) -> bytes | bytearray:
        inode = handle.inode
        start, size = segment.start, segment.end - segment.start
        if segment.cached and entry is not None:
            data = await self._ssd.read(inode, entry, start, size)
            if data is not None:
                inode.cache_bytes += size
                self._counters.add_cache_read(size)
                return data
            self._counters.add_fallback()
        found = await self._read_source(handle, start, size)
        inode.source_bytes += len(found)
        self._counters.add_source_read(len(found))
        return found

    async def _read_source(self, handle: Handle, start: int, size: int) -> bytes | bytearray:
        inode = handle.inode
        descriptor = handle.own if handle.own is not None else inode.from_source
        if descriptor is None:
            try:
                await self.open_source(inode)
            except OSError as error:
                kept = inode.kept_by_ssd
                if error.errno != errno.ESTALE or kept is None:
                    raise
                return await self._ssd.run(reach.read_exactly, kept, size, start)
            descriptor = inode.from_source
        if descriptor is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data = read_at_once(descriptor, start, size)
        if data is not None:
            return data
        inode.source.note_read()
        try:
            return await inode.source.call(reach.read_exactly, descriptor, size, start)
        finally:
            inode.source.note_read()
