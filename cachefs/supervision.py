"""Keeping background tasks alive: what fails is logged once, shown in ``status``, and begun again with back-off.

One of the two places with a broad ``except``: whatever a background task raises must never take the mount down.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from cachefs.errors import CachefsError
from cachefs.status import HealthRegistry

log = logging.getLogger(__name__)

_BACK_OFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_S = 20.0
"""A task that has run so long since its last failure is well again."""


async def supervise(name: str, health: HealthRegistry, task: Callable[[], Awaitable[object]]) -> None:
    """Run ``task`` for ever. A task that returns has ended by intent and is not begun again."""
    health.register(name)
    failures = 0
    while True:
        began = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_recover, name, health)
                await task()
                nursery.cancel_scope.cancel()
            return
        except Exception as error:  # noqa: BLE001 - see the module
            cause = _only(error)
            failures = 0 if trio.current_time() - began > _STEADY_S else failures
            _report(name, health, cause, first=not health.component(name).problem)
        await trio.sleep(_BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)])
        failures += 1


async def _recover(name: str, health: HealthRegistry) -> None:
    await trio.sleep(_STEADY_S)
    health.recovered(name)


def _only(error: Exception) -> BaseException:
    """The one exception inside a nursery's group, or the group."""
    cause: BaseException = error
    while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    return cause


def _report(name: str, health: HealthRegistry, error: BaseException, *, first: bool) -> None:
    """One line for what we know how to fail with, one traceback for a bug; then silence until it is well again."""
    expected = isinstance(error, CachefsError)
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    health.degraded(name, text)
    if not first:
        log.debug("%s failed again: %s", name, text)
    elif expected:
        log.warning("%s: %s; trying again until it works", name, text)
    else:
        log.error("%s failed; please report this; trying again", name, exc_info=error)
