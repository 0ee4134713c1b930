"""Answers to requests to read a folder, over the channel: whole replies are put together by ``leaves.c``.

Used by ``operations`` on the event loop. The kernel never asks to open or close a folder (it was told once that this is
not needed), keeps every listing, and asks only for what it does not have. So a listing that may not be true for long is
taken from it again, by ``behind``. Python sees the names that it knows already, and of what is cached; the rest goes
from the source's thread to the kernel untouched.
"""

from __future__ import annotations

import errno
import heapq
import os
from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from cachefs.fs import channel
from cachefs.fs.found import UNSURE_S, Found, Reading, Told
from cachefs.fs.inodes import Node
from cachefs.fs.reach import Child
from cachefs.fs.remembered import HOLDS_S
from cachefs.fs.tree import named
from cachefs.fs.union import Union
from cachefs.model import FileKey

_LOOK_AT_ONCE = 512
"""Names of a folder that one thread hop asks attributes of."""
_MOST_NAMES = 65536
"""Kept of folders that somebody is reading."""


@dataclass(slots=True, eq=False)
class _Kept:
    """A folder that somebody is reading. Whoever reads on from a place is told of it, also if he began with another
    reading."""

    reading: Reading
    keys: tuple[FileKey, ...]
    """The folder's, when it was read."""
    as_of: int
    """What was changed through the mount since the count was this is not told as it was seen."""
    looking: trio.Lock = field(default_factory=trio.Lock)
    """Held by whoever looks at names of it."""


class Listings:
    """Folders that are being read."""

    def __init__(self, union: Union) -> None:
        self._union = union
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._passing: list[tuple[float, int]] = []
        self._passing_came = trio.Event()

    async def answer(self, folder: Node, place: int, request: int) -> None:
        """The reply to a request for what follows ``place`` in a folder; empty at its end."""
        room = channel.room(request)
        if not room:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        kept = await self._reading(folder, place)
        reading, listing = kept.reading, kept.reading.listing
        begin = listing.after(place)
        await self._look_on(folder, kept, begin)
        end = listing.fits(begin, room)
        self._mind_changes(folder, kept, range(begin, end))
        steady = self._is_true(folder, reading)
        numbers: dict[int, int] = {}
        folders = reading.kind is Told.CERTAIN
        files = self._union.holds_in(folder)
        for index in listing.strange(begin, end, folder.number, files=files, folders=folders):
            item = listing.item(index)
            if item is not None:
                found = await self._found(folder, reading, Child(*item), steady=steady)
                if found is None:
                    listing.tell_name_only(index)
                    continue
                self._union.told(found.node)
                listing.set(index, found.node.number, found.attributes_s)
                numbers[index] = found.node.number
        if steady and not self._is_true(folder, reading):  # something happened meanwhile
            steady = False
            for index, number in numbers.items():
                listing.set(index, number, UNSURE_S)
        name_s, ttl_s = self._union.sightings.name_s(folder, reading.source, steady=steady), reading.source.ttl_s
        if reading.kind is Told.REMEMBERED:
            name_s = HOLDS_S
        listing.answer(request, begin, end, folder.number, self._above(folder), name_s, min(name_s, ttl_s))
        if end == len(listing):
            self._told(folder, reading, steady=steady)

    async def _found(self, folder: Node, reading: Reading, child: Child, *, steady: bool) -> Found | None:
        """None: it is not what was seen any more, and the kernel is to ask for it."""
        keys = self._union.keys(folder)
        if keys and self._union.elsewhere.files.get(named(keys[0], child.name)) is not None:
            return None  # it has moved since
        certain, remembered = reading.kind is Told.CERTAIN, reading.kind is Told.REMEMBERED
        try:
            if certain:
                return await self._union.certain(reading.source, child, folder)
            return await self._union.sightings.found(
                reading.source, child, folder, steady=steady, remembered=remembered
            )
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            return None

    async def _reading(self, folder: Node, place: int) -> _Kept:
        """The folder as it is known; read anew for whoever begins, where that is not enough."""
        kept = self._kept.get(folder.number)
        if kept is not None and (place or self._is_true(folder, kept.reading)):
            self._kept.move_to_end(folder.number)
            return kept
        keys, as_of = self._union.keys(folder), self._union.touches.count
        kept = _Kept(await self._union.contents.read(folder, _LOOK_AT_ONCE), keys, as_of)
        self._kept[folder.number] = kept
        self._kept.move_to_end(folder.number)
        names = sum(len(other.reading.listing) for other in self._kept.values())
        while names > _MOST_NAMES and len(self._kept) > 1:
            names -= len(self._kept.popitem(last=False)[1].reading.listing)
        return kept

    async def _look_on(self, folder: Node, kept: _Kept, begin: int) -> None:
        """See to it that the next names were looked at: an answer without names says that there are no more."""
        listing = kept.reading.listing
        if begin < len(listing) and not listing.is_looked_at(begin):
            async with kept.looking:
                if not listing.is_looked_at(begin):
                    await self._union.contents.look_on(folder, kept.reading, begin, _LOOK_AT_ONCE)

    def _mind_changes(self, folder: Node, kept: _Kept, told: range) -> None:
        """Only the names are told of files that were changed through the mount since they were looked at."""
        listing, now = kept.reading.listing, self._union.touches.count
        if kept.as_of == now:
            return
        touched = self._union.touches.since(kept.as_of)
        if touched is None or self._union.keys(folder) != kept.keys:
            for index in told:
                listing.tell_name_only(index)
            return
        for key in touched:
            above, _, name = key.path.rpartition("/")
            if FileKey(key.source, above) in kept.keys:
                listing.tell_name_only(name)
        if not kept.looking.locked():  # else somebody is looking: what he has seen may be older than this
            kept.as_of = now

    def _is_true(self, folder: Node, reading: Reading) -> bool:
        """Whether nothing has happened in the folder since it was read."""
        return folder.watch is not None and folder.watch.changes == reading.changes

    def _above(self, folder: Node) -> int:
        """What ``..`` is: the root, and a removed folder, are their own parents. Only its number is told."""
        return folder.links[-1].parent if folder.links else folder.number

    def _told(self, folder: Node, reading: Reading, *, steady: bool) -> None:
        """The kernel has it all."""
        kept = self._kept.get(folder.number)
        if kept is not None and kept.reading is reading:
            del self._kept[folder.number]
        if not steady:
            holds_s = UNSURE_S if folder.watch is not None else reading.source.ttl_s
            holds_s = HOLDS_S if reading.kind is Told.REMEMBERED else holds_s
            heapq.heappush(self._passing, (trio.current_time() + holds_s, folder.number))
            self._passing_came.set()

    async def passed(self) -> list[int]:
        """Wait for listings that the kernel must not believe any longer; returns their folders."""
        while not self._passing:
            self._passing_came = trio.Event()
            await self._passing_came.wait()
        await trio.sleep_until(self._passing[0][0])
        now = trio.current_time()
        found = []
        while self._passing and self._passing[0][0] <= now:
            found.append(heapq.heappop(self._passing)[1])
        return list(dict.fromkeys(found))
