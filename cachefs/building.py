"""What the server is made of, from its configuration.

Used by ``daemon``, which says in which order; and, without a server, by ``check`` (how Plex's paths are found, and what
a start would say against a source) and ``accepting``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

from cachefs import mounts
from cachefs.cache.full import NO_ROOM
from cachefs.cache.store import Limits, Store, open_store
from cachefs.config import Config, PlexConfig, SourceConfig
from cachefs.errors import CachefsError, CannotMount
from cachefs.fs import backing
from cachefs.fs.elsewhere import Elsewhere
from cachefs.fs.found import Witness
from cachefs.fs.inodes import Inodes
from cachefs.fs.remembered import Memory, Remembered
from cachefs.fs.roots import Roots
from cachefs.fs.source import Metadata as SourceMetadata
from cachefs.fs.source import Source
from cachefs.fs.union import Union
from cachefs.model import FileKey, Snapshot, SourceFile, SourceName
from cachefs.paths import Layout, PathMap
from cachefs.planning import Plex
from cachefs.plex.client import Ask, PlexClient, PlexSettings
from cachefs.resolving import PathNote, Resolver

log = logging.getLogger(__name__)

_VIEWS_S = 7 * 86400.0
"""How far back it is asked what was watched, at least: as far as somebody's wish may be older than his watching it."""


def why_not_by_kernel(config: Config) -> str:
    """Why the kernel is not to read cached files by itself; empty when it may. Blocks."""
    if config.fast_path == "off":
        return "it is switched off (fast_path: off)"
    mount = mounts.holding(mounts.all_now(), mounts.resolve_now(config.cache.path))
    if mount is None or backing.tells_of_mappings(mount.fstype):
        return ""
    return f"the cache folder is in memory ({mount.fstype}), where nobody is told of what a mapping writes"


def open_cache(config: Config) -> AbstractAsyncContextManager[Store]:
    limits = Limits(config.cache.max_size, config.cache.min_free)
    sources = {source.name: str(source.path) for source in config.sources}
    return open_store(config.cache.path, limits, sources)


@asynccontextmanager
async def open_elsewhere(config: Config, store: Store) -> AsyncIterator[Elsewhere]:
    """The SSD's folders that mirror the sources, for moved files."""
    names = [source.name for source in config.sources]
    try:
        made = [name for name in names if await trio.to_thread.run_sync(_is_made, store, name)]
        elsewhere = Elsewhere(store.moves, store.place_of, made)
        await elsewhere.open()
    except OSError as error:
        raise CannotMount(f"cache.path {config.cache.path} cannot be used: {error.strerror or error}") from error
    try:
        yield elsewhere
    finally:
        elsewhere.close()


def _is_made(store: Store, name: SourceName) -> bool:
    """In a thread. A full SSD that has no such folder has no moved file either."""
    try:
        store.make_place_of(name)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return False
    return True


def source_of(config: Config, item: SourceConfig) -> Source:
    """Not open yet."""
    return Source(
        item.name,
        str(item.path),
        timeout_s=item.timeout,
        ttl_s=item.ttl,
        in_place=config.in_place,
        metadata=SourceMetadata(item.metadata),
    )


@asynccontextmanager
async def open_union(
    config: Config,
    witness: Witness,
    tag_of: Callable[[str], Awaitable[int]],
    memory: Memory | None = None,
    elsewhere: Elsewhere | None = None,
) -> AsyncIterator[Union]:
    sources = [source_of(config, item) for item in config.sources]
    layout = Layout(tuple(source.name for source in sources))
    union = Union(sources, layout, witness, tag_of, memory, elsewhere)
    try:
        try:
            await union.open_sources()
        except OSError as error:
            raise CannotMount(f"a source cannot be opened: {error.strerror or error}{_of(error)}") from error
        yield union
    finally:
        union.inodes.leaves.close_idle(0)
        for source in sources:
            source.close()


async def plex_settings(config: PlexConfig | None) -> PlexSettings | None:
    if config is None:
        return None
    token = await trio.to_thread.run_sync(config.read_token)
    return PlexSettings(config.url, token, config.cloud_url)


def plex_of(plex: PlexClient, config: Config) -> Plex:
    async def ask(pinned: tuple[str, ...]) -> Snapshot:
        return await plex.snapshot(_ask(config, pinned))

    return ask


def _ask(config: Config, pinned: tuple[str, ...]) -> Ask:
    policy = config.policy
    lasting = (policy.watchlist, policy.recently_added)
    ages = (one.max_age for one in lasting if one.enabled)
    return Ask(
        playing=True,
        on_deck=policy.on_deck.enabled,
        watchlist=policy.watchlist.enabled,
        recently_added_max_age_s=policy.recently_added.max_age if policy.recently_added.enabled else None,
        next_episodes_playing=policy.playing.next_episodes,
        next_episodes_on_deck=policy.on_deck.next_episodes,
        watchlist_episodes=policy.watchlist.episodes,
        pinned=pinned,
        views_max_age_s=max((_VIEWS_S, *ages)),
    )


def resolver_for(config: Config, union: Union) -> Resolver:
    given = config.plex.path_map if config.plex is not None else "auto"
    return Resolver(
        layout=union.layout,
        library=union.files,
        mountpoint=config.mountpoint,
        with_sidecars=config.policy.sidecars,
        rules=PathMap(()) if given == "auto" else PathMap(given),
        learns=given == "auto",
    )


def _of(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


# --- without a server ---


@dataclass(frozen=True, slots=True)
class LastSeen:
    """A source's own folder as the cache folder remembers it, and the tags of all devices."""

    listing: bytes
    tags: Mapping[str, int]

    def note(self, folder: FileKey, listing: bytes) -> None: ...

    def forget(self, folder: FileKey) -> None: ...

    async def recall(self, folder: FileKey) -> bytes | None:
        return None if folder.path else self.listing

    async def tag_of(self, identity: str) -> int:
        """As the index would say; a device that was never met gets the next one."""
        return self.tags.get(identity, max(self.tags.values(), default=-1) + 1)


async def foresee(config: Config, item: SourceConfig, seen: LastSeen) -> str:
    """What a start would say against a source's folder as it is now, for ``check``; empty when nothing. ``OSError``
    when there is none that can be read."""
    source = source_of(config, item)
    return await Roots({source.name: source}, Remembered(seen), Inodes(), seen.tag_of).foresee(source)


async def path_report(config: Config) -> tuple[PathNote, ...]:
    """How Plex's paths are found in the mount, learned or checked now, for ``check``; empty when that cannot be asked
    (``check`` says itself what is wrong with Plex or a source)."""
    try:
        settings = await plex_settings(config.plex)
        if settings is None:
            return ()
        snapshot = await PlexClient(settings).snapshot(_ask(config, ()))
        async with open_union(config, _NoCache(), _first_tag) as union:
            resolver = resolver_for(config, union)
            await resolver.settle_paths(snapshot.folders)
            return resolver.path_notes
    except (CachefsError, OSError) as error:
        log.debug("the path mapping cannot be checked: %s", error)
        return ()


class _NoCache:
    """The witness of a union that is only looked at."""

    def observe(self, file: SourceFile) -> None: ...

    def gone(self, key: FileKey) -> None: ...

    def get(self, key: FileKey) -> None: ...

    def is_confirmed(self, key: FileKey, size: int, mtime_ns: int) -> bool:
        return False

    def holds_in(self, folder: FileKey) -> bool:
        return False


async def _first_tag(identity: str) -> int:
    return 0
