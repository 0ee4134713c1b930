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

_FOLLOWS_AFTER = 3
"""How often a task may fail before it is plain that it fails by itself."""


async def supervise(
    name: str, health: HealthRegistry, task: Callable[[], Awaitable[object]], follows: str = ""
) -> None:
    """Run ``task`` for ever. A task that returns has ended by intent and is not begun again.

    ``follows`` is a component that fails with this one, and says so: of this one nothing is said then.
    """
    health.register(name)
    failures, said = 0, False
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
            if trio.current_time() - began > _STEADY_S:
                failures, said = 0, False
            waits = follows and isinstance(cause, CachefsError)
            quiet = waits and (failures < _FOLLOWS_AFTER or bool(health.component(follows).problem))
            _report(name, health, cause, first=not quiet and not said)
            said = said or not quiet
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
