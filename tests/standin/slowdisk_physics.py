"""What makes the stand-in disk slow and faulty: one head, a motor that stops, rules per path, and the counters.

Used by ``slowdisk`` on its event loop only; knows nothing of FUSE. It decides when an operation may go on, and raises
``OSError`` where a rule says so; it never touches the backing folder.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace

import trio

from tests.standin.slowdisk_process import SlowDiskSettings
from tests.standin.slowdisk_rules import IN_MEMORY, Fault, Slowness

STREAMS_FOLLOWED = 32
"""Files whose reading position the disk remembers: an elevator and the drive's own read-ahead hide the seeks between
streams that each go straight on."""
NEEDS_NO_HEAD = frozenset({"getattr"})
"""A known file's attributes are in the memory of any system. They wake a sleeping disk all the same, as over NFS: the
kernel asks for them with every ``read()``, and 8 ms for each would make 12 MB/s of the disk's 40."""
STREAM_WINDOW_BYTES = 1 << 20
"""Read-ahead arrives a little out of order; this near to where a stream was, the head need not move."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the disk a read or write is: it costs no seek when it goes on where the last one on it ended."""

    inode: int
    offset: int


@dataclass(slots=True)
class Disk:
    """The disk's state. Everything but ``ask`` and the two waits is synchronous."""

    settings: SlowDiskSettings
    operations: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    written_bytes: int = 0
    wake_ups: int = 0
    held: int = 0
    """Operations that a hang holds at this moment."""
    _faults: list[Fault] = field(default_factory=list)
    _slow_parts: list[Slowness] = field(default_factory=list)
    _streams: OrderedDict[int, int] = field(default_factory=OrderedDict)
    _free_at: float = float("-inf")
    _awake_at: float = float("-inf")
    _sleeps_at: float = float("inf")
    _changed: trio.Event = field(default_factory=trio.Event)

    async def ask(self, kind: str, *paths: str, size: int = 0, place: Place | None = None) -> None:
        """Count one operation and return when the disk would have done it; ``OSError`` where a fault says so."""
        self.count(kind, size=size)
        await self._meet_faults(kind, paths)
        done_at = max(self._moved_at(kind, size, place), self._let_go_at(kind, paths, size))
        if done_at > trio.current_time():
            await trio.sleep_until(done_at)
            await self._meet_faults(kind, paths)

    def count(self, kind: str, times: int = 1, size: int = 0) -> None:
        """Count operations, without making anybody wait."""
        self.operations[kind] += times
        if kind == "read":
            self.read_bytes += size
        elif kind == "write":
            self.written_bytes += size
        self._announce()

    async def until_asked(self, kind: str, times: int) -> None:
        """Return once ``kind`` was asked at least ``times`` times since the last reset."""
        while self.operations[kind] < times:
            await self._changed.wait()

    async def until_held(self, at_least: int) -> None:
        """Return once a hang holds this many operations."""
        while self.held < at_least:
            await self._changed.wait()

    # --- commands ---

    def add_fault(self, fault: Fault) -> None:
        """The newest fault that meets an operation decides."""
        self._faults.insert(0, fault)
        self._announce()

    def slow_down(self, slowness: Slowness) -> None:
        """It replaces what was said of the same part; several that meet an operation do not add up."""
        self._slow_parts = [slow for slow in self._slow_parts if slow.part != slowness.part] + [slowness]

    def release(self, path: str, kinds: frozenset[str]) -> None:
        """Forget every rule at or below ``path`` for these kinds (none: all); what they held goes on."""
        self._faults = [fault for fault in self._faults if not fault.part.is_inside(path, kinds)]
        self._slow_parts = [slow for slow in self._slow_parts if not slow.part.is_inside(path, kinds)]
        self._announce()

    def change_settings(self, changes: dict[str, float | None]) -> None:
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]  # keys are checked by replace
        if not self.asleep:
            self._sleeps_at = trio.current_time() + self.settings.idle_s

    def sleep(self) -> None:
        """Stop the motor now: whatever is asked next waits for it."""
        self._sleeps_at = float("-inf")

    def wake(self) -> None:
        """Start the motor, without anybody waiting for it."""
        self._sleeps_at = trio.current_time() + self.settings.idle_s

    @property
    def asleep(self) -> bool:
        return trio.current_time() >= self._sleeps_at

    def reset(self) -> None:
        """All counters to zero; rules and motor stay as they are."""
        self.operations.clear()
        self.read_bytes = self.written_bytes = self.wake_ups = 0

    # --- inside ---

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _meet_faults(self, kind: str, paths: tuple[str, ...]) -> None:
        while (fault := next((fault for fault in self._faults if fault.part.meets(kind, paths)), None)) is not None:
            if fault.errno is not None:
                raise OSError(fault.errno, os.strerror(fault.errno))
            self.held += 1
            self._announce()
            try:
                await self._changed_once()
            finally:
                self.held -= 1

    async def _changed_once(self) -> None:
        """Wait until the faults are others than now (counting announces changes too)."""
        faults = tuple(self._faults)
        while tuple(self._faults) == faults:
            await self._changed.wait()

    def _moved_at(self, kind: str, size: int, place: Place | None) -> float:
        """When motor and head have done their part."""
        if kind in IN_MEMORY:
            return float("-inf")
        return self._wake() if kind in NEEDS_NO_HEAD else self._book(size, place)

    def _let_go_at(self, kind: str, paths: tuple[str, ...], size: int) -> float:
        """When the slowest rule that meets the operation lets it go."""
        now = trio.current_time()
        return max((slow.book(now, size) for slow in self._slow_parts if slow.meets(kind, paths)), default=now)

    def _wake(self) -> float:
        """Start the motor if it stands; when the disk can answer what needs no head."""
        now = trio.current_time()
        if now >= self._sleeps_at:
            self.wake_ups += 1
            self._awake_at = self._free_at = now + self.settings.wake_up_s
        self._sleeps_at = max(now, self._awake_at) + self.settings.idle_s
        return self._awake_at

    def _book(self, size: int, place: Place | None) -> float:
        """Take the next place in the head's queue; when the operation is done.

        A token bucket written as a clock: ``_free_at`` may lag behind now by the burst, which is what lets a timer
        that fires late catch up. Seeks are never paid from the burst.
        """
        self._wake()
        now, settings = trio.current_time(), self.settings
        seek_s = 0.0 if self._goes_straight_on(place, size) else settings.seek_s
        transfer_s, burst_s = 0.0, 0.0
        if settings.bytes_per_s is not None:
            transfer_s = size / settings.bytes_per_s
            burst_s = settings.burst_bytes / settings.bytes_per_s
        self._free_at = max(self._free_at, now - burst_s) + seek_s + transfer_s
        done_at = max(self._free_at, now + seek_s)
        self._sleeps_at = done_at + settings.idle_s
        return done_at

    def _goes_straight_on(self, place: Place | None, size: int) -> bool:
        if place is None:
            return False
        last_end = self._streams.pop(place.inode, None)
        self._streams[place.inode] = place.offset + size
        if len(self._streams) > STREAMS_FOLLOWED:
            self._streams.popitem(last=False)
        return last_end is not None and abs(place.offset - last_end) <= STREAM_WINDOW_BYTES
