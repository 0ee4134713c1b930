"""POSIX ACLs as the kernel asks for them, where it enforces them (``acl: on``): before it lets somebody into a file or
folder who does not own it.

Used by ``xattrs``; the daemon runs the rest. An answer must not keep anybody from what the file's mode would allow: a
source that has no ACLs, or is away, has none. And it must not wake a disk if it can be known without: an ACL changes
only together with its file's ctime, so one that was read is the file's for as long as the ctime is the same, and those
of cached files are read while their disk is at work. Decides nothing about rights; changes no ACL.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import trio

from cachefs.fs import reach
from cachefs.fs.inodes import Node
from cachefs.fs.reach import Ref
from cachefs.fs.remembered import is_away
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat, look
from cachefs.fs.union import Union
from cachefs.model import FileKey

log = logging.getLogger(__name__)

ACCESS = "system.posix_acl_access"
_SETTLES_NS = 100_000_000
"""Another change within one tick of the clock (10 ms at most) would not be seen in the ctime."""
_MOST_KNOWN = 65536
"""Of 0.2 KiB each, or a bit more where there is an ACL."""
_TRY_AGAIN_S = 60.0
_LOOK_EVERY_S = 1.0


@dataclass(slots=True)
class _Acl:
    """The packed ACL of a file, empty where it has none, and the ctime for which that is so. ``until`` (trio time) the
    ctime is believed to be what was seen last, as the kernel believes it."""

    value: bytes
    ctime_ns: int
    until: float = 0.0


class Acls:
    """See the module. Use from the event loop only."""

    def __init__(self, union: Union) -> None:
        self._union = union
        self._known: dict[int, _Acl] = {}
        self._guessed: defaultdict[Source, set[int]] = defaultdict(set)
        self._guess_came = trio.Event()
        self._cached: dict[FileKey, None] = {}
        self._cached_came = trio.Event()
        union.remembering.follow(self._are_cached)

    async def access(self, node: Node) -> bytes:
        """The access ACL of a file; empty where there is none, or nobody knows."""
        place = self._union.place(node)
        known = self._known.get(node.number)
        try:
            if known is not None and await self._is_true(node, known, place.source):
                return known.value
            read = await place.source.call(_read, place.ref)
        except OSError as error:
            if not is_away(error):
                raise
            self._guessed[place.source].add(node.number)
            self._guess_came.set()
            return known.value if known is not None else b""
        self._note(node.number, read)
        return read.value

    async def _is_true(self, node: Node, known: _Acl, source: Source) -> bool:
        """Whether this is still the file's ACL. The kernel keeps none of the mount's root, which it made before it knew
        that ACLs count: for that one it asks on each path."""
        now = trio.current_time()
        if now < known.until and node.seen is not None and node.seen.ctime_ns == known.ctime_ns:
            return True
        found = await self._union.attributes(node)
        if found.stat.ctime_ns != known.ctime_ns:
            return False
        known.until = now + found.attributes_s if found.attributes_s <= source.ttl_s else 0.0
        return True

    def _note(self, number: int, read: _Read) -> None:
        if not read.is_settled:
            return
        self._known.pop(number, None)
        self._known[number] = _Acl(read.value, read.stat.ctime_ns)
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]

    async def guessed(self) -> list[int]:
        """Wait for a source to be back that was away when ACLs of it were asked for; returns the nodes of these, which
        the kernel is to ask for again."""
        while True:
            if not self._guessed:
                self._guess_came = trio.Event()
                await self._guess_came.wait()
            back = [source for source in self._guessed if source.online]
            if back:
                return [number for source in back for number in self._guessed.pop(source)]
            await trio.sleep(_LOOK_EVERY_S)

    # --- cached files ---

    def _are_cached(self, files: Collection[FileKey]) -> None:
        for file in files:
            self._cached[file] = None
            path = file.path
            while path:
                path = path.rpartition("/")[0]
                self._cached.setdefault(FileKey(file.source, path))
        self._cached_came.set()

    async def run(self) -> None:
        """Read the ACLs of cached files and the folders above them, gently. Runs for ever."""
        while True:
            for key in list(self._cached):
                if await self._read_ahead(key):
                    del self._cached[key]
            self._cached_came = trio.Event()
            with trio.move_on_after(_TRY_AGAIN_S if self._cached else float("inf")):
                await self._cached_came.wait()

    async def _read_ahead(self, key: FileKey) -> bool:
        """Whether that is done with."""
        source = self._union.sources.get(key.source)
        if source is None:
            return True
        if not source.online:
            return False
        try:
            read = await source.call_gently(_read, Ref(source.folders, (key.path,), 0, 0, 0, 0, anything=True))
        except OSError as error:
            log.debug("the ACL of %s cannot be read: %s", key, error)
            return not is_away(error)
        number = self._union.certainty.number(key.source, read.stat)
        if number is not None:
            self._note(number, read)
        return True


# --- in the source's threads -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Read:
    """An ACL and its file. ``is_settled``: a later one shows in the ctime."""

    value: bytes
    stat: Stat
    is_settled: bool


def _read(ref: Ref) -> _Read:
    with reach.place_of(ref) as place:
        before = look(place)
        try:
            value = os.getxattr(reach.proc_path(place), ACCESS)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
            value = b""
        after = look(place)
    old = time.time_ns() - after.ctime_ns > _SETTLES_NS
    return _Read(value, after, old and before.ctime_ns == after.ctime_ns)
