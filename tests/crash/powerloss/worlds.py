"""What a power cut may leave of a source's files, from what was acknowledged before it (pure).

The bytes of a file are its version's; a world is all files that there are. What is under way may be there or not; what
was acknowledged is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ANY = 0
"""The version of a file that nobody has made durable: it is there, with any bytes."""

World = Mapping[str, int]
"""Every file's version, by its path."""


@dataclass(frozen=True, slots=True)
class Change:
    """Files that are others afterwards, or (None) none; ``sure``: so it is, whatever happens."""

    files: Mapping[str, int | None]
    sure: bool


def encode(change: Change) -> bytes:
    return json.dumps({"files": dict(change.files), "sure": change.sure}).encode()


def decode(text: str) -> Change:
    found = json.loads(text)
    return Change(found["files"], found["sure"])


def worlds(changes: Iterable[Change]) -> tuple[World, ...]:
    """Each that may be there after these."""
    now: tuple[World, ...] = ({},)
    for change in changes:
        after = [_changed(world, change.files) for world in now]
        possible = after if change.sure else [*now, *after]
        now = tuple(world for at, world in enumerate(possible) if world not in possible[:at])
    return now


def _changed(world: World, files: Mapping[str, int | None]) -> World:
    new = {**world, **files}
    return {path: version for path, version in new.items() if version is not None}
