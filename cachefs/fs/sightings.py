"""How a source is asked what is in a folder, and what comes of what it showed: nodes, and what the cache is told.

Used by ``union`` and ``contents``.
"""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.descriptors import Descriptor
from cachefs.fs import reach
from cachefs.fs.found import BELIEVED_S, UNSURE_S, VIRTUAL_S, Found, Place, Tagged, not_there, source_file
from cachefs.fs.inodes import ROOT, Link, Node, number_of
from cachefs.fs.reach import Child
from cachefs.fs.remembered import HOLDS_S
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat
from cachefs.fs.tree import Tree, named
from cachefs.fs.watched import Asked
from cachefs.model import FileKey, SourceName

_ROOM_FOR_WATCHES = 256

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Sightings:
    """See the module. Use from the event loop only."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    # --- asking --------------------------------------------------------------------------------------------------

    async def call(self, source: Source, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """As ``source.call``; that a folder is not there is no news where the whole source has become empty."""
        try:
            return await source.call(function, *args)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE) or not self._tree.roots.was_full(source):
                raise
            await self._tree.roots.refuse_emptied(source)
            raise

    def ask(self, source: Source, folder: Node) -> Asked:
        """To be called before the source is asked about a folder: whether its changes are heard from then on."""
        device = self._tree.roots.device(source.name, folder.dev)
        watches = source.watches if device is not None and (device.local or source.hears_all) else None
        if watches is not None and watches.is_full:
            self._tree.stop_watching(self._tree.watched.evict(_ROOM_FOR_WATCHES))
        return self._tree.watched.ask(source.name, folder, watches)

    def keeps(self, asked: Asked, place: Place) -> bool:
        """Whether the folder is to be kept open, so that its names can be looked up without Python: a watched one
        where nothing is cached, for the cache wants to know what was seen of its files, and nothing is mounted, which
        may be lost without a word."""
        is_watched = asked.watcher is not None or asked.folder.watch is not None
        if not place.keys or place.source.folders.nested.are_in(place.keys[0].path):
            return False
        return (
            is_watched
            and not self._tree.inodes.leaves.is_open(asked.folder.number)
            and not self._tree.holds_in(asked.folder)
        )

    def keep(self, source: Source, folder: Node, opened: Descriptor | None) -> None:
        """Keep a folder open that was asked about, where it ``keeps``; None: it was not opened."""
        if opened is None:
            return
        if folder.watch is None:
            opened.close()  # it is a place only (O_PATH): nothing waits for a disk
            return
        is_root = self._tree.place(folder).ref.paths[:1] == ("",)  # what is missing there may be all of it: see missing
        leaves = self._tree.inodes.leaves
        leaves.open_folder(
            folder.number, opened.number, folder.dev, BELIEVED_S, source.ttl_s, tells_absence=not is_root
        )

    # --- what was seen -------------------------------------------------------------------------------------------

    async def found(
        self, source: Source, child: Child, parent: Node, *, steady: bool = False, remembered: bool = False
    ) -> Found:
        """The node of a file that was just seen in ``parent``; tells the witness, unless it is only remembered."""
        moved = self._tree.moved_in(parent, (child.name,))
        found = await self.found_all(source, (child,), parent, steady=steady, remembered=remembered, moved=moved)
        await self.add_moved(parent, found, () if found else (child.name,))
        if child.name not in found:
            raise not_there(child.name)
        return found[child.name]

    async def found_all(
        self,
        source: Source,
        children: Iterable[Child],
        parent: Node,
        *,
        steady: bool,
        remembered: bool = False,
        moved: Container[str] | None = None,
    ) -> dict[str, Found]:
        """The nodes of files that were just seen in one folder. A library is walked through here: what is the same
        for all of them is worked out once. ``steady``: their folder is watched, and nothing happened in it since it was
        asked. ``moved``: those of them that have moved, where that is known."""
        keys = self._tree.keys(parent)
        prefix = f"{keys[0].path}/" if keys and keys[0].path else ""
        witness, device_of, meet = self._tree.witness, self._tree.roots.device, self._tree.inodes.meet
        ttl_s, name_of_source, number_of_parent = source.ttl_s, source.name, parent.number
        name_s = HOLDS_S if remembered else self.name_s(parent, source, steady=steady)
        found: dict[str, Found] = {}
        moved = moved if moved is not None else self._tree.moved_in(parent)
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

    async def add_moved(self, folder: Node, found: dict[str, Found], names: Sequence[str] | None = None) -> None:
        """The moved files in a folder (or those of these names) beside what its source has."""
        for name in self._tree.moved_in(folder, names):
            place = self._tree.elsewhere.place(named(self._tree.place(folder).keys[0], name))
            if place is not None:
                found[name] = await self._tree.elsewhere.find(place, self._tree.inodes, Link(folder.number, name))

    async def _meet_device(self, source: Source, parent: Node, child: Child) -> Tagged:
        """A file system below a source that was not seen before: a nested mount, a btrfs subvolume."""
        place = self._tree.place(parent)
        identified = await source.call(reach.identify_child, place.ref, child.name)
        return await self._tree.roots.learn(source, child.stat.dev, identified)

    def _report(self, source: Source, node: Node, seen: Stat, key: FileKey, device: Tagged) -> None:
        if self._tree.witness.get(key) is not None:
            self._tree.witness.observe(source_file(key, node.number, seen, device))

    def seen(self, node: Node, place: Place, seen: Stat, *, steady: bool = False) -> Found:
        """A known node was just seen at its source; tells the witness."""
        if place.moved is not None:
            node.seen = self._tree.elsewhere.noted(place.moved, seen)
            return Found(node, node.seen, BELIEVED_S, BELIEVED_S)
        node.seen = seen
        device = self._tree.roots.device(place.source.name, seen.dev)
        if seen.is_file and device is not None:
            for key in place.keys:
                self._report(place.source, node, seen, key, device)
        ttl_s = place.source.ttl_s
        return Found(node, seen, ttl_s, BELIEVED_S if steady else ttl_s)

    def source_root(self, name: str) -> Found:
        """A source's folder, by its name in the root of several. The kernel is to ask for its attributes: these are of
        some time ago."""
        root = self._tree.roots.get(SourceName(name))
        if root is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        device = self._tree.roots.device(SourceName(name), root.dev)
        if device is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        number = number_of(device.tag, root.ino)
        known = self._tree.inodes.get(number)
        seen = known.seen if known is not None and known.seen is not None else root
        node = self._tree.inodes.meet(number, seen, Link(ROOT, name))
        return Found(node, seen, VIRTUAL_S, 0.0)

    async def missing(self, source: Source, key: FileKey) -> None:
        """A name is not there. Where the cache holds it, that is news, unless the whole source is missing: an empty
        folder where there was a library is a lost disk, not a deletion."""
        held = self._tree.witness.get(key) is not None
        in_root_of_library = "/" not in key.path and self._tree.roots.was_full(source)
        if not held and not in_root_of_library:
            return
        await self._tree.roots.refuse_emptied(source)
        if held:
            self._tree.witness.gone(key)

    def name_s(self, folder: Node, source: Source, *, steady: bool) -> float:
        """How long the kernel may believe a name in this folder."""
        if steady:
            return BELIEVED_S
        return source.ttl_s if folder.watch is None else min(source.ttl_s, UNSURE_S)

    def trust_s(self, node: Node, source: Source) -> float:
        """How old what the source showed of a file may be: on a watched folder as old as the watch, for every change
        since would have been heard."""
        watch = self._tree.watched.over(node, self._tree.inodes)
        return source.ttl_s if watch is None or _has_names(node) else trio.current_time() - watch.since

    def hears_all_of(self, node: Node) -> bool:
        """Whether every change of this file is heard."""
        return self._tree.watched.over(node, self._tree.inodes) is not None and not _has_names(node)


def _has_names(node: Node) -> bool:
    """Whether it is a file of several names, which may change by another than the one that is known."""
    return node.seen is not None and node.seen.is_file and node.seen.nlink > 1
