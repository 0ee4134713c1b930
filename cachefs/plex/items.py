"""From plexapi's objects to our values: titles, files, moments. No request is ever made here.

Whatever has the wrong type is a ``PlexAnswer``: plexapi turns a number it cannot read into NaN and passes it on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from cachefs.errors import PlexAnswer
from cachefs.model import Interest, PlexFile, PlexPath
from cachefs.plex.connection import Item

PLAYABLE = frozenset({"movie", "episode"})


def playable(listed: Iterable[Item]) -> list[Item]:
    """The films and episodes of the library. Live television and online titles have no number, deleted ones none any
    more."""
    return [item for item in listed if item.type in PLAYABLE and isinstance(item.ratingKey, int)]


def files_of(item: Item) -> tuple[PlexFile, ...]:
    """Every part of every version of a film or episode, each path once."""
    files = {}
    for media in item.media:
        for part in media.parts:
            if part.file:
                files[part.file] = PlexFile(PlexPath(part.file), _size(part.size))
    return tuple(files.values())


def title_of(item: Item) -> str:
    """For people: ``Severance S02E05``, ``Severance Season 2``, ``Heat (1995)``, ``Severance (2022)``."""
    if item.type == "episode":
        return f"{item.grandparentTitle or '?'} {numbered(item)}"
    if item.type == "season":
        return f"{item.parentTitle or '?'} {item.title or ''}".rstrip()
    year, title = item.year if item.type in ("movie", "show") else None, str(item.title or "?")
    return f"{title} ({year})" if isinstance(year, int) and not title.endswith(f"({year})") else title


def numbered(episode: Item) -> str:
    """``S02E05``; the episode's own title when it has no number."""
    season, number = whole(episode.parentIndex), whole(episode.index)
    if season is None or number is None:
        return str(episode.title or "?")
    return f"S{season:02}E{number:02}"


def ahead_of(base: Interest, item: Item, ahead: int) -> Interest:
    """The interest in an item that comes ``ahead`` places after what ``base`` is about."""
    return replace(
        base,
        title=title_of(item),
        files=files_of(item),
        ahead=ahead,
        after_title=base.title,
        rating_key=key_of(item),
    )


def key_of(item: Item) -> str:
    """The item's rating key, as text."""
    number = whole(item.ratingKey)
    if number is None:
        raise PlexAnswer("Plex lists an item without a number")
    return str(number)


def whole(value: object) -> int | None:
    """An integer attribute; None when it is missing. NaN is what plexapi makes of a word."""
    if value is None or isinstance(value, int):
        return value
    raise PlexAnswer("Plex gives a number that is none")


def moment(value: object) -> float | None:
    """Seconds since the epoch of a plexapi datetime (local and naive)."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise PlexAnswer("Plex gives a date that is none")
    try:
        return value.timestamp()
    except (OverflowError, OSError, ValueError):
        raise PlexAnswer("Plex gives a date that is none") from None


def _size(value: object) -> int:
    size = whole(value)
    if size is not None and size < 0:
        raise PlexAnswer("Plex gives a size that is none")
    return size or 0
