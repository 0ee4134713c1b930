"""What the end-to-end tests share: a household with a library, a Plex and a running cachefs, and how to wait for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.mount.lives import wait_until
from tests.standin.library import SampleFile, SampleLibrary
from tests.standin.library_in_plex import PlexItems
from tests.standin.plex import StandInPlex
from tests.standin.running import RunningCachefs
from tests.standin.slowdisk_control import SlowDisk

STATE = "user.cachefs.state"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Household:
    """A slow disk with a library, a Plex that knows it, and cachefs over the disk."""

    cachefs: RunningCachefs
    disk: SlowDisk
    library: SampleLibrary
    plex: StandInPlex
    items: PlexItems
    settings: dict[str, Any]
    start: Callable[[dict[str, Any]], RunningCachefs]

    def path(self, file: SampleFile) -> Path:
        """The file in the mount."""
        return self.cachefs.mountpoint / file.path

    def state(self, file: SampleFile) -> str:
        return os.getxattr(self.path(file), STATE).decode()

    def wait_for_state(self, file: SampleFile, state: str, within_s: float = 30.0) -> None:
        self.wait_until(lambda: self.state(file) == state, f"{file.path} is {state}", within_s)

    def wait_until(self, condition: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
        """Poll with a deadline; fails at once when cachefs has ended."""
        wait_until(self.cachefs, condition, what, within_s)

    def wait_until_idle(self) -> None:
        """Until nothing is being copied and nothing is left to copy: the disk belongs to the test alone."""

        def idle() -> bool:
            with self.cachefs.client() as client:
                return not client.plan().copies and not client.status().copies

        self.wait_until(idle, "all copies are made")

    def restarted(self) -> Household:
        """The same household after cachefs was stopped cleanly and started again."""
        assert self.cachefs.terminate() == 0
        return replace(self, cachefs=self.start(self.settings))


def read(path: Path, start: int = 0, end: int | None = None) -> bytes:
    """Bytes of a file by a new open, so that nothing but the mount decides what they are."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        parts = []
        while (end is None or start < end) and (data := file.read(MIB if end is None else min(MIB, end - start))):
            parts.append(data)
            start += len(data)
    return b"".join(parts)


def with_two_files(disk: SlowDisk) -> SlowDisk:
    """A slow disk of two folders: ``TV/a.mkv`` of 1 MiB, ``Films/b.mkv`` of four bytes."""
    (disk.backing / "TV").mkdir()
    (disk.backing / "TV" / "a.mkv").write_bytes(bytes(range(256)) * 4 * 1024)
    (disk.backing / "Films").mkdir()
    (disk.backing / "Films" / "b.mkv").write_bytes(b"film")
    return disk


def errno_of(function: Callable[..., object], *args: object) -> int:
    """The errno that a call fails with; 0 when it does not."""
    try:
        function(*args)
    except OSError as error:
        return error.errno or 0
    return 0


def took_s(function: Callable[..., object], *args: object) -> float:
    began = time.monotonic()
    function(*args)
    return time.monotonic() - began
