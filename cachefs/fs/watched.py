"""Which folders the kernel knows are watched, and whether an answer about one is still true when it arrives.

Used by ``union`` and ``behind`` on the event loop. Memory only. A change may be heard while the source is being asked:
then the answer may be of before or after it, and is not believed for long. A change that is heard later is told to the
kernel when the answer has long been with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from stat import S_ISDIR

import trio

from cachefs.fs.inodes import FolderWatch, Inodes, Node
from cachefs.fs.watch import Change, Kind, Watches
from cachefs.model import SourceName


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
        self, unwatched: Callable[[int], object] = lambda _: None, changed: Callable[[Node], object] = lambda _: None
    ) -> None:
        """``unwatched`` is told the number of a folder that is watched no more, ``changed`` of every folder in which
        something happened."""
        self._unwatched = unwatched
        self._changed = changed
        self._folders: dict[tuple[SourceName, int], Node] = {}
        self._early: Counter[tuple[SourceName, int]] = Counter()

    def ask(self, source: SourceName, folder: Node, watches: Watches | None) -> Asked:
        """The source is about to be asked about this folder. ``watches``: None where it cannot be watched."""
        watch = folder.watch
        if watch is None:
            return Asked(source, folder, watches, 0, trio.current_time())
        return Asked(source, folder, None, watch.changes, watch.since)

    def is_steady(self, asked: Asked, watch: int | None) -> bool:
        """Whether nothing happened in the folder since it was asked about; ``watch`` was put on it just before."""
        folder = asked.folder
        if watch is not None and folder.watch is None and folder.lookups > 0:
            name = (asked.source, watch)
            folder.watch = FolderWatch(watch, asked.source, asked.at, self._early.pop(name, 0))
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
            if folder is None:
                self._early[source, change.watch] += change.kind is not Kind.END
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

    def _lost(self, source: SourceName) -> None:
        for folder in self.folders(source):
            if folder.watch is not None:
                folder.watch.changes += 1
                folder.watch.since = trio.current_time()

    def forget(self, folder: Node) -> FolderWatch | None:
        """The folder is not watched any more."""
        watch, folder.watch = folder.watch, None
        if watch is not None:
            self._folders.pop((watch.source, watch.id), None)
            self._unwatched(folder.number)
        return watch
