"""Sets the stage: sample library, slow disk, stand-in Plex, and the real cachefs over them, all in one folder.

Built once by ``__main__``; leaving it ends every process, unmounts everything and removes the folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachefs.control.client import Client
from tests.demo.stop import Stop
from tests.standin.library import LibrarySizes, SampleFile, SampleLibrary, build_library
from tests.standin.library_in_plex import PlexItems, put_in_plex
from tests.standin.plex import StandInPlex, run_stand_in_plex
from tests.standin.running import RunningCachefs, start_cachefs
from tests.standin.slowdisk_control import SlowDisk, slow_disk
from tests.standin.slowdisk_process import SlowDiskSettings

OWNER, FRIEND = "Anna", "Ben"
FILM_ON_WATCHLIST = "The Long Spin (2019)"
SOURCE_NAME = "Media"
KEEP_WATCHED_S = 8
AFTER_S = 2
DISK = SlowDiskSettings(wake_up_s=3.0, idle_s=3600.0, bytes_per_s=40e6)
"""It falls asleep when the story says so: a real disk takes half an hour for that."""
SIZES = LibrarySizes(episode_bytes=32_000_000, film_bytes=40_000_000)


@dataclass(frozen=True, slots=True)
class Scene:
    """What the story acts on."""

    library: SampleLibrary
    items: PlexItems
    disk: SlowDisk
    plex: StandInPlex
    cachefs: RunningCachefs
    control: Client
    cache: Path

    def forget_in_memory(self, file: SampleFile) -> None:
        """Drop the SSD copy's pages from the kernel's memory, so that the SSD is measured and not RAM."""
        fd = os.open(self.cache / "files" / SOURCE_NAME / file.path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


@contextmanager
def scene(stop: Stop, folder_parent: Path | None = None) -> Iterator[Scene]:
    """The stage, ready; ``Stopped`` between two steps when the demo was asked to end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cachefs-demo-", dir=folder_parent)))
        for name in ("behind", "slow", "ssd", "mount"):
            (folder / name).mkdir()
        library = build_library(folder / "behind", SIZES)
        stop.wait(0)
        disk = stack.enter_context(slow_disk(folder / "behind", folder / "slow", DISK))
        stop.wait(0)
        plex = stack.enter_context(run_stand_in_plex(owner=OWNER, token="token-of-anna"))
        plex.add_user(FRIEND, "token-of-ben")
        items = put_in_plex(library, plex)
        plex.watchlist(FRIEND, items.films[FILM_ON_WATCHLIST])
        cachefs = start_cachefs(folder / "cachefs.yaml", folder / "cachefs.log", configuration(folder, plex))
        stack.callback(cachefs.remove)
        control = stack.enter_context(cachefs.client())
        stop.wait(0)
        yield Scene(library, items, disk, plex, cachefs, control, folder / "ssd")


def configuration(folder: Path, plex: StandInPlex) -> dict[str, Any]:
    """What a user would write, with waits of seconds instead of minutes and hours."""
    return {
        "mountpoint": str(folder / "mount"),
        # ttl: what cachefs saw of the disk is believed that long, so that playing from the SSD asks the disk nothing.
        "sources": [{"path": str(folder / "slow"), "name": SOURCE_NAME, "timeout": "30s", "ttl": "10m"}],
        "cache": {"path": str(folder / "ssd"), "max_size": "2GiB", "min_free": "100MiB"},
        "plex": {"url": plex.url, "cloud_url": plex.url, "token": plex.token, "path_map": "auto"},
        "policy": {
            "playing": {"after": f"{AFTER_S}s", "next_episodes": 2},
            "on_deck": {"next_episodes": 3},
            "keep_watched": f"{KEEP_WATCHED_S}s",
        },
        "copying": {"workers": 1},  # one disk, one head: what is watched now comes first
        "control": {"socket": str(folder / "control.sock")},
    }
