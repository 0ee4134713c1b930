"""What people said of single files, as ``cachefs copy`` and ``cachefs evict`` take it: the last word about each.

``planning`` asks and adds to it on the event loop. Memory decides at once, the disk follows: whoever has to be sure
that a wish outlives the process waits for ``save``. A wish is about a name, and goes where the name goes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from cachefs.cache.presence import NO_ANSWER_S
from cachefs.cache.written import file_of
from cachefs.model import Asked, FileKey

Write = Callable[[tuple[Asked, ...], float], Awaitable[bool]]
"""Makes these all that there are, within so many seconds; whether they are durable. Raises nothing."""


class Wishes:
    """Use from the event loop only."""

    def __init__(self, said: Iterable[Asked], write: Write, is_changing: Callable[[FileKey], bool]) -> None:
        """``is_changing``: whether somebody is just changing this name, or that of a folder above it."""
        self._said = {asked.key: asked for asked in said}
        self._saved: tuple[Asked, ...] | None = self.all()
        self._write = write
        self._is_changing = is_changing

    def all(self) -> tuple[Asked, ...]:
        return tuple(self._said.values())

    def get(self, key: FileKey) -> Asked | None:
        return self._said.get(key)

    def add(self, asked: Asked) -> None:
        """This is the last word about its file."""
        self._said.pop(asked.key, None)
        self._said[asked.key] = asked

    def end(self, key: FileKey) -> None:
        self._said.pop(key, None)

    def end_before(self, at: float) -> None:
        """What was said up to then counts no more."""
        for asked in self.all():
            if asked.at <= at:
                self.end(asked.key)

    def gone(self, key: FileKey) -> bool:
        """The source was just found to have no such file: its wish ends. False when it stays, for it may be about to
        get another name, or when there was none."""
        return not self._is_changing(key) and self._said.pop(key, None) is not None

    def renamed(self, old: FileKey, new: FileKey, *, exchanged: bool) -> bool:
        """A file or folder has another name, or each has the other's; whether that is of any concern."""
        moved = [(asked, name) for asked in self.all() if (name := _new_name(asked.key, old, new)) is not None]
        if exchanged:
            moved += [(asked, name) for asked in self.all() if (name := _new_name(asked.key, new, old)) is not None]
        for asked, _ in moved:
            self.end(asked.key)
        for asked, name in moved:
            self.add(replace(asked, key=name))
        return bool(moved)

    def perhaps_renamed(self, old: FileKey, new: FileKey) -> bool:
        """Nobody knows which of the two names a file or folder will have: what was said counts for both, until the
        source has no file of one; whether it is of any concern."""
        moved = [(asked, name) for asked in self.all() if (name := _new_name(asked.key, old, new)) is not None]
        for asked, name in moved:
            self._said.setdefault(name, replace(asked, key=name))
        return bool(moved)

    async def save(self, within_s: float = NO_ANSWER_S) -> None:
        """What was said before the call is durable when this returns. Where the SSD does not take it now, it gets it
        with the next."""
        said = self.all()
        if said != self._saved:
            self._saved = None
            if await self._write(said, within_s):
                self._saved = said


def _new_name(key: FileKey, old: FileKey, new: FileKey) -> FileKey | None:
    """What a file is called once ``old``, which may be a folder above it, is called ``new``; None for any other."""
    if key == old:
        return new
    if key.source != old.source or not key.path.startswith(f"{old.path}/"):
        return None
    return FileKey(new.source, new.path + key.path.removeprefix(old.path))


# --- written down ----------------------------------------------------------------------------------------------------


def rows_of(said: Iterable[Asked]) -> list[list[object]]:
    """As JSON can hold it."""
    return [[asked.key.source, asked.key.path, asked.at, asked.away] for asked in said]


def from_rows(rows: object) -> tuple[Asked, ...]:
    """What ``rows_of`` was given. Raises ``ValueError`` or ``TypeError`` for anything else."""
    if not isinstance(rows, list):
        raise TypeError(f"no wishes: {rows!r:.80}")
    return tuple(_asked(*row) for row in rows)


def _asked(source: object, path: object, at: object, away: object) -> Asked:
    if not (isinstance(at, float) and isinstance(away, bool)):
        raise TypeError("no wish")
    if not 0 <= at < 1 << 63:  # which is not true of what is no number at all
        raise ValueError("there is no such moment")
    return Asked(file_of(source, path), at, away)
