"""One call in a worker thread that its caller may give up waiting for.

A thread in a hung system call cannot be stopped. What it finally returns must still be closed, by that thread and not
on the event loop, and what it barred must stay barred until then.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar, runtime_checkable

import trio

T = TypeVar("T")


@runtime_checkable
class Closable(Protocol):
    """A result that holds descriptors."""

    def close(self) -> None: ...


class _State(enum.Enum):
    """WAITING → RUNNING → RETURNED; ABANDONED from any of them, by the event loop only."""

    WAITING = "waiting"
    RUNNING = "running"
    RETURNED = "returned"
    ABANDONED = "abandoned"


class Job(Generic[T]):
    """``function`` in a thread; ``finished`` is called once, on the event loop, when it has really returned, or will
    never start."""

    __slots__ = ("_finished", "_function", "_lock", "_result", "_state", "_token")

    def __init__(self, function: Callable[[], T], finished: Callable[[], object] | None = None) -> None:
        self._function = function
        self._finished = finished
        self._state = _State.WAITING
        self._result: T | None = None
        self._lock = threading.Lock()
        self._token = trio.lowlevel.current_trio_token()

    def run(self) -> T:
        """The thread's side."""
        if not self._move(_State.WAITING, _State.RUNNING):
            raise trio.RunFinishedError("given up before it began")  # nobody is left to hear it
        try:
            result = self._function()
        except BaseException:
            if not self._move(_State.RUNNING, _State.RETURNED):
                self._tell()
            raise
        self._result = result
        if not self._move(_State.RUNNING, _State.RETURNED):
            _close(result)
            self._tell()
        return result

    @contextmanager
    def done_or_abandoned(self) -> Iterator[None]:
        """The event loop's side, around the wait."""
        try:
            yield
        except BaseException:
            self.abandon()
            raise
        if self._finished is not None:
            self._finished()

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            before, self._state = self._state, _State.ABANDONED
        if before is _State.RETURNED and self._result is not None:
            result = self._result
            trio.lowlevel.start_thread_soon(lambda: _close(result), lambda _: None)
        if before is not _State.RUNNING and self._finished is not None:
            self._finished()

    def _move(self, before: _State, after: _State) -> bool:
        with self._lock:
            if self._state is not before:
                return False
            self._state = after
            return True

    def _tell(self) -> None:
        if self._finished is None:
            return
        try:
            self._token.run_sync_soon(self._finished)
        except trio.RunFinishedError:
            return  # the program has ended in the meantime: nothing is barred any more


def _close(result: object) -> None:
    if isinstance(result, Closable):
        result.close()
