"""Runs every work on every file system, in turn: what disturbs the machine for a while disturbs all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.bench import daemons, probe
from tests.bench.figures import Measured
from tests.bench.probe import System
from tests.bench.stage import Stage
from tests.bench.works import WORKS, Files, Work
from tests.demo.stop import Stop

Step = Callable[[Work, System, int], None]
"""Told before each measurement."""


def steps(stage: Stage, rounds: int) -> Iterator[tuple[Work, System, int]]:
    """Work by work, round by round, one system after the other, always in the same order."""
    for work in WORKS:
        for number in range(rounds):
            for system in stage.systems:
                if system.kind in work.of:
                    yield work, system, number


def measure(stage: Stage, rounds: int, min_ms: int, step: Step, stop: Stop) -> list[Measured]:
    """All of it. The native folder's names are looked at once before, since they are to be warm in every round."""
    warm_up(stage, rounds, stop)
    done = []
    for work, system, number in steps(stage, rounds):
        step(work, system, number)
        done.append(_measure(stage, work, system, number, min_ms, stop))
    return done


def warm_up(stage: Stage, rounds: int, stop: Stop) -> None:
    """Bring the names of all trees into memory, at the native folder only: a mount is to see them for the first time
    when it is measured."""
    for work in WORKS:
        for number in range(rounds if work.files is Files.TREE else 0):
            told = probe.arguments(work, stage.systems[0], stage.sample, number, 0)
            probe.run(stage.probe, told, stop)


def _measure(stage: Stage, work: Work, system: System, number: int, min_ms: int, stop: Stop) -> Measured:
    told = probe.arguments(work, system, stage.sample, number, min_ms)
    before = daemons.cpu_s(system.pids)
    units, took = probe.run(stage.probe, told, stop)
    cpu_s = daemons.cpu_s(system.pids) - before if system.pids else None
    return Measured(work.key, system.key, number, units, took, cpu_s)
