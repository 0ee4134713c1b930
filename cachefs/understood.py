"""A configuration in sentences, so that a person sees what it was understood to mean. Pure; called by ``check``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cachefs.config import Config, CopyingConfig, PlexConfig, PolicyConfig
from cachefs.units import format_duration, format_size

_METADATA = {
    "auto": "names and attributes are remembered on a local disk",
    "remembered": "names and attributes are remembered until a change is heard",
    "asked": "names and attributes are always asked for",
}

_RIGHTS = {
    "off": "by owner, group and mode; POSIX ACLs are kept and shown, and do not count",
    "on": "by owner, group, mode and POSIX ACLs",
}


_MODES = {
    "copy": "copy: the source keeps its file, the SSD holds a second one",
    "move": "move: the SSD will hold the only file of what it caches, and the source has its room back; "
    "cachefs restore brings files home",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One thing and what was understood about it."""

    what: str
    meaning: str


def understood(config: Config, space: tuple[int, int] | None, server: str) -> tuple[Row, ...]:
    """All of it. ``space``: total and free bytes of the cache's file system, when known; ``server``: who Plex is."""
    return (
        Row("mountpoint", _mountpoint(config)),
        *_sources(config),
        Row("cache", _cache(config, space)),
        Row("mode", _MODES[config.cache.mode]),
        Row("plex", _plex(config.plex, server)),
        *(Row("policy", sentence) for sentence in _policy(config.policy)),
        Row("copying", _copying(config.copying)),
        Row("reads", _reads(config)),
        Row("rights", _RIGHTS[config.acl]),
        Row("socket", str(config.control.socket)),
    )


def _mountpoint(config: Config) -> str:
    if config.in_place:
        return f"{config.mountpoint}, in place: over the source's own folder"
    if len(config.sources) == 1:
        return f"{config.mountpoint}, showing the content of {config.sources[0].name}"
    return f"{config.mountpoint}, with one folder for each source"


def _sources(config: Config) -> Iterator[Row]:
    for source in config.sources:
        limits = f"a call fails after {format_duration(source.timeout)}"
        believed = f"what was seen is believed for {format_duration(source.ttl)}"
        yield Row("source", f"{source.name}: {source.path}; {limits}, {believed}; {_METADATA[source.metadata]}")


def _reads(config: Config) -> str:
    cached = "the kernel reads cached files by itself where it can"
    if config.fast_path == "off":
        cached = "cached files are read through the daemon (fast_path: off)"
    ahead = f"{format_size(config.read_ahead)} ahead" if config.read_ahead else "as far ahead as the kernel likes"
    return f"{cached}; others are read {ahead}"


def _cache(config: Config, space: tuple[int, int] | None) -> str:
    cache = config.cache
    if space is None:
        return f"{cache.path}, at most {cache.max_size}, leaving {cache.min_free} free"
    total, free = space
    most = min(cache.max_size.resolve(total), total)
    kept = cache.min_free.resolve(total)
    sizes = f"at most {format_size(most)}, leaving {format_size(kept)} free"
    return f"{cache.path}, {sizes}; its file system has {format_size(total)}, {format_size(free)} of it free"


def _plex(plex: PlexConfig | None, server: str) -> str:
    if plex is None:
        return "not configured"
    if plex.path_map == "auto":
        mapping = "paths are mapped by looking"
    else:
        mapping = "paths: " + ", ".join(str(rule) for rule in plex.path_map)
    return f"{plex.url}{f' ({server})' if server else ''}; {mapping}"


def _policy(policy: PolicyConfig) -> Iterator[str]:
    playing, deck, listed, recent = policy.playing, policy.on_deck, policy.watchlist, policy.recently_added
    if playing.enabled:
        yield f"playing for {format_duration(playing.after)}: it and {_episodes('the next', playing.next_episodes)}"
    if deck.enabled:
        yield (
            f"on deck, viewed in the last {format_duration(deck.max_age)}: it and "
            f"{_episodes('the next', deck.next_episodes)}"
        )
    if listed.enabled:
        yield (
            f"on a watchlist for at most {format_duration(listed.max_age)}: a film, "
            f"{_episodes('the first', listed.episodes)} of a show"
        )
    if recent.enabled:
        yield f"added in the last {format_duration(recent.max_age)}: it"
    yield f"watched: kept for {format_duration(policy.keep_watched)}, then evicted first"
    yield "subtitles and artwork go with their video" if policy.sidecars else "subtitles and artwork are left alone"


def _episodes(which: str, count: int) -> str:
    if count == 0:
        return "no more episodes"
    return f"{which} episode" if count == 1 else f"{which} {count} episodes"


def _copying(copying: CopyingConfig) -> str:
    at_once = "one copy at a time" if copying.workers == 1 else f"{copying.workers} copies at once"
    rate = "as fast as the disks" if copying.bandwidth is None else f"at most {format_size(copying.bandwidth)}/s"
    hours = "at any hour" if copying.hours is None else f"between {copying.hours} (what is playing: at any hour)"
    return f"{at_once}, {rate}, {hours}"
