"""The server: builds the objects, opens the nurseries, owns the order of starting and stopping. Decides nothing.

The keeper runs it as ``cachefs serve``. Started in the order of the ``AsyncExitStack``, closed in reverse:

    nothing lies in one another                    first of all: the cache folder is not made inside a source
    cache folder locked, index open, recovered     first, so that a second daemon is refused before it touches anything
    leftover mount cleared                         before sources are opened: in place, it lies over the source;
                                                   elsewhere it stays until the new one takes its place
    sources opened                                 before the mount: in place, the mount hides them
    mount made                                     only now can anybody see us
    control socket                                 last: who can ask gets answers

When ``mounting.answer`` returns (unmounted from outside), on SIGTERM, SIGINT or ``cachefs unmount``, everything stops:
background tasks first, then the mount, then sources, then index and lock. Threads that hang in a source are left
behind; they hold nothing that the next start needs.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial

import trio

from cachefs import (
    __version__,
    abroad,
    building,
    heap,
    leftover,
    lifeline,
    logs,
    mounts,
    nesting,
    place,
    probes,
    readahead,
    secrecy,
)
from cachefs.cache.folder import holder, names_in, unmake
from cachefs.cache.metadata import Metadata, open_metadata
from cachefs.cache.moving import Movers
from cachefs.cache.populate import Copiers, CopySettings
from cachefs.cache.store import Store
from cachefs.config import Config
from cachefs.control import api
from cachefs.descriptors import raise_limit
from cachefs.engine import DaemonEngine, Parts
from cachefs.errors import CacheBusy, CacheError, CachefsError, CannotMount
from cachefs.fs import mounting
from cachefs.fs.acls import Acls
from cachefs.fs.backing import Backings
from cachefs.fs.behind import Behind
from cachefs.fs.changes import Changes
from cachefs.fs.homes import Homes
from cachefs.fs.listings import Listings
from cachefs.fs.operations import Operations
from cachefs.fs.routing import Routing
from cachefs.fs.union import Union
from cachefs.fs.xattrs import Xattrs
from cachefs.lifeline import Lifeline, Word
from cachefs.model import Plan
from cachefs.planning import PLEX, Planning
from cachefs.plex import watcher
from cachefs.plex.client import PlexClient
from cachefs.status import Counters, HealthRegistry
from cachefs.supervision import supervise

log = logging.getLogger(__name__)

_POLL_PLEX_EVERY_S = 60.0
_CLOSE_IDLE_EVERY_S = 10.0
_STOP_WITHIN_S = 3.0
_SETTLE_WITHIN_S = 5.0
"""A source that does not answer by then is settled with when it does."""
_PLEX_EVENTS = "plex events"


def serve(config: Config) -> int:
    """Mount and serve until stopped; 0 after SIGTERM, SIGINT or an unmount. Raises ``CannotMount``."""
    secrecy.leave_no_core()
    logs.set_up()
    lifeline.die_with_keeper(os.environ)
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # somebody opens a file of which a thread has a lease for a moment
    os.umask(0)  # the caller's counts: the kernel has applied it, or fs.caller does
    try:
        trio.run(_Server(config, Lifeline.from_environment(os.environ)).run)
    except CacheError as error:
        raise CannotMount(str(error)) from error
    except BaseExceptionGroup as group:
        raise _first_known(group) from group
    return 0


async def plan_once(config: Config) -> Plan:
    """What would be planned now, without a running daemon. Copies nothing, and leaves a cache folder that was never
    used as it was."""
    root = str(config.cache.path)
    before, new = await trio.to_thread.run_sync(names_in, root), ""
    try:
        async with AsyncExitStack() as stack:
            parts = await _Server(config, Lifeline()).build(stack, clears=False)
            new = parts.store.new
            return replace(await parts.planning.dry_run(), waiting=parts.copiers.waiting())
    finally:
        if new:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_leave, root, new, before)


def _leave(root: str, new: str, before: frozenset[str] | None) -> None:
    try:
        unmake(root, new, before)
    except CacheBusy as error:
        log.debug("%s", error)  # it is somebody's by now
    except (CacheError, OSError) as error:
        log.warning("the cache folder %s was made to plan with, and cannot be taken away again: %s", root, error)


def _first_known(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that the user can do something about, if there is one among several."""
    known = group.subgroup(CachefsError)
    error: BaseException = known or group
    while isinstance(error, BaseExceptionGroup) and (known is not None or len(error.exceptions) == 1):
        error = error.exceptions[0]
    return error


class _Server:
    """One run of the server."""

    def __init__(self, config: Config, line: Lifeline) -> None:
        self._config = config
        self._line = line
        self._health = HealthRegistry()
        self._counters = Counters()
        self._started_at = time.time()
        self._metadata: Metadata

    async def run(self) -> None:
        raise_limit()
        for warning in self._config.warnings:
            log.warning("%s", warning)
        try:
            async with AsyncExitStack() as stack:
                parts = await self.build(stack)
                await parts.movers.settle_all(_SETTLE_WITHIN_S)
                moved_in_place = abroad.in_place(self._config, [entry.size for entry in parts.movers.moved()])
                if moved_in_place:
                    log.warning("%s", moved_in_place)
                changes = Changes(parts.union, parts.routing, parts.movers)
                xattrs = Xattrs(parts.union, parts.routing, parts.acls)
                operations = Operations(parts.union, parts.routing, changes, xattrs)
                await stack.enter_async_context(_mounted(self._config, operations))
                await self._serve(parts, operations.listings)
        finally:
            self._line.say(Word.GONE)

    # --- building ------------------------------------------------------------------------------------------------

    async def build(self, stack: AsyncExitStack, *, clears: bool = True) -> Parts:
        """Everything but the mount, opened in order. ``clears``: what an earlier run left at the mountpoint goes."""
        config = self._config
        await nesting.refuse(config)
        if clears:
            store = await self._open_store(stack)
            await leftover.clear(config.mountpoint, keep_dead=place.is_kept_full(config))
        else:
            await leftover.refuse_in_place(config)
            store = await stack.enter_async_context(building.open_cache(config))
        metadata = self._metadata = await stack.enter_async_context(open_metadata(str(config.cache.path)))
        elsewhere = await stack.enter_async_context(building.open_elsewhere(config, store))
        union = await stack.enter_async_context(
            building.open_union(config, store, store.device_tag, metadata, elsewhere)
        )
        acls = Acls(union) if config.acl == "on" else None
        union.remembering.cached([entry.key for entry in store.inventory().entries])
        routing = Routing(
            union,
            store,
            self._counters,
            Backings(await trio.to_thread.run_sync(building.why_not_by_kernel, config)),
        )
        homes = Homes(union)
        await abroad.refuse_without(config.cache.path, union, homes, store.moves.knows)
        settings = CopySettings(config.copying.workers, config.copying.bandwidth, config.copying.hours)
        movers = Movers(
            store,
            union.files,
            homes,
            routing.hold,
            lambda: config.copying.bandwidth,
            on=config.cache.mode == "move",
        )
        copiers = Copiers(store, union.files, settings, movers.bring_home)
        plex_settings = await building.plex_settings(config.plex)
        plex = PlexClient(plex_settings) if plex_settings is not None else None
        planning = Planning(
            plex=building.plex_of(plex, config) if plex is not None else None,
            resolver=building.resolver_for(config, union),
            store=store,
            policy=config.policy,
            health=self._health,
            follow=copiers.follow,
            missing=copiers.take_missing,
        )
        union.follow_names(planning.folder_changed)
        return Parts(
            mountpoint=config.mountpoint,
            union=union,
            store=store,
            routing=routing,
            copiers=copiers,
            movers=movers,
            acls=acls,
            planning=planning,
            plex=plex,
            plex_settings=plex_settings,
            health=self._health,
            counters=self._counters,
            started_at=self._started_at,
        )

    async def _open_store(self, stack: AsyncExitStack) -> Store:
        """The cache folder of a cachefs that lives is refused; that of one that was killed is free in a moment."""
        config = self._config
        try:
            return await stack.enter_async_context(building.open_cache(config))
        except CacheBusy:
            pid = await trio.to_thread.run_sync(holder, str(config.cache.path))
            if pid is not None and not await leftover.is_over(pid, config.mountpoint, place.is_kept_full(config)):
                raise
        return await stack.enter_async_context(building.open_cache(config))

    # --- serving -------------------------------------------------------------------------------------------------

    async def _serve(self, parts: Parts, listings: Listings) -> None:
        behind = Behind(parts.union)
        async with trio.open_nursery() as nursery:

            def stop(why: str) -> None:
                self._line.say(Word.STOPPING)  # whatever happens from here on, it is not to be started again
                if not nursery.cancel_scope.cancel_called:
                    log.info("%s: stopping", why)
                nursery.cancel_scope.cancel()

            nursery.start_soon(_stop_on_signals, stop)
            nursery.start_soon(_filesystem, stop)
            engine = DaemonEngine(parts, partial(stop, "cachefs unmount"))
            async with api.listening(self._config.control.socket) as listener, trio.open_nursery() as background:
                tasks = self._background(parts, behind)
                tasks["control socket"] = partial(api.serve, engine, listener)
                tasks["passing listings"] = partial(behind.forget, listings.passed, pages=True)
                for name, task in tasks.items():
                    background.start_soon(supervise, name, self._health, task, PLEX if name == _PLEX_EVENTS else "")
                log.info("cachefs %s is ready: %s shows %s", __version__, self._config.mountpoint, _shown(parts))
                logs.detach(os.environ)
                self._line.say(Word.READY)
        with trio.move_on_after(_STOP_WITHIN_S, shield=True):
            cut_off = partial(place.cut_off, self._config.mountpoint)
            async with trio.open_nursery() as closing:  # at once: none of them may use up the others' time
                closing.start_soon(partial(trio.to_thread.run_sync, cut_off, abandon_on_cancel=True))
                closing.start_soon(parts.routing.close)
                closing.start_soon(behind.close)

    def _background(self, parts: Parts, behind: Behind) -> dict[str, Callable[[], Awaitable[object]]]:
        tasks: dict[str, Callable[[], Awaitable[object]]] = {
            "planning": parts.planning.run,
            "copying": parts.copiers.run,
            "moving": parts.movers.run,
            "removals": parts.store.run_removals,
            "mapped files": parts.routing.run,
            "memory of folders": self._metadata.run,
            "folders of cached files": parts.union.remembering.run,
            "housekeeping": parts.store.run_housekeeping,
            "idle folders": partial(_close_idle_folders, parts.union),
            "free memory": heap.run,
        }
        elsewhere = parts.union.elsewhere
        tasks["moved files"] = partial(elsewhere.follow, lambda: parts.store.back)
        for name, ssd in elsewhere.sources.items():
            tasks[f"probe of the SSD for {name}"] = ssd.probe
        for source in parts.union.sources.values():
            tasks[f"probe of {source.name}"] = source.probe
            tasks[f"mounts below {source.name}"] = partial(behind.follow_mounts, source)
            if not source.in_place:
                tasks[f"place of {source.name}"] = source.watch_place
            if source.watches is not None:
                tasks[f"changes behind {source.name}"] = partial(behind.listen, source)
        if parts.acls is not None:
            tasks["ACLs of cached files"] = parts.acls.run
            tasks["ACLs of sources that were away"] = partial(behind.forget, parts.acls.guessed, pages=False)
        if parts.plex_settings is not None:
            listen = partial(watcher.listen, parts.plex_settings, parts.planning.on_event, _POLL_PLEX_EVERY_S)
            tasks[_PLEX_EVENTS] = listen
        return tasks


def _shown(parts: Parts) -> str:
    return ", ".join(f"{source.name} ({source.path})" for source in parts.union.sources.values())


# --- the mount -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _mounted(config: Config, operations: Operations) -> AsyncIterator[None]:
    fuse = await trio.to_thread.run_sync(probes.look_at_fuse, os.geteuid())
    if fuse.device_problem:
        raise CannotMount(f"{probes.FUSE_DEVICE} {fuse.device_problem}")
    if fuse.right_missing:
        raise CannotMount(probes.RIGHT_MISSING)
    if fuse.fusermount_missing:
        raise CannotMount("fusermount3 is missing, which mounts for ordinary users; install the package fuse3")
    if fuse.others_refused:
        log.info("only you can see the mount: for others, write user_allow_other into %s", probes.FUSE_CONF)
    if await trio.to_thread.run_sync(probes.unseen_outside, config.mountpoint):
        log.warning("only this container will see the mount: %s", probes.NOT_SHARED)
    other = await trio.to_thread.run_sync(mounts.mounted_at, config.mountpoint)
    kept_full = place.is_kept_full(config)
    ours = kept_full and other is not None and other.is_cachefs
    if other is not None and not ours and not config.in_place:
        what = f"{other.source} ({other.fstype})"
        raise CannotMount(f"{config.mountpoint} is in use: {what} is mounted there; unmount it, or choose another")
    at = await trio.to_thread.run_sync(place.prepare, config.mountpoint) if kept_full else config.mountpoint
    if not await trio.to_thread.run_sync(os.path.lexists, at):
        raise CannotMount(place.missing(config.mountpoint, kept_full))
    async with (
        mounting.mounted(operations, at, for_others=not fuse.others_refused, unmounts=not kept_full),
        place.held(at, config.mountpoint) if kept_full else nullcontext(),
    ):
        if config.read_ahead:
            await trio.to_thread.run_sync(readahead.raise_to, config.read_ahead, config.mountpoint)
        yield


async def _filesystem(stop: Callable[[str], None]) -> None:
    await mounting.answer()
    stop("unmounted from outside")


async def _stop_on_signals(stop: Callable[[str], None]) -> None:
    numbers = lifeline.stop_signals()
    for number in numbers:  # a terminal tells server and keeper, and the keeper the server: the first one is enough
        signal.signal(number, signal.SIG_IGN)
    with trio.open_signal_receiver(*numbers) as signals:
        async for received in signals:
            stop("the keeper has ended" if lifeline.keeper_is_gone(os.environ) else signal.Signals(received).name)


async def _close_idle_folders(union: Union) -> None:
    while True:
        await trio.sleep(_CLOSE_IDLE_EVERY_S)
        union.inodes.leaves.close_idle(_CLOSE_IDLE_EVERY_S)
        await union.close_idle_folders()
