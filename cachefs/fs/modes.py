"""In which mode the kernel has an inode open. Pure; the table that ``routing`` decides every open by.

The kernel knows three modes of an inode, and refuses (EIO) an open that does not fit the one it is in:

    IDLE         nobody has it open
    CACHING      plain opens: reads go through the page cache, and what is not there is asked of the daemon
    PASSTHROUGH  the kernel reads and maps *one* backing file by itself; every open of the inode must name that file

While an inode is in passthrough mode, an open that the daemon must serve itself is answered with direct I/O on the same
backing file (DIRECT): its reads and writes reach the daemon, its mmaps the backing file.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Mode(enum.Enum):
    IDLE = "idle"
    CACHING = "caching"
    PASSTHROUGH = "passthrough"


class Wish(enum.Enum):
    """What an open is for. SAME is a complete entry whose file backs the inode already, PUBLISHED one that could."""

    PUBLISHED = "read a complete entry"
    SAME = "read the entry that backs it"
    READ = "read through the daemon"
    WRITE = "write"


class Answer(enum.Enum):
    """What the kernel is told."""

    PLAIN = "plain"
    PASSTHROUGH = "passthrough"
    DIRECT = "direct I/O beside passthrough"


@dataclass(frozen=True, slots=True)
class Step:
    """The answer to an open, and the mode after it."""

    answer: Answer
    mode: Mode


_PLAIN = Step(Answer.PLAIN, Mode.CACHING)
_THROUGH = Step(Answer.PASSTHROUGH, Mode.PASSTHROUGH)
_DIRECT = Step(Answer.DIRECT, Mode.PASSTHROUGH)

TABLE: dict[tuple[Mode, Wish], Step] = {
    (Mode.IDLE, Wish.PUBLISHED): _THROUGH,
    (Mode.IDLE, Wish.READ): _PLAIN,
    (Mode.IDLE, Wish.WRITE): _PLAIN,
    (Mode.CACHING, Wish.PUBLISHED): _PLAIN,
    (Mode.CACHING, Wish.READ): _PLAIN,
    (Mode.CACHING, Wish.WRITE): _PLAIN,
    (Mode.PASSTHROUGH, Wish.SAME): _THROUGH,
    (Mode.PASSTHROUGH, Wish.PUBLISHED): _DIRECT,  # another copy of the file than the one that backs it
    (Mode.PASSTHROUGH, Wish.READ): _DIRECT,
    (Mode.PASSTHROUGH, Wish.WRITE): _DIRECT,
}
"""Closing needs no row: the last close of an inode leads to IDLE from anywhere. The kernel drops its own count before
it tells the daemon of a close, so ours is never too low."""
