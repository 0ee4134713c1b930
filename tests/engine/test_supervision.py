"""Background tasks are kept alive: told once, begun again with back-off, and well again after a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from cachefs.errors import PlexUnreachable
from cachefs.status import HealthRegistry
from cachefs.supervision import supervise


class Failing:
    """A task that fails after ``lasts_s`` seconds each time, and remembers when it was begun."""

    def __init__(self, error: Exception, lasts_s: float = 0.0) -> None:
        self.began: list[float] = []
        self._error = error
        self._lasts_s = lasts_s

    async def __call__(self) -> None:
        self.began.append(trio.current_time())
        await trio.sleep(self._lasts_s)
        raise self._error

    @property
    def pauses(self) -> list[float]:
        return [
            round(later - before - self._lasts_s, 3) for before, later in zip(self.began, self.began[1:], strict=False)
        ]


async def _run_for(seconds: float, health: HealthRegistry, task: Callable[[], Awaitable[object]]) -> None:
    with trio.move_on_after(seconds):
        await supervise("plex", health, task)


async def test_what_fails_is_begun_again_later_and_later(
    autojump_clock: trio.testing.MockClock, expected_warnings: list[str]
) -> None:
    expected_warnings.append("plex: nobody there; trying again until it works")
    task = Failing(PlexUnreachable("nobody there"))
    await _run_for(120, HealthRegistry(), task)
    assert task.pauses[:6] == [1, 2, 5, 10, 30, 30]


async def test_a_task_that_ran_well_begins_with_short_pauses_again(
    autojump_clock: trio.testing.MockClock, expected_warnings: list[str]
) -> None:
    expected_warnings.append("trying again until it works")
    task = Failing(PlexUnreachable("nobody there"), lasts_s=21)
    await _run_for(120, HealthRegistry(), task)
    assert len(task.pauses) >= 3
    assert set(task.pauses) == {1}


async def test_a_failure_is_told_once_and_shown_until_it_is_over(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, expected_warnings: list[str]
) -> None:
    expected_warnings.append("nobody there")
    health = HealthRegistry()
    failures = 3

    async def task() -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise PlexUnreachable("nobody there")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervise, "plex", health, task)
        await trio.sleep(10)
        assert health.component("plex").problem == "nobody there"
        assert [record.levelname for record in caplog.records if record.levelname != "DEBUG"] == ["WARNING"]
        await trio.sleep(30)
        assert not health.component("plex").problem
        nursery.cancel_scope.cancel()


async def test_a_bug_is_told_with_its_trace_and_ends_nothing(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, expected_warnings: list[str]
) -> None:
    expected_warnings.append("plex failed; please report this")
    health = HealthRegistry()
    task = Failing(ZeroDivisionError("oops"))
    await _run_for(5, health, task)
    assert len(task.began) > 1
    assert health.component("plex").problem == "ZeroDivisionError: oops"
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert told.exc_info is not None


async def test_a_failure_inside_a_nursery_is_told_as_itself(
    autojump_clock: trio.testing.MockClock, expected_warnings: list[str]
) -> None:
    expected_warnings.append("plex: nobody there")
    health = HealthRegistry()

    async def task() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Failing(PlexUnreachable("nobody there")))
            nursery.start_soon(trio.sleep_forever)

    await _run_for(0.5, health, task)
    assert health.component("plex").problem == "nobody there"


async def test_a_task_that_returns_is_not_begun_again(autojump_clock: trio.testing.MockClock) -> None:
    began = 0

    async def task() -> None:
        nonlocal began
        began += 1

    with trio.fail_after(1):
        await supervise("plex", HealthRegistry(), task)
    assert began == 1


async def test_cancelling_ends_it_at_once(autojump_clock: trio.testing.MockClock) -> None:
    ended = False

    async def task() -> None:
        nonlocal ended
        try:
            await trio.sleep_forever()
        finally:
            ended = True

    await _run_for(1, HealthRegistry(), task)
    assert ended


async def test_one_that_fails_does_not_disturb_another(
    autojump_clock: trio.testing.MockClock, expected_warnings: list[str]
) -> None:
    expected_warnings.append("nobody there")
    health = HealthRegistry()
    seen = []

    async def well() -> None:
        for _ in range(5):
            await trio.sleep(1)
            seen.append(health.component("plex").problem)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervise, "plex", health, Failing(PlexUnreachable("nobody there")))
        await supervise("housekeeping", health, well)
        nursery.cancel_scope.cancel()
    assert seen == ["nobody there"] * 5
    assert not health.component("housekeeping").problem


async def test_what_fails_with_another_part_is_not_told_twice(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, expected_warnings: list[str]
) -> None:
    expected_warnings.append("events: nobody there")
    health = HealthRegistry()
    health.degraded("plex", "away")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervise, "events", health, Failing(PlexUnreachable("nobody there")), "plex")
        await trio.sleep(120)
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []
        health.recovered("plex")
        await trio.sleep(120)  # now it fails by itself
        nursery.cancel_scope.cancel()
    assert [record.levelname for record in caplog.records if record.levelname == "WARNING"] == ["WARNING"]
