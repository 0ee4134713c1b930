"""One slow folder: every call to it runs in a worker thread, under the source's own limiter and deadline.

Called by ``union``, ``changes``, ``routing`` and, through the union, by the copiers. Nothing else may touch a source.
Past the deadline the caller gets an error and the source is *offline*: later calls fail at once, before they queue,
until a single probe comes back. A thread that was abandoned in a hung call is still running: it keeps its place under
the limiter and its descriptors until it returns.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.descriptors import Descriptor
from cachefs.errors import SourceError, SourceOffline, SourceTimeout
from cachefs.fs import devices, stat
from cachefs.fs.folders import Folders
from cachefs.fs.nested import FOLDER
from cachefs.fs.watch import Watches
from cachefs.jobs import Job
from cachefs.model import SourceHealth, SourceName

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

READERS = 16
"""Threads of one source at a time for people; more do not make a disk faster."""
COPIERS = 4
"""Threads of one source at a time for copying and planning, so that these never keep a person waiting."""
_PROBE_EVERY_S = 1.0
_LOOK_AT_PLACE_EVERY_S = 2.0
_GONE = frozenset({errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH})
"""What a whole file system answers that is not there any more."""


class Metadata(enum.Enum):
    """Whether names and attributes that were seen once are believed until a change is heard: where all changes are
    (AUTO), always (REMEMBERED), or never (ASKED)."""

    AUTO = "auto"
    REMEMBERED = "remembered"
    ASKED = "asked"


@dataclass(frozen=True, slots=True)
class Root:
    """A source's folder as it was found at start."""

    stat: stat.Stat
    device: devices.Device
    empty: bool


class Source:
    """The slow side of one ``sources`` item. Use from the event loop only.

    ``root`` is opened before the mount is made, so that the source stays reachable when it is mounted over in place.
    """

    def __init__(
        self,
        name: SourceName,
        path: str,
        *,
        timeout_s: float,
        ttl_s: float,
        watch_changes: bool = True,
        in_place: bool = False,
        metadata: Metadata = Metadata.AUTO,
    ) -> None:
        """``in_place``: it is mounted over, so that its path does not lead to it later."""
        self.name = name
        self.path = path
        self.ttl_s = ttl_s
        self.in_place = in_place
        self.is_local = False
        """Whether it is a disk of this machine, as far as that is known."""
        self.metadata = metadata
        self._watch_changes = watch_changes
        self._timeout_s = timeout_s
        self._descriptor: Descriptor | None = None
        self.folders = Folders(max_age_s=min(max(self.ttl_s, 1.0), 30.0))
        """For functions that run in this source's threads."""
        self.judge: Callable[[Root], Awaitable[str]] = _accept
        """Says why a folder that was found is not the one that is meant; empty when it is."""
        self._readers = trio.CapacityLimiter(READERS)
        self._copiers = trio.CapacityLimiter(COPIERS)
        self._prober = trio.CapacityLimiter(1)
        self._problem = ""
        self._doubtful = False
        self._suspect = trio.Event()
        self._last_read = float("-inf")
        self._leftover: list[Descriptor] = []
        self.watches: Watches | None = None
        """None where changes behind the mount cannot be heard."""

    async def open(self) -> Root:
        """Open the folder; OSError or SourceTimeout when it cannot be, SourceError when another one is in its place."""
        found = await self.call(_open_root, self.path)
        await self._begin_at(found)
        return found.root

    async def _begin_at(self, found: Found) -> None:
        problem = await self._judged(found)
        if problem:
            found.close()
            raise SourceError(errno.EIO, problem, self.path)
        self._descriptor, self._doubtful = found.descriptor, False
        before = self.folders.begin_at(found.descriptor)
        if before is not None:
            self._leftover.append(before)

    async def _judged(self, found: Found) -> str:
        """As ``judge``. A folder that cannot be judged now, for it is on a device that was never seen while the SSD is
        away, is let go."""
        with ExitStack() as undone:
            undone.callback(found.close)
            problem = await self.judge(found.root)
            undone.pop_all()
            return problem

    def missing(self, error: OSError) -> None:
        """It could not be opened, or has become another folder: it is probed until it is back."""
        self._went_away(error.strerror or str(error))

    def close(self) -> None:
        """Let go of the folder; threads that still hang in it keep their own descriptors."""
        if self.watches is not None:
            self.watches.close()
            self.watches = None
        descriptor, self._descriptor = self.folders.begin_at(None), None
        if descriptor is not None:
            descriptor.close()

    @property
    def hears_all(self) -> bool:
        """Whether its changes are to be believed to be heard, whatever kind of file system it is."""
        return self.metadata is Metadata.REMEMBERED

    def watch(self) -> None:
        """Make it possible to watch folders of this source: some of it is local."""
        if not self._watch_changes:
            return
        try:
            self.watches = Watches(self.name)
        except OSError as error:
            log.info("source %s: changes behind the mount cannot be watched: %s", self.name, error)

    async def call(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """``function(*args)`` in a worker thread, for somebody who waits.

        Raises what it raises, SourceTimeout past the deadline, SourceOffline at once when the source is known to be
        away. The function must own or ``use`` every descriptor that it touches.
        """
        return await self._call(self._readers, function, *args)

    async def call_gently(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """As ``call``, in the smaller share that copying and planning have."""
        return await self._call(self._copiers, function, *args)

    async def change(self, finished: Callable[[], object], function: Callable[[*Ts], T], *args: *Ts) -> T:
        """As ``call``, for a change: ``finished`` is called on the event loop once the thread has really returned,
        however late, so that what the change bars stays barred until then."""
        return await self._run(self._readers, Job(lambda: function(*args), finished))

    async def _call(self, limiter: trio.CapacityLimiter, function: Callable[[*Ts], T], *args: *Ts) -> T:
        return await self._run(limiter, Job(lambda: function(*args)))

    async def _run(self, limiter: trio.CapacityLimiter, job: Job[T], *, judged: bool = True) -> T:
        """Do the job in a thread, or give it up past the deadline. ``judged``: its errors tell how the source is; those
        of closing a file may tell how it was."""
        with job.done_or_abandoned():
            self.refuse_offline()
            with trio.move_on_after(self._timeout_s):
                try:
                    return await trio.to_thread.run_sync(job.run, abandon_on_cancel=True, limiter=limiter)
                except OSError as error:
                    if judged:
                        self._heard(error)
                    raise
            self._went_away(f"no answer within {self._timeout_s:g} s")
            raise SourceTimeout(self.name, self._timeout_s)

    def refuse_offline(self) -> None:
        """Raises SourceOffline when it is known to be away."""
        if self._problem:
            raise SourceOffline(self.name, self._problem)

    def _heard(self, error: OSError) -> None:
        if self._descriptor is None:
            return  # it is being opened for the first time
        if error.errno in _GONE:
            self._went_away(error.strerror or str(error))
        elif error.errno == errno.EIO and not isinstance(error, SourceError):
            self._suspect.set()

    def _went_away(self, problem: str) -> None:
        if not self._problem:
            log.warning("source %s (%s) is offline (%s); probing until it is back", self.name, self.path, problem)
            self._problem = problem
            self._suspect.set()

    async def discard(self, descriptor: Descriptor) -> None:
        """Close a descriptor in a thread: closing may write, and may hang. Errors have been told by ``flush``."""
        try:
            await self._run(self._readers, Job(descriptor.close), judged=False)
        except SourceError:  # nobody may have begun to close it; closing twice does no harm
            self._leftover.append(descriptor)
        except OSError as error:
            log.debug("source %s: closing a file failed: %s", self.name, error)

    async def _close_leftover(self) -> None:
        leftover, self._leftover = self._leftover, []
        for descriptor in leftover:
            await self.discard(descriptor)

    async def probe(self) -> None:
        """Look whether a source that fails is away, and for its return, one probe at a time. Runs for ever."""
        while True:
            await self._suspect.wait()
            if self._problem:
                await trio.sleep(_PROBE_EVERY_S)
            await self.probe_once()

    async def probe_once(self) -> None:
        """Look at the folder, and say how it is."""
        try:
            found = await trio.to_thread.run_sync(self._look, abandon_on_cancel=True, limiter=self._prober)
            if found is not None:
                await self._begin_at(found)
        except OSError as error:
            self._went_away(error.strerror or str(error))
            self._problem = error.strerror or str(error)
            return
        self._suspect = trio.Event()
        if self._problem:
            self._problem = ""
            log.info("source %s (%s) is back", self.name, self.path)
        await self._close_leftover()

    async def look_anew(self) -> Found:
        """What its path leads to now, or, where that is mounted over, the folder that is open. Believes and changes
        nothing. Raises OSError, or SourceTimeout, when there is none that can be read."""
        job = Job(self._find)
        with job.done_or_abandoned():
            with trio.move_on_after(self._timeout_s):
                return await trio.to_thread.run_sync(job.run, abandon_on_cancel=True, limiter=self._prober)
            raise SourceTimeout(self.name, self._timeout_s)

    def _find(self) -> Found:
        descriptor = self._descriptor
        if descriptor is None or not self.in_place:
            return _open_root(self.path)
        with descriptor.use() as folder:
            return _examine(Descriptor(os.dup(folder)))

    async def take(self, forget: Callable[[], object]) -> None:
        """Whatever its folder is now, it is the source's from now on. ``forget`` is called once that can be: it makes
        ``judge`` accept any. Raises OSError, with nothing changed, when there is none that can be read, and what
        ``judge`` raises."""
        found = await self.look_anew()
        await self._judged(found)
        forget()
        await self._begin_at(found)

    def _look(self) -> Found | None:
        """See that the folder answers; None when it is the one that it was. One that does not answer, or is in
        doubt, is opened anew, unless it is mounted over."""
        descriptor = self._descriptor
        if descriptor is None or (self._doubtful and not self.in_place):
            return _open_root(self.path)
        try:
            with descriptor.use() as folder:
                stat.look(folder)
                return _examine(Descriptor(os.dup(folder))) if self._doubtful else None
        except OSError:
            if self.in_place:
                raise
            return _open_root(self.path)

    async def watch_place(self) -> None:
        """See to it that the path still leads to the folder that is open: it may be moved away, or another disk be
        mounted there. Runs for ever. Looks where that wakes no disk: at local folders, and when mounts have changed."""
        before = ""
        while not self.in_place:
            await trio.sleep(_LOOK_AT_PLACE_EVERY_S)
            mounts = await trio.to_thread.run_sync(_mounts_above, self.path)
            changed, before = before not in ("", mounts), mounts
            if (changed or self.is_local) and not self._problem:
                await self._look_at_place()

    async def _look_at_place(self) -> None:
        descriptor = self._descriptor
        if descriptor is None:
            return
        try:
            same = await self.call_gently(_leads_to, self.path, descriptor)
        except OSError as error:
            log.debug("source %s: its place cannot be looked at: %s", self.name, error)
            return
        if not same:
            self.doubt("another folder has its place, or none")

    def doubt(self, problem: str) -> None:
        """It answers, but not as the folder that it was: it is away until it is judged to be that again."""
        self._doubtful = True
        self._went_away(problem)
        self._suspect.set()

    async def close_idle_folders(self) -> None:
        """Close folder descriptors that nobody used lately; housekeeping calls this now and then."""
        if not self._problem:
            await self.call_gently(self.folders.close_idle)

    def note_read(self) -> None:
        """Somebody has just waited for this source's disk."""
        self._last_read = trio.current_time()

    @property
    def reading_since(self) -> float:
        """trio time of the last read that somebody waited for; minus infinity when there was none."""
        return self._last_read

    @property
    def online(self) -> bool:
        return not self._problem

    def health(self) -> SourceHealth:
        return SourceHealth(
            name=self.name,
            path=self.path,
            online=self.online,
            problem=self._problem or self.folders.nested.problem,
            threads_busy=self._readers.borrowed_tokens + self._copiers.borrowed_tokens,
        )


def _leads_to(path: str, descriptor: Descriptor) -> bool:
    with descriptor.use() as number:
        held = os.fstat(number)
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def _mounts_above(path: str) -> str:
    """The lines of the mount table that a path goes through."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return "".join(
            line
            for line in lines
            if f"{path}/".startswith(f"{line.split()[4].replace(chr(92) + '040', ' ').rstrip('/')}/")
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A source's folder, open."""

    descriptor: Descriptor
    root: Root

    def close(self) -> None:
        self.descriptor.close()


async def _accept(root: Root) -> str:
    return ""


def _open_root(path: str) -> Found:
    return _examine(Descriptor(os.open(path, FOLDER & ~os.O_NOFOLLOW)))


def _examine(descriptor: Descriptor) -> Found:
    try:
        number = descriptor.number
        return Found(descriptor, Root(stat.look(number), devices.identify(number), is_empty(number)))
    except OSError:
        descriptor.close()
        raise


def is_empty(folder: int) -> bool:
    """Whether the open folder has no entry at all."""
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        with os.scandir(readable) as entries:
            return next(entries, None) is None
    finally:
        os.close(readable)
