"""Changes behind the mount: what the kernel and the cache are told when a local source changes by itself.

One task for each source that can be watched, run by the daemon under supervision. It hears what happened, waits a
moment (a burst becomes one; answers under way reach the kernel first), asks the source once for each folder, and tells
the kernel exactly what it knew wrongly. Changes made through the mount are heard here too; most of them the kernel
knows already.

The kernel is told from one worker thread per source, never from the loop: it may wait for a request that is under way
in the same folder, which only the loop can answer.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import pyfuse3
import trio

from cachefs.fs.found import Seen
from cachefs.fs.inodes import Node
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat
from cachefs.fs.union import Union
from cachefs.fs.watch import Change, Kind, Watches
from cachefs.model import SourceName

log = logging.getLogger(__name__)

SETTLE_S = 0.1
_NAMES_AT_ONCE = 512
_MOST_TELLING = 64
"""More than there are sources: each has one thread for it."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """What the kernel may know wrongly: a name in a folder, or (no name) an inode's attributes, with its pages."""

    inode: int
    name: str = ""
    pages: bool = False


@dataclass(slots=True)
class _News:
    """What was heard of one folder."""

    folder: Node
    names: dict[str, Kind] = field(default_factory=dict)
    itself: bool = False


class Teller(Protocol):
    """Who tells the kernel, in a thread."""

    def tell(self, wrong: Iterable[Wrong]) -> None: ...

    def end(self) -> None: ...


class Behind:
    """Listens to the sources of a union."""

    def __init__(self, union: Union, teller: Teller | None = None) -> None:
        self._union = union
        self._teller = teller if teller is not None else _Teller()
        self._untold: set[SourceName] = set()
        self._mounts_untold: set[SourceName] = set()
        self._passed: dict[bool, list[int]] = {}

    async def listen(self, source: Source) -> None:
        """Hear and tell. Ends only when the source is closed.

        Begun again after a failure, it looks at everything anew: what was heard then may not have been told.
        """
        limiter = trio.CapacityLimiter(1)
        while (watches := source.watches) is not None:
            news = None if source.name in self._untold else await self._hear(source, watches)
            await self._tell(source, news, limiter)
            self._untold.discard(source.name)

    async def _tell(self, source: Source, news: list[_News] | None, limiter: trio.CapacityLimiter) -> None:
        inodes = self._union.inodes
        wrong = [
            item
            for item in await self._judge(source, news)
            if (inodes.knows_folder(item.inode) if item.name else inodes.knows(item.inode))
        ]
        await trio.to_thread.run_sync(self._teller.tell, wrong, abandon_on_cancel=True, limiter=limiter)

    async def follow_mounts(self, source: Source) -> None:
        """What is mounted below a source, or not any more, changes what is there without a word. Runs for ever."""
        limiter = trio.CapacityLimiter(1)
        while True:
            if source.name not in self._mounts_untold:
                await self._union.mounts_changed(source)
            self._mounts_untold.add(source.name)
            await self._tell(source, None, limiter)
            self._mounts_untold.discard(source.name)

    async def forget(self, passed: Callable[[], Awaitable[list[int]]], *, pages: bool) -> None:
        """Take from the kernel what it may believe for a while only, of the inodes that ``passed`` waits for. Runs for
        ever."""
        limiter = trio.CapacityLimiter(1)
        while True:
            self._passed[pages] = self._passed.get(pages) or await passed()
            wrong = [Wrong(number, pages=pages) for number in self._passed[pages]]
            await trio.to_thread.run_sync(self._teller.tell, wrong, abandon_on_cancel=True, limiter=limiter)
            del self._passed[pages]

    async def close(self) -> None:
        """Before the session is destroyed: nobody may be telling the kernel anything through it."""
        await trio.to_thread.run_sync(self._teller.end, abandon_on_cancel=True)

    async def _hear(self, source: Source, watches: Watches) -> list[_News] | None:
        """Everything that happened by the time that things have settled; None: nobody knows what."""
        news: dict[int, _News] = {}
        lost = False
        await trio.lowlevel.wait_readable(watches.fileno())
        self._untold.add(source.name)
        for _ in range(2):
            changes = watches.read()
            for change in changes:
                lost = lost or change.kind is Kind.LOST
                folder = self._union.watched.folder(source.name, change.watch)
                if folder is not None:
                    _add(news.setdefault(folder.number, _News(folder)), change)
            self._union.watched.count(source.name, changes)
            await trio.sleep(SETTLE_S)
        return None if lost else list(news.values())

    async def _judge(self, source: Source, news: list[_News] | None) -> list[Wrong]:
        if news is None:
            self._union.watched.count(source.name, [Change(-1, Kind.LOST)])
            log.info("source %s: not every change was heard; everything is looked at anew", source.name)
            return self._everything(source)
        found: list[Wrong] = []
        for item in news:
            found += await self._judge_folder(item)
        return list(dict.fromkeys(found))

    async def _judge_folder(self, news: _News) -> list[Wrong]:
        """What the kernel knows wrongly of one folder, in the light of what is there now."""
        folder = news.folder
        renamed = any(kind is Kind.NAMES for kind in news.names.values())
        found = [Wrong(folder.number, pages=True)] if renamed else [Wrong(folder.number)] if news.itself else []
        names = list(news.names)
        for begin in range(0, len(names), _NAMES_AT_ONCE):
            some = names[begin : begin + _NAMES_AT_ONCE]
            now = await self._look(folder, some)
            for name in some:
                found += self._judge_name(folder, name, now.get(name), news.names[name])
        return found

    async def _look(self, folder: Node, names: list[str]) -> dict[str, Seen]:
        """The names as they are now; the cache is told on the way."""
        try:
            return await self._union.contents.look_again(folder, names)
        except OSError as error:
            log.debug("a changed folder cannot be looked at: %s", error)
            return {}

    def _judge_name(self, folder: Node, name: str, seen: Seen | None, kind: Kind) -> list[Wrong]:
        if seen is None:
            return [Wrong(folder.number, name)]
        found = []
        if not seen.named or (kind is Kind.NAMES and _has_come_back(seen)):
            found.append(Wrong(folder.number, name))  # the kernel may know another file, or none, by this name
        before = seen.before
        if before is None and seen.named:  # a leaf until now: what the kernel was told of it, nobody knows
            found.append(Wrong(seen.node.number, pages=not seen.node.writers))
        elif before is not None and _attributes_of(before) != _attributes_of(seen.stat):
            same_bytes = (before.size, before.mtime_ns) == (seen.stat.size, seen.stat.mtime_ns)
            # What is being written through the mount is heard here too: the kernel has these bytes, it wrote them.
            found.append(Wrong(seen.node.number, pages=not same_bytes and not seen.node.writers))
        return found

    def _everything(self, source: Source) -> list[Wrong]:
        """All that the kernel may have been told of this source."""
        found = []
        folders = set()
        for node in self._union.inodes:
            keys = self._union.keys(node)
            if keys and keys[0].source == source.name:
                found.append(Wrong(node.number, pages=True))
                found += [Wrong(link.parent, link.name) for link in node.links]
                folders.add(node.number)
        for leaf in self._union.inodes.leaves:
            if leaf.parent in folders:
                found += (Wrong(leaf.number, pages=True), Wrong(leaf.parent, leaf.name))
        return found


def _add(news: _News, change: Change) -> None:
    if change.name:
        news.names[change.name] = Kind.NAMES if news.names.get(change.name) is Kind.NAMES else change.kind
        news.itself = news.itself or change.kind is Kind.NAMES
    else:
        news.itself = True


def _has_come_back(seen: Seen) -> bool:
    """Whether a file may have been called otherwise in between, and another one so: a renaming leaves the bytes, and
    changes ctime. The kernel may know that other one by this name.

    Not a folder: a kernel that is to forget the name of one forgets all that is below, and what somebody works in.
    """
    before, now = seen.before, seen.stat
    if before is None or now.is_folder or before.ctime_ns == now.ctime_ns:
        return False
    return (before.size, before.mtime_ns) == (now.size, now.mtime_ns) or max(before.nlink, now.nlink) > 1


def _attributes_of(stat: Stat) -> Stat:
    """Without what changes by reading."""
    return stat._replace(atime_ns=0)


# --- in threads ------------------------------------------------------------------------------------------------------


class _Teller:
    """Tells the kernel, until ``end``; a call that hangs there ends with the mount."""

    def __init__(self) -> None:
        self._turn = threading.Semaphore(_MOST_TELLING)
        self._ended = threading.Event()

    def tell(self, wrong: Iterable[Wrong]) -> None:
        for item in wrong:
            with self._turn:
                if self._ended.is_set():
                    return
                _invalidate(item)

    def end(self) -> None:
        """Returns once nobody tells anything any more."""
        self._ended.set()
        for _ in range(_MOST_TELLING):
            self._turn.acquire()


def _invalidate(item: Wrong) -> None:
    try:
        if item.name:
            pyfuse3.invalidate_entry(item.inode, os.fsencode(item.name))
        else:
            pyfuse3.invalidate_inode(item.inode, attr_only=not item.pages)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):  # not known, or in use: as it is
            raise
