"""What is in folders: listings, as their sources have them or as they are remembered, with the moved files among them.

Used by ``operations`` and ``listings`` through the union, and by ``behind``.
"""

from __future__ import annotations

from dataclasses import replace

from cachefs.fs import reach
from cachefs.fs.elsewhere import identity_of
from cachefs.fs.found import RESERVED, VIRTUAL_S, Found, Listing, Place, Reading, Seen, Told
from cachefs.fs.inodes import Link, Node, number_of
from cachefs.fs.reach import Child
from cachefs.fs.remembered import is_away
from cachefs.fs.sightings import Sightings
from cachefs.fs.source import Metadata, Source
from cachefs.fs.stat import Stat
from cachefs.fs.tree import Tree, named


class Contents:
    """See the module. Use from the event loop only."""

    def __init__(self, tree: Tree, sightings: Sightings) -> None:
        self._tree = tree
        self._sightings = sightings

    async def listing(self, folder: Node, most: int) -> Listing:
        """What is in a folder, in one hop, with at most ``most`` of its files. An empty root where there was a library
        is an error, not an empty library."""
        if self._tree.is_virtual(folder):
            found = {str(name): self._sightings.source_root(name) for name in self._tree.sources}
            return Listing(Found(folder, self._tree.virtual, VIRTUAL_S, VIRTUAL_S), list(self._tree.sources), found)
        place, before = self._tree.place(folder), self._tree.moved_in(folder)
        asked = self._sightings.ask(place.source, folder)
        listed = await place.source.call(reach.list_folder, place.ref, most, asked.watcher)
        steady = self._tree.watched.is_steady(asked, listed.watch)
        if place.ref.paths[:1] == ("",):
            await self._tree.roots.note_names(place.source, empty=not listed.names)
        own = self._sightings.seen(folder, place, listed.stat, steady=steady)
        children = await self._sightings.found_all(place.source, listed.children, folder, steady=steady)
        await self._sightings.add_moved(folder, children)
        moved = before | self._tree.moved_in(folder)
        names = [name for name in listed.names if name != RESERVED and name not in moved]
        return Listing(own, [*moved, *names], children)

    async def read(self, folder: Node, most: int) -> Reading:
        """What is in a folder, in one hop; the rest as in ``listing``. Read again when a file came home meanwhile: it
        would be nowhere."""
        before = moved = self._tree.moved_in(folder)
        reading = await self._read_once(folder, most)
        while not before.keys() <= (moved := self._tree.moved_in(folder)).keys():
            before = moved
            reading = await self._read_once(folder, most)
        if not moved:
            return reading
        listing = reading.listing.copy() if reading.kind is not Told.SEEN else reading.listing
        listing.add(moved)
        return replace(reading, listing=listing)

    async def _read_once(self, folder: Node, most: int) -> Reading:
        """As its source has it, or as it is remembered."""
        place = self._tree.place(folder)
        asked = self._sightings.ask(place.source, folder)
        certain = await self._tree.certainty.inside(folder, place)
        if certain is not None and folder.watch is not None:
            return Reading(place.source, certain.listing, folder.watch.changes, Told.CERTAIN)
        keep = self._sightings.keeps(asked, place)
        try:
            read = await self._sightings.call(place.source, reach.read_folder, place.ref, most, asked.watcher, keep)
            steady = self._tree.watched.is_steady(asked, read.watch)
            self._sightings.keep(place.source, folder, read.place)
            if place.ref.paths[:1] == ("",):
                await self._tree.roots.note_names(place.source, empty=read.listing.is_empty)
        except OSError as error:
            known = await self._tree.remembered.folder(place.keys[0]) if is_away(error) and place.keys else None
            if known is None:
                raise
            return Reading(place.source, known.listing, -1, kind=Told.REMEMBERED)
        self._sightings.seen(folder, place, read.stat)
        changes = folder.watch.changes if steady and folder.watch is not None else -1
        self._remember(folder, place, read.packed, changes)
        return Reading(place.source, read.listing, changes, Told.SEEN)

    async def look_on(self, folder: Node, reading: Reading, begin: int, most: int) -> None:
        """Attributes of the next names of a listing from an index on, in one hop; one at a time."""
        place = self._tree.place(folder)
        packed = await place.source.call(reach.look_on, place.ref, reading.listing, begin, most)
        self._remember(folder, place, packed, reading.changes)

    def _remember(self, folder: Node, place: Place, packed: bytes | None, changes: int) -> None:
        """``packed``: all there was in the folder after so many changes (-1: that is not known)."""
        if packed is not None and place.keys and self._tree.watched.may_learn(place.keys[0], changes):
            self._tree.remembered.remember(place.keys[0], packed)
            if place.source.metadata is not Metadata.ASKED:
                self._tree.watched.learned(folder, place.keys[0], changes)

    async def children(self, folder: Node, names: list[str]) -> dict[str, Found]:
        """Nodes and attributes of several names of one folder, in one hop; what is gone by now is left out."""
        place = self._tree.place(folder)
        asked = self._sightings.ask(place.source, folder)
        seen = await place.source.call(reach.stat_names, place.ref, names)
        steady = self._tree.watched.is_steady(asked, None)
        found = await self._sightings.found_all(place.source, seen, folder, steady=steady)
        await self._sightings.add_moved(folder, found, names)
        return found

    async def look_again(self, folder: Node, names: list[str]) -> dict[str, Seen]:
        """Names of a folder as they are now, in one hop, with what was known of each file before; a name that is gone
        has nothing. Tells the witness."""
        place = self._tree.place(folder)
        children = await place.source.call(reach.stat_names, place.ref, names)
        before = {child.name: self._known_before(place.source, child, folder) for child in children}
        found = await self._sightings.found_all(place.source, children, folder, steady=False)
        for name in self._tree.moved_in(folder).keys() & set(names):
            at = self._tree.elsewhere.place(named(place.keys[0], name))
            entry = at.moved if at is not None else None
            node = self._tree.inodes.find(*identity_of(entry)) if entry is not None else None
            before[name] = (node.seen if node is not None else None, True)
        await self._sightings.add_moved(folder, found, names)
        for name in set(names) - set(found):
            await self._sightings.missing(place.source, self._tree.child_key(folder, name))
        return {name: Seen(item.node, item.stat, *before[name]) for name, item in found.items()}

    def _known_before(self, source: Source, child: Child, folder: Node) -> tuple[Stat | None, bool]:
        device = self._tree.roots.device(source.name, child.stat.dev)
        node = self._tree.inodes.get(number_of(device.tag, child.stat.ino)) if device is not None else None
        if node is None:
            return None, False
        return node.seen, Link(folder.number, child.name) in node.links
