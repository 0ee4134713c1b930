"""Open files, and which descriptor serves each read: the one place that decides it.

Called by ``operations`` for everything that has a file handle, and by ``changes`` for every change (see ``inuse``). An
open file that the daemon serves is followed, not pinned: each read asks the store anew, so a handle moves to the SSD in
mid-stream when its file is published, and back when the entry goes. A complete entry opened for reading is handed to
the kernel (passthrough), by the table in ``modes``.

Concurrency: everything here runs on the event loop. An open decides the kernel's mode and counts itself in one
synchronous block, after everything that waits.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from cachefs.cache.store import Store
from cachefs.fs import channel, reach
from cachefs.fs.backing import Backings
from cachefs.fs.found import Place
from cachefs.fs.inodes import Node
from cachefs.fs.inuse import InUse
from cachefs.fs.modes import TABLE, Answer, Mode, Wish
from cachefs.fs.openfiles import Handle, Opening, OpenInode
from cachefs.fs.reading import Reading
from cachefs.fs.union import Union
from cachefs.fs.writing import Writing
from cachefs.model import CacheEntry, DropCause, EntryState, FileKey
from cachefs.status import Counters

__all__ = ["Opening", "Routing"]

log = logging.getLogger(__name__)

_KEPT_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
_LOOK_AT_MAPPINGS_EVERY_S = 1.0
_OFFER_HOLDS_S = 30.0
"""At most, for one that may be believed for long: whether it still may is asked anew."""


class Routing(InUse):
    """The open files of the mount, and what serves them."""

    def __init__(self, union: Union, store: Store, counters: Counters, backings: Backings | None = None) -> None:
        super().__init__(union, store, counters, backings)
        self._reading = Reading(union, self._ssd, counters, self._entry_of, self._touch)
        self._writing = Writing(self._ssd, self.change)

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

    def _reading_wish(self, inode: OpenInode, entry: CacheEntry | None) -> Wish:
        """What a reader gets of the kernel: the entry only if it is still in force now."""
        side = inode.from_ssd
        if entry is None or side is None or side.entry_id != entry.id or not self._in_force(entry):
            return Wish.READ
        held = inode.backing
        if held is not None:
            return Wish.SAME if held.entry_id == entry.id and not held.lost else Wish.PUBLISHED
        if inode.mode is Mode.IDLE:
            seen = (entry.size, entry.fingerprint.mtime_ns)
            inode.backing = self.backings.open(side.descriptor, entry.id, seen)
            now = self._store.get(entry.key)  # it may have come home since it was asked what it is
            if inode.backing is not None and now is not None:
                inode.backing.same = now.state is EntryState.MOVED
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
            async with self.changing(node, content=True), self.truncating(node, 0 if flags & os.O_TRUNC else None):
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
        if flags & os.O_RDWR:
            try:
                await self._writing.follow_mappings(handle.inode, opened.descriptor)
            except BaseException:
                await self._give_up(handle)
                raise
        return self._answer(handle, Wish.WRITE, keep_cache=self._has_pages_under_way(handle.inode, but=1))

    async def _give_up(self, handle: Handle) -> None:
        """A writer's handle of which the kernel never hears."""
        inode = handle.inode
        inode.writers -= 1
        inode.node.writers -= 1
        if handle.own is not None:
            await inode.source.discard(handle.own)
        if handle.unbar is not None:
            handle.unbar()
        self._let_go(inode)

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

    async def renamed(self, old: FileKey, new: FileKey, *, exchanged: bool) -> None:
        """As ``Store.renamed``, within the bar of the renaming."""
        await self._store.renamed(old, new, exchanged=exchanged)

    async def perhaps_renamed(self, old: FileKey, new: FileKey) -> None:
        """As ``Store.perhaps_renamed``, within the bar of the renaming."""
        await self._store.perhaps_renamed(old, new)

    # --- read, write, close --------------------------------------------------------------------------------------

    async def read(self, number: int, offset: int, size: int) -> bytes | bytearray:
        """As ``Reading.read``."""
        return await self._reading.read(self._handles[number], offset, size)

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

    # --- mappings, and the end -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch backing files that mappings may write, and end those that none can any more; end offers that nobody
        takes. Runs for ever."""
        await self.backings.look()
        while True:
            await trio.sleep(_LOOK_AT_MAPPINGS_EVERY_S)
            self._offered.withdraw_idle()
            for inode in [inode for inode in self._inodes.values() if inode.backing and inode.backing.is_truth]:
                with self._waiting_for_source(inode):
                    if await self._writing.look_at_mapping(inode):
                        self._let_go(inode)

    async def close(self) -> None:
        """Before the mount goes: nothing that a mapping wrote may be lost."""
        for inode in list(self._inodes.values()):
            with self._waiting_for_source(inode):
                await self._writing.copy_back(inode, finally_=True)

    @contextmanager
    def _waiting_for_source(self, inode: OpenInode) -> Iterator[None]:
        """A source that is away keeps what mappings wrote of its own files waiting, and nobody else's."""
        held = inode.backing
        try:
            yield
        except OSError as error:
            if held is not None and not held.is_waiting:
                name = inode.keys[0] if inode.keys else "a deleted file"
                log.warning("what was written to %s is on the SSD only, until its source takes it: %s", name, error)
                held.is_waiting = True
        else:
            if held is not None:
                held.is_waiting = False
