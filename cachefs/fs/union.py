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
from dataclasses import replace
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.descriptors import Descriptor
from cachefs.errors import SourceError
from cachefs.fs import reach
from cachefs.fs.certain import Certain
from cachefs.fs.elsewhere import Elsewhere, identity_of
from cachefs.fs.files import Files
from cachefs.fs.found import (
    BELIEVED_S,
    RESERVED,
    UNSURE_S,
    VIRTUAL_S,
    Found,
    Listing,
    Place,
    Reading,
    Seen,
    Tagged,
    Told,
    Witness,
    not_there,
    source_file,
    tag_in,
)
from cachefs.fs.inodes import ROOT, FolderWatch, Inodes, Link, Node, number_of
from cachefs.fs.leaves import ADDED
from cachefs.fs.patience import Patience
from cachefs.fs.reach import Child, Ref
from cachefs.fs.remembered import HOLDS_S, Known, Memory, NoMemory, Remembered, is_away
from cachefs.fs.remembering import Remembering
from cachefs.fs.roots import Roots
from cachefs.fs.source import Metadata, Source
from cachefs.fs.space import Space, total
from cachefs.fs.stat import Stat
from cachefs.fs.watched import Asked, Watched
from cachefs.model import FileKey, SourceName, UnionPath
from cachefs.paths import Layout

_ROOM_FOR_WATCHES = 256

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Union:
    """Every source, and the nodes that the kernel knows of them. Use from the event loop only."""

    def __init__(
        self,
        sources: Iterable[Source],
        layout: Layout,
        witness: Witness,
        tag_of: Callable[[str], Awaitable[int]],
        memory: Memory | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.sources = {source.name: source for source in sources}
        self.layout = layout
        self.inodes = Inodes()
        self.elsewhere = elsewhere if elsewhere is not None else Elsewhere()
        self._witness = witness
        self.remembered = Remembered(memory if memory is not None else NoMemory())
        self._roots = Roots(self.sources, self.remembered, self.inodes, tag_of)
        self.watched = Watched(self.inodes.leaves.close_folder, self._changed)
        self._certain = Certain(self.sources, self._roots, self.remembered, self.watched)
        self.files = Files(self.sources, self._roots, witness, self._certain.under, self.elsewhere)
        self.files_asked = Files(self.sources, self._roots, witness, _nothing_is_certain, self.elsewhere)
        """As ``files``, and the sources are asked whatever is known of them."""
        self._patience = Patience()
        self._when_forgotten: dict[int, Callable[[], Awaitable[None]]] = {}
        self.remembering = Remembering(self.sources, self.remembered, self.watched)
        self._virtual = Stat(st.S_IFDIR | 0o755, ROOT, 0, 2, os.geteuid(), os.getegid(), 0, 0, 0, 4096, *_now4())

    def _changed(self, folder: Node | FileKey) -> None:
        for key in (folder,) if isinstance(folder, FileKey) else self.keys(folder):
            self.remembering.changed(key)

    # --- start ---------------------------------------------------------------------------------------------------

    async def open_sources(self) -> None:
        """Open every source's folder; OSError when one cannot be, and nothing is remembered of it. To be called before
        the mount is made."""
        await self._roots.open()
        if len(self.sources) > 1:
            self.inodes.begin(self._virtual)

    async def accept(self, source: Source) -> None:
        """Whatever is in the source's place, or below it where something was mounted, is the source from now on."""
        self._roots.accept(source)
        await source.probe_once()

    async def mounts_changed(self, source: Source) -> None:
        """Wait until something else is mounted below a source than before, or something is missing there or back."""
        await self._roots.mounts_changed(source)
        self.inodes.leaves.close_idle(0)

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
        for key in keys:
            moved = self.elsewhere.place(key, node)
            if moved is not None:
                return moved
        if not keys and node.orphan is None:
            number = errno.EPERM if self.is_virtual(node) else errno.ESTALE
            raise OSError(number, os.strerror(number))
        source = self.sources[keys[0].source] if keys else self._source_of(node)
        if keys and tag_in(node.dev) is not None:  # it was moved, or remembered only
            node.dev = self._roots.present(source.name, node.dev)
        ref = Ref(
            source.folders, tuple(key.path for key in keys), node.dev, node.ino, node.kind, node.born_ns, node.orphan
        )
        return Place(source, keys, ref)

    def _source_of(self, orphan: Node) -> Source:
        """A source on the orphan's file system, one that answers if there is any."""
        elsewhere = self.elsewhere.any_source() if tag_in(orphan.dev) is not None else None
        if elsewhere is not None:
            return elsewhere
        found = self._roots.on(orphan.dev)
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
        return named(place.keys[0], name)

    def known(self, source: Source, seen: Stat) -> Node | None:
        """The node of a file that was just seen, if the kernel knows it."""
        device = self._roots.device(source.name, seen.dev)
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
        if name == RESERVED:
            raise not_there(name)
        if not place.keys:
            return await self._look_at_source(place, parent, name)
        key = named(place.keys[0], name)

        async def look() -> Found:
            moved = self.elsewhere.place(key)
            if moved is not None:
                return await self.elsewhere.find(moved, self.inodes, Link(parent.number, name))
            return await self._look_at_source(place, parent, name)

        return await self.elsewhere.wherever((key,), look)

    async def _look_at_source(self, place: Place, parent: Node, name: str) -> Found:
        asked = self._ask(place.source, parent)
        certain = await self._certain_child(place, parent, name)
        if certain is not None:
            return certain
        if asked.watcher is not None or parent.watch is not None:
            return await self._look_up(place, parent, name, asked)
        return await self._patience.ask(
            place.source.name,
            (parent.number, name),
            partial(self._look_up, place, parent, name, asked),
            partial(self._known_child, place, parent, name),
        )

    async def _look_up(self, place: Place, parent: Node, name: str, asked: Asked) -> Found:
        keep = self._keeps(asked, place)
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
            raise not_there(name)
        return await self.found(place.source, Child(name, looked.stat), parent, steady=steady)

    def moved_in(self, folder: Node) -> dict[str, int]:
        """The names of the moved files in a folder itself, and their numbers."""
        keys = () if self.is_virtual(folder) else self.keys(folder)[:1]
        return {name: number for key in keys for name, number in self.elsewhere.names_in(key).items()}

    async def _call(self, source: Source, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """As ``source.call``; that a folder is not there is no news where the whole source has become empty."""
        try:
            return await source.call(function, *args)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE) or not self._roots.was_full(source):
                raise
            await self._roots.refuse_emptied(source)
            raise

    async def _known_child(self, place: Place, parent: Node, name: str) -> Found | None:
        """What a folder, or a file that is cached, was when it was last seen."""
        known = await self.remembered.folder(place.keys[0]) if place.keys else None
        seen = known.listing.named(name) if known is not None else None
        if seen is None or not self._will_do(self.child_key(parent, name), seen):
            return None
        return await self.found(place.source, Child(name, seen), parent, remembered=True)

    def _will_do(self, key: FileKey, seen: Stat) -> bool:
        """Whether this may be told of a file while its source is being asked: the cache holds it as it is here."""
        return seen.is_folder or self._witness.is_confirmed(key, seen.size, seen.mtime_ns)

    async def _remembered_child(self, place: Place, parent: Node, name: str, error: OSError) -> Found:
        """What a name in a folder was when it was last seen; ``error`` where nobody knows."""
        known = await self.remembered.folder(place.keys[0]) if place.keys else None
        if known is None:
            raise error
        seen = known.listing.named(name)
        if seen is None:
            raise error if self._witness.get(self.child_key(parent, name)) is not None else not_there(name)
        return await self.found(place.source, Child(name, seen), parent, remembered=True)

    def holds_in(self, folder: Node) -> bool:
        """Whether anything of a file in this folder itself is cached."""
        return any(self._witness.holds_in(key) for key in self.keys(folder))

    def _keeps(self, asked: Asked, place: Place) -> bool:
        """Whether the folder is to be kept open, so that its names can be looked up without Python: a watched one
        where nothing is cached, for the cache wants to know what was seen of its files, and nothing is mounted, which
        may be lost without a word."""
        is_watched = asked.watcher is not None or asked.folder.watch is not None
        if not place.keys or place.source.folders.nested.are_in(place.keys[0].path):
            return False
        return is_watched and not self.inodes.leaves.is_open(asked.folder.number) and not self.holds_in(asked.folder)

    def _keep(self, source: Source, folder: Node, opened: Descriptor | None) -> None:
        if opened is None:
            return
        if folder.watch is None:
            opened.close()  # it is a place only (O_PATH): nothing waits for a disk
            return
        is_root = self.place(folder).ref.paths[:1] == ("",)  # what is missing there may be all of it: see _missing
        leaves = self.inodes.leaves
        leaves.open_folder(
            folder.number, opened.number, folder.dev, BELIEVED_S, source.ttl_s, tells_absence=not is_root
        )

    def name_s(self, folder: Node, source: Source, *, steady: bool) -> float:
        """How long the kernel may believe a name in this folder."""
        if steady:
            return BELIEVED_S
        return source.ttl_s if folder.watch is None else min(source.ttl_s, UNSURE_S)

    def _ask(self, source: Source, folder: Node) -> Asked:
        device = self._roots.device(source.name, folder.dev)
        watches = source.watches if device is not None and (device.local or source.hears_all) else None
        if watches is not None and watches.is_full:
            self._remove(self.watched.evict(_ROOM_FOR_WATCHES))
        return self.watched.ask(source.name, folder, watches)

    def _source_root(self, name: str) -> Found:
        root = self._roots.get(SourceName(name))
        if root is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        device = self._roots.device(SourceName(name), root.dev)
        if device is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        node = self.inodes.meet(number_of(device.tag, root.ino), root, Link(ROOT, name))
        ttl_s = self.sources[SourceName(name)].ttl_s
        return Found(node, root, VIRTUAL_S, BELIEVED_S if node.watch is not None else ttl_s)

    async def _missing(self, source: Source, key: FileKey) -> None:
        """A name is not there. Where the cache holds it, that is news, unless the whole source is missing: an empty
        folder where there was a library is a lost disk, not a deletion."""
        held = self._witness.get(key) is not None
        in_root_of_library = "/" not in key.path and self._roots.was_full(source)
        if not held and not in_root_of_library:
            return
        await self._roots.refuse_emptied(source)
        if held:
            self._witness.gone(key)

    def emptied(self, source: Source) -> None:
        """The last name in a source's root was removed through the mount: that it is empty is what somebody wanted."""
        self._roots.emptied(source)

    async def found(
        self, source: Source, child: Child, parent: Node, *, steady: bool = False, remembered: bool = False
    ) -> Found:
        """The node of a file that was just seen in ``parent``; tells the witness, unless it is only remembered."""
        found = await self._found_all(source, (child,), parent, steady=steady, remembered=remembered)
        await self._add_moved(parent, found, () if found else (child.name,))
        if child.name not in found:
            raise not_there(child.name)
        return found[child.name]

    async def _found_all(
        self, source: Source, children: Iterable[Child], parent: Node, *, steady: bool, remembered: bool = False
    ) -> dict[str, Found]:
        """The nodes of files that were just seen in one folder. A library is walked through here: what is the same
        for all of them is worked out once. ``steady``: their folder is watched, and nothing happened in it since it was
        asked."""
        keys = self.keys(parent)
        prefix = f"{keys[0].path}/" if keys and keys[0].path else ""
        witness, device_of, meet = self._witness, self._roots.device, self.inodes.meet
        ttl_s, name_of_source, number_of_parent = source.ttl_s, source.name, parent.number
        name_s = HOLDS_S if remembered else self.name_s(parent, source, steady=steady)
        found: dict[str, Found] = {}
        moved = self.moved_in(parent)
        for child in children:
            name, seen = child
            if name in moved:
                continue  # its name was taken at its source: what the mount shows is the moved one
            device = device_of(name_of_source, seen.dev) or await self._meet_device(source, parent, child)
            node = meet(number_of(device.tag, seen.ino), seen, Link(number_of_parent, name))
            alone = seen.nlink == 1 if not seen.is_folder else node.watch is not None
            if keys and not remembered and st.S_ISREG(seen.mode):
                key = FileKey(name_of_source, prefix + name)
                if witness.get(key) is not None:
                    witness.observe(source_file(key, node.number, seen, device))
            found[name] = Found(node, seen, name_s, name_s if alone else min(name_s, ttl_s))
        return found

    async def _add_moved(self, folder: Node, found: dict[str, Found], names: Iterable[str] | None = None) -> None:
        """The moved files in a folder (or those of these names) beside what its source has."""
        moved, at = self.moved_in(folder), self.place(folder)
        for name in moved if names is None else [name for name in names if name in moved]:
            place = self.elsewhere.place(named(at.keys[0], name))
            if place is not None:
                found[name] = await self.elsewhere.find(place, self.inodes, Link(folder.number, name))

    async def _meet_device(self, source: Source, parent: Node, child: Child) -> Tagged:
        """A file system below a source that was not seen before: a nested mount, a btrfs subvolume."""
        place = self.place(parent)
        identified = await source.call(reach.identify_child, place.ref, child.name)
        return await self._roots.learn(source, child.stat.dev, identified)

    def _report(self, source: Source, node: Node, seen: Stat, key: FileKey, device: Tagged) -> None:
        if self._witness.get(key) is not None:
            self._witness.observe(source_file(key, node.number, seen, device))

    async def attributes(self, node: Node) -> Found:
        """The node's attributes now; tells the witness."""
        if self.is_virtual(node):
            return Found(node, self._virtual, VIRTUAL_S, VIRTUAL_S)
        return await self.elsewhere.wherever(self.keys(node), partial(self._attributes, node))

    async def _attributes(self, node: Node) -> Found:
        place = self.place(node)
        if place.moved is not None:
            return self.seen(node, place, await place.source.call(reach.stat_node, place.ref))
        certain = await self._certain_attributes(node, place)
        if certain is not None:
            return certain
        if self.watched.over(node, self.inodes) is not None or not place.keys or node.writers:
            return await self._ask_attributes(node, place)
        return await self._patience.ask(
            place.source.name,
            node.number,
            partial(self._ask_attributes, node, place),
            partial(self._known_attributes, node, place),
        )

    async def _known_attributes(self, node: Node, place: Place) -> Found | None:
        seen = node.seen
        if seen is None or node.writers or not self._will_do(place.keys[0], seen):
            return None
        return Found(node, seen, HOLDS_S, HOLDS_S)

    async def _ask_attributes(self, node: Node, place: Place) -> Found:
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

    async def _certain_attributes(self, node: Node, place: Place) -> Found | None:
        if len(place.keys) != 1:
            return None
        (key,) = place.keys
        if st.S_ISDIR(node.kind):
            known = await self._certain.inside(node, place)
            seen = known.own if known is not None else None
        else:
            parent = self.inodes.get(node.links[-1].parent)
            known = await self._certain.inside(parent, self.place(parent)) if parent is not None else None
            seen = known.listing.named(key.path.rpartition("/")[2]) if known is not None else None
            seen = seen if seen is not None and seen.nlink == 1 else None
        if seen is None or not place.ref.means(seen):
            return None
        return self.seen(node, place, seen, steady=True)

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
        if place.moved is not None:
            node.seen = self.elsewhere.noted(place.moved, seen)
            return Found(node, node.seen, BELIEVED_S, BELIEVED_S)
        node.seen = seen
        device = self._roots.device(place.source.name, seen.dev)
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
        place, before = self.place(folder), self.moved_in(folder)
        asked = self._ask(place.source, folder)
        listed = await place.source.call(reach.list_folder, place.ref, most, asked.watcher)
        steady = self.watched.is_steady(asked, listed.watch)
        if place.ref.paths[:1] == ("",):
            self._roots.note_names(place.source, empty=not listed.names)
        own = self.seen(folder, place, listed.stat, steady=steady)
        children = await self._found_all(place.source, listed.children, folder, steady=steady)
        await self._add_moved(folder, children)
        moved = before | self.moved_in(folder)
        names = [name for name in listed.names if name != RESERVED and name not in moved]
        return Listing(own, [*moved, *names], children)

    async def read_folder(self, folder: Node, start: int, most: int) -> Reading:
        """What is in a folder from a place on, in one hop; ``start`` and the rest as in ``listing``. Read again when a
        file came home meanwhile: it would be nowhere."""
        before = moved = self.moved_in(folder)
        reading = await self._read_folder(folder, 0 if start >= ADDED else start, most)
        while not before.keys() <= (moved := self.moved_in(folder)).keys():
            before = moved
            reading = await self._read_folder(folder, 0 if start >= ADDED else start, most)
        if not moved:
            return reading
        listing = reading.listing.copy() if reading.kind is not Told.SEEN else reading.listing
        for name, number in moved.items():
            listing.add(name, number)
        return replace(reading, listing=listing)

    async def _read_folder(self, folder: Node, start: int, most: int) -> Reading:
        """As its source has it, or as it is remembered."""
        place = self.place(folder)
        asked = self._ask(place.source, folder)
        certain = await self._certain.inside(folder, place)
        if certain is not None and folder.watch is not None and certain.listing.find(start) is not None:
            return Reading(place.source, certain.listing, folder.watch.changes, Told.CERTAIN)
        keep = self._keeps(asked, place)
        try:
            read = await self._call(place.source, reach.read_folder, place.ref, start, most, asked.watcher, keep)
            steady = self.watched.is_steady(asked, read.watch)
            self._keep(place.source, folder, read.place)
            if start == 0 and place.ref.paths[:1] == ("",):
                self._roots.note_names(place.source, empty=read.listing.is_empty)
        except OSError as error:
            known = await self.remembered.folder(place.keys[0]) if is_away(error) and place.keys else None
            if known is None:
                raise
            return Reading(place.source, known.listing, -1, kind=Told.REMEMBERED)
        self.seen(folder, place, read.stat)
        changes = folder.watch.changes if steady and folder.watch is not None else -1
        self._remember(folder, place, read.packed, changes)
        return Reading(place.source, read.listing, changes, Told.SEEN)

    async def look_on(self, folder: Node, reading: Reading, most: int) -> None:
        """Attributes of the next names of a listing, in one hop."""
        place = self.place(folder)
        packed = await place.source.call(reach.look_on, place.ref, reading.listing, most)
        self._remember(folder, place, packed, reading.changes)

    def _remember(self, folder: Node, place: Place, packed: bytes | None, changes: int) -> None:
        """``packed``: all there was in the folder after so many changes (-1: that is not known)."""
        if packed is not None and place.keys:
            self.remembered.remember(place.keys[0], packed)
            if place.source.metadata is not Metadata.ASKED:
                self.watched.learned(folder, place.keys[0], changes)

    def number(self, source: SourceName, seen: Stat) -> int | None:
        """As ``Certain.number``."""
        return self._certain.number(source, seen)

    async def _certain_child(self, place: Place, parent: Node, name: str) -> Found | None:
        """A name in a folder, without asking the source; None where that is not certain."""
        known = await self._certain.inside(parent, place)
        if known is None:
            return None
        seen = known.listing.named(name)
        if seen is None:
            watches = place.source.watches
            unheard = watches is None or watches.has_news()
            if unheard or self._witness.get(self.child_key(parent, name)) is not None:
                return None
            raise not_there(name)
        found = await self.certain(place.source, Child(name, seen), parent)
        still = self.watched.certain(place.keys[0]) is parent.watch
        return found if found.attributes_s and still else None

    async def certain(self, source: Source, child: Child, parent: Node) -> Found:
        """A name that is certainly still in its folder. What a folder itself is, only its own watch tells; where that
        is not known, or a file has several names, its attributes hold for no time."""
        seen = child.stat
        holds = seen.is_folder or seen.nlink == 1
        if seen.is_folder:
            inside = await self._certain.seen(self.child_key(parent, child.name), seen)
            holds = inside is not None
            seen = inside.own if inside is not None else seen
        found = await self.found(source, Child(child.name, seen), parent, steady=True)
        return found._replace(attributes_s=BELIEVED_S if holds else 0.0)

    async def children(self, folder: Node, names: list[str]) -> dict[str, Found]:
        """Nodes and attributes of several names of one folder, in one hop; what is gone by now is left out."""
        place = self.place(folder)
        asked = self._ask(place.source, folder)
        seen = await place.source.call(reach.stat_names, place.ref, names)
        steady = self.watched.is_steady(asked, None)
        found = await self._found_all(place.source, seen, folder, steady=steady)
        await self._add_moved(folder, found, names)
        return found

    async def look_again(self, folder: Node, names: list[str]) -> dict[str, Seen]:
        """Names of a folder as they are now, in one hop, with what was known of each file before; a name that is gone
        has nothing. Tells the witness."""
        place = self.place(folder)
        children = await place.source.call(reach.stat_names, place.ref, names)
        before = {child.name: self._known_before(place.source, child, folder) for child in children}
        found = await self._found_all(place.source, children, folder, steady=False)
        for name in self.moved_in(folder).keys() & set(names):
            at = self.elsewhere.place(named(place.keys[0], name))
            entry = at.moved if at is not None else None
            node = self.inodes.find(*identity_of(entry)) if entry is not None else None
            before[name] = (node.seen if node is not None else None, True)
        await self._add_moved(folder, found, names)
        for name in set(names) - set(found):
            await self._missing(place.source, self.child_key(folder, name))
        return {name: Seen(item.node, item.stat, *before[name]) for name, item in found.items()}

    def _known_before(self, source: Source, child: Child, folder: Node) -> tuple[Stat | None, bool]:
        device = self._roots.device(source.name, child.stat.dev)
        node = self.inodes.get(number_of(device.tag, child.stat.ino)) if device is not None else None
        if node is None:
            return None, False
        return node.seen, Link(folder.number, child.name) in node.links

    def touched(self, keys: Iterable[FileKey]) -> None:
        """These files are being changed through the mount, or were just now."""
        for key in keys:
            self.watched.touched_below(FileKey(key.source, key.path.rpartition("/")[0]))

    async def close_idle_folders(self) -> None:
        """Of the sources, so that they can be unmounted, and of the SSD, where moved files are."""
        for source in (*self.sources.values(), *self.elsewhere.sources.values()):
            if source.online:
                await source.close_idle_folders()

    async def when_forgotten(self, node: Node | None, act: Callable[[], Awaitable[None]]) -> None:
        """``act`` once the kernel does not know this file any more: until then no other may get its number."""
        if node is None:
            await act()
        else:
            self._when_forgotten[node.number] = act

    async def let_go(self, node: Node) -> None:
        """The kernel has forgotten the node: close what was held for it."""
        later = self._when_forgotten.pop(node.number, None)
        if later is not None:
            await later()
        self._remove(self.watched.sleep(node))
        if node.orphan is not None:
            await self._source_of(node).discard(node.orphan)

    def _remove(self, ended: Iterable[FolderWatch]) -> None:
        for watch in ended:
            watches = self.sources[watch.source].watches
            if watches is not None:
                watches.remove(watch.id)

    async def space(self, node: Node | None) -> Space:
        """statfs(2): the numbers of the node's source; for the root of several (or None) the sum over those that
        answer."""
        if node is not None and not self.is_virtual(node):
            place = self.place(node)
            source = self.sources[place.keys[0].source] if place.keys else place.source
            return total([await source.call(_statvfs, source)])
        online = [source for source in self.sources.values() if source.online]
        if not online:
            raise SourceError(errno.EIO, "no source answers")
        return total([await source.call(_statvfs, source) for source in online])


def named(folder: FileKey, name: str) -> FileKey:
    """The key of a name in a folder."""
    return FileKey(folder.source, f"{folder.path}/{name}" if folder.path else name)


async def _nothing_is_certain(folder: FileKey) -> Known | None:
    return None


def _has_names(node: Node) -> bool:
    """Whether it is a file of several names, which may change by another than the one that is known."""
    return node.seen is not None and node.seen.is_file and node.seen.nlink > 1


def _now4() -> tuple[int, int, int, int]:
    now = time.time_ns()
    return (now, now, now, 0)


# --- in the source's threads -----------------------------------------------------------------------------------------


def _statvfs(source: Source) -> os.statvfs_result:
    with source.folders.at("") as folder:
        return os.fstatvfs(folder)
