"""Renaming: at the source, on the SSD where a file has moved, or at both.

Used by ``changes``. What has moved is renamed where it is; below a folder nothing is moved when its turn comes.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cachefs.errors import CacheError, SourceTimeout
from cachefs.fs.found import Place
from cachefs.fs.inodes import Link, Node
from cachefs.fs.losing import Losing, Removed, remove, unlink_for_good
from cachefs.fs.movedfiles import MovedFiles, Renamed, is_refused
from cachefs.fs.named import at, both
from cachefs.fs.rename import EXCHANGE, NOREPLACE, Moved, Step, carry_out
from cachefs.fs.routing import Routing
from cachefs.fs.union import Union
from cachefs.model import DropCause, FileKey, Targets

log = logging.getLogger(__name__)

_TRIES = 8
"""For files that move, or folders that get other names, before it is their turn."""


@dataclass(frozen=True, slots=True)
class _Names:
    """A renaming: each name with the folder that it is in."""

    old: tuple[Node, str]
    new: tuple[Node, str]
    flags: int

    @property
    def old_link(self) -> Link:
        return Link(self.old[0].number, self.old[1])

    @property
    def new_link(self) -> Link:
        return Link(self.new[0].number, self.new[1])


class Renaming:
    """See the module. Use from the event loop only."""

    def __init__(self, union: Union, routing: Routing, moved: MovedFiles, losing: Losing) -> None:
        self._union = union
        self._routing = routing
        self._moved = moved
        self._losing = losing

    async def rename(self, old_parent: Node, old: str, new_parent: Node, new: str, flags: int) -> None:
        """rename(2) with RENAME_NOREPLACE or RENAME_EXCHANGE, within one source."""
        names = _Names((old_parent, old), (new_parent, new), flags)
        try:
            for _ in range(_TRIES):
                if await self._rename(names):
                    return
            raise OSError(errno.EBUSY, "its files move all the time", old)
        finally:  # an error may come when half of it was done
            self._union.watched.touched(old_parent)
            self._union.watched.touched(new_parent)
            self._routing.names_changed()

    async def _rename(self, names: _Names) -> bool:
        """False when what the names stand for became something else meanwhile."""

        def keys_of() -> tuple[FileKey, FileKey]:
            return self._union.child_key(*names.old), self._union.child_key(*names.new)

        (place, targets), (new_place, new_targets) = at(self._union, *names.old), at(self._union, *names.new)
        if place.source is not new_place.source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), names.old[1])
        every, keys = both(targets, new_targets), keys_of()
        with self._routing.barred(every):
            if not names.flags & EXCHANGE and any(map(self._moved.get, keys)) and self._moved.may_become(keys[1]):
                await self._moved.known(*keys)
                # Within the turns of both nothing moves or comes home: what is where stays so until it is renamed.
                async with self._routing.turns.changing(keys_of, content=False) as now:
                    known = now == keys and self._moved.are_known(*keys)
                    done = known and await self._rename_on_ssd(names, keys, new_targets, every)
            else:
                done = await self._rename_at_source(names, keys_of, every)
            if done:
                await self._routing.renamed(*keys, exchanged=bool(names.flags & EXCHANGE))
            return done

    async def _rename_at_source(
        self, names: _Names, keys_of: Callable[[], tuple[FileKey, FileKey]], every: Targets
    ) -> bool:
        keys = keys_of()
        for key in keys:
            await self._moved.bring_home_below(key)
        async with self._routing.turns.renaming(keys_of) as now:
            if now != keys or any(map(self._moved.holds, now)):
                return False
            await self._renamed(names, await self._carry_out(names, every))
            return True

    async def _carry_out(
        self, names: _Names, every: Targets, *, onto_nothing: bool = False, durable: bool = False
    ) -> Moved:
        place, new_place = self._union.place(names.old[0]), self._union.place(names.new[0])
        step = Step(place.ref, names.old[1], new_place.ref, names.new[1], names.flags, durable, onto_nothing)
        keys = self._union.child_key(*names.old), self._union.child_key(*names.new)
        try:
            return await self._routing.change(
                place.source, every, carry_out, step, cause=DropCause.CHANGED, later=every.folders
            )
        except SourceTimeout:
            if not names.flags & EXCHANGE:
                await self._routing.perhaps_renamed(*keys)
            raise

    async def _renamed(self, names: _Names, moved: Moved) -> None:
        """A file of the source has another name, and what had that one has none, or the other."""
        place = self._union.place(names.old[0])
        node = self._union.known(place.source, moved.stat)
        if node is not None:
            self._union.inodes.renamed(node, names.old_link, names.new_link)
        await self._displaced(place, moved, names.old_link, names.new_link)

    async def _rename_on_ssd(
        self, names: _Names, keys: tuple[FileKey, FileKey], new_targets: Targets, every: Targets
    ) -> bool:
        """A moved file, or over one, within the turns of both names; False when neither is moved any more."""
        old_key, new_key = keys
        if self._moved.get(old_key) is not None:
            await self._rename_moved(names, keys, new_targets)
            return True
        if self._moved.get(new_key) is None:
            return False
        rename = partial(self._carry_out, names, every, onto_nothing=True, durable=True)
        gone, moved = await self._moved.yield_to(old_key, new_key, names.flags, rename)
        await self._losing.forgotten(gone, names.new_link)
        await self._renamed(names, moved)
        return True

    async def _rename_moved(self, names: _Names, keys: tuple[FileKey, FileKey], targets: Targets) -> None:
        """A moved file, on the SSD; then what its source has of the new name (``targets``) goes."""
        (old_key, new_key), place = keys, self._union.place(names.new[0])
        renamed = await self._moved.rename(old_key, new_key, place, replace=not names.flags & NOREPLACE)
        if renamed.node is not None:
            self._union.inodes.renamed(renamed.node, names.old_link, names.new_link)
        if renamed.replaced is not None:
            await self._losing.forgotten(renamed.replaced, names.new_link)
        if renamed.over:
            try:
                removed = await self._routing.change(
                    place.source, targets, remove, place.ref, names.new[1], unlink_for_good, cause=DropCause.GONE
                )
            except OSError as error:
                if is_refused(error):
                    await self._rename_back(names, renamed, new_key)
                raise
            await self._losing.lost(place, removed, names.new_link)
            await self._moved.settled(new_key)
        await self._moved.tell_folders(old_key, new_key)

    async def _rename_back(self, names: _Names, renamed: Renamed, new_key: FileKey) -> None:
        try:
            await self._moved.rename_back(renamed, new_key)
        except (CacheError, OSError) as error:
            log.warning("%s has the name %s, though that failed: %s", renamed.before.key, new_key, error)
            return
        if renamed.node is not None:
            self._union.inodes.renamed(renamed.node, names.new_link, names.old_link)

    async def _displaced(self, place: Place, moved: Moved, old: Link, new: Link) -> None:
        """What was at the new name has the old one now, after an exchange, or none any more."""
        if moved.displaced is None:
            return
        if not moved.exchanged:
            await self._losing.lost(place, Removed(moved.displaced.descriptor, moved.displaced.stat), new)
            return
        other = self._union.known(place.source, moved.displaced.stat)
        if other is not None:
            self._union.inodes.renamed(other, new, old)
        await place.source.discard(moved.displaced.descriptor)
