"""When a copy may run, and how long it waits between chunks. Pure; used by ``cache.populate``."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Protocol

from cachefs.model import InterestKind

CHUNK_BYTES = 4 << 20
"""One thread call: long enough that its 0.2 ms overhead is nothing, short enough to stop or yield within 0.1 s."""
SHARED_CHUNK_BYTES = 1 << 20
"""While somebody reads from the same disk: at most some 10 ms that the reader's request stands behind."""
YIELD_SHARE = 4
"""While somebody reads from the same disk, all copies together take at most one part in so many of its time."""
READING_WINDOW_S = 2.0
"""How long after a read its reader is taken to be still there: a player asks for more every second or so."""
MAX_PAUSE_S = 30.0
"""A disk that took ten seconds to wake up need not be left alone for half a minute more."""


class HoursLike(Protocol):
    """A daily window, local time."""

    @property
    def start(self) -> datetime.time: ...

    def contains(self, moment: datetime.time, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class CopySettings:
    """``bandwidth`` in bytes per second for all copies together; None: as fast as it goes, at any hour."""

    workers: int = 2
    bandwidth: int | None = None
    hours: HoursLike | None = None


def may_copy(kind: InterestKind, hours: HoursLike | None, now: float) -> bool:
    """Whether such a file may be copied at this moment: what somebody is playing, always."""
    if hours is None or kind is InterestKind.PLAYING:
        return True
    return hours.contains(datetime.datetime.fromtimestamp(now).time())


def closed(hours: HoursLike | None, now: float) -> str:
    """What is said while only what is playing may be copied; empty when everything may."""
    if hours is None or hours.contains(datetime.datetime.fromtimestamp(now).time()):
        return ""
    return f"copies begin at {hours.start:%H:%M} (copying.hours); only what is playing is copied now"


def chunk_bytes(someone_reads: bool, bandwidth: int | None) -> int:
    """How much to copy at once: little while others need the disk, and never more than a second of bandwidth."""
    size = SHARED_CHUNK_BYTES if someone_reads else CHUNK_BYTES
    return size if bandwidth is None else max(min(size, bandwidth), 64 << 10)


def gentle_pause(took_s: float, read_bytes: int, bandwidth: int | None) -> float:
    """Seconds to wait after a chunk that was read for nobody: never more than half of the disk's time."""
    at_most = 0.0 if bandwidth is None else read_bytes / bandwidth - took_s
    return min(max(took_s, at_most), MAX_PAUSE_S)


def pause_after(took_s: float, copied_bytes: int, bandwidth: int | None, someone_reads: bool, copies: int = 1) -> float:
    """Seconds to wait after a chunk that took ``took_s`` of the disk's time.

    ``bandwidth`` is what this copy may use; ``copies`` is how many run on the same disk and share what is left of it.
    """
    pause = 0.0
    if bandwidth is not None:
        pause = copied_bytes / bandwidth - took_s
    if someone_reads:
        pause = max(pause, took_s * (YIELD_SHARE * copies - 1))
    return min(max(pause, 0.0), MAX_PAUSE_S)
