"""Whether the cache folder is there, and the threads that may touch it.

Used by ``cache.shelf`` and ``cache.ledger`` on the event loop; everything they do on the SSD runs in ``Presence.run``.
A thread is waited for whatever is cancelled, since a half-known disk is worse than a wait, but never without a limit:
an SSD that hangs must not hold up those who read and write. A thread that was given up goes on by itself, and nothing
is opened anew in the same place before it has returned.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache.folder import Folder
from cachefs.jobs import Job

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

NO_ANSWER_S = 90.0
"""What is called a hang: an SSD with a full write cache may well take ten seconds for one fsync."""
LOOK_S = 2.0
"""A look at the folder needs nothing that a disk in order does not have in memory."""
STOP_S = 1.0
CLOSE_S = 2.0
"""How long after a stop whoever works on the SSD is waited for, and the closing of it: ``keeper`` gives the whole
server four seconds."""
_LEAST_S = 1.0
_THREADS = 8


class Presence:
    """One cache folder that may go away and come back. ``leave`` is called at the moment when it goes, and says what
    that means for people."""

    def __init__(self, folder: Folder, leave: Callable[[], str]) -> None:
        self.folder = folder
        self.away = ""
        """Why it is away; empty while it is there."""
        self.suspect = trio.Event()
        """Somebody has seen it fail."""
        self.life = 0
        """How often it has come back: what was opened in an earlier life is no file of this one."""
        self._leave = leave
        self._stop_at = float("inf")
        self._began_at: dict[object, float] = {}
        self._scopes: set[trio.CancelScope] = set()
        self._turns = trio.CapacityLimiter(_THREADS)
        self._one_look = trio.CapacityLimiter(1)
        self._prober = trio.CapacityLimiter(1)

    async def run(
        self,
        function: Callable[[*Ts], T],
        *args: *Ts,
        limiter: trio.CapacityLimiter | None = None,
        within_s: float = NO_ANSWER_S,
    ) -> T:
        """``function(*args)`` in a thread, not cancelled from outside. Raises what it raises; EIO at once while the
        folder is away, and when there is no answer in time: what it returns later is closed."""
        if self.away:
            raise OSError(errno.EIO, self.away)
        answers: list[Callable[[], T]] = []
        job = Job(partial(function, *args))
        scope = trio.CancelScope(shield=True, deadline=min(trio.current_time() + within_s, self._stop_at))
        self._scopes.add(scope)
        try:
            with scope:
                await self._in_thread(job.run, answers, limiter or self._turns)
        finally:
            self._scopes.discard(scope)
        if not answers:
            job.abandon()
            raise OSError(errno.EIO, self.away or "no answer")
        return answers[0]()

    async def _in_thread(
        self, work: Callable[[], T], answers: list[Callable[[], T]], limiter: trio.CapacityLimiter
    ) -> None:
        call, done, began_at = object(), trio.Event(), self._began_at
        loop = trio.lowlevel.current_trio_token()
        await limiter.acquire_on_behalf_of(call)

        def returned(answer: Callable[[], T]) -> None:
            del began_at[call]
            limiter.release_on_behalf_of(call)
            answers.append(answer)
            done.set()

        def deliver(answer: Callable[[], T]) -> None:
            with suppress(trio.RunFinishedError):
                loop.run_sync_soon(returned, answer)

        began_at[call] = trio.current_time()
        try:
            trio.lowlevel.start_thread_soon(work, lambda outcome: deliver(outcome.unwrap))
        except RuntimeError as error:
            del began_at[call]
            limiter.release_on_behalf_of(call)
            raise OSError(errno.EAGAIN, "no thread can be started for the SSD") from error
        await done.wait()

    @property
    def is_stopping(self) -> bool:
        return self._stop_at < float("inf")

    def overdue(self, after_s: float) -> bool:
        """Whether some thread has been waiting for the SSD for so long."""
        return any(trio.current_time() - began >= after_s for began in self._began_at.values())

    async def examine(self) -> None:
        """Look whether the folder is there and answers; decide that it is away when it does not."""
        if self.away or self.is_stopping:
            return
        self.suspect = trio.Event()
        try:
            await self.run(self.folder.look, limiter=self._one_look, within_s=LOOK_S)
        except OSError as error:
            self.went_away(error.strerror or str(error))
        else:
            if self.overdue(NO_ANSWER_S):
                self.went_away(f"no answer within {NO_ANSWER_S:g} s")

    def went_away(self, problem: str) -> None:
        """From now on nobody waits for it, and nothing is asked of it."""
        if self.away:
            return
        self.away = problem
        text = "the cache folder %s is away (%s): %s; probing until it is back"
        log.warning(text, self.folder.root, problem, self._leave())
        for scope in self._scopes:
            scope.cancel()

    def leaving(self, folder: Folder) -> Callable[[], None]:
        """What gives a folder up that is away, in a thread; it counts as at work there until it has."""
        call, began_at = object(), self._began_at
        began_at[call] = trio.current_time()
        loop = trio.lowlevel.current_trio_token()

        def give_up() -> None:
            folder.abandon()
            with suppress(trio.RunFinishedError):
                loop.run_sync_soon(began_at.pop, call)

        return give_up

    async def may_return(self) -> bool:
        """Whether a folder answers at its path, and no thread that hangs could still reach it. Raises ``OSError``."""
        with trio.move_on_after(LOOK_S):
            device = await trio.to_thread.run_sync(
                _device, self.folder.root, abandon_on_cancel=True, limiter=self._prober
            )
            return not self._began_at or device != self.folder.mark.device
        return False

    def begin_at(self, folder: Folder) -> None:
        """It is back. Threads that still hang where it was are none of its business."""
        self.folder, self.away = folder, ""
        self.life += 1
        self._began_at = {}
        self._turns = trio.CapacityLimiter(_THREADS)
        self._one_look = trio.CapacityLimiter(1)

    def hurry(self) -> None:
        """Everything stops: whoever waits for the SSD has ``STOP_S`` for all of it."""
        self._stop_at = min(self._stop_at, trio.current_time() + STOP_S)
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, self._stop_at)

    def finish(self) -> None:
        """What is left is to close it: that has ``CLOSE_S`` from the stop on, and a second at least."""
        now = trio.current_time()
        self._stop_at = max(min(self._stop_at - STOP_S, now) + CLOSE_S, now + _LEAST_S)


def _device(root: str) -> int | None:
    """Where a folder is that answers; None when there is none. Raises ``OSError``."""
    try:
        os.statvfs(root)
        return os.stat(root).st_dev
    except FileNotFoundError:
        return None
