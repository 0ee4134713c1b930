"""What ``cachefs verify`` can find and say. Values only; found by ``cache.verify``, carried by ``control``, worded by
``show``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from cachefs.model import FileKey

_DROP = "cachefs verify --repair drops the copy; it is made again if the file is still wanted"


class Flaw(enum.Enum):
    """What is wrong; the text follows the name of what it was found at."""

    CHANGED = "its source has another file by now"
    GONE = "its source has no such file"
    UNEQUAL = "its bytes are not those of its source"
    MISSING = "its file is not on the SSD"
    STRANGE = "what is in its place on the SSD is no file that cachefs made"
    WRONG_SIZE = "its file on the SSD has the wrong size"
    UNREADABLE = "its file on the SSD cannot be read"
    UNRECORDED = "the index does not speak of it"
    UNCLAIMED_ROW = "the index speaks of it, and nothing is served from it"
    LEFTOVER = "no copy accounts for it"
    ALONE = "it may be the only one: it does not say whose copy it is, and its source does not have it"
    FOREIGN = "cachefs did not make it"
    INDEX = "the index is damaged"
    UNCOMPARED = "it cannot be compared now"
    LOST = "it was moved to the SSD, and its only copy cannot be read"
    ROTTEN = "it was moved to the SSD, and its bytes are not those that were moved"
    TAKEN = "it was moved to the SSD, and another file has its place at its source"
    HOMELESS = "it was moved to the SSD, and its folder is gone at its source, so the mount does not show it"

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        return _REMEDIES.get(self, _DROP)


_REMEDIES = {
    Flaw.UNCLAIMED_ROW: "cachefs verify --repair removes the row",
    Flaw.LEFTOVER: "cachefs verify --repair removes it",
    Flaw.ALONE: "it is kept, and used for nothing: copy it to its source, or delete it there",
    Flaw.FOREIGN: "look at it, and remove it yourself; cachefs follows no link and enters no other file system",
    Flaw.INDEX: "stop cachefs and start it again: it makes the index anew from what is on the SSD",
    Flaw.LOST: "look after the SSD, and bring the file back from a backup; cachefs keeps what is there",
    Flaw.ROTTEN: "look after the SSD, and bring the file back from a backup; cachefs keeps what is there",
    Flaw.TAKEN: "both are kept: rename one of them (the moved one through the mount), then run cachefs restore",
    Flaw.HOMELESS: "the SSD keeps it: cachefs restore brings it back, with its folder",
    Flaw.UNCOMPARED: "nothing is wrong with it as far as anybody knows; verify it again once its source can be read",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. ``place`` is where it is on the SSD; ``key`` the file that was copied, where there is one."""

    flaw: Flaw
    place: str
    key: FileKey | None = None
    detail: str = ""
    mended: str = ""
    """What was done about it; empty while it is as it was."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a verification is. Bytes are those to compare; ``waiting`` says why it pauses."""

    entries: int = 0
    entries_done: int = 0
    bytes: int = 0
    bytes_done: int = 0
    key: FileKey | None = None
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a whole verification came to."""

    entries: int
    compared_bytes: int
    findings: tuple[Finding, ...]
    took_s: float

    @property
    def sound(self) -> bool:
        """Whether everything could be verified, and whatever was wrong is mended."""
        return all(finding.mended for finding in self.findings)
