"""One look at everything at once, for the screen and for the story's conditions."""

from __future__ import annotations

from dataclasses import dataclass

from cachefs.errors import CachefsError
from cachefs.model import CacheEntry, EntryState, Plan, Status
from tests.demo.scene import Scene
from tests.demo.viewing import Viewer
from tests.standin.slowdisk_control import DiskCounts


@dataclass(frozen=True, slots=True)
class Audience:
    """Somebody watching, as the screen shows it."""

    user: str
    title: str
    viewer: Viewer


@dataclass(frozen=True, slots=True)
class View:
    """What was true a moment ago. ``plan`` is None while the story does not ask for it."""

    status: Status
    entries: tuple[CacheEntry, ...]
    plan: Plan | None
    disk: DiskCounts
    audience: Audience | None

    def is_cached(self, *paths: str) -> bool:
        """Whether every one of these files is on the SSD, complete."""
        cached = {entry.key.path for entry in self.entries if entry.state is EntryState.CACHED}
        return cached.issuperset(paths)

    def is_absent(self, *paths: str) -> bool:
        """Whether the SSD holds nothing of any of these files."""
        return not {entry.key.path for entry in self.entries}.intersection(paths)

    def is_settled(self) -> bool:
        """Whether nothing is being copied and nothing is about to be."""
        return self.plan is not None and not self.plan.copies and not self.status.copies

    def moved_to_ssd(self, path: str) -> bool:
        """Whether the file is open and was read from the disk first and from the SSD since."""
        return any(
            file.path == path and file.source_bytes > 0 and file.cache_bytes > 0 for file in self.status.open_files
        )


def look(scene: Scene, audience: Audience | None, plan: Plan | None) -> View:
    """Ask cachefs and the disk."""
    if (code := scene.cachefs.process.poll()) is not None:
        raise CachefsError(f"cachefs ended with {code}\n{scene.cachefs.tail()}")
    return View(
        status=scene.control.status(),
        entries=scene.control.entries(),
        plan=plan,
        disk=scene.disk.counts(),
        audience=audience,
    )
