"""Whether cache, sources and mountpoint lie in one another, once symbolic links and bind mounts are followed.

``config`` compares names; here the disks are asked, at start by ``daemon`` and at any time by ``check``. A cache inside
a source would show itself in the mount, and a mountpoint inside a source would show the mount in itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from cachefs import mounts, probes
from cachefs.config import Config, SourceConfig
from cachefs.errors import Problem, UserError

T = TypeVar("T")

_LOCAL_S = 10.0
"""For the SSD and the mountpoint."""


@dataclass(frozen=True, slots=True)
class Place:
    """The mountpoint with its symbolic links followed, and the folders above it."""

    path: Path
    above: frozenset[probes.Identity]


async def refuse(config: Config) -> None:
    """Raises ``UserError`` with all that lies in one another.

    What is missing, cannot be read or does not answer is left to whoever opens it.
    """
    covered = await trio.to_thread.run_sync(_covered, config)
    sources: dict[int, probes.Folder] = {}

    async def look(index: int, source: SourceConfig) -> None:
        with trio.move_on_after(source.timeout):
            sources[index] = await _alone(probes.look_at_folder, source.path)

    async with trio.open_nursery() as nursery:
        for index, source in enumerate(config.sources):
            if source.path not in covered:
                nursery.start_soon(look, index, source)
    problems = list(of_sources(config, sources))
    with trio.move_on_after(_LOCAL_S):
        cache = await _alone(probes.look_at_cache, config.cache.path)
        place = await _alone(look_at_mountpoint, config.mountpoint)
        problems += [*of_cache(config, sources, cache), *of_mountpoint(config, sources, place)]
    if problems:
        raise UserError("\n".join(str(problem) for problem in problems))


def of_cache(config: Config, sources: Mapping[int, probes.Folder], cache: probes.Storage) -> Iterator[Problem]:
    """Cache inside a source, and the reverse; ``sources`` by their index in the configuration."""
    for index, source in sorted(sources.items()):
        if cache.folder.lies_in(source):
            message = f"{config.cache.path} is really inside the source {source.path}; put the cache on the SSD"
            yield Problem("cache.path", message)
        elif source.lies_in(cache.folder) and not cache.to_be_made:
            message = f"{source.path} is really inside the cache {config.cache.path}; give the cache its own folder"
            yield Problem(f"sources[{index}].path", message)


def of_sources(config: Config, sources: Mapping[int, probes.Folder]) -> Iterator[Problem]:
    """One source inside another: the same file would be there twice, and one of the two know nothing of the other."""
    for index, source in sorted(sources.items()):
        for other, outer in sorted(sources.items()):
            same = source.identity == outer.identity
            if other != index and source.lies_in(outer) and (not same or other < index):
                where = "really the" if same else "really inside the"
                message = f"{source.path} is {where} source {outer.path}, which shows it already; remove one of them"
                yield Problem(f"sources[{index}].path", message)


def look_at_mountpoint(mountpoint: Path) -> Place:
    """Asks the folders above it, and not itself: a mount there may be dead. Blocks."""
    resolved = mounts.resolve_now(mountpoint)
    return Place(resolved, probes.look_at_folder(resolved.parent).lineage)


def of_mountpoint(config: Config, sources: Mapping[int, probes.Folder], place: Place) -> Iterator[Problem]:
    """Mountpoint inside a source, or a source itself under another name: once it is mounted over, the source's own name
    must be known to lead to the mount."""
    for _, source in sorted(sources.items()):
        if source.identity in place.above:
            message = f"{config.mountpoint} is really inside the source {source.path}; mount elsewhere, or over it"
            yield Problem("mountpoint", message)
        elif source.path != config.mountpoint and source.real == place.path:
            message = f"{config.mountpoint} is really the source {source.path}; to mount over it, name it by that path"
            yield Problem("mountpoint", message)


async def _alone(look: Callable[[Path], T], path: Path) -> T:
    """In a thread that is left behind when it is stuck, and keeps no other waiting."""
    return await trio.to_thread.run_sync(look, path, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))


def _covered(config: Config) -> set[Path]:
    """The sources that a mount of ours hides: left by an earlier run, or living."""
    mount = mounts.mounted_at(config.mountpoint)
    return {config.mountpoint} if mount is not None and mount.is_cachefs else set()
