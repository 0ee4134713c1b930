"""What ``cachefs restore`` can say. Values only: made by ``cache.moving``, carried by ``control``, shown by
``commands``.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachefs.model import FileKey


@dataclass(frozen=True, slots=True)
class HomeProgress:
    """How far a restoration is; ``key`` is the file that is on its way."""

    files: int = 0
    files_done: int = 0
    bytes: int = 0
    bytes_done: int = 0
    key: FileKey | None = None


@dataclass(frozen=True, slots=True)
class NotHome:
    """A file that stays on the SSD, and why."""

    key: FileKey
    why: str


@dataclass(frozen=True, slots=True)
class HomeReport:
    """What a restoration came to."""

    restored: tuple[FileKey, ...]
    left: tuple[NotHome, ...]
