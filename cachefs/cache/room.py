"""How much the cache may still take: the user's limits against what the SSD has left.

Used by ``cache.store`` on the event loop. Memory only; the store measures the disk and hands the numbers in.

The disk is measured now and then, and written to all the time. So that the limits hold at *every* moment, what was
written since the last measurement began counts as if the measurement had not seen it: never too little, at most one
chunk per copy too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cachefs.cache.folder import DiskSpace
from cachefs.model import Space


class Amount(Protocol):
    """Bytes, or a part of a file system's size."""

    def resolve(self, total_bytes: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user allows: ``max_size`` for the cache, ``min_free`` to be left on its file system."""

    max_size: Amount
    min_free: Amount


class Room:
    """Limits, the last measurement, and what has been written or is being written since."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._disk = DiskSpace(0, 0)
        self._written_before = 0
        self.written_bytes = 0
        """Of all copies since the start; only differences matter."""
        self._claims: dict[int, int] = {}

    def measured(self, disk: DiskSpace, written_before: int) -> None:
        """Take a measurement; ``written_before`` is what ``written_bytes`` was just before it was begun."""
        self._disk = disk
        self._written_before = written_before

    def space(self, used_bytes: int, unwritten_bytes: int) -> Space:
        return Space(
            max_size_bytes=self._limits.max_size.resolve(self._disk.total_bytes),
            min_free_bytes=self._limits.min_free.resolve(self._disk.total_bytes),
            used_bytes=used_bytes,
            free_bytes=self._free_bytes - unwritten_bytes,
        )

    def claim(self, entry_id: int, length: int) -> bool:
        """Whether a copy may write so many bytes now without passing ``min_free``; they count from now on."""
        others = sum(claim for owner, claim in self._claims.items() if owner != entry_id)
        if self._free_bytes - others - length < self._limits.min_free.resolve(self._disk.total_bytes):
            return False
        self._claims[entry_id] = length
        return True

    def unclaim(self, entry_id: int) -> None:
        self._claims.pop(entry_id, None)

    @property
    def _free_bytes(self) -> int:
        return self._disk.free_bytes - (self.written_bytes - self._written_before)
