"""The open files of the mount: who has which file open, what is cached of it, and that a change comes first.

What ``routing`` is built on. A change takes the cached copy out of service *before* it acts: ``change`` is the way for
every one of them, of open files and of others.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import replace
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.store import Store
from cachefs.descriptors import Descriptor, open_below
from cachefs.errors import SourceError, SourceTimeout
from cachefs.fs import backing
from cachefs.fs.backing import Backings
from cachefs.fs.found import Found, Place
from cachefs.fs.inodes import Node
from cachefs.fs.modes import Mode
from cachefs.fs.offered import Offered
from cachefs.fs.openfiles import Handle, OpenInode
from cachefs.fs.segments import visible
from cachefs.fs.source import Source
from cachefs.fs.ssd import Ssd
from cachefs.fs.stat import Stat, look
from cachefs.fs.turns import Turns
from cachefs.fs.union import Union
from cachefs.model import CacheEntry, DropCause, EntryState, FileKey, OpenFile, Targets, UnionPath, Visible
from cachefs.paths import folders_above
from cachefs.status import Counters

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_TOUCH_EVERY_S = 60.0
_MOST_HANDLES = 1 << 30


class InUse:
    """See the module. Use from the event loop only."""

    def __init__(self, union: Union, store: Store, counters: Counters, backings: Backings | None = None) -> None:
        self.backings = backings if backings is not None else Backings()
        self.turns = Turns(union.elsewhere.files)
        self._union = union
        self._store = store
        self._counters = counters
        self._ssd = Ssd(store)
        self._inodes: dict[int, OpenInode] = {}
        self._handles: dict[int, Handle] = {}
        self._issued = 0
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
            if inode.backing is not None and self._store.away:
                self._lose(inode, inode.backing)

    def _lose(self, inode: OpenInode, held: backing.Backing) -> None:
        """What a mapping has written there since the last look is lost with the SSD."""
        held.lost = True
        home, held.home = held.home, None
        unbar, held.unbar = held.unbar, []
        for release in unbar:
            release()
        if home is not None:
            trio.lowlevel.spawn_system_task(inode.source.discard, home)

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

    # --- changes: the cached copy goes first ---------------------------------------------------------------------

    async def change(
        self,
        source: Source,
        targets: Targets,
        function: Callable[[*Ts], T],
        *args: *Ts,
        cause: DropCause | None,
        later: frozenset[FileKey] = frozenset(),
    ) -> T:
        """Take ``targets`` out of the cache, then run ``function`` in a thread of ``source``. ``cause`` None: they stay
        in it, for no byte of theirs changes.

        No copy of them begins or is published until the thread has really returned, however late. What is below the
        folders ``later`` goes afterwards, and only if something was done: no byte of it changes.
        """
        source.refuse_offline()
        if any(_touch(targets, late) for item in self._late for late in item):
            raise SourceError(errno.EIO, f"source {source.name}: an earlier change of it has not come back yet")
        bar = self._store.bar(targets)
        if cause is not None:
            self._offered.withdraw_all(targets)
            for number in targets.inodes & self._inodes.keys():
                self._inodes[number].changed = True
        try:
            await self._drop(replace(targets, folders=targets.folders - later), cause)
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
            await self._drop(Targets(folders=later), cause)
            raise
        else:
            await self._drop(Targets(folders=later), cause)
            return result
        finally:
            self._union.touched(targets.keys)

    async def _drop(self, targets: Targets, cause: DropCause | None) -> None:
        if cause is not None:
            await self._store.drop(targets, cause)

    def targets(self, node: Node, place: Place) -> Targets:
        """Everything in the cache that is this file, under whatever name."""
        return Targets(keys=frozenset(place.keys), inodes=frozenset((node.number,)))

    def changing(self, node: Node, *, content: bool) -> AbstractAsyncContextManager[object]:
        """Around a change of a file."""
        return self.turns.changing(lambda: self._union.keys(node), content=content)

    def barred(self, targets: Targets) -> AbstractContextManager[object]:
        """No copy of these begins or is published within."""
        return self._store.bar(targets)

    def withdraw(self, key: FileKey) -> None:
        """Whoever opens this file next has to ask."""
        self._offered.withdraw_key(key)

    @asynccontextmanager
    async def hold(self, key: FileKey) -> AsyncIterator[bool]:
        """As ``cache.moving.Hold``."""
        async with self.turns.held(key):
            writers = any(inode.writers and key in inode.keys for inode in self._inodes.values())
            yield not writers and not self.turns.is_changing(key) and not self._is_late(key)

    def _is_late(self, key: FileKey) -> bool:
        """Whether a change of this name that was given up may still happen."""
        every = {key, *folders_above(key)}
        return any(every & (late.keys | late.folders) for item in self._late for late in item)

    # --- who has it open -----------------------------------------------------------------------------------------

    def _issue(self) -> int:
        while True:
            self._issued = (self._issued + 1) % _MOST_HANDLES
            if self._issued not in self._handles:
                return self._issued

    def _share(self, node: Node, place: Place) -> OpenInode:
        inode = self._inodes.get(node.number)
        if inode is None:
            inode = self._inodes[node.number] = OpenInode(node, place.source, place.keys)
            for key in place.keys:
                self._store.opened(key)
        inode.node = node
        return inode

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

    def names_changed(self) -> None:
        """Something was renamed, linked or removed: from here on the entries of the new names count."""
        for inode in self._inodes.values():
            keys = self._union.keys(inode.node)
            for key in keys:
                self._store.opened(key)
            for key in inode.keys:
                self._store.closed(key)
            inode.keys = keys

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

    def count_reads(self) -> None:
        """Bring the counters up to date."""
        for inode in list(self._inodes.values()):
            self._offered.readers(inode)

    @property
    def ssd_threads_busy(self) -> int:
        """Threads that are waiting for the SSD."""
        return self._ssd.threads_busy

    # --- what is cached of it, and what was seen -----------------------------------------------------------------

    def state(self, node: Node) -> Visible:
        """The value of ``user.cachefs.state``."""
        return visible(self._entry(node, self._union.keys(node)))

    def _entry(self, node: Node, keys: tuple[FileKey, ...]) -> CacheEntry | None:
        """The entry that is this very file; a key whose entry is another file (after a rename) does not count."""
        for key in keys:
            entry = self._store.get(key)
            if entry is not None and entry.source_file.inode == node.number:
                return entry
        return None

    def _entry_of(self, inode: OpenInode) -> CacheEntry | None:
        return self._entry(inode.node, inode.keys)

    def _in_force(self, entry: CacheEntry) -> bool:
        current = self._store.get(entry.key)
        return current is not None and current.id == entry.id

    def _touch(self, inode: OpenInode, entry: CacheEntry) -> None:
        now = trio.current_time()
        if now - inode.touched_at >= _TOUCH_EVERY_S:
            inode.touched_at = now
            self._store.touch(entry.key, time.time())

    def _touch_entry(self, inode: OpenInode) -> None:
        entry = self._entry_of(inode)
        if entry is not None:
            self._touch(inode, entry)

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

    async def of_copy(self, node: Node, ask: Callable[[int], T]) -> T | None:
        """What the complete copy of a file says to ``ask``, in a thread, by its descriptor; None where there is none.
        Raises ``OSError``."""
        entry = self._entry(node, self._union.keys(node))
        if entry is None or entry.state is not EntryState.CACHED:
            return None
        return await self._ssd.run(_of_file, self._store.file_of(entry), ask)

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


def _touch(one: Targets, other: Targets) -> bool:
    """Whether two changes may be of the same file; of folders only their own keys are compared."""
    return bool(one.keys & other.keys or one.inodes & other.inodes)


def _unbelieved(node: Node, seen: Stat, inode: OpenInode) -> Found:
    """What is known of an open file without its name; to be asked again soon."""
    return Found(node, seen, inode.source.ttl_s, inode.source.ttl_s)


# --- in threads ------------------------------------------------------------------------------------------------------


def _of_file(path: str, ask: Callable[[int], T]) -> T:
    number = open_below(path, os.O_RDONLY)
    try:
        return ask(number)
    finally:
        os.close(number)


def _stat_open(descriptor: Descriptor) -> Stat:
    with descriptor.use() as number:
        return look(number)
