"""Somebody who changes files at the source, behind the mount, and knows which version of each there is.

A file is replaced by a rename, rewritten in place, or deleted. Readers see whole versions of what is only replaced or
deleted; what is rewritten in place is compared when nobody is at it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.crash.content import content
from tests.crash.stage import BEHIND, KIB, Stage

REPLACED = tuple(f"{BEHIND}/replaced-{number}.mkv" for number in range(6))
REWRITTEN = tuple(f"{BEHIND}/rewritten-{number}.mkv" for number in range(4))
LAG_S = 2.0
"""How long the word of a change may take: on a busy machine, inotify's."""


@dataclass(frozen=True, slots=True)
class Version:
    """What a file holds from about ``begun_at`` on, surely from ``done_at``; None: it is not there."""

    data: bytes | None
    begun_at: float
    done_at: float = float("inf")


class Outsider:
    """Use ``act`` from one thread at a time; the rest from any."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._chance = random.Random(f"{stage.seed}/outsider")
        self._turn = threading.Lock()
        self._versions: dict[str, list[Version]] = {}
        self._count = 0
        for name in (*REPLACED, *REWRITTEN):
            self._to(name, self._new(name))

    def act(self) -> None:
        """One change."""
        if self._chance.random() < 0.3:
            self._rewrite(self._chance.choice(REWRITTEN))
            return
        name = self._chance.choice(REPLACED)
        there = self.now(name) is not None
        self._to(name, None if there and self._chance.random() < 0.2 else self._new(name))

    def now(self, name: str) -> bytes | None:
        """What the file holds, while nobody changes it."""
        return self._versions[name][-1].data

    def possible(self, name: str, opened_at: float, read_at: float) -> Sequence[bytes | None]:
        """What a reader may have seen who opened the file and was through with it at these times."""
        with self._turn:
            versions = list(self._versions[name])
        ended = [version.done_at for version in versions[1:]] + [float("inf")]
        return [
            version.data
            for version, gone_at in zip(versions, ended, strict=True)
            if version.begun_at <= read_at and gone_at >= opened_at - LAG_S
        ]

    def _new(self, name: str) -> bytes:
        self._count += 1
        return content(self._stage.seed, name, self._count, self._chance.randrange(1, 512 * KIB))

    def _to(self, name: str, data: bytes | None) -> None:
        path = self._stage.source / name
        self._note(name, Version(data, time.monotonic()))
        if data is None:
            path.unlink()
        else:
            new = path.with_name(f".{path.name}.new")
            new.write_bytes(data)
            os.rename(new, path)
        self._note(name, Version(data, self._versions[name][-1].begun_at, time.monotonic()), replacing=True)

    def _rewrite(self, name: str) -> None:
        """In place: the same inode, often the same size."""
        path: Path = self._stage.source / name
        data = self._new(name)
        old = self.now(name) or b""
        if self._chance.random() < 0.5:
            data = data[: len(old)].ljust(len(old), b"=")
        with path.open("r+b") as file:
            file.write(data)
            file.truncate()
        self._note(name, Version(data, time.monotonic(), time.monotonic()))

    def _note(self, name: str, version: Version, *, replacing: bool = False) -> None:
        with self._turn:
            known = self._versions.setdefault(name, [])
            if replacing:
                known.pop()
            known.append(version)
            del known[:-50]
