"""What is new since the last look, in sentences: the plain output is made of them, the live screen shows the latest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from cachefs.model import CacheEntry, EntryState, FileKey
from cachefs.units import format_size
from tests.demo.view import View

LARGE_BYTES = 1_000_000
"""Sidecars go with their video without a line of their own."""


@dataclass(slots=True)
class Chronicle:
    """Remembers what it has told."""

    cached: dict[FileKey, CacheEntry] = field(default_factory=dict)
    planned: set[FileKey] = field(default_factory=set)
    watching: str = ""
    served_from: str = ""
    asleep: bool = False

    def news(self, view: View) -> list[str]:
        """The sentences that this look adds."""
        lines = [*self._watching(view), *self._planned(view), *self._cached(view), *self._evicted(view)]
        if view.disk.asleep != self.asleep:
            self.asleep = view.disk.asleep
            lines.append("the slow disk fell asleep" if self.asleep else "the slow disk woke up")
        return lines

    def _watching(self, view: View) -> Iterator[str]:
        audience = view.audience
        if audience is None:
            self.watching = ""
            return
        if audience.title != self.watching:
            self.watching, self.served_from = audience.title, ""
            yield f"{audience.user} watches {audience.title}"
        state = audience.viewer.report.state
        if state and state != self.served_from:
            where = {"source": "the slow disk", "partial": "the SSD where it has the bytes", "cached": "the SSD"}[state]
            now = f"now, at {audience.viewer.progress:.0%}, from" if self.served_from else "from"
            yield f"{audience.title} is read {now} {where}"
            self.served_from = state

    def _planned(self, view: View) -> Iterator[str]:
        for copy in view.plan.copies if view.plan else ():
            if copy.key not in self.planned and copy.file.size > LARGE_BYTES:
                self.planned.add(copy.key)
                yield f"planned: {name_of(copy.key)}: {why(copy.reason)}"

    def _cached(self, view: View) -> Iterator[str]:
        for entry in view.entries:
            if entry.state is EntryState.CACHED and entry.key not in self.cached:
                self.cached[entry.key] = entry
                if entry.size > LARGE_BYTES:
                    yield f"on the SSD: {name_of(entry.key)} ({format_size(entry.size)})"

    def _evicted(self, view: View) -> Iterator[str]:
        present = {entry.key for entry in view.entries}
        for key in [key for key in self.cached if key not in present]:
            entry = self.cached.pop(key)
            self.planned.discard(key)
            if entry.size > LARGE_BYTES:
                yield f"evicted: {name_of(key)}"


def name_of(key: FileKey) -> str:
    """A file's name without folders and ending."""
    return PurePosixPath(key.path).stem


def why(reason: str) -> str:
    """A reason without the title that it begins with: the name of the file stands beside it already."""
    return reason.partition(": ")[2] or reason
