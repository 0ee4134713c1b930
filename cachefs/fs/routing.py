"""Open files, and which descriptor serves each read: the one place that decides it.

Called by ``operations`` for everything that has a file handle, and by ``changes`` for every change, since a change
takes the cached copy out of service *before* it acts. An open file that the daemon serves is followed, not pinned: each
read asks the store anew, so a handle moves to the SSD in mid-stream when its file is published, and back when the entry
goes. A complete entry opened for reading is handed to the kernel (passthrough), by the table in ``modes``.

Concurrency: everything here runs on the event loop. An open decides the kernel's mode and counts itself in one
synchronous block, after everything that waits.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.store import Store
from cachefs.descriptors import Descriptor
from cachefs.errors import SourceError, SourceTimeout
from cachefs.fs import backing, channel, reach
from cachefs.fs.backing import Backings
from cachefs.fs.found import Found, Place
from cachefs.fs.inodes import Node
from cachefs.fs.modes import TABLE, Answer, Mode, Wish
from cachefs.fs.offered import Offered
from cachefs.fs.openfiles import Handle, Opening, OpenInode
from cachefs.fs.reading import Reading
from cachefs.fs.segments import visible
from cachefs.fs.source import Source
from cachefs.fs.ssd import Ssd
from cachefs.fs.stat import Stat, look
from cachefs.fs.turns import Turns
from cachefs.fs.union import Union
from cachefs.fs.writing import Writing
from cachefs.model import CacheEntry, DropCause, EntryState, FileKey, OpenFile, Targets, UnionPath, Visible
from cachefs.status import Counters

__all__ = ["Opening", "Routing"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_KEPT_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
_TOUCH_EVERY_S = 60.0
_MOST_HANDLES = 1 << 30
_LOOK_AT_MAPPINGS_EVERY_S = 1.0
_OFFER_HOLDS_S = 30.0
"""At most, for one that may be believed for long: whether it still may is asked anew."""


class Routing:
    """The open files of the mount."""

    def __init__(self, union: Union, store: Store, counters: Counters, backings: Backings | None = None) -> None:
        self.backings = backings if backings is not None else Backings()
        self._union = union
        self._store = store
        self._counters = counters
        self._ssd = Ssd(store)
        self._reading = Reading(union, self._ssd, counters, self._entry_of, self._touch)
        self._writing = Writing(self._ssd, self.change)
        self._inodes: dict[int, OpenInode] = {}
        self._handles: dict[int, Handle] = {}
        self._issued = 0
        self.turns = Turns(union.elsewhere.files)
        self._late: list[list[Targets]] = []
        """Changes that were given up and are still under way: a later one may not be overtaken by them."""
        self._offered = Offered(self._handles, counters, self._let_go, self._touch_entry)
        store.follow(self._entry_changed, self._offered.lingering)

    def _entry_changed(self, key: FileKey) -> None:
        self._offered.withdraw_key(key)
        entry = self._store.get(key)
        if entry is not None:
            self._union.remembering.cached((key,))
        if entry is not None and entry.state is EntryState.MOVED:
            self._union.inodes.leaves.close_idle(0)  # what is looked up without Python is what the source has
        for inode in [inode for inode in self._inodes.values() if key in inode.keys]:
            self._follow_home(inode)

    def _follow_home(self, inode: OpenInode) -> None:
        """The file may have moved, or come home: who has it open goes on with it where it is now."""
        if not self._union.keys(inode.node):
            return  # no name leads to it: it goes on with what it has
        place = self._union.place(inode.node)
        if place.source is inode.source:
            return
        inode.source = place.source
        if inode.backing is not None:
            inode.backing.same = place.moved is not None
        if inode.from_source is not None:
            spare, inode.from_source = inode.from_source, None
            trio.lowlevel.spawn_system_task(place.source.discard, spare)

    @asynccontextmanager
    async def hold(self, key: FileKey) -> AsyncIterator[bool]:
        """As ``cache.moving.Hold``."""
        async with self.turns.held(key):
            writers = any(inode.writers and key in inode.keys for inode in self._inodes.values())
            yield not writers and not self.turns.is_changing(key)

    # --- changes: the cached copy goes first ---------------------------------------------------------------------

    async def change(
        self,
        source: Source,
        targets: Targets,
        function: Callable[[*Ts], T],
        *args: *Ts,
        cause: DropCause,
        later: frozenset[FileKey] = frozenset(),
    ) -> T:
        """Take ``targets`` out of the cache, then run ``function`` in a thread of ``source``.

        No copy of them begins or is published until the thread has really returned, however late. What is below the
        folders ``later`` goes afterwards, and only if something was done: no byte of it changes.
        """
        source.refuse_offline()
        if any(_touch(targets, late) for item in self._late for late in item):
            raise SourceError(errno.EIO, f"source {source.name}: an earlier change of it has not come back yet")
        bar = self._store.bar(targets)
        self._offered.withdraw_all(targets)
        for number in targets.inodes & self._inodes.keys():
            self._inodes[number].changed = True
        try:
            await self._store.drop(replace(targets, folders=targets.folders - later), cause)
        except BaseException:
            bar.release()
            raise
        under_way = [targets]

        def finished() -> None:
            bar.release()
            under_way.clear()
            self._late = [item for item in self._late if item]

        self._union.touched(targets.keys)
        try:
            result = await source.change(finished, function, *args)
        except SourceTimeout:
            if under_way:
                self._late.append(under_way)
            await self._store.drop(Targets(folders=later), cause)
            raise
        else:
            await self._store.drop(Targets(folders=later), cause)
            return result
        finally:
            self._union.touched(targets.keys)

    def targets(self, node: Node, place: Place) -> Targets:
        """Everything in the cache that is this file, under whatever name."""
        return Targets(keys=frozenset(place.keys), inodes=frozenset((node.number,)))

    # --- open ----------------------------------------------------------------------------------------------------

    async def open(self, node: Node, flags: int) -> Opening:
        """Open a file for reading, writing or both."""

        async def opened() -> Opening:
            place = self._union.place(node)
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
                return await self._open_for_writing(node, place, flags)
            return await self._open_for_reading(node, place)

        return await self._union.elsewhere.wherever(self._union.keys(node), opened)

    async def _open_for_reading(self, node: Node, place: Place) -> Opening:
        entry = await self._fresh_entry(node, place)
        inode = self._share(node, place)
        inode.readers += 1
        try:
            version: tuple[int, int] | None = None
            if entry is not None and entry.state is EntryState.MOVED:
                version = await self._ssd.open_moved(inode, entry)
            elif entry is not None and entry.state is EntryState.CACHED and await self._ssd.open(inode, entry):
                version = (entry.size, entry.fingerprint.mtime_ns)
            if version is None:
                entry = None
                version = await self._reading.open_source(inode)
        except BaseException:
            inode.readers -= 1
            self._let_go(inode)
            raise
        if entry is not None:
            self._touch(inode, entry)
        wish = self._reading_wish(inode, entry)
        if inode.writers or (entry is not None and not self._in_force(entry)):
            version = None  # somebody writes, or began to meanwhile
        keep = self._has_pages_under_way(inode) or (version is not None and node.version == version)
        node.version = version
        return self._answer_reader(inode, wish, entry, keep_cache=keep)

    @staticmethod
    def _has_pages_under_way(inode: OpenInode, but: int = 0) -> bool:
        """Whether the kernel may have pages of writers (of more than ``but``) that the source has not yet."""
        return inode.mode is Mode.CACHING and inode.writers > but

    def _in_force(self, entry: CacheEntry) -> bool:
        current = self._store.get(entry.key)
        return current is not None and current.id == entry.id

    def _reading_wish(self, inode: OpenInode, entry: CacheEntry | None) -> Wish:
        """What a reader gets of the kernel: the entry only if it is still in force now."""
        side = inode.from_ssd
        if entry is None or side is None or side.entry_id != entry.id or not self._in_force(entry):
            return Wish.READ
        held = inode.backing
        if held is not None:
            return Wish.SAME if held.entry_id == entry.id else Wish.PUBLISHED
        if inode.mode is Mode.IDLE:
            inode.backing = self.backings.open(side.descriptor, entry.id)
            if inode.backing is not None:
                inode.backing.same = entry.state is EntryState.MOVED
        return Wish.PUBLISHED if inode.mode is not Mode.IDLE or inode.backing is not None else Wish.READ

    def _answer_reader(self, inode: OpenInode, wish: Wish, entry: CacheEntry | None, *, keep_cache: bool) -> Opening:
        """As ``_answer``; with an offer, if nothing about the file is changing, so that whoever opens it next need not
        ask."""
        step = TABLE[inode.mode, wish]
        if step.answer is not Answer.DIRECT and not inode.writers and inode.node.version is not None:
            inode.mode = step.mode
            side = inode.from_ssd if entry is not None and self._in_force(entry) else None
            if side is not None and (entry is None or side.entry_id != entry.id):
                side = None
            opening = self._offered.opening(inode, self._holds_s(inode), keep_cache=keep_cache, side=side)
            if opening is not None:
                inode.readers -= 1  # the offer counts its own
                return opening
        return self._answer(Handle(inode), wish, keep_cache=keep_cache)

    def _holds_s(self, inode: OpenInode) -> float:
        """For how long further readers need not ask."""
        if self._union.sightings.hears_all_of(inode.node):
            return _OFFER_HOLDS_S
        ages = (self._store.seen_ago_s(key) for key in inode.keys)
        return max(0.0, inode.source.ttl_s - max(ages, default=0.0))

    def _answer(self, handle: Handle, wish: Wish, *, keep_cache: bool = False) -> Opening:
        """Decide by the table, and count the handle: nothing may wait between the two."""
        inode = handle.inode
        step = TABLE[inode.mode, wish]
        inode.mode = step.mode
        number = self._issue()
        held = inode.backing
        if step.answer is Answer.PLAIN or held is None:
            self._handles[number] = handle
            return Opening(number, keep_cache)
        number = channel.marked(number, held.id)
        self._handles[number] = handle
        if step.answer is Answer.PASSTHROUGH:
            self._counters.add_kernel_open(inode.node.version[0] if inode.node.version is not None else 0)
        return Opening(number, direct_io=step.answer is Answer.DIRECT)

    def _issue(self) -> int:
        while True:
            self._issued = (self._issued + 1) % _MOST_HANDLES
            if self._issued not in self._handles:
                return self._issued

    async def _fresh_entry(self, node: Node, place: Place) -> CacheEntry | None:
        """The file's entry if it may be served: seen at its source within the TTL, or asked now."""
        entry = self._entry(node, place.keys)
        if place.moved is not None and entry is not None and entry.state is EntryState.MOVED:
            return entry
        if entry is None or self._store.is_fresh(entry.key, self._union.sightings.trust_s(node, place.source)):
            return entry
        try:
            await self._union.attributes(node)
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise
            log.info("%s is served from the SSD unchecked: %s", entry.key, error)
        return self._entry(node, place.keys)

    async def _open_for_writing(self, node: Node, place: Place, flags: int) -> Opening:
        bar = self._store.bar(self.targets(node, place))
        try:
            async with self.changing(place, content=True), self.truncating(node, 0 if flags & os.O_TRUNC else None):
                place = self._union.place(node)
                opened = await self.change(
                    place.source,
                    self.targets(node, place),
                    reach.open_node,
                    place.ref,
                    flags & _KEPT_FLAGS,
                    cause=DropCause.CHANGED,
                )
                handle = self._writer(node, place, opened, bar.release)
        except BaseException:
            bar.release()
            raise
        handle.appends = bool(flags & os.O_APPEND)
        inode, held = handle.inode, handle.inode.backing
        if held is not None and not held.same and flags & os.O_RDWR and held.home is None:
            held.home = await inode.source.call(backing.open_again, opened.descriptor)
        return self._answer(handle, Wish.WRITE, keep_cache=self._has_pages_under_way(inode, but=1))

    def adopt(self, node: Node, opened: reach.Opened, flags: int) -> Opening:
        """A handle for a file that was just created and is open already."""
        place = self._union.place(node)
        bar = self._store.bar(self.targets(node, place))
        handle = self._writer(node, place, opened, bar.release)
        handle.appends = bool(flags & os.O_APPEND)
        return self._answer(handle, Wish.WRITE)

    def _writer(self, node: Node, place: Place, opened: reach.Opened, unbar: Callable[[], object]) -> Handle:
        inode = self._share(node, place)
        inode.writers += 1
        node.writers += 1
        node.version = None
        self._offered.withdraw(inode)
        return Handle(inode, opened.descriptor, unbar=unbar)

    def _share(self, node: Node, place: Place) -> OpenInode:
        inode = self._inodes.get(node.number)
        if inode is None:
            inode = self._inodes[node.number] = OpenInode(node, place.source, place.keys)
            for key in place.keys:
                self._store.opened(key)
        inode.node = node
        return inode

    # --- close ---------------------------------------------------------------------------------------------------

    async def release(self, number: int) -> None:
        """The last close of a handle."""
        handle = self._handles[number]
        inode = handle.inode
        if self._offered.released(handle):
            inode.readers -= 1
            return
        self._handles.pop(number, None)
        if handle.own is None:
            inode.readers -= 1
        else:
            await self._writing.copy_back(inode)
            inode.writers -= 1
            inode.node.writers -= 1
            await inode.source.discard(handle.own)
        if handle.unbar is not None:
            if inode.backing is not None and inode.backing.is_truth:
                inode.backing.unbar.append(handle.unbar)
            else:
                handle.unbar()
        self._let_go(inode)

    def _let_go(self, inode: OpenInode) -> None:
        """Close what the inode shares when nobody has it open any more, and no mapping can write it; nobody waits for
        that."""
        if inode.readers or inode.writers or self._inodes.get(inode.node.number) is not inode:
            return
        held = inode.backing
        if held is not None and held.is_truth:
            return  # run() ends it
        del self._inodes[inode.node.number]
        for key in inode.keys:
            self._store.closed(key)
        inode.mode, inode.backing = Mode.IDLE, None
        if held is not None:
            self.backings.close(held)
        trio.lowlevel.spawn_system_task(self._close_all, inode, held)

    async def _close_all(self, inode: OpenInode, held: backing.Backing | None) -> None:
        if held is not None:
            await self._ssd.close(held.descriptor.close)
            if held.mirror is not None:
                await self._ssd.close(held.mirror.close)
        if inode.from_ssd is not None:
            await self._ssd.close(inode.from_ssd.descriptor.close)
        if inode.from_source is not None:
            await inode.source.discard(inode.from_source)

    # --- read ----------------------------------------------------------------------------------------------------

    async def read(self, number: int, offset: int, size: int) -> bytes | bytearray:
        """As ``Reading.read``."""
        return await self._reading.read(self._handles[number], offset, size)

    def barred(self, targets: Targets) -> AbstractContextManager[object]:
        """No copy of these begins or is published within."""
        return self._store.bar(targets)

    def withdraw(self, key: FileKey) -> None:
        """Whoever opens this file next has to ask."""
        self._offered.withdraw_key(key)

    def changing(self, place: Place, *, content: bool) -> AbstractAsyncContextManager[None]:
        """Around a change of the file at a place."""
        return self.turns.changing(place.keys[0], content=content) if place.keys else nullcontext()

    # --- write ---------------------------------------------------------------------------------------------------

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """As ``Writing.write``."""
        handle = self._handles[number]
        with handle.inode.underway.writing(offset, offset + len(data)):
            return await self._writing.write(handle, offset, data)

    async def truncate(self, number: int, size: int) -> None:
        """As ``Writing.truncate``."""
        await self._writing.truncate(self._handles[number], size)

    @asynccontextmanager
    async def truncating(self, node: Node, size: int | None) -> AsyncIterator[None]:
        """Around a truncation of the file at its source by its name (None: it is none): as ``Writing.truncating``."""
        inode = self._inodes.get(node.number)
        if inode is None or size is None:
            yield
            return
        async with self._writing.truncating(inode, size):
            yield

    async def flush(self, number: int) -> None:
        """As ``Writing.flush``."""
        await self._writing.flush(self._handles[number])

    async def fsync(self, number: int, datasync: bool) -> None:
        """As ``Writing.fsync``."""
        await self._writing.fsync(self._handles[number], datasync)

    async def run(self) -> None:
        """Watch backing files that mappings may write, and end those that none can any more; end offers that nobody
        takes. Runs for ever."""
        await self.backings.look()
        while True:
            await trio.sleep(_LOOK_AT_MAPPINGS_EVERY_S)
            self._offered.withdraw_idle()
            for inode in [inode for inode in self._inodes.values() if inode.backing and inode.backing.is_truth]:
                if await self._writing.look_at_mapping(inode):
                    self._let_go(inode)

    async def close(self) -> None:
        """Before the mount goes: nothing that a mapping wrote may be lost."""
        for inode in list(self._inodes.values()):
            await self._writing.copy_back(inode, always=True)

    # --- what is open, what is cached ----------------------------------------------------------------------------

    def _entry(self, node: Node, keys: tuple[FileKey, ...]) -> CacheEntry | None:
        """The entry that is this very file; a key whose entry is another file (after a rename) does not count."""
        for key in keys:
            entry = self._store.get(key)
            if entry is not None and entry.source_file.inode == node.number:
                return entry
        return None

    def _entry_of(self, inode: OpenInode) -> CacheEntry | None:
        return self._entry(inode.node, inode.keys)

    def _touch(self, inode: OpenInode, entry: CacheEntry) -> None:
        now = trio.current_time()
        if now - inode.touched_at >= _TOUCH_EVERY_S:
            inode.touched_at = now
            self._store.touch(entry.key, time.time())

    def _touch_entry(self, inode: OpenInode) -> None:
        entry = self._entry_of(inode)
        if entry is not None:
            self._touch(inode, entry)

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

    def count_reads(self) -> None:
        """Bring the counters up to date."""
        for inode in list(self._inodes.values()):
            self._offered.readers(inode)

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
        return _unbelieved(node, node.seen, inode)

    async def attributes_of_open(self, node: Node) -> Found:
        """The attributes of a file that no name leads to any more, but that somebody holds open; else ESTALE."""
        inode = self._inodes.get(node.number)
        writers = (handle.own for handle in self._handles.values() if handle.inode is inode and handle.own)
        descriptor = next(writers, inode.from_source if inode is not None else None)
        if inode is not None and descriptor is None and inode.kept_by_ssd is not None and node.seen is not None:
            return _unbelieved(node, node.seen._replace(nlink=0), inode)
        if inode is None or descriptor is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return _unbelieved(node, await inode.source.call(_stat_open, descriptor), inode)

    @property
    def ssd_threads_busy(self) -> int:
        """Threads that are waiting for the SSD."""
        return self._ssd.threads_busy

    def open_files(self) -> Iterator[OpenFile]:
        """What ``status`` shows of the files that somebody holds open."""
        for inode in list(self._inodes.values()):
            readers = self._offered.readers(inode)
            if not readers and not inode.writers:
                continue  # kept open for a moment
            paths = self._union.inodes.paths(inode.node)
            yield OpenFile(
                path=UnionPath(paths[0] if paths else "(deleted)"),
                served_from=visible(self._entry_of(inode)),
                readers=readers,
                writers=inode.writers,
                cache_bytes=inode.cache_bytes,
                source_bytes=inode.source_bytes,
            )


def _touch(one: Targets, other: Targets) -> bool:
    """Whether two changes may be of the same file; of folders only their own keys are compared."""
    return bool(one.keys & other.keys or one.inodes & other.inodes)


def _unbelieved(node: Node, seen: Stat, inode: OpenInode) -> Found:
    """What is known of an open file without its name; to be asked again soon."""
    return Found(node, seen, inode.source.ttl_s, inode.source.ttl_s)


# --- in threads ------------------------------------------------------------------------------------------------------


def _stat_open(descriptor: Descriptor) -> Stat:
    with descriptor.use() as number:
        return look(number)
