"""Questions to a source that nobody waits for long, where what was seen last will do meanwhile.

Used by ``union`` where changes cannot be heard, so that a source has to be asked again and again. A disk that sleeps,
or a server that is slow, is not in the way of a film that is on the SSD: the question goes on by itself, and what it
finds is acted upon when it comes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import outcome
import trio

from cachefs.model import SourceName

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 0.1
"""A disk that is awake has answered by then, and nobody is told what is not so any more."""


@dataclass(slots=True)
class _Question(Generic[T]):
    answered: trio.Event = field(default_factory=trio.Event)
    answer: outcome.Maybe[T] | None = None


class Patience:
    """The questions that are under way. Use from the event loop only."""

    def __init__(self) -> None:
        self._under_way: set[Hashable] = set()
        self._overdue: Counter[SourceName] = Counter()

    async def ask(
        self,
        source: SourceName,
        name: Hashable,
        ask: Callable[[], Awaitable[T]],
        meanwhile: Callable[[], Awaitable[T | None]],
    ) -> T:
        """The answer, if it comes soon; else what is known ``meanwhile``, if anything is. While a question of this
        name is under way it is not asked again."""
        if name in self._under_way:
            known = await meanwhile()
            return known if known is not None else await ask()
        self._under_way.add(name)
        question = _Question[T]()
        trio.lowlevel.spawn_system_task(self._ask, name, ask, question)
        with trio.move_on_after(0 if self._overdue[source] else PATIENCE_S):
            await question.answered.wait()
        if question.answer is None:
            known = await meanwhile()
            if question.answer is None and known is not None:
                self._overdue[source] += 1
                trio.lowlevel.spawn_system_task(self._await, source, question)
                return known
            await question.answered.wait()
        assert question.answer is not None
        return question.answer.unwrap()

    async def _ask(self, name: Hashable, ask: Callable[[], Awaitable[T]], question: _Question[T]) -> None:
        question.answer = await outcome.acapture(ask)
        self._under_way.discard(name)
        question.answered.set()

    async def _await(self, source: SourceName, question: _Question[T]) -> None:
        """Nobody waits for this one any more."""
        await question.answered.wait()
        self._overdue[source] -= 1
        answer = question.answer
        if isinstance(answer, outcome.Error) and not isinstance(answer.error, OSError):
            log.error("a question to source %s failed; please report this", source, exc_info=answer.error)
