"""Open files, and which descriptor serves each read: the one place that decides it.

Called by ``operations`` for everything that has a file handle, and by ``changes`` for every change, since a change
takes the cached copy out of service *before* it acts. An open file is followed, not pinned: each read asks the store
anew, so a handle moves to the SSD in mid-stream when its file is published, and back when the entry goes.

Concurrency: everything here runs on the event loop. Between the store's answer and the use of a descriptor lies at
most one ``await`` for opening it; an SSD descriptor belongs to one entry id and its bytes never change, so a late use
yields the bytes of the moment the read began.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.store import Store
from cachefs.descriptors import Descriptor
from cachefs.errors import SourceError
from cachefs.fs import reach
from cachefs.fs.inodes import Node
from cachefs.fs.jobs import Job
from cachefs.fs.segments import Segment, route, visible
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat, look
from cachefs.fs.union import Found, Place, Union
from cachefs.model import CacheEntry, DropCause, EntryState, FileKey, OpenFile, Targets, UnionPath, Visible
from cachefs.status import Counters

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
_SSD_TIMEOUT_S = 10.0
"""A healthy SSD answers within milliseconds; past this the source is asked and the entry is given up."""
_SSD_THREADS = 16
_TOUCH_EVERY_S = 60.0


@dataclass(slots=True, eq=False)
class _SsdSide:
    """The SSD file of one entry, open for reading. ``whole``: the last read found it published and without fault."""

    entry_id: int
    descriptor: Descriptor
    whole: bool = False


@dataclass(slots=True, eq=False)
class OpenInode:
    """All that the open handles of one inode share."""

    node: Node
    source: Source
    keys: tuple[FileKey, ...]
    from_source: Descriptor | None = None
    from_ssd: _SsdSide | None = None
    readers: int = 0
    writers: int = 0
    cache_bytes: int = 0
    source_bytes: int = 0
    touched_at: float = float("-inf")
    changed: bool = False
    """Through the mount, since it was opened: what the SSD had of it is its content no more."""
    opening: trio.Lock = field(default_factory=trio.Lock)

    @property
    def kept_by_ssd(self) -> Descriptor | None:
        """The whole content of a file that was deleted or replaced behind the mount: who has it open goes on reading
        the file that was opened, as on any file system."""
        side = self.from_ssd
        return side.descriptor if side is not None and side.whole and not self.changed else None


@dataclass(slots=True, eq=False)
class Handle:
    """One open(2) of the mount. ``own`` is a writer's descriptor on the source; readers share the inode's."""

    inode: OpenInode
    own: Descriptor | None = None
    unbar: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """What the kernel is told: the handle's number, and whether the pages it has are still the file's."""

    handle: int
    keep_cache: bool


class Routing:
    """The open files of the mount."""

    def __init__(self, union: Union, store: Store, counters: Counters) -> None:
        self._union = union
        self._store = store
        self._counters = counters
        self._inodes: dict[int, OpenInode] = {}
        self._handles: dict[int, Handle] = {}
        self._issued = 0
        self._ssd_limiter = trio.CapacityLimiter(_SSD_THREADS)

    # --- changes: the cached copy goes first ---------------------------------------------------------------------

    async def change(
        self, source: Source, targets: Targets, function: Callable[[*Ts], T], *args: *Ts, cause: DropCause
    ) -> T:
        """Take ``targets`` out of the cache, then run ``function`` in a thread of ``source``.

        No copy of them begins or is published until the thread has really returned, however late.
        """
        bar = self._store.bar(targets)
        for number in targets.inodes & self._inodes.keys():
            self._inodes[number].changed = True
        try:
            await self._store.drop(targets, cause)
        except BaseException:
            bar.release()
            raise
        return await source.change(bar.release, function, *args)

    def targets(self, node: Node, place: Place) -> Targets:
        """Everything in the cache that is this file, under whatever name."""
        return Targets(keys=frozenset(place.keys), inodes=frozenset((node.number,)))

    # --- open and close ------------------------------------------------------------------------------------------

    async def open(self, node: Node, flags: int) -> Opening:
        """Open a file for reading, writing or both."""
        place = self._union.place(node)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            return await self._open_for_writing(node, place, flags & _KEPT_FLAGS)
        entry = await self._fresh_entry(node, place)
        inode = self._share(node, place)
        inode.readers += 1
        try:
            if entry is not None and entry.state is EntryState.CACHED:
                version = (entry.size, entry.fingerprint.mtime_ns)
            else:
                version = await self._open_source(inode)
        except BaseException:
            inode.readers -= 1
            await self._unshare(inode)
            raise
        keep = node.version == version
        node.version = version
        return Opening(self._issue(Handle(inode)), keep)

    async def _fresh_entry(self, node: Node, place: Place) -> CacheEntry | None:
        """The file's entry if it may be served: seen at its source within the TTL, or asked now."""
        entry = self._entry(node, place.keys)
        if entry is None or self._store.is_fresh(entry.key, place.source.ttl_s):
            return entry
        try:
            await self._union.attributes(node)
        except SourceError as error:
            log.info("%s is served from the SSD unchecked: %s", entry.key, error)
            return self._entry(node, place.keys)
        return self._entry(node, place.keys)

    async def _open_for_writing(self, node: Node, place: Place, flags: int) -> Opening:
        targets = self.targets(node, place)
        bar = self._store.bar(targets)
        try:
            opened = await self.change(
                place.source, targets, reach.open_node, place.ref, flags, cause=DropCause.CHANGED
            )
        except BaseException:
            bar.release()
            raise
        return Opening(self._adopt(node, place, opened, bar.release), keep_cache=False)

    def adopt(self, node: Node, opened: reach.Opened) -> Opening:
        """A handle for a file that was just created and is open already."""
        place = self._union.place(node)
        bar = self._store.bar(self.targets(node, place))
        return Opening(self._adopt(node, place, opened, bar.release), keep_cache=False)

    def _adopt(self, node: Node, place: Place, opened: reach.Opened, unbar: Callable[[], object]) -> int:
        inode = self._share(node, place)
        inode.writers += 1
        node.version = None
        return self._issue(Handle(inode, opened.descriptor, unbar))

    def _issue(self, handle: Handle) -> int:
        self._issued += 1
        self._handles[self._issued] = handle
        return self._issued

    def _share(self, node: Node, place: Place) -> OpenInode:
        inode = self._inodes.get(node.number)
        if inode is None:
            inode = self._inodes[node.number] = OpenInode(node, place.source, place.keys)
            for key in place.keys:
                self._store.opened(key)
        return inode

    async def _open_source(self, inode: OpenInode) -> tuple[int, int]:
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

    async def release(self, number: int) -> None:
        """The last close of a handle."""
        handle = self._handles.pop(number)
        inode = handle.inode
        if handle.own is None:
            inode.readers -= 1
        else:
            inode.writers -= 1
            await inode.source.discard(handle.own)
        if handle.unbar is not None:
            handle.unbar()
        await self._unshare(inode)

    async def _unshare(self, inode: OpenInode) -> None:
        """Close what the inode shares when nobody has it open any more."""
        if inode.readers or inode.writers or self._inodes.get(inode.node.number) is not inode:
            return
        del self._inodes[inode.node.number]
        for key in inode.keys:
            self._store.closed(key)
        if inode.from_ssd is not None:
            await self._close_ssd(inode.from_ssd)
        if inode.from_source is not None:
            await inode.source.discard(inode.from_source)

    # --- read ----------------------------------------------------------------------------------------------------

    async def read(self, number: int, offset: int, size: int) -> bytes | bytearray:
        """``size`` bytes at ``offset``; fewer only at the end of the file."""
        handle = self._handles[number]
        inode = handle.inode
        entry = self._entry(inode.node, inode.keys)
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

    async def _read_segment(self, handle: Handle, entry: CacheEntry | None, segment: Segment) -> bytes | bytearray:
        inode = handle.inode
        start, size = segment.start, segment.end - segment.start
        if segment.cached and entry is not None:
            data = await self._read_ssd(inode, entry, start, size)
            if data is not None:
                inode.cache_bytes += size
                self._counters.add_cache_read(size)
                return data
            self._counters.add_fallback()
        found = await self._read_source(handle, start, size)
        inode.source_bytes += len(found)
        self._counters.add_source_read(len(found))
        return found

    async def _read_ssd(self, inode: OpenInode, entry: CacheEntry, start: int, size: int) -> bytes | bytearray | None:
        """Exactly ``size`` bytes of an entry; None, with the entry given up, when the SSD does not have them."""
        try:
            descriptor = await self._ssd_side(inode, entry)
            with descriptor.use():  # another task may swap the inode to a newer entry meanwhile
                data: bytes | bytearray | None = read_at_once(descriptor, start, size)
                if data is None:
                    data = await self._on_ssd(reach.read_exactly, descriptor, size, start)
            if len(data) != size:
                raise OSError(errno.EIO, f"the file ends early, at {start + len(data)} of {entry.size} bytes")
        except OSError as error:
            self._store.fail(entry, error)
            _judge(inode, entry, whole=False)
            return None
        _judge(inode, entry, whole=entry.state is EntryState.CACHED)
        return data

    async def _ssd_side(self, inode: OpenInode, entry: CacheEntry) -> Descriptor:
        side = inode.from_ssd
        if side is not None and side.entry_id == entry.id:
            return side.descriptor
        async with inode.opening:
            side = inode.from_ssd
            if side is None or side.entry_id != entry.id:
                opened = await self._on_ssd(_open_file, self._store.file_of(entry))
                old, side = side, _SsdSide(entry.id, opened)
                inode.from_ssd = side
                if old is not None:
                    await self._close_ssd(old)
        return side.descriptor

    async def _on_ssd(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        job = Job(lambda: function(*args))
        with job.done_or_abandoned():
            with trio.move_on_after(_SSD_TIMEOUT_S):
                return await trio.to_thread.run_sync(job.run, abandon_on_cancel=True, limiter=self._ssd_limiter)
            raise OSError(errno.EIO, f"no answer within {_SSD_TIMEOUT_S:g} s")

    async def _close_ssd(self, side: _SsdSide) -> None:
        """What the SSD says to a close is no matter of the reader's."""
        try:
            await self._on_ssd(side.descriptor.close)
        except OSError as error:
            log.debug("closing a file of the SSD failed: %s", error)

    @property
    def ssd_threads_busy(self) -> int:
        """Threads that are waiting for the SSD."""
        return self._ssd_limiter.borrowed_tokens

    async def _read_source(self, handle: Handle, start: int, size: int) -> bytes | bytearray:
        inode = handle.inode
        descriptor = handle.own if handle.own is not None else inode.from_source
        if descriptor is None:
            try:
                await self._open_source(inode)
            except OSError as error:
                kept = inode.kept_by_ssd
                if error.errno != errno.ESTALE or kept is None:
                    raise
                return await self._on_ssd(reach.read_exactly, kept, size, start)
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

    # --- write ---------------------------------------------------------------------------------------------------

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Write to the source. The handle's bar keeps the file out of the cache until it is released."""
        handle = self._handles[number]
        await self._change_open(handle, _write_all, self._own(handle), data, offset)
        return len(data)

    async def truncate(self, number: int, size: int) -> None:
        """ftruncate(2)."""
        handle = self._handles[number]
        await self._change_open(handle, _truncate, self._own(handle), size)

    async def _change_open(self, handle: Handle, function: Callable[[*Ts], T], *args: *Ts) -> T:
        inode = handle.inode
        targets = Targets(keys=frozenset(inode.keys), inodes=frozenset((inode.node.number,)))
        return await self.change(inode.source, targets, function, *args, cause=DropCause.CHANGED)

    async def flush(self, number: int) -> None:
        """close(2) of one descriptor of a handle: the source reports what it could not write."""
        handle = self._handles[number]
        if handle.own is not None:
            await handle.inode.source.call(_flush, handle.own)

    async def fsync(self, number: int, datasync: bool) -> None:
        """fsync(2) or fdatasync(2)."""
        handle = self._handles[number]
        if handle.own is not None:
            await handle.inode.source.call(_fsync, handle.own, datasync)

    def _own(self, handle: Handle) -> Descriptor:
        if handle.own is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle.own

    # --- what is open, what is cached ----------------------------------------------------------------------------

    def _entry(self, node: Node, keys: tuple[FileKey, ...]) -> CacheEntry | None:
        """The entry that is this very file; a key whose entry is another file (after a rename) does not count."""
        for key in keys:
            entry = self._store.get(key)
            if entry is not None and entry.source_file.inode == node.number:
                return entry
        return None

    def _touch(self, inode: OpenInode, entry: CacheEntry) -> None:
        now = trio.current_time()
        if now - inode.touched_at >= _TOUCH_EVERY_S:
            inode.touched_at = now
            self._store.touch(entry.key, time.time())

    def names_changed(self) -> None:
        """Something was renamed, linked or removed: from here on the entries of the new names count."""
        for inode in self._inodes.values():
            keys = self._union.keys(inode.node)
            for key in keys:
                self._store.opened(key)
            for key in inode.keys:
                self._store.closed(key)
            inode.keys = keys

    def state(self, node: Node) -> Visible:
        """The value of ``user.cachefs.state``."""
        return visible(self._entry(node, self._union.keys(node)))

    def attributes_of_cached(self, node: Node) -> Found | None:
        """What was seen last of a file that somebody reads from the SSD; None for any other.

        Once the TTL is over the kernel asks before each read, which must neither wait for the source nor wake it up.
        Every lookup and open still asks the source, and a change that they see takes the entry away.
        """
        inode = self._inodes.get(node.number)
        if inode is None or inode.writers or node.seen is None:
            return None
        entry = self._entry(node, inode.keys)
        if entry is None or entry.state is not EntryState.CACHED:
            return None
        if (node.seen.size, node.seen.mtime_ns) != (entry.size, entry.fingerprint.mtime_ns):
            return None
        return Found(node, node.seen, inode.source.ttl_s)

    async def attributes_of_open(self, node: Node) -> Found:
        """The attributes of a file that no name leads to any more, but that somebody holds open; else ESTALE."""
        inode = self._inodes.get(node.number)
        writers = (handle.own for handle in self._handles.values() if handle.inode is inode and handle.own)
        descriptor = next(writers, inode.from_source if inode is not None else None)
        if inode is not None and descriptor is None and inode.kept_by_ssd is not None and node.seen is not None:
            return Found(node, node.seen._replace(nlink=0), inode.source.ttl_s)
        if inode is None or descriptor is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return Found(node, await inode.source.call(_stat_open, descriptor), inode.source.ttl_s)

    def open_files(self) -> Iterator[OpenFile]:
        """What ``status`` shows of the files that somebody holds open."""
        for inode in self._inodes.values():
            paths = self._union.inodes.paths(inode.node)
            yield OpenFile(
                path=UnionPath(paths[0] if paths else "(deleted)"),
                served_from=visible(self._entry(inode.node, inode.keys)),
                readers=inode.readers,
                writers=inode.writers,
                cache_bytes=inode.cache_bytes,
                source_bytes=inode.source_bytes,
            )


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


# --- in threads ------------------------------------------------------------------------------------------------------


def _open_file(path: str) -> Descriptor:
    return Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))


def _stat_open(descriptor: Descriptor) -> Stat:
    with descriptor.use() as number:
        return look(number)


def _write_all(descriptor: Descriptor, data: bytes, offset: int) -> None:
    with descriptor.use() as number:
        view = memoryview(data)
        while view:
            done = os.pwrite(number, view, offset)
            view = view[done:]
            offset += done


def _truncate(descriptor: Descriptor, size: int) -> None:
    with descriptor.use() as number:
        os.ftruncate(number, size)


def _flush(descriptor: Descriptor) -> None:
    """Closing a duplicate makes network file systems report errors of earlier writes."""
    with descriptor.use() as number:
        os.close(os.dup(number))


def _fsync(descriptor: Descriptor, datasync: bool) -> None:
    with descriptor.use() as number:
        if datasync:
            os.fdatasync(number)
        else:
            os.fsync(number)
