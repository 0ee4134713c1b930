"""The folders of one run, and cachefs's settings for them. Everything lies below one temporary folder.

The union has three parts: ``library``, which never changes; ``behind``, changed at the source by ``outsider``; and one
folder for each writer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.content import content

SOURCE = "Media"
LIBRARY = "library"
BEHIND = "behind"
KIB = 1 << 10
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything is. ``library``: the content of each of its files, by name below the mount; ``mode``:
    ``cache.mode``, or ``both``: another at every start."""

    folder: Path
    seed: int
    library: Mapping[str, bytes]
    writers: int
    mode: str = "copy"

    @property
    def source(self) -> Path:
        return self.folder / SOURCE

    @property
    def ssd(self) -> Path:
        return self.folder / "ssd"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "mount"

    @property
    def orders(self) -> Path:
        return self.folder / "orders"

    @property
    def socket(self) -> Path:
        return self.folder / "control.sock"

    def writer(self, number: int) -> str:
        """The name of a writer's folder."""
        return f"writer-{number}"

    def settings(self, chance: random.Random, modes: Sequence[str] = ("copy", "move")) -> dict[str, Any]:
        """``cachefs.yaml``, different in what must make no difference; in one of these modes, where both are tried."""
        return {
            "mountpoint": os.fspath(self.mountpoint),
            "sources": [
                {
                    "path": os.fspath(self.source),
                    "name": SOURCE,
                    "ttl": chance.choice(("0s", "5s")),
                    "metadata": chance.choice(("auto", "asked")),
                }
            ],
            "cache": {
                "path": os.fspath(self.ssd),
                "mode": chance.choice(modes) if self.mode == "both" else self.mode,
                "max_size": "256MiB",
                "min_free": "1MiB",
            },
            "copying": {"bandwidth": chance.choice(("20MiB/s", None))},
            "fast_path": chance.choice(("auto", "off")),
            "control": {"socket": os.fspath(self.socket)},
        }


def build(folder: Path, seed: int, files: int, writers: int, mode: str = "copy") -> Stage:
    """The folders, and a library of so many files: most are small, every eighth takes a while to copy."""
    chance = random.Random(f"{seed}/library")
    library = {}
    for number in range(files):
        size = chance.randrange(2 * MIB, 4 * MIB) if number % 8 == 7 else chance.randrange(1, 512 * KIB)
        name = f"{LIBRARY}/season {number // 10}/{number:03}.mkv"
        library[name] = content(seed, name, 0, size)
    stage = Stage(folder, seed, library, writers, mode)
    for place in (stage.ssd, stage.mountpoint, stage.source / BEHIND):
        place.mkdir(parents=True)
    for number in range(writers):
        (stage.source / stage.writer(number)).mkdir()
    for name, data in library.items():
        (stage.source / name).parent.mkdir(parents=True, exist_ok=True)
        (stage.source / name).write_bytes(data)
    return stage
