"""What the newest plan has told the copiers to do, and what of it is done. Memory only.

Used by ``cache.populate`` on the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from cachefs.model import FileKey, Plan, PlannedCopy, PlannedEviction


class Agenda:
    """A plan, and what became of it."""

    def __init__(self) -> None:
        self.for_space: tuple[PlannedEviction, ...] = ()
        """The evictions that make room, in the order in which to take them."""
        self._copies: dict[FileKey, PlannedCopy] = {}
        self._kept: dict[FileKey, PlannedCopy] = {}
        self._unwanted: deque[PlannedEviction] = deque()
        self._finished: set[FileKey] = set()
        self._not_before: dict[FileKey, float] = {}
        self._resting: dict[FileKey, float] = {}
        self._why: dict[FileKey, str] = {}

    def follow(self, plan: Plan) -> None:
        """Replace the plan. What failed with the old one may be tried again."""
        self.for_space = tuple(eviction for eviction in plan.evictions if eviction.for_space)
        self._copies = {copy.key: copy for copy in plan.copies}
        self._kept = {want.key: PlannedCopy(want.file, want.kind, want.reason) for want in plan.kept}
        self._unwanted = deque(eviction for eviction in plan.evictions if not eviction.for_space)
        self._why = {key: why for key, why in self._why.items() if key in self._copies}
        self._finished.clear()
        self._not_before.clear()

    def find(self, key: FileKey) -> PlannedCopy | None:
        """Why a file is being copied, by the newest plan; None when it should not be."""
        return self._copies.get(key) or self._kept.get(key)

    def due(self, now: float) -> Iterator[PlannedCopy]:
        """The copies to make, in order, without those that are done or put off beyond ``now`` (trio time)."""
        self._resting = {key: until for key, until in self._resting.items() if until > now}
        for copy in self._copies.values():
            put_off = max(self._not_before.get(copy.key, now), self._resting.get(copy.key, now))
            if copy.key not in self._finished and put_off <= now:
                yield copy

    @property
    def has_copies(self) -> bool:
        """Whether any copy is left to make, now or later."""
        return bool(self._copies.keys() - self._finished)

    def finish(self, key: FileKey, why: str = "") -> None:
        """Nothing more is done about this file before a new plan."""
        self._finished.add(key)
        self._why[key] = why

    def postpone(self, key: FileKey, until: float, why: str) -> bool:
        """Leave a file alone until then (trio time); False when it had been postponed for this before."""
        first = self._why.get(key) != why
        self._not_before[key] = until
        self._why[key] = why
        return first

    def rest(self, key: FileKey, until: float, why: str) -> None:
        """Leave a file alone until then (trio time), whatever plans come: somebody is still writing it."""
        self._resting[key] = until
        self._why[key] = why

    def put_off(self, key: FileKey) -> str:
        """Why a copy that is to be made ended the last time it was tried; empty when it was not."""
        return self._why.get(key, "") if key in self._copies else ""

    def take_unwanted(self) -> PlannedEviction | None:
        """The next eviction that does not wait for room to be needed; each is given out once."""
        return self._unwanted.popleft() if self._unwanted else None
