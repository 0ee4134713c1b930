"""The one tree that the mount shows: nodes, where each lives, and what its source says of it.

Called by ``operations`` (lookups, attributes, listings), ``changes`` and ``routing`` (where is this node), and by
planning and the copiers through ``SourceFiles``. Decides nothing about the cache: it reports what it saw to a
``Witness``, which is the cache's side.
"""

from __future__ import annotations

import errno
import os
import stat as st
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar, TypeVarTuple

import trio

from cachefs.descriptors import Descriptor
from cachefs.errors import SourceError
from cachefs.fs import devices, leaves, reach
from cachefs.fs.inodes import ROOT, Inodes, Link, Node, number_of
from cachefs.fs.reach import Child, Ref
from cachefs.fs.remembered import HOLDS_S, Memory, NoMemory, Remembered, is_away
from cachefs.fs.remembering import Remembering
from cachefs.fs.source import Root, Source, is_empty
from cachefs.fs.space import Space, total
from cachefs.fs.stat import Stat, look
from cachefs.fs.watched import Asked, Watched
from cachefs.model import FileKey, Fingerprint, SourceFile, SourceName, UnionPath
from cachefs.paths import Layout

VIRTUAL_S = 60.0
"""The root over several sources changes only with the configuration."""
BELIEVED_S = 3600.0
"""How long the kernel may believe what it was told of a watched folder: a change is told to it as it happens."""
UNSURE_S = 0.5
"""How long it may believe what was already changing while the source was asked."""
NAME_NOT_THERE_S = 60.0
"""The same for a name that is not there; shorter, for after a loss of events nobody knows which names these were."""

_EMPTY = "the folder is empty; is its disk mounted?"
_ABSENT_MAJOR = 0xFFF
"""Of device numbers that stand for a tag (leaves.c)."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Witness(Protocol):
    """Who wants to know what a source showed. Synchronous and quick: it is told of every file seen."""

    def observe(self, file: SourceFile) -> object: ...

    def gone(self, key: FileKey) -> object: ...

    def get(self, key: FileKey) -> object | None:
        """None for a file that it holds nothing of: it need not be told."""
        ...

    def holds_in(self, folder: FileKey) -> bool:
        """Whether it holds anything of a file in this folder itself."""
        ...


class Found(NamedTuple):
    """A node and its attributes of this moment; how long the kernel may believe its name, and them."""

    node: Node
    stat: Stat
    name_s: float
    attributes_s: float


class NotThere(FileNotFoundError):
    """There is no such name, which the kernel may believe for ``name_s``."""

    def __init__(self, name: str, name_s: float) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT), name)
        self.name_s = name_s


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it is now, and as it was known before (None: the kernel does not know it). ``named``: the kernel knew
    it by this name."""

    node: Node
    stat: Stat
    before: Stat | None
    named: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """A folder, all names in it, and what the first of them are; a name that was gone by then has nothing.

    ``changes``: the count of the folder's watch for which this is true; -1 when it may be true no more."""

    own: Found
    names: list[str]
    children: dict[str, Found]
    changes: int = -1


@dataclass(frozen=True, slots=True)
class Reading:
    """A folder as it was read from some place on; ``changes`` as in ``Listing``."""

    source: Source
    listing: leaves.Listing
    changes: int
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node lives: its source and every key under which it was seen, the likeliest first."""

    source: Source
    keys: tuple[FileKey, ...]
    ref: Ref


@dataclass(frozen=True, slots=True)
class _Device:
    """A file system of a source, and the tag that its inode numbers carry."""

    tag: int
    filesystem: str | None
    local: bool


class Union:
    """Every source, and the nodes that the kernel knows of them. Use from the event loop only."""

    def __init__(
        self,
        sources: Iterable[Source],
        layout: Layout,
        witness: Witness,
        tag_of: Callable[[str], Awaitable[int]],
        memory: Memory | None = None,
    ) -> None:
        self.sources = {source.name: source for source in sources}
        self.layout = layout
        self.inodes = Inodes()
        self._witness = witness
        self._tag_of = tag_of
        self.remembered = Remembered(memory if memory is not None else NoMemory())
        self._devices: dict[tuple[SourceName, int], _Device] = {}
        self._roots: dict[SourceName, Stat] = {}
        self._was_full: set[SourceName] = set()
        self._local: set[SourceName] = set()
        self.remembering = Remembering(self.sources, self.remembered)
        self.watched = Watched(self.inodes.leaves.close_folder, self._changed)
        self._virtual = Stat(st.S_IFDIR | 0o755, ROOT, 0, 2, os.geteuid(), os.getegid(), 0, 0, 0, 4096, *_now4())

    def _changed(self, folder: Node) -> None:
        for key in self.keys(folder):
            self.remembering.changed(key)

    # --- start ---------------------------------------------------------------------------------------------------

    async def open_sources(self) -> None:
        """Open every source's folder; OSError when one cannot be, and nothing is remembered of it. To be called before
        the mount is made."""
        for source in self.sources.values():
            source.judge = partial(self._judge_root, source)
            try:
                await source.open()
            except OSError as error:
                if source.in_place or not await self._recall_root(source):
                    raise
                source.missing(error)
            if source.name in self._local:
                source.watch()  # here or never: the daemon listens to what is watched when it starts
        if len(self.sources) > 1:
            self.inodes.begin(self._virtual)

    async def _judge_root(self, source: Source, root: Root) -> str:
        """Whether this is the folder that was known; if so it is the source's from now on."""
        device = await self._learn_device(source, root.stat.dev, root.device)
        if device.local:
            self._local.add(source.name)
        known = await self._known_root(source)
        if known is not None:
            before, names = known
            if root.empty and names:
                return _EMPTY
            lasting = device.filesystem is not None
            if _tag_in(before.dev) != device.tag and self._tag_of_dev(source, before.dev) != device.tag:
                return "the folder is on another file system than before; `cachefs accept` takes it for what it is now"
            if lasting and before.ino != root.stat.ino:
                return "it is another folder than before; `cachefs accept` takes it for what it is now"
        if not root.empty:
            self._was_full.add(source.name)
        self._begin_root(source, root.stat)
        return ""

    def _tag_of_dev(self, source: Source, dev: int) -> int | None:
        device = self._devices.get((source.name, dev))
        return device.tag if device is not None else None

    async def _known_root(self, source: Source) -> tuple[Stat, bool] | None:
        """The source's folder as it was seen last, and whether there was anything in it."""
        key = FileKey(source.name, "")
        before = await self.remembered.attributes(key)
        listing = await self.remembered.folder(key)
        return (before, not listing.is_empty) if before is not None and listing is not None else None

    async def _recall_root(self, source: Source) -> bool:
        """Show a source that is not there as it was seen last, if it ever was."""
        known = await self._known_root(source)
        if known is None:
            return False
        before, names = known
        if names:
            self._was_full.add(source.name)
        self._begin_root(source, before)
        return True

    def _begin_root(self, source: Source, seen: Stat) -> None:
        self._roots[source.name] = seen
        if len(self.sources) == 1:
            self.inodes.begin(seen)

    def accept(self, source: Source) -> None:
        """Whatever is in the source's place is the source from now on."""
        self._was_full.discard(source.name)
        self.remembered.forget(FileKey(source.name, ""))
        source.doubt("it was accepted as it is, and is looked at anew")

    async def _learn_device(self, source: Source, dev: int, device: devices.Device) -> _Device:
        learned = _Device(await self._tag_of(device.identity), device.filesystem, device.local)
        self._devices[source.name, dev] = learned
        self.inodes.leaves.add_device(dev, learned.tag)
        return learned

    # --- where things are ----------------------------------------------------------------------------------------

    def node(self, number: int) -> Node:
        """The node the kernel means; ESTALE when it is not known, which makes the kernel look it up anew."""
        node = self.inodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def is_virtual(self, node: Node) -> bool:
        """Whether the node is the root over several sources, which lives nowhere."""
        return node.number == ROOT and len(self.sources) > 1

    def keys(self, node: Node) -> tuple[FileKey, ...]:
        """Every key under which the node was seen and that it may still have, the likeliest first."""
        key_below = self.layout.key_below
        keys = [key for path in self.inodes.paths(node) if (key := key_below(UnionPath(path))) is not None]
        return tuple(keys) if len(keys) < 2 else tuple(key for key in keys if key.source == keys[0].source)

    def place(self, node: Node) -> Place:
        """Where the node lives; EPERM for the virtual root, ESTALE for a file that no name leads to any more."""
        keys = self.keys(node)
        if not keys and node.orphan is None:
            number = errno.EPERM if self.is_virtual(node) else errno.ESTALE
            raise OSError(number, os.strerror(number))
        source = self.sources[keys[0].source] if keys else self._source_of(node)
        ref = Ref(source.folders, tuple(key.path for key in keys), node.dev, node.ino, node.orphan)
        return Place(source, keys, ref)

    def _source_of(self, orphan: Node) -> Source:
        """A source on the orphan's file system, one that answers if there is any."""
        found = [self.sources[name] for name, dev in self._devices if dev == orphan.dev]
        if not found:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return next((source for source in found if source.online), found[0])

    def child_key(self, parent: Node, name: str) -> FileKey:
        """The key of a name in a folder; EPERM in the virtual root, ENOENT in a folder that was removed."""
        if self.is_virtual(parent):
            raise OSError(errno.EPERM, f"the sources are fixed by the configuration: {name}")
        place = self.place(parent)
        if not place.keys:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        folder = place.keys[0]
        return FileKey(folder.source, f"{folder.path}/{name}" if folder.path else name)

    def known(self, source: Source, seen: Stat) -> Node | None:
        """The node of a file that was just seen, if the kernel knows it."""
        device = self._devices.get((source.name, seen.dev))
        if device is None:
            return None
        node = self.inodes.meet(number_of(device.tag, seen.ino), seen, None)
        return node if self.inodes.get(node.number) is node else None

    # --- what is there -------------------------------------------------------------------------------------------

    async def lookup(self, parent: Node, name: str) -> Found:
        """What ``name`` in a folder is now; the caller counts the kernel's lookup."""
        if self.is_virtual(parent):
            return self._source_root(name)
        place = self.place(parent)
        asked = self._ask(place.source, parent)
        keep = self._keeps(asked)
        try:
            looked = await self._call(place.source, reach.look_up, place.ref, name, asked.watcher, keep)
            steady = self.watched.is_steady(asked, looked.watch)
            self._keep(place.source, parent, looked.place)
            if looked.stat is None:
                await self._missing(place.source, self.child_key(parent, name))
        except OSError as error:
            if not is_away(error):
                raise
            return await self._remembered_child(place, parent, name, error)
        if looked.stat is None:
            raise NotThere(name, NAME_NOT_THERE_S if steady else 0.0)
        (found,) = (await self._found_all(place.source, (Child(name, looked.stat),), parent, steady=steady)).values()
        return found

    async def _call(self, source: Source, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """As ``source.call``; that a folder is not there is no news where the whole source has become empty."""
        try:
            return await source.call(function, *args)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE) or source.name not in self._was_full:
                raise
            await self._refuse_emptied(source)
            raise

    async def _refuse_emptied(self, source: Source) -> None:
        if await source.call(_root_is_empty, source):
            source.doubt(_EMPTY)
            raise SourceError(errno.EIO, f"source {source.name}: {source.path}: {_EMPTY}")

    async def _remembered_child(self, place: Place, parent: Node, name: str, error: OSError) -> Found:
        """What a name in a folder was when it was last seen; ``error`` where nobody knows."""
        listing = await self.remembered.folder(place.keys[0]) if place.keys else None
        if listing is None:
            raise error
        seen = listing.named(name)
        if seen is None:
            raise error if self._witness.get(self.child_key(parent, name)) is not None else NotThere(name, 0.0)
        return await self.found(place.source, Child(name, seen), parent, remembered=True)

    def holds_in(self, folder: Node) -> bool:
        """Whether anything of a file in this folder itself is cached."""
        return any(self._witness.holds_in(key) for key in self.keys(folder))

    def _keeps(self, asked: Asked) -> bool:
        """Whether the folder is to be kept open, so that its names can be looked up without Python: a watched one
        where nothing is cached, for the cache wants to know what was seen of its files."""
        is_watched = asked.watcher is not None or asked.folder.watch is not None
        return is_watched and not self.inodes.leaves.is_open(asked.folder.number) and not self.holds_in(asked.folder)

    def _keep(self, source: Source, folder: Node, opened: Descriptor | None) -> None:
        if opened is None:
            return
        if folder.watch is None:
            opened.close()  # it is a place only (O_PATH): nothing waits for a disk
            return
        self.inodes.leaves.open_folder(folder.number, opened.number, folder.dev, BELIEVED_S, source.ttl_s)

    def name_s(self, folder: Node, source: Source, *, steady: bool) -> float:
        """How long the kernel may believe a name in this folder."""
        if steady:
            return BELIEVED_S
        return source.ttl_s if folder.watch is None else min(source.ttl_s, UNSURE_S)

    def _ask(self, source: Source, folder: Node) -> Asked:
        device = self._devices.get((source.name, folder.dev))
        watches = source.watches if device is not None and device.local else None
        return self.watched.ask(source.name, folder, watches)

    def _source_root(self, name: str) -> Found:
        root = self._roots.get(SourceName(name))
        if root is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        device = self._devices.get((SourceName(name), root.dev)) or _absent(root.dev)
        node = self.inodes.meet(number_of(device.tag, root.ino), root, Link(ROOT, name))
        ttl_s = self.sources[SourceName(name)].ttl_s
        return Found(node, root, VIRTUAL_S, BELIEVED_S if node.watch is not None else ttl_s)

    async def _missing(self, source: Source, key: FileKey) -> None:
        """A name is not there. Where the cache holds it, that is news, unless the whole source is missing: an empty
        folder where there was a library is a lost disk, not a deletion."""
        held = self._witness.get(key) is not None
        in_root_of_library = "/" not in key.path and source.name in self._was_full
        if not held and not in_root_of_library:
            return
        await self._refuse_emptied(source)
        if held:
            self._witness.gone(key)

    def emptied(self, source: Source) -> None:
        """The last name in a source's root was removed through the mount: that it is empty is what somebody wanted."""
        self._was_full.discard(source.name)

    async def found(
        self, source: Source, child: Child, parent: Node, *, steady: bool = False, remembered: bool = False
    ) -> Found:
        """The node of a file that was just seen in ``parent``; tells the witness, unless it is only remembered."""
        (found,) = (await self._found_all(source, (child,), parent, steady=steady, remembered=remembered)).values()
        return found

    async def _found_all(
        self, source: Source, children: Iterable[Child], parent: Node, *, steady: bool, remembered: bool = False
    ) -> dict[str, Found]:
        """The nodes of files that were just seen in one folder. A library is walked through here: what is the same
        for all of them is worked out once. ``steady``: their folder is watched, and nothing happened in it since it was
        asked."""
        keys = self.keys(parent)
        prefix = f"{keys[0].path}/" if keys and keys[0].path else ""
        witness, devices, meet = self._witness, self._devices, self.inodes.meet
        ttl_s, name_of_source, number_of_parent = source.ttl_s, source.name, parent.number
        name_s = HOLDS_S if remembered else self.name_s(parent, source, steady=steady)
        found: dict[str, Found] = {}
        for child in children:
            name, seen = child
            device = devices.get((name_of_source, seen.dev)) or (
                _absent(seen.dev) if remembered else await self._meet_device(source, parent, child)
            )
            node = meet(number_of(device.tag, seen.ino), seen, Link(number_of_parent, name))
            alone = seen.nlink == 1 if not seen.is_folder else node.watch is not None
            if keys and not remembered and st.S_ISREG(seen.mode):
                key = FileKey(name_of_source, prefix + name)
                if witness.get(key) is not None:
                    witness.observe(_source_file(key, node.number, seen, device))
            found[name] = Found(node, seen, name_s, name_s if alone else min(name_s, ttl_s))
        return found

    async def _meet_device(self, source: Source, parent: Node, child: Child) -> _Device:
        """A file system below a source that was not seen before: a nested mount, a btrfs subvolume."""
        place = self.place(parent)
        identified = await source.call(_identify_child, place.ref, child.name)
        return await self._learn_device(source, child.stat.dev, identified)

    def _report(self, source: Source, node: Node, seen: Stat, key: FileKey, device: _Device) -> None:
        if self._witness.get(key) is not None:
            self._witness.observe(_source_file(key, node.number, seen, device))

    async def attributes(self, node: Node) -> Found:
        """The node's attributes now; tells the witness."""
        if self.is_virtual(node):
            return Found(node, self._virtual, VIRTUAL_S, VIRTUAL_S)
        place = self.place(node)
        watch = self.watched.over(node, self.inodes)
        changes = watch.changes if watch is not None else 0
        try:
            seen = await self._call(place.source, reach.stat_node, place.ref)
        except OSError as error:
            if not is_away(error):
                raise
            known = node.seen or (await self.remembered.attributes(place.keys[0]) if place.keys else None)
            if known is None:
                raise
            return Found(node, known, HOLDS_S, HOLDS_S)
        alone = seen.nlink == 1 or seen.is_folder
        return self.seen(node, place, seen, steady=alone and watch is not None and watch.changes == changes)

    def trust_s(self, node: Node, source: Source) -> float:
        """How old what the source showed of a file may be: on a watched folder as old as the watch, for every change
        since would have been heard."""
        watch = self.watched.over(node, self.inodes)
        return source.ttl_s if watch is None or _has_names(node) else trio.current_time() - watch.since

    def hears_all_of(self, node: Node) -> bool:
        """Whether every change of this file is heard."""
        return self.watched.over(node, self.inodes) is not None and not _has_names(node)

    def seen(self, node: Node, place: Place, seen: Stat, *, steady: bool = False) -> Found:
        """A known node was just seen at its source; tells the witness."""
        node.seen = seen
        device = self._devices.get((place.source.name, seen.dev))
        if seen.is_file and device is not None:
            for key in place.keys:
                self._report(place.source, node, seen, key, device)
        ttl_s = place.source.ttl_s
        return Found(node, seen, ttl_s, BELIEVED_S if steady else ttl_s)

    async def listing(self, folder: Node, most: int) -> Listing:
        """What is in a folder, in one hop, with at most ``most`` of its files. An empty root where there was a library
        is an error, not an empty library."""
        if self.is_virtual(folder):
            found = {str(name): self._source_root(name) for name in self.sources}
            return Listing(Found(folder, self._virtual, VIRTUAL_S, VIRTUAL_S), list(self.sources), found)
        place = self.place(folder)
        asked = self._ask(place.source, folder)
        listed = await place.source.call(reach.list_folder, place.ref, most, asked.watcher)
        steady = self.watched.is_steady(asked, listed.watch)
        if place.ref.paths[:1] == ("",):
            self._judge_names(place.source, empty=not listed.names)
        own = self.seen(folder, place, listed.stat, steady=steady)
        changes = folder.watch.changes if steady and folder.watch is not None else -1
        children = await self._found_all(place.source, listed.children, folder, steady=steady)
        return Listing(own, listed.names, children, changes)

    def _judge_names(self, source: Source, *, empty: bool) -> None:
        if not empty:
            self._was_full.add(source.name)
        elif source.name in self._was_full:
            source.doubt(_EMPTY)
            raise SourceError(errno.EIO, f"source {source.name}: {source.path}: {_EMPTY}")

    async def read_folder(self, folder: Node, start: int, most: int) -> Reading:
        """What is in a folder from a place on, in one hop; ``start`` and the rest as in ``listing``."""
        place = self.place(folder)
        asked = self._ask(place.source, folder)
        keep = self._keeps(asked)
        try:
            read = await self._call(place.source, reach.read_folder, place.ref, start, most, asked.watcher, keep)
            steady = self.watched.is_steady(asked, read.watch)
            self._keep(place.source, folder, read.place)
            if start == 0 and place.ref.paths[:1] == ("",):
                self._judge_names(place.source, empty=read.listing.is_empty)
        except OSError as error:
            listing = await self.remembered.folder(place.keys[0]) if is_away(error) and place.keys else None
            if listing is None:
                raise
            return Reading(place.source, listing, -1, remembered=True)
        if read.packed is not None and place.keys:
            self.remembered.remember(place.keys[0], read.packed)
        self.seen(folder, place, read.stat)
        changes = folder.watch.changes if steady and folder.watch is not None else -1
        return Reading(place.source, read.listing, changes)

    async def look_on(self, folder: Node, listing: leaves.Listing, most: int) -> None:
        """Attributes of the next names of a listing, in one hop."""
        place = self.place(folder)
        packed = await place.source.call(reach.look_on, place.ref, listing, most)
        if packed is not None and place.keys:
            self.remembered.remember(place.keys[0], packed)

    async def children(self, folder: Node, names: list[str]) -> dict[str, Found]:
        """Nodes and attributes of several names of one folder, in one hop; what is gone by now is left out."""
        place = self.place(folder)
        asked = self._ask(place.source, folder)
        seen = await place.source.call(reach.stat_names, place.ref, names)
        steady = self.watched.is_steady(asked, None)
        return await self._found_all(place.source, seen, folder, steady=steady)

    async def look_again(self, folder: Node, names: list[str]) -> dict[str, Seen]:
        """Names of a folder as they are now, in one hop, with what was known of each file before; a name that is gone
        has nothing. Tells the witness."""
        place = self.place(folder)
        children = await place.source.call(reach.stat_names, place.ref, names)
        before = {child.name: self._known_before(place.source, child, folder) for child in children}
        found = await self._found_all(place.source, children, folder, steady=False)
        for name in set(names) - set(found):
            await self._missing(place.source, self.child_key(folder, name))
        return {name: Seen(item.node, item.stat, *before[name]) for name, item in found.items()}

    def _known_before(self, source: Source, child: Child, folder: Node) -> tuple[Stat | None, bool]:
        device = self._devices.get((source.name, child.stat.dev))
        node = self.inodes.get(number_of(device.tag, child.stat.ino)) if device is not None else None
        if node is None:
            return None, False
        return node.seen, Link(folder.number, child.name) in node.links

    async def let_go(self, node: Node) -> None:
        """The kernel has forgotten the node: close what was held for it."""
        if node.watch is not None:
            watch = self.watched.forget(node)
            watches = self.sources[watch.source].watches if watch is not None else None
            if watch is not None and watches is not None:
                watches.remove(watch.id)
        if node.orphan is not None:
            await self._source_of(node).discard(node.orphan)

    async def space(self, node: Node | None) -> Space:
        """statfs(2): the numbers of the node's source; for the root of several (or None) the sum over those that
        answer."""
        if node is not None and not self.is_virtual(node):
            source = self.place(node).source
            return total([await source.call(_statvfs, source)])
        online = [source for source in self.sources.values() if source.online]
        if not online:
            raise SourceError(errno.EIO, "no source answers")
        return total([await source.call(_statvfs, source) for source in online])

    # --- by key: for planning and the copiers --------------------------------------------------------------------

    async def stat(self, key: FileKey) -> SourceFile:
        """The regular file under this key, as its source shows it now; OSError when there is none."""
        source = self._source(key.source)
        seen = await source.call_gently(_stat_path, source, key.path)
        if not seen.is_file:
            raise OSError(errno.EINVAL, "not a regular file", str(key))
        device = self._devices.get((key.source, seen.dev))
        if device is None:
            identified = await source.call_gently(_identify_path, source, key.path)
            device = await self._learn_device(source, seen.dev, identified)
        file = _source_file(key, number_of(device.tag, seen.ino), seen, device)
        self._witness.observe(file)
        return file

    async def exists(self, key: FileKey) -> bool:
        """Whether there is anything under this key."""
        source = self._source(key.source)
        try:
            await source.call_gently(_stat_path, source, key.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def open(self, key: FileKey) -> Descriptor:
        """The file under this key, open for reading."""
        source = self._source(key.source)
        return await source.call_gently(_open_path, source, key.path)

    async def list_folder(self, key: FileKey) -> list[str]:
        """The names in the folder under this key."""
        source = self._source(key.source)
        return await source.call_gently(_list_path, source, key.path)

    async def list_subfolders(self, key: FileKey) -> list[str]:
        """The folders among them."""
        source = self._source(key.source)
        return await source.call_gently(_list_subfolders, source, key.path)

    async def run(self, source: SourceName, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """``function`` in a thread of this source, in the share that copying has."""
        return await self._source(source).call_gently(function, *args)

    def reading_since(self, source: SourceName) -> float:
        """trio time of the last read of this source that a person waited for; minus infinity when there was none."""
        return self._source(source).reading_since

    def _source(self, name: SourceName) -> Source:
        source = self.sources.get(name)
        if source is None:
            raise OSError(errno.ENOENT, "no such source", name)
        return source


def _absent(dev: int) -> _Device:
    """The device of a file that is only remembered, while none of its kind is there: its tag is all that is known."""
    return _Device(_tag_in(dev) or 0, None, local=False)


def _tag_in(dev: int) -> int | None:
    return os.minor(dev) if os.major(dev) == _ABSENT_MAJOR else None


def _has_names(node: Node) -> bool:
    """Whether it is a file of several names, which may change by another than the one that is known."""
    return node.seen is not None and node.seen.is_file and node.seen.nlink > 1


def _source_file(key: FileKey, number: int, seen: Stat, device: _Device) -> SourceFile:
    lasting = device.filesystem is not None
    fingerprint = Fingerprint(seen.size, seen.mtime_ns, seen.ino if lasting else None, device.filesystem)
    return SourceFile(key, fingerprint, number, seen.nlink)


def _now4() -> tuple[int, int, int, int]:
    now = time.time_ns()
    return (now, now, now, 0)


# --- in the source's threads -----------------------------------------------------------------------------------------


def _statvfs(source: Source) -> os.statvfs_result:
    with source.folders.at("") as folder:
        return os.fstatvfs(folder)


def _root_is_empty(source: Source) -> bool:
    with source.folders.at("") as folder:
        return is_empty(folder)


def _identify_child(ref: Ref, name: str) -> devices.Device:
    with reach.folder_of(ref) as folder:
        place = os.open(name, reach.PLACE, dir_fd=folder)
    try:
        return devices.identify(place)
    finally:
        os.close(place)


def _identify_path(source: Source, path: str) -> devices.Device:
    with source.folders.at(reach.split(path)[0]) as folder:
        return devices.identify(folder)


def _stat_path(source: Source, path: str) -> Stat:
    folder_path, name = reach.split(path)
    with source.folders.at(folder_path) as folder:
        return look(folder, name)


def _open_path(source: Source, path: str) -> Descriptor:
    folder_path, name = reach.split(path)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with source.folders.at(folder_path) as folder:
        return Descriptor(os.open(name, flags, dir_fd=folder))


def _list_path(source: Source, path: str) -> list[str]:
    readable = _readable(source, path)
    try:
        return os.listdir(readable)
    finally:
        os.close(readable)


def _list_subfolders(source: Source, path: str) -> list[str]:
    readable = _readable(source, path)
    try:
        with os.scandir(readable) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    finally:
        os.close(readable)


def _readable(source: Source, path: str) -> int:
    with source.folders.at(path) as folder:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
