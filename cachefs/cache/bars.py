"""What may not be copied just now, because somebody is changing it through the mount.

Used by ``cache.store`` on the event loop only; ``fs`` makes bars through the store. Memory only: no disk, no await.
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self, TypeVar

from cachefs.model import FileKey, Targets
from cachefs.paths import folders_above

T = TypeVar("T")


class Bar:
    """In force from its making until ``release``, or the end of its ``with`` block.

    It outlives the task that made it when that task gives up on a thread that is still changing something: whoever
    learns that the thread has ended calls ``release``, on the event loop. Releasing twice does nothing.
    """

    __slots__ = ("_bars", "_targets")

    def __init__(self, bars: Bars, targets: Targets) -> None:
        self._bars: Bars | None = bars
        self._targets = targets
        bars._count(targets, 1)

    def release(self) -> None:
        bars, self._bars = self._bars, None
        if bars is not None:
            bars._count(self._targets, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Bars:
    """All bars in force, counted."""

    def __init__(self) -> None:
        self._keys: Counter[FileKey] = Counter()
        self._folders: Counter[FileKey] = Counter()
        self._inodes: Counter[int] = Counter()

    def bar(self, targets: Targets) -> Bar:
        return Bar(self, targets)

    def forbids(self, key: FileKey, inode: int | None) -> bool:
        """Whether a bar names this file, by its name, by a folder above it, or by its number if that is known."""
        if key in self._keys or inode in self._inodes:
            return True
        if not self._folders:
            return False
        return key in self._folders or any(folder in self._folders for folder in folders_above(key))

    def _count(self, targets: Targets, step: int) -> None:
        _add(self._keys, targets.keys, step)
        _add(self._folders, targets.folders, step)
        _add(self._inodes, targets.inodes, step)


def _add(counts: Counter[T], names: frozenset[T], step: int) -> None:
    for name in names:
        counts[name] += step
        if not counts[name]:
            del counts[name]
