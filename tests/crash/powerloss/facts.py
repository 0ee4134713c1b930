"""What a power cut must leave, from what was acknowledged before it (pure)."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass, field


class What(enum.Enum):
    """What a mark in the recording says. A promise is taken back before the store is asked to."""

    CACHED = "cached"
    LEAVING = "leaving"
    GONE = "gone"
    COPYING = "copying"
    NOT_COPYING = "not copying"
    PINNED = "pinned"
    UNPINNING = "unpinning"
    UNPINNED = "unpinned"
    ASKED = "asked for by hand"
    ASKING_NO_MORE = "asking no more"
    TAG = "tag"
    INDEX_LOST = "index lost"


@dataclass(frozen=True, slots=True)
class Fact:
    """``number``: the version that is cached, the first bytes that are copied for good, a device's tag."""

    what: What
    name: str = ""
    number: int = 0


def fact(text: str) -> Fact:
    found = json.loads(text)
    return Fact(What(found["what"]), found["name"], found["number"])


@dataclass(slots=True)
class Promised:
    """``cached``: version by path; ``copying``: bytes from the beginning on, by path; ``gone``: no longer cached, and
    never again in the versions up to that number."""

    cached: dict[str, int] = field(default_factory=dict)
    copying: dict[str, int] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    unpinned: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    tags: dict[str, int] = field(default_factory=dict)
    leaving: dict[str, int] = field(default_factory=dict)

    def lose_index(self) -> None:
        """Nobody but the index knows what was copied of a file. What was dropped may be found again by its label,
        before its file is removed for good; its fingerprint tells as ever."""
        self.copying.clear()
        self.gone.clear()


def promised(facts: Iterable[Fact]) -> Promised:
    """What holds after these, in their order."""
    now = Promised()
    for one in facts:
        _take(one, now)
    return now


def _take(one: Fact, now: Promised) -> None:
    match one.what:
        case What.CACHED:
            now.cached[one.name] = one.number
        case What.LEAVING:
            now.leaving[one.name] = now.cached.pop(one.name, 0)
            now.copying.pop(one.name, None)
        case What.GONE:
            now.gone[one.name] = now.leaving.pop(one.name, 0)
        case What.COPYING:
            now.copying[one.name] = one.number
        case What.NOT_COPYING:
            now.copying.pop(one.name, None)
        case What.PINNED:
            now.pinned.add(one.name)
            now.unpinned.discard(one.name)
        case What.UNPINNING:
            now.pinned.discard(one.name)
        case What.UNPINNED:
            now.unpinned.add(one.name)
        case What.ASKED:
            now.asked.add(one.name)
        case What.ASKING_NO_MORE:
            now.asked.discard(one.name)
        case What.TAG:
            now.tags[one.name] = one.number
        case What.INDEX_LOST:
            now.lose_index()
