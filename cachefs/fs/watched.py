"""Which folders the kernel knows are watched, and whether an answer about one is still true when it arrives.

Used by ``union`` and ``behind`` on the event loop. Memory only. A change may be heard while the source is being asked:
then the answer may be of before or after it, and is not believed for long. A change that is heard later is told to the
kernel when the answer has long been with it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from stat import S_ISDIR

import trio

from cachefs.fs.inodes import FolderWatch, Inodes, Node
from cachefs.fs.watch import Change, Kind, Watches
from cachefs.model import FileKey, SourceName

_MOST_DORMANT = 100_000


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a folder. ``watcher`` is to be put on it before it is looked at; None when it need not be."""

    source: SourceName
    folder: Node
    watcher: Watches | None
    changes: int
    at: float


class Watched:
    """Folders by their watch."""

    def __init__(
        self,
        unwatched: Callable[[int], object] = lambda _: None,
        changed: Callable[[Node | FileKey], object] = lambda _: None,
    ) -> None:
        """``unwatched`` is told the number of a folder that is watched no more, ``changed`` of every folder in which
        something happened."""
        self._unwatched = unwatched
        self._changed = changed
        self._folders: dict[tuple[SourceName, int], Node] = {}
        self._dormant: OrderedDict[tuple[SourceName, int], FolderWatch] = OrderedDict()
        self._dormant_of: dict[int, FolderWatch] = {}
        self._by_key: dict[FileKey, FolderWatch] = {}
        self._early: Counter[tuple[SourceName, int]] = Counter()

    def ask(self, source: SourceName, folder: Node, watches: Watches | None) -> Asked:
        """The source is about to be asked about this folder. ``watches``: None where it cannot be watched."""
        watch = folder.watch if folder.watch is not None else self.wake(folder)
        if watch is None:
            return Asked(source, folder, watches, 0, trio.current_time())
        return Asked(source, folder, None, watch.changes, watch.since)

    def is_steady(self, asked: Asked, watch: int | None) -> bool:
        """Whether nothing happened in the folder since it was asked about; ``watch`` was put on it just before."""
        folder = asked.folder
        if watch is not None and folder.watch is None and folder.lookups > 0:
            name = (asked.source, watch)
            self._end_dormant(name)
            folder.watch = FolderWatch(watch, asked.source, asked.at, self._early.pop(name, 0), folder=folder.number)
            self._folders[name] = folder
        return folder.watch is not None and folder.watch.changes == asked.changes

    def over(self, node: Node, inodes: Inodes) -> FolderWatch | None:
        """The watch that hears changes of this file or folder: all of them, unless a file has several names."""
        if S_ISDIR(node.kind):
            return node.watch
        if not node.links:
            return None
        folder = inodes.get(node.links[-1].parent)
        return folder.watch if folder is not None else None

    def folder(self, source: SourceName, watch: int) -> Node | None:
        return self._folders.get((source, watch))

    def folders(self, source: SourceName) -> Iterator[Node]:
        """All watched folders of a source."""
        return (node for (name, _), node in self._folders.items() if name == source)

    def count(self, source: SourceName, changes: Iterable[Change]) -> None:
        """These were heard just now: answers that are on their way are not believed."""
        for change in changes:
            if change.kind is Kind.LOST:
                self._lost(source)
                continue
            folder = self._folders.get((source, change.watch))
            dormant = self._dormant.get((source, change.watch))
            if dormant is not None:
                self._count_dormant(dormant, change)
            elif folder is None:
                self._count_early((source, change.watch), ended=change.kind is Kind.END)
            elif folder.watch is not None:
                folder.watch.changes += 1
                if change.kind is Kind.END:
                    self.forget(folder)
                else:
                    self._changed(folder)

    def touched(self, folder: Node) -> None:
        """A name in the folder was changed through the mount just now; what is heard of it comes later."""
        if folder.watch is not None:
            folder.watch.changes += 1
        self._changed(folder)

    def touched_below(self, folder: FileKey) -> None:
        """A file in the folder under this key is being changed through the mount."""
        watch = self._by_key.get(folder)
        if watch is not None:
            watch.changes += 1

    def _count_early(self, name: tuple[SourceName, int], *, ended: bool) -> None:
        """Of a watch that was put on a folder just now, and is not known here yet; or that was removed."""
        if ended:
            self._early.pop(name, None)
        else:
            self._early[name] += 1

    def _count_dormant(self, watch: FolderWatch, change: Change) -> None:
        watch.changes += 1
        if change.kind is Kind.END:
            self._end_dormant((watch.source, watch.id))
        elif watch.key is not None:
            self._changed(watch.key)

    # --- folders that the kernel has forgotten, and that are remembered ---

    def learned(self, folder: Node, key: FileKey, changes: int) -> None:
        """What is remembered of the folder under this key is what was there after so many changes."""
        watch = folder.watch
        if watch is None or watch.changes != changes:
            return
        self._forget_key(watch)
        watch.key, watch.remembered = key, changes
        self._by_key[key] = watch

    def certain(self, key: FileKey) -> FolderWatch | None:
        """The watch of the folder that was read under this key last, if what is remembered of it is still true. Whether
        it is still under this key is another matter: nothing is heard of it when a folder above is moved."""
        watch = self._by_key.get(key)
        return watch if watch is not None and watch.remembered == watch.changes else None

    def may_learn(self, key: FileKey, changes: int) -> bool:
        """Whether what was read of the folder after so many changes may take the place of what is remembered: that is
        certain when somebody else has read it later, and was answered sooner."""
        watch = self.certain(key)
        return watch is None or watch.changes == changes

    def relearned(self, key: FileKey, changes: int) -> None:
        """It was read anew by its key, when so many changes had been counted."""
        watch = self._by_key.get(key)
        if watch is not None and watch.changes == changes:
            watch.remembered = changes

    def changes_of(self, key: FileKey) -> int:
        watch = self._by_key.get(key)
        return watch.changes if watch is not None else -1

    def sleep(self, folder: Node) -> Iterator[FolderWatch]:
        """The kernel has forgotten the folder: its watch stays for as long as there is room, if the folder is
        remembered. Yields the watches that are to be removed."""
        watch = folder.watch
        if watch is None:
            return
        folder.watch = None
        self._folders.pop((watch.source, watch.id), None)
        self._unwatched(folder.number)
        if watch.key is None:
            yield watch
            return
        self._dormant[watch.source, watch.id] = watch
        self._dormant_of[folder.number] = watch
        if len(self._dormant) > _MOST_DORMANT:
            yield from self.evict(1)

    def evict(self, count: int) -> Iterator[FolderWatch]:
        """Watches that have slept longest, which are to be removed."""
        for name in list(self._dormant)[:count]:
            yield self._dormant[name]
            self._end_dormant(name)

    def wake(self, folder: Node) -> FolderWatch | None:
        """The kernel knows the folder again: its watch, if it still sleeps."""
        watch = self._dormant_of.get(folder.number)
        if watch is None:
            return None
        name = (watch.source, watch.id)
        del self._dormant[name], self._dormant_of[folder.number]
        folder.watch = watch
        self._folders[name] = folder
        return watch

    def _end_dormant(self, name: tuple[SourceName, int]) -> None:
        watch = self._dormant.pop(name, None)
        if watch is not None:
            self._dormant_of.pop(watch.folder, None)
            self._forget_key(watch)

    def _forget_key(self, watch: FolderWatch) -> None:
        if watch.key is not None and self._by_key.get(watch.key) is watch:
            del self._by_key[watch.key]

    def _lost(self, source: SourceName) -> None:
        for watch in self._dormant.values():
            if watch.source == source:
                watch.changes += 1
                watch.since = trio.current_time()
        for folder in self.folders(source):
            if folder.watch is not None:
                folder.watch.changes += 1
                folder.watch.since = trio.current_time()

    def forget(self, folder: Node) -> FolderWatch | None:
        """The folder is not watched any more."""
        watch, folder.watch = folder.watch, None
        if watch is not None:
            self._folders.pop((watch.source, watch.id), None)
            self._forget_key(watch)
            self._unwatched(folder.number)
        return watch
