"""Counting reads, and the health of components over failures and recoveries."""

from __future__ import annotations

from cachefs.model import ComponentHealth, ReadCounters
from cachefs.status import Counters, HealthRegistry


def test_reads_are_counted_by_where_their_bytes_came_from() -> None:
    counters = Counters()
    counters.add_cache_read(10)
    counters.add_cache_read(5)
    counters.add_fallback()
    counters.add_source_read(7)
    assert counters.read_counters() == ReadCounters(2, 15, 1, 7, 1)


def test_a_problem_keeps_its_beginning_and_counts_its_failures() -> None:
    now = [100.0]
    registry = HealthRegistry(clock=lambda: now[0])
    registry.register("plex")
    registry.register("control")
    now[0] = 200.0
    registry.degraded("plex", "no answer")
    now[0] = 300.0
    registry.degraded("plex", "token refused")
    assert registry.components() == (
        ComponentHealth("plex", "token refused", 200.0, 2),
        ComponentHealth("control", "", 100.0, 0),
    )


def test_recovery_clears_the_problem_and_is_dated_once() -> None:
    now = [100.0]
    registry = HealthRegistry(clock=lambda: now[0])
    registry.degraded("plex", "no answer")
    now[0] = 200.0
    registry.recovered("plex")
    now[0] = 300.0
    registry.recovered("plex")
    assert registry.component("plex") == ComponentHealth("plex", "", 200.0, 0)


def test_a_component_never_heard_of_is_well() -> None:
    assert HealthRegistry().component("watcher").problem == ""
