"""What the daemon counts, and which of its components are well: the living parts of one frozen ``Status``.

``fs.routing`` adds to the counters for every read, so adding is a few integer additions and nothing else; whoever
supervises a component marks its health. Both belong to the event loop's thread. Neither logs nor decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cachefs.model import ComponentHealth, ReadCounters


class Counters:
    """Reads since the start, by where their bytes came from."""

    __slots__ = (
        "_cache_bytes",
        "_cache_reads",
        "_fallbacks",
        "_kernel_opens",
        "_kernel_size",
        "_source_bytes",
        "_source_reads",
    )

    def __init__(self) -> None:
        self._cache_reads = 0
        self._cache_bytes = 0
        self._source_reads = 0
        self._source_bytes = 0
        self._fallbacks = 0
        self._kernel_opens = 0
        self._kernel_size = 0

    def add_cache_read(self, size: int, reads: int = 1) -> None:
        """``size`` bytes of one read (or several) came from the SSD."""
        self._cache_reads += reads
        self._cache_bytes += size

    def add_source_read(self, size: int, reads: int = 1) -> None:
        """``size`` bytes of one read (or several) came from a source."""
        self._source_reads += reads
        self._source_bytes += size

    def add_kernel_open(self, size: int, opens: int = 1) -> None:
        """A cached file of this size was handed to the kernel: nobody can count what is read of it."""
        self._kernel_opens += opens
        self._kernel_size += size * opens

    def add_fallback(self) -> None:
        """The SSD failed a read and the source is asked instead; its bytes are added when they come."""
        self._fallbacks += 1

    def read_counters(self) -> ReadCounters:
        """All counts as they are now."""
        return ReadCounters(
            cache_reads=self._cache_reads,
            cache_bytes=self._cache_bytes,
            source_reads=self._source_reads,
            source_bytes=self._source_bytes,
            fallbacks=self._fallbacks,
            kernel_opens=self._kernel_opens,
            kernel_size=self._kernel_size,
        )


class HealthRegistry:
    """The health of every background component, in the order in which they were first heard of.

    ``since`` is when the present problem (or the present health) began; ``failures`` counts the failures of the
    present problem and is 0 while all is well.
    """

    __slots__ = ("_clock", "_components")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._components: dict[str, ComponentHealth] = {}

    def register(self, name: str) -> None:
        """From now on ``name`` is shown, well until marked otherwise."""
        self._components.setdefault(name, ComponentHealth(name, since=self._clock()))

    def degraded(self, name: str, problem: str) -> None:
        """``name`` failed (again); ``problem`` is a text for people."""
        before = self.component(name)
        since = before.since if before.problem else self._clock()
        self._components[name] = ComponentHealth(name, problem, since, before.failures + 1)

    def recovered(self, name: str) -> None:
        """``name`` does its work (again)."""
        if self.component(name).problem or name not in self._components:
            self._components[name] = ComponentHealth(name, since=self._clock())

    def component(self, name: str) -> ComponentHealth:
        """The health of one component; one never heard of is well."""
        return self._components.get(name, ComponentHealth(name))

    def components(self) -> tuple[ComponentHealth, ...]:
        """The health of all."""
        return tuple(self._components.values())
