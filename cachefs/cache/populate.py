"""Carries a plan out: copies files to the SSD in its order and evicts what it says.

The planning task hands plans over with ``follow``, the daemon runs ``run``. What to want is the planner's business;
this module only decides what of it to do at this moment, and does it. One INFO line per decision, with its reason.

Concurrency: workers and the evicting task share ``_agenda`` and ``_active``, which change in synchronous blocks only;
a new plan is looked at between two chunks. Nothing but cancellation comes out of ``run``: a source that fails costs its
file this plan, an SSD that fails costs half a minute.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf

import trio

from cachefs.cache.agenda import Agenda
from cachefs.cache.filecopy import FileCopy, Outcome, Share, SourceFiles
from cachefs.cache.pacing import CopySettings, closed, may_copy
from cachefs.cache.places import why_not_home
from cachefs.cache.store import RETRY_S, EvictResult, Refused, Store
from cachefs.errors import CacheError
from cachefs.model import (
    CacheEntry,
    CopyProgress,
    EntryState,
    FileKey,
    InterestKind,
    Plan,
    PlannedCopy,
    PlannedEviction,
    SourceFile,
    SourceName,
)
from cachefs.units import format_size

__all__ = ["Copiers", "CopySettings", "SourceFiles"]

log = logging.getLogger(__name__)


REST_S = 60.0
"""How long to leave a file alone that changed while it was copied: a recording grows for an hour, and would be copied
again and again."""

_QUIET_S = 600.0
"""How long the same reason is not said again."""


@dataclass(slots=True, eq=False)
class _Job:
    """One file in a worker's hands."""

    planned: PlannedCopy
    began_at: float = field(default_factory=trio.current_time)
    copy: FileCopy | None = None
    stopping: str = ""
    """Why it stops at the next chunk; empty while it goes on."""

    @property
    def key(self) -> FileKey:
        return self.planned.key

    @property
    def bytes_per_s(self) -> float:
        copied = self.copy.copied_bytes if self.copy is not None else 0
        return copied / max(trio.current_time() - self.began_at, 1e-3)


class Copiers:
    """The workers that copy, and the task that evicts."""

    def __init__(
        self,
        store: Store,
        files: SourceFiles,
        settings: CopySettings,
        bring_home: Callable[[FileKey], Awaitable[None]] | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``bring_home`` restores a moved file, so that it can be evicted. It raises ``OSError`` only."""
        self.changed = trio.Event()
        """Set, and replaced by a new one, whenever a plan arrives or a copy begins or ends."""
        self._store = store
        self._files = files
        self._settings = settings
        self._bring_home = bring_home
        self._stay: dict[FileKey, float] = {}
        self._said_of: dict[SourceName, tuple[str, float]] = {}
        """What keeps a source's files from coming home, as was said last, and until when that is not said again."""
        self._now = now
        self._agenda = Agenda()
        self._active: dict[FileKey, _Job] = {}
        self._missing: set[FileKey] = set()
        self._paused_until = -inf
        self._making_room = trio.Lock()

    @property
    def bandwidth(self) -> int | None:
        """What all copies together may take of it, in bytes per second; None for no limit."""
        return self._settings.bandwidth

    def follow(self, plan: Plan) -> None:
        """Do as this plan says from now on. A copy in flight that it neither makes nor keeps stops at its next chunk;
        what was copied stays until an eviction."""
        self._agenda.follow(plan)
        self._note_change()

    def take_missing(self) -> frozenset[FileKey]:
        """The files that were to be copied and are not there, each said once."""
        missing = frozenset(self._missing)
        self._missing.clear()
        return missing

    def progress(self) -> tuple[CopyProgress, ...]:
        """The copies in flight."""
        return tuple(
            CopyProgress(job.key, entry.size, entry.ranges.total, job.bytes_per_s, job.planned.reason)
            for job in self._active.values()
            if (entry := self._store.get(job.key)) is not None
        )

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_evictions)
            nursery.start_soon(self._run_returns)
            for _ in range(self._settings.workers):
                nursery.start_soon(self._work)

    def waiting(self) -> str:
        """Why nothing, or only what is playing, is copied at this moment; empty when copies are made."""
        if self._store.problem:
            return self._store.problem
        if trio.current_time() < self._paused_until:
            return f"the SSD fails; copying is tried again every {RETRY_S:g} s"
        return closed(self._settings.hours, self._now())

    def waiting_for(self, planned: PlannedCopy) -> str:
        """Why this copy has not begun, or does not go on; empty while it does, or stands in line."""
        if planned.key in self._active:
            return ""
        if may_copy(planned.kind, self._settings.hours, self._now()) and not self._is_stuck():
            return self._agenda.put_off(planned.key)
        return self.waiting()

    def _is_stuck(self) -> bool:
        return bool(self._store.problem) or trio.current_time() < self._paused_until

    # --- deciding: memory only ---

    def _next_job(self) -> PlannedCopy | None:
        """The first copy on the agenda that may be made now."""
        if self._store.away or trio.current_time() < self._paused_until:
            return None
        return next((planned for planned in self._agenda.due(trio.current_time()) if self._is_free(planned)), None)

    def _is_free(self, planned: PlannedCopy) -> bool:
        return planned.key not in self._active and may_copy(planned.kind, self._settings.hours, self._now())

    def _should_stop(self, job: _Job) -> bool:
        """Asked between two chunks. What somebody plays takes the place of what nobody plays."""
        planned = self._agenda.find(job.key)
        if planned is None:
            job.stopping = "it is not in the plan any more"
        elif not may_copy(planned.kind, self._settings.hours, self._now()):
            job.stopping = "it is outside of copying.hours"
        elif planned.kind is not InterestKind.PLAYING and self._playing_waits():
            job.stopping = "what is being played goes first"
        return bool(job.stopping)

    def _playing_waits(self) -> bool:
        """Whether something that is played waits for a worker, and no worker is about to come free for it."""
        if len(self._active) < self._settings.workers:
            return False
        due = self._agenda.due(trio.current_time())
        waiting = sum(planned.kind is InterestKind.PLAYING and planned.key not in self._active for planned in due)
        return waiting > sum(bool(job.stopping) for job in self._active.values())

    def _share(self, job: _Job) -> Share:
        bandwidth = self._settings.bandwidth
        beside = sum(other.key.source == job.key.source for other in self._active.values())
        return Share(None if bandwidth is None else max(bandwidth // max(len(self._active), 1), 1), max(beside, 1))

    def _note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    # --- copying ---

    async def _work(self) -> None:
        while True:
            planned = self._next_job()
            if planned is not None:
                await self._carry_out(_Job(planned))
                continue
            changed = self.changed
            with trio.move_on_after(RETRY_S if self._agenda.has_copies else inf):
                await changed.wait()

    async def _carry_out(self, job: _Job) -> None:
        self._active[job.key] = job
        try:
            self._conclude(job, await self._copy(job))
        except CacheError as error:
            await self._pause(error)
        except OSError as error:
            log.info("%s is not copied with this plan: %s", job.key, error)
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                self._missing.add(job.key)
            self._agenda.finish(job.key, f"its source: {error.strerror or error}")
        finally:
            del self._active[job.key]
            self._note_change()

    async def _copy(self, job: _Job) -> Outcome | Refused:
        file = await self._files.stat(job.key)
        entry = await self._begin(file, job.planned.reason)
        if isinstance(entry, Refused):
            return entry
        job.copy = FileCopy(
            self._store, self._files, entry, share=lambda: self._share(job), stop=lambda: self._should_stop(job)
        )
        self._note_change()
        return await job.copy.run()

    def _conclude(self, job: _Job, outcome: Outcome | Refused) -> None:
        """Log how a copy ended, and decide when it may be tried again: at once, soon, or not before a new plan."""
        self._resume()
        if outcome is Outcome.PUBLISHED:
            self._agenda.finish(job.key)
            log.info("copied %s (%s): %s", job.key, _effort(job), job.planned.reason)
        elif outcome is Outcome.STOPPED:
            log.info("copying %s is paused: %s", job.key, job.stopping or Refused.BARRED.value)
            if not job.stopping:
                self._agenda.postpone(job.key, trio.current_time() + RETRY_S, outcome.value)
        elif outcome in (Refused.NO_ROOM, Refused.BARRED, Outcome.SSD_FULL):
            if self._agenda.postpone(job.key, trio.current_time() + RETRY_S, outcome.value):
                log.info("%s is not copied now, and tried again: %s", job.key, outcome.value)
        elif outcome in (Outcome.CHANGED, Outcome.DROPPED):
            self._agenda.rest(job.key, trio.current_time() + REST_S, outcome.value)
            log.info("%s is left alone for %g s: %s", job.key, REST_S, outcome.value)
        else:
            self._agenda.finish(job.key, outcome.value)
            level = logging.DEBUG if outcome is Refused.EXISTS else logging.INFO
            log.log(level, "%s is not copied further with this plan: %s", job.key, outcome.value)

    async def _pause(self, error: CacheError) -> None:
        """Leave a failing SSD alone for a while, or for as long as it is away."""
        self._paused_until = trio.current_time() + RETRY_S
        await self._store.trouble(error)

    def _resume(self) -> None:
        if self._paused_until != -inf and trio.current_time() >= self._paused_until:
            self._paused_until = -inf
            self._store.works()

    async def _run_returns(self) -> None:
        """An SSD that was away is used as soon as it is back."""
        while True:
            await self._store.back.wait()
            self._paused_until = -inf
            self._note_change()

    # --- room ---

    async def _begin(self, file: SourceFile, reason: str) -> CacheEntry | Refused:
        """Begin the copy; where there is no room, make it as the plan says, and no more than is needed."""
        answer = await self._store.begin(file, reason, self._now())
        if answer is not Refused.NO_ROOM:
            return answer
        async with self._making_room:
            await self._evict_unwanted()
            await self._store.remove_doomed()
            answer = await self._store.begin(file, reason, self._now())
            while answer is Refused.NO_ROOM and (eviction := self._next_victim(file.size)) is not None:
                room = self._store.space().room_bytes
                await self._evict(eviction)
                await self._store.remove_doomed()
                answer = await self._store.begin(file, reason, self._now())
                if self._store.space().room_bytes <= room:
                    break  # the SSD gives no room back: more evictions would not help
        return answer

    def _next_victim(self, size: int) -> PlannedEviction | None:
        """The plan's next victim; None when all of them together would not make enough room."""
        open_files = self._store.inventory().open_files
        found, now = [], trio.current_time()
        self._stay = {key: until for key, until in self._stay.items() if until > now}
        room = self._store.space().room_bytes
        for eviction in self._agenda.for_space:
            entry = self._store.get(eviction.key)
            stays = eviction.key in self._stay or eviction.key in open_files or eviction.key in self._active
            if entry is not None and not stays:
                found.append(eviction)
                room += entry.size
        return found[0] if found and room >= size else None

    async def _evict(self, eviction: PlannedEviction) -> None:
        entry = self._store.get(eviction.key)
        if entry is not None and entry.state is EntryState.MOVED and not await self._is_home(eviction.key):
            return
        result = await self._store.evict(eviction.key)
        if result is EvictResult.EVICTED and entry is not None:
            kind = "" if entry.state.is_whole else ", unfinished"
            log.info("evicted %s (%s%s): %s", eviction.key, format_size(entry.size), kind, eviction.reason)
        else:
            log.debug("%s is not evicted: %s", eviction.key, result.value)

    async def _is_home(self, key: FileKey) -> bool:
        """Bring a moved file home; where that cannot be, it is left alone for a while."""
        if self._bring_home is None or self._store.in_use(key):
            return False
        try:
            await self._bring_home(key)
        except OSError as error:
            self._stay[key] = trio.current_time() + RETRY_S
            self._warn_of_staying(key, why_not_home(error))
            return False
        return True

    def _warn_of_staying(self, key: FileKey, why: str) -> None:
        """One line for as long as it is the same with all files of a source: a full disk keeps every one of them."""
        now = trio.current_time()
        said, until = self._said_of.get(key.source, ("", -inf))
        if said == why and now < until:
            log.debug("%s stays on the SSD, its only copy: %s", key, why)
            return
        self._said_of[key.source] = (why, now + _QUIET_S)
        log.warning("%s stays on the SSD, its only copy, and so do others that would come home: %s", key, why)

    async def _run_evictions(self) -> None:
        while True:
            changed = self.changed
            await self._evict_unwanted()
            await changed.wait()

    async def _evict_unwanted(self) -> None:
        """What goes whether room is needed or not, goes as soon as a plan says so."""
        while (eviction := self._agenda.take_unwanted()) is not None:
            await self._evict(eviction)


def _effort(job: _Job) -> str:
    """``1.2 GiB in 12 s, 100 MiB/s``"""
    copied = job.copy.copied_bytes if job.copy is not None else 0
    took_s = trio.current_time() - job.began_at
    return f"{format_size(copied)} in {took_s:.{0 if took_s >= 10 else 1}f} s, {format_size(int(job.bytes_per_s))}/s"
