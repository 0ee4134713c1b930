"""Move mode: carries files to the SSD for good, and brings them home again.

Run by the daemon; ``populate`` asks it to restore what a plan evicts, ``fs.changes`` and people what they need at home.
A file moves once its copy is published: its bytes are compared with the source's, the SSD's file says that it is the
only one (``cache.moves``), and only then does the source give up its own (``Homes``). Restoring is the same in reverse.
Between the two every crash leaves a file that says how far it got, and a source that may still, or already, have the
same bytes: ``settle`` looks, and finishes one or the other. What is at home and is neither is somebody else's file:
nothing is ever overwritten, both are kept, and the conflict is shown.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from cachefs.cache import moved_bytes
from cachefs.cache.carrying import Carrying
from cachefs.cache.filecopy import SourceFiles, close_at_source
from cachefs.cache.kept import Kept
from cachefs.cache.places import (
    FOLDER_GONE,
    NOTHING_DONE,
    TAKEN,
    AtHome,
    Conflict,
    Hold,
    Homes,
    InUse,
    Stays,
    text_of,
    why_not_home,
)
from cachefs.cache.soundness import Soundness
from cachefs.cache.store import Store
from cachefs.descriptors import Descriptor
from cachefs.errors import CacheError
from cachefs.model import CacheEntry, EntryState, FileKey, Home, Phase, SourceFile, Targets
from cachefs.paths import folders_above
from cachefs.units import format_size

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LOOK_EVERY_S = 30.0
"""How soon what could not be moved, or settled, is tried again."""
_NEWS_S = 300.0
"""How long it is told that a file did not come home: its source may be back, or have room, by then."""
_TRIES = 3
_AT_HOME = "it was brought home with cachefs restore, and stays there until the next start"


@dataclass(frozen=True, slots=True)
class RestoreProgress:
    """One file on its way home."""

    key: FileKey
    size: int
    done_bytes: int


class Movers:
    """See the module. Use from the event loop only."""

    def __init__(
        self,
        store: Store,
        files: SourceFiles,
        homes: Homes,
        hold: Hold,
        bandwidth: Callable[[], int | None],
        *,
        on: bool,
    ) -> None:
        """``on``: files are moved; else they are only brought home."""
        self._store = store
        self._files = files
        self._homes = homes
        self._hold = hold
        self._on = on
        self.carrying = Carrying(store, files, homes, bandwidth)
        self.kept = Kept(store, homes)
        """What the sources keep of moved files."""
        self.soundness = Soundness(store, hold)
        self._turns: dict[FileKey | int, trio.Lock] = {}
        self._not_before: dict[int, float] = {}
        self._unmoved: dict[int, str] = {}
        """Why an entry was not moved when that was tried last."""
        self._stays: dict[FileKey, str] = {}
        """What only a person can mend."""
        self._failures: dict[FileKey, tuple[str, float]] = {}
        """Why a file did not come home when that was tried last, and until when that is news."""
        self._restoring: dict[FileKey, RestoreProgress] = {}
        self._leaving: dict[FileKey, trio.Event] = {}

    def problems(self) -> tuple[tuple[FileKey, str], ...]:
        """Moved files that cannot be settled or restored as they should, or whose bytes the SSD has lost, and why."""
        now = trio.current_time()
        lately = {key: why for key, (why, until) in self._failures.items() if now < until}
        known = {**lately, **self._stays, **self.soundness.flaws}
        return tuple(sorted((key, why) for key, why in known.items() if self._store.moves.get(key) is not None))

    def why_not_moved(self, key: FileKey) -> str:
        """Why a copy was not moved when that was tried last; empty when it was not tried yet, or is not to be."""
        entry = self._store.get(key)
        if not self._on or entry is None or entry.state is not EntryState.CACHED:
            return ""
        return self._unmoved.get(entry.id, "")

    def moved(self) -> list[CacheEntry]:
        """Every moved file that is there."""
        return self._store.moves.all()

    def restoring(self) -> tuple[RestoreProgress, ...]:
        return tuple(self._restoring.values())

    async def run(self) -> None:
        """Move what is cached, and settle what a crash has left; for ever."""
        while True:
            changed = self._store.changed
            await self.round()
            with trio.move_on_after(LOOK_EVERY_S):
                await changed.wait()

    async def round(self) -> None:
        """Look at everything once."""
        if self._store.away:
            return
        await self.kept.empty_after_crash(self._turn)
        live = {entry.id for entry in self._store.inventory().entries}
        self._not_before = {number: at for number, at in self._not_before.items() if number in live}
        self._unmoved = {number: why for number, why in self._unmoved.items() if number in live}
        for entry in self._store.inventory().entries:
            if trio.current_time() < self._not_before.get(entry.id, 0.0):
                continue
            if entry.home is not None and entry.home.phase is not Phase.AWAY:
                await self._try(entry, self.settle)
            elif self._on and entry.state is EntryState.CACHED:
                await self._try(entry, self.move)

    async def settle_all(self, within_s: float) -> None:
        """Before anybody looks: finish what a crash has left, as far as the sources answer by then."""
        with trio.move_on_after(within_s):
            async with trio.open_nursery() as nursery:
                for entry in self._store.moves.all():
                    if entry.home is not None and entry.home.phase is not Phase.AWAY:
                        nursery.start_soon(self._try, entry, self.settle)

    async def _try(self, entry: CacheEntry, act: Callable[[FileKey], Awaitable[None]]) -> None:
        try:
            await act(entry.key)
        except (Stays, OSError) as error:
            log.debug("%s: %s", entry.key, error)
            self._unmoved[entry.id] = text_of(error)
        except CacheError as error:
            await self._store.trouble(error)
        else:
            self._unmoved.pop(entry.id, None)
            if self._store.get(entry.key) is not None:
                return
        self._not_before[entry.id] = trio.current_time() + LOOK_EVERY_S

    @asynccontextmanager
    async def _turn(self, of: FileKey | int) -> AsyncIterator[None]:
        """One thing at a time with each file, and with what its source keeps of it (by its number), which goes along
        when it gets another name."""
        lock = self._turns.setdefault(of, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._turns.pop(of, None)

    # --- to the SSD for good ---

    async def move(self, key: FileKey) -> None:
        """Make the published copy the only one. Raises ``Stays``, ``OSError`` or ``CacheError``."""
        async with self._turn(key):
            entry = self._store.get(key)
            if entry is None or entry.state is not EntryState.CACHED:
                return
            self._refuse_to_move(entry)
            at_home = await self._homes.look(key)
            if at_home is None or not entry.fingerprint.same_file(at_home.file.fingerprint):
                raise Stays("its source shows another file")
            if at_home.file.links != 1:
                raise Stays("it has several names at its source (hard links)")
            life = self._store.life
            digest = await self.carrying.compare(entry)
            if self._store.is_barred(entry):
                raise Stays("somebody changes it")
            if self._store.life != life:
                raise Stays("the SSD was away meanwhile")
            with self._leaves(entry):
                async with self._hold(key) as free:
                    if not free:
                        raise Stays("somebody writes it")
                    self._refuse_to_move(entry)
                    await self._give_up(entry, at_home, digest)

    @contextmanager
    def _leaves(self, entry: CacheEntry) -> Iterator[None]:
        """No copy of it begins meanwhile, and whoever is about to change it can wait."""
        left = self._leaving[entry.key] = trio.Event()
        try:
            with self._store.bar(Targets(keys=frozenset((entry.key,)), inodes=frozenset((entry.source_file.inode,)))):
                yield
        finally:
            del self._leaving[entry.key]
            left.set()

    async def left(self, key: FileKey) -> None:
        """Wait until neither this file nor one below this folder is just giving up its place at its source. That no
        further one begins is for the bar of whoever waits."""
        for file, left in list(self._leaving.items()):
            if key == file or key in folders_above(file):
                await left.wait()

    def _refuse_to_move(self, entry: CacheEntry) -> None:
        if self._store.in_use(entry.key):
            raise Stays("somebody has it open")
        if entry.source_file.inode >> 48 >= 0x7FFE:
            raise Stays("its inode number cannot be kept")
        if self._store.moves.has_number(entry.source_file.inode):
            raise Stays("a file that has moved already has its inode number")

    async def _give_up(self, entry: CacheEntry, at_home: AtHome, digest: str) -> None:
        """From the last byte compared to the source's file gone."""
        key, file = entry.key, at_home.file
        home = Home(file.fingerprint, Phase.LEAVING, at_home.birth_ns, reserved=False, digest=digest)
        moved = await self._store.moves.leave(entry, home)
        if moved is None:
            raise Stays("the SSD's file system cannot keep extended attributes, or the copy is another one by now")
        try:
            reserved = await self._homes.take_away(key, file.inode, file, at_home.ctime_ns)
        except OSError as error:
            await self._undo(moved, file, nothing_done=error.errno in NOTHING_DONE)
            raise Stays(error.strerror or str(error)) from error
        await self._store.moves.set_home(moved, replace(home, phase=Phase.AWAY, reserved=reserved))
        log.info("moved %s (%s) to the SSD: its source's space is free", key, format_size(entry.size))

    async def _undo(self, moved: CacheEntry, file: SourceFile, *, nothing_done: bool) -> None:
        """The source did not give the file up, as far as it tells; where it does not tell, that is settled later.
        ``nothing_done``: it does; what it has by now is another file, or another one of that name, and the copy old."""
        try:
            at_home = await self._homes.look(moved.key)
        except OSError as error:
            log.debug("%s: %s", moved.key, error)
            return
        if at_home is not None and at_home.file.fingerprint.same_file(file.fingerprint):
            await self._store.moves.returned(moved, at_home.file)
        elif nothing_done:
            await self._store.moves.returned(moved, file)
            if at_home is not None:
                self._store.observe(at_home.file)
            else:
                self._store.gone(moved.key)

    # --- home ---

    async def restore(self, key: FileKey) -> None:
        """Bring a moved file home; what is on the SSD is a copy then. Raises ``Conflict`` when its place was taken,
        ``Stays``, ``OSError`` when its source has no room or does not answer, ``CacheError``."""
        async with self._turn(key):
            for _ in range(_TRIES):
                try:
                    async with self._hold(key) as free:
                        entry = self._store.moves.get(key)
                        if entry is None or entry.home is None:
                            return
                        if not free:
                            raise InUse("somebody has it open for writing")
                        is_home = await self._settle(entry, entry.home)
                    if is_home or await self._restore_alone(entry, entry.home):
                        self._forget_problem(key)
                        log.info("restored %s (%s) to its source", key, format_size(entry.size))
                        return
                except (InUse, OSError, CacheError) as error:
                    self._note_failure(key, why_not_home(error))
                    raise
                except Stays as error:
                    self._stays[key] = text_of(error)
                    raise
                finally:
                    self._restoring.pop(key, None)
            raise InUse("it is being written all the time")

    async def _restore_alone(self, entry: CacheEntry, home: Home) -> bool:
        async with self._turn(entry.source_file.inode):
            return await self._restore(entry, home)

    async def _restore(self, entry: CacheEntry, home: Home) -> bool:
        """False when the file was written to meanwhile, or is no moved file of this name any more."""
        arrived, life = False, self._store.life
        key, kept = entry.key, entry.source_file.inode
        try:
            copy = await self._store.on_ssd(moved_bytes.open_file, self._store.file_of(entry), os.O_RDONLY)
        except FileNotFoundError:
            if self._is_moved(entry):
                raise
            return False
        try:
            before = await self._store.on_ssd(moved_bytes.state_of, copy)
            target = await self._homes.open_return(key, kept)
            try:
                if not await self._is_brought(entry, copy, before, target):
                    return False
                async with self._hold(key) as free:
                    if not free or not self._is_moved(entry) or self._store.life != life:
                        return False
                    if await self._store.on_ssd(moved_bytes.state_of, copy) != before:
                        return False
                    if not await self._store.on_ssd(moved_bytes.nobody_writes, copy):
                        raise InUse("somebody has it mapped for writing")
                    await self._arrive(entry, home, target)
                    arrived = True
            finally:
                await close_at_source(self._files, key, target)
        finally:
            if not arrived:
                await self.kept.empty(entry)
            await self._store.close_on_ssd(copy)
        return True

    async def _is_brought(
        self, entry: CacheEntry, copy: Descriptor, before: moved_bytes.State, target: Descriptor
    ) -> bool:
        """Carry the bytes; False when it ended early, or had other bytes, since somebody wrote to it. Raises as
        ``restore``."""
        try:
            tell = partial(self._tell, entry.key, before.size)
            await self.carrying.bring(entry, copy, target, before.size, tell)
        except (Stays, OSError):
            if self._is_moved(entry) and await self._store.on_ssd(moved_bytes.state_of, copy) == before:
                raise
            return False
        return True

    def _is_moved(self, entry: CacheEntry) -> bool:
        """Whether it has not been deleted, come home, or got another name meanwhile."""
        now = self._store.moves.get(entry.key)
        return now is not None and now.id == entry.id

    async def _arrive(self, entry: CacheEntry, home: Home, target: Descriptor) -> None:
        file = await self._homes.identify(entry.key, target)
        returning = replace(home, phase=Phase.RETURNING, fingerprint=file.fingerprint)
        await self._store.moves.set_home(entry, returning)
        try:
            await self._homes.arrive(entry.key, entry.source_file.inode, target)
        except FileExistsError as error:
            await self._store.moves.set_home(entry, home)
            raise Conflict(TAKEN) from error
        await self._store.moves.returned(entry, replace(file, links=1))

    def _note_failure(self, key: FileKey, why: str) -> None:
        now = trio.current_time()
        self._failures = {other: noted for other, noted in self._failures.items() if now < noted[1]}
        self._failures[key] = (why, now + _NEWS_S)

    def _forget_problem(self, key: FileKey) -> None:
        self._stays.pop(key, None)
        self._failures.pop(key, None)

    def _tell(self, key: FileKey, size: int, done_bytes: int) -> None:
        self._restoring[key] = RestoreProgress(key, size, done_bytes)

    def leave_at_home(self, entry_id: int) -> None:
        """A person wants it there: it is not moved again before the next start."""
        self._not_before[entry_id] = math.inf
        self._unmoved[entry_id] = _AT_HOME

    async def bring_home(self, key: FileKey) -> None:
        """As ``restore``, for somebody who waits in a system call: raises ``OSError`` only."""
        try:
            await self.restore(key)
        except Conflict as error:
            raise FileExistsError(errno.EEXIST, str(error), key.path) from error
        except Stays as error:
            raise OSError(errno.EBUSY, str(error), key.path) from error
        except CacheError as error:
            raise OSError(error.number, str(error), key.path) from error

    async def let_go(self, key: FileKey, number: int, *, in_use: bool) -> None:
        """A moved file was deleted: its source need not keep its place; nor its number, unless it is ``in_use``. Raises
        ``OSError``."""
        await (self._homes.set_aside(key, number) if in_use else self._homes.let_go(key, number, keep=False))

    # --- looking ---

    async def look_at_home(self, key: FileKey) -> str:
        """``TAKEN`` where another file has the place of a moved one, ``FOLDER_GONE`` where that is no more; empty when
        it can come home. Asks its source, and ``problems`` has it from then on. Raises ``OSError``."""
        entry = self._store.moves.get(key)
        if entry is None or entry.home is None or entry.home.phase is not Phase.AWAY:
            return ""
        try:
            taken = await self._homes.look(key) is not None
        except FileExistsError:
            taken = True
        problem = TAKEN if taken else "" if await self._homes.has_folder(key) else FOLDER_GONE
        if problem:
            self._stays[key] = problem
        elif self._stays.get(key) in (TAKEN, FOLDER_GONE):
            del self._stays[key]
        return problem

    async def _taken(self, entry: CacheEntry, home: Home) -> Conflict:
        """What is at its source is somebody else's, and none of its way."""
        if home.phase is not Phase.AWAY:
            await self._store.moves.set_home(entry, replace(home, phase=Phase.AWAY))
        return Conflict(TAKEN)

    # --- after a crash ---

    async def known(self, key: FileKey) -> None:
        """Finish what is not known of a moved file, for somebody who is about to delete, rename or replace it: what its
        source still has of it would come back. Raises ``OSError``: EBUSY where that is not known now."""
        for _ in range(_TRIES):
            entry = self._store.moves.get(key)
            if entry is None or entry.home is None or entry.home.phase is Phase.AWAY:
                return
            try:
                await self.settle(key)
            except (Stays, CacheError) as error:
                log.debug("%s: %s", key, error)
        raise OSError(errno.EBUSY, "it is not known yet what its source has of it", key.path)

    async def settle(self, key: FileKey) -> None:
        """See how far a file had moved, and finish it one way or the other. Raises as ``restore``."""
        async with self._turn(key), self._hold(key) as free:
            entry = self._store.moves.get(key)
            if free and entry is not None and entry.home is not None and self._homes.is_ready(key):
                try:
                    await self._settle(entry, entry.home)
                except Conflict as error:
                    if self._stays.get(key) != text_of(error):
                        log.warning("%s: %s", key, error)
                    self._stays[key] = text_of(error)
                    raise

    async def _settle(self, entry: CacheEntry, home: Home) -> bool:
        """Whether it turned out to be at home. Raises ``Conflict`` when another file is. What a killed server has done
        there may not be durable yet, and the SSD is about to rely on it."""
        key, kept = entry.key, entry.source_file.inode
        if home.phase is Phase.LEAVING:
            await self._homes.finish(key, kept, home.fingerprint)
        try:
            at_home = await self._homes.look(key, durable=True)
        except FileExistsError as error:
            raise await self._taken(entry, home) from error
        if at_home is None:
            if home.phase is not Phase.AWAY:
                await self._homes.let_go(key, kept, keep=True)
                await self._store.moves.set_home(entry, replace(home, phase=Phase.AWAY))
            self._forget_problem(key)
            return False
        found = at_home.file
        if not home.fingerprint.same_file(found.fingerprint):
            raise await self._taken(entry, home)
        if home.phase is Phase.YIELDING:
            await self._store.moves.delete(key)
            await self._homes.let_go(key, kept, keep=False)
            self._forget_problem(key)
            return True
        now = await self._store.on_ssd(moved_bytes.state_at, self._store.file_of(entry))
        unchanged = (now.size, now.mtime_ns) == (found.size, found.fingerprint.mtime_ns)
        if home.phase in (Phase.AWAY, Phase.RETURNING) and home.digest and unchanged:
            await self._store.moves.returned(entry, found)
            self._forget_problem(key)
            return True
        if home.phase is Phase.AWAY:
            raise Conflict(TAKEN)
        # Also what was leaving goes on leaving: a thread of a server that was killed may be about to take it away.
        replaced = home.phase is Phase.REPLACING
        try:
            reserved = await self._homes.take_away(key, None if replaced else kept, found, at_home.ctime_ns)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            reserved = home.reserved  # it has left by itself
        await self._store.moves.set_home(
            entry, replace(home, phase=Phase.AWAY, reserved=home.reserved if replaced else reserved)
        )
        return False
