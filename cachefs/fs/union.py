"""What there is in the tree that the mount shows: names, and what their files are now.

Called by ``operations`` (lookups, attributes), ``changes`` and ``routing`` (where is this node), and by planning and
the copiers through ``SourceFiles``. What is known for certain is told without asking the source; what was seen before
is told where it does not answer. What is in whole folders is ``contents``'s.
"""

from __future__ import annotations

import stat as st
from functools import cached_property, partial

from cachefs.fs import reach
from cachefs.fs.contents import Contents
from cachefs.fs.found import BELIEVED_S, RESERVED, VIRTUAL_S, Found, Place, not_there
from cachefs.fs.inodes import Link, Node
from cachefs.fs.patience import Patience
from cachefs.fs.reach import Child
from cachefs.fs.remembered import HOLDS_S, is_away
from cachefs.fs.sightings import Sightings
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat
from cachefs.fs.tree import Tree, named
from cachefs.fs.watched import Asked
from cachefs.model import FileKey


class Union(Tree):
    """The tree, and what is in it. Use from the event loop only."""

    @cached_property
    def sightings(self) -> Sightings:
        return Sightings(self)

    @cached_property
    def contents(self) -> Contents:
        return Contents(self, self.sightings)

    @cached_property
    def _patience(self) -> Patience:
        return Patience()

    async def lookup(self, parent: Node, name: str) -> Found:
        """What ``name`` in a folder is now; the caller counts the kernel's lookup."""
        if self.is_virtual(parent):
            return self.sightings.source_root(name)
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
        asked = self.sightings.ask(place.source, parent)
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
        keep = self.sightings.keeps(asked, place)
        try:
            looked = await self.sightings.call(place.source, reach.look_up, place.ref, name, asked.watcher, keep)
            steady = self.watched.is_steady(asked, looked.watch)
            self.sightings.keep(place.source, parent, looked.place)
            if looked.stat is None:
                await self.sightings.missing(place.source, self.child_key(parent, name))
        except OSError as error:
            if not is_away(error):
                raise
            return await self._remembered_child(place, parent, name, error)
        if looked.stat is None:
            raise not_there(name)
        return await self.sightings.found(place.source, Child(name, looked.stat), parent, steady=steady)

    async def _known_child(self, place: Place, parent: Node, name: str) -> Found | None:
        """What a folder, or a file that is cached, was when it was last seen."""
        known = await self.remembered.folder(place.keys[0]) if place.keys else None
        seen = known.listing.named(name) if known is not None else None
        if seen is None or not self._will_do(self.child_key(parent, name), seen):
            return None
        return await self.sightings.found(place.source, Child(name, seen), parent, remembered=True)

    def _will_do(self, key: FileKey, seen: Stat) -> bool:
        """Whether this may be told of a file while its source is being asked: the cache holds it as it is here."""
        return seen.is_folder or self.witness.is_confirmed(key, seen.size, seen.mtime_ns)

    async def _remembered_child(self, place: Place, parent: Node, name: str, error: OSError) -> Found:
        """What a name in a folder was when it was last seen; ``error`` where nobody knows."""
        known = await self.remembered.folder(place.keys[0]) if place.keys else None
        if known is None:
            raise error
        seen = known.listing.named(name)
        if seen is None:
            raise error if self.witness.get(self.child_key(parent, name)) is not None else not_there(name)
        return await self.sightings.found(place.source, Child(name, seen), parent, remembered=True)

    async def attributes(self, node: Node) -> Found:
        """The node's attributes now; tells the witness."""
        if self.is_virtual(node):
            return Found(node, self.virtual, VIRTUAL_S, VIRTUAL_S)
        return await self.elsewhere.wherever(self.keys(node), partial(self._attributes, node))

    async def _attributes(self, node: Node) -> Found:
        place = self.place(node)
        if place.moved is not None:
            return self.sightings.seen(node, place, await place.source.call(reach.stat_node, place.ref))
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
            seen = await self.sightings.call(place.source, reach.stat_node, place.ref)
        except OSError as error:
            if not is_away(error):
                raise
            known = node.seen or (await self.remembered.attributes(place.keys[0]) if place.keys else None)
            if known is None:
                raise
            return Found(node, known, HOLDS_S, HOLDS_S)
        alone = seen.nlink == 1 or seen.is_folder
        return self.sightings.seen(node, place, seen, steady=alone and watch is not None and watch.changes == changes)

    async def _certain_attributes(self, node: Node, place: Place) -> Found | None:
        if len(place.keys) != 1:
            return None
        (key,) = place.keys
        if st.S_ISDIR(node.kind):
            known = await self.certainty.inside(node, place)
            seen = known.own if known is not None else None
        else:
            parent = self.inodes.get(node.links[-1].parent)
            known = await self.certainty.inside(parent, self.place(parent)) if parent is not None else None
            seen = known.listing.named(key.path.rpartition("/")[2]) if known is not None else None
            seen = seen if seen is not None and seen.nlink == 1 else None
        if seen is None or not place.ref.means(seen):
            return None
        return self.sightings.seen(node, place, seen, steady=True)

    async def _certain_child(self, place: Place, parent: Node, name: str) -> Found | None:
        """A name in a folder, without asking the source; None where that is not certain."""
        known = await self.certainty.inside(parent, place)
        if known is None:
            return None
        seen = known.listing.named(name)
        if seen is None:
            watches = place.source.watches
            unheard = watches is None or watches.has_news()
            if unheard or self.witness.get(self.child_key(parent, name)) is not None:
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
            inside = await self.certainty.seen(self.child_key(parent, child.name), seen)
            holds = inside is not None
            seen = inside.own if inside is not None else seen
        found = await self.sightings.found(source, Child(child.name, seen), parent, steady=True)
        return found._replace(attributes_s=BELIEVED_S if holds else 0.0)
