"""Rules for parts of the slow disk: which operations they are for, and what happens to these.

Used by ``slowdisk`` and ``slowdisk_physics``. Pure: it knows no clock, no FUSE and no counters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

IN_MEMORY = frozenset({"statfs", "flush", "release", "releasedir", "forget"})
"""Operations that no real disk moves for: counted, and subject to faults, but they wake nobody, and only a rule that
names them makes them wait."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which operations a rule is for: those at or below ``path`` (``exact``: at it alone), of ``kinds`` (none: all)."""

    path: str
    kinds: frozenset[str] = frozenset()
    exact: bool = False

    def meets(self, kind: str, paths: Iterable[str]) -> bool:
        return (not self.kinds or kind in self.kinds) and any(map(self._holds, paths))

    def _holds(self, path: str) -> bool:
        return path == self.path if self.exact else below(path, self.path)

    def is_inside(self, path: str, kinds: frozenset[str]) -> bool:
        """Whether it is a part of what lies at or below ``path``, and for no other kinds than these (none: all)."""
        return below(self.path, path) and (not kinds or (bool(self.kinds) and self.kinds <= kinds))


@dataclass(frozen=True, slots=True)
class Fault:
    """What a part answers: an error, or nothing at all when ``errno`` is None."""

    part: Part
    errno: int | None


@dataclass(slots=True)
class Slowness:
    """Extra slowness of a part, beside the disk's own."""

    part: Part
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    free_at: float = float("-inf")

    def meets(self, kind: str, paths: Iterable[str]) -> bool:
        return (kind not in IN_MEMORY or kind in self.part.kinds) and self.part.meets(kind, paths)

    def book(self, now: float, size: int) -> float:
        """When an operation of ``size`` bytes that begins now is done, as far as this rule goes."""
        if self.bytes_per_s is not None:
            self.free_at = max(now, self.free_at) + size / self.bytes_per_s
        return max(now, self.free_at) + self.delay_s


def below(path: str, prefix: str) -> bool:
    """Whether ``path`` is ``prefix`` or inside it; the empty prefix is the whole disk."""
    return not prefix or path == prefix or path.startswith(prefix + "/")
