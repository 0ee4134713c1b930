"""The stand-in's answers as Plex writes them: ``MediaContainer``, ``Video``, ``Directory``, ``Media``, ``Part``.

Pure: values of ``plex_world`` in, elements out. Attribute names and nesting are those of Plex Media Server 1.4x as
plexapi parses them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from xml.etree.ElementTree import Element, SubElement, tostring

from tests.standin.plex_world import (
    OWNER_ACCOUNT,
    Episode,
    Film,
    HistoryRow,
    Item,
    Library,
    Play,
    Playable,
    Season,
    Show,
    User,
)

LIBRARY = "com.plexapp.plugins.library"
VIDEO_CODEC = "hevc"


def container(children: Iterable[Element] = (), **attributes: object) -> Element:
    """A ``MediaContainer`` with ``size`` counted; None leaves an attribute out."""
    listed = list(children)
    element = _element("MediaContainer", size=attributes.pop("size", len(listed)), **attributes)
    element.extend(listed)
    return element


def document(element: Element) -> bytes:
    body: bytes = tostring(element, encoding="utf-8")
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + body


def show_item(item: Item, user: User, *, full: bool = False) -> Element:
    """An item as ``user`` sees it in a listing; ``full`` adds what only its own page holds."""
    if isinstance(item, Film):
        return _film(item, user, full=full)
    if isinstance(item, Show):
        return _show(item, user)
    if isinstance(item, Season):
        return _season(item, user)
    return _episode(item, user, full=full)


def section(library: Library) -> Element:
    element = _element(
        "Directory", allowSync=1, art="/:/resources/art.jpg", filters=1, refreshing=0, key=library.key,
        type=library.kind, title=library.name, agent=f"tv.plex.agents.{_agent(library.kind)}",
        scanner="Plex TV Series" if library.kind == "show" else "Plex Movie", language="en-US",
        uuid=f"uuid-section-{library.key}", updatedAt=1700000000, createdAt=1600000000, content=1, directory=1,
    )  # fmt: skip
    for number, path in enumerate(library.locations, 1):
        SubElement(element, "Location", id=str(library.key * 10 + number), path=path)
    return element


def session(play: Play) -> Element:
    """An item of ``/status/sessions``. Like Plex's for a stream that is transcoded, its part names no file."""
    element = show_item(play.item, play.user)
    for media in element.findall("Media"):
        media.set("selected", "1")
        for part in media.findall("Part"):
            part.set("decision", "transcode")
            part.attrib.pop("file")
            part.attrib.pop("size")
    element.set("sessionKey", str(play.key))
    element.set("viewOffset", str(int(play.position_s * 1000)))
    account = OWNER_ACCOUNT if play.user.owner else play.user.cloud_id
    SubElement(element, "User", id=str(account), thumb="https://plex.tv/users/x/avatar", title=play.user.name)
    SubElement(
        element, "Player", address="192.168.1.50", device="Chrome", machineIdentifier=f"player-{play.key}",
        model="bundled", platform="Chrome", product="Plex Web", state=play.state, title="Chrome", local="1",
    )  # fmt: skip
    SubElement(element, "Session", id=f"session-{play.key}", bandwidth="20000", location="lan")
    return element


def history_row(row: HistoryRow) -> Element:
    """A row of ``/status/sessions/history/all``: no media, no parts."""
    item = row.item
    common: dict[str, object] = {
        "historyKey": f"/status/sessions/history/{row.key}", "key": f"/library/metadata/{item.rating_key}",
        "ratingKey": item.rating_key, "librarySectionID": item.library.key, "title": item.title,
        "viewedAt": int(row.at), "accountID": OWNER_ACCOUNT if row.user.owner else row.user.cloud_id, "deviceID": 7,
    }  # fmt: skip
    if isinstance(item, Film):
        return _element("Video", type="movie", originallyAvailableAt=f"{item.year}-01-01", **common)
    return _element(
        "Video", type="episode", grandparentTitle=item.show.title, index=item.number, parentIndex=item.season.number,
        parentKey=f"/library/metadata/{item.season.rating_key}",
        grandparentKey=f"/library/metadata/{item.show.rating_key}", **common,
    )  # fmt: skip


def account(user: User) -> Element:
    """A row of the server's own ``/accounts``."""
    number = OWNER_ACCOUNT if user.owner else user.cloud_id
    return _element("Account", id=number, key=f"/accounts/{number}", name=user.name, defaultAudioLanguage="en",
                    autoSelectAudio=1, defaultSubtitleLanguage="en", subtitleMode=0, thumb="")  # fmt: skip


def watchlist_item(item: Film | Show) -> Element:
    """An item of discover's watchlist: online metadata, known to the server by its guid only."""
    online = item.guid.rsplit("/", 1)[-1]
    tag, kind = ("Video", "movie") if isinstance(item, Film) else ("Directory", "show")
    return _element(
        tag, type=kind, guid=item.guid, ratingKey=online, key=f"/library/metadata/{online}", title=item.title,
        year=item.year if isinstance(item, Film) else None, source="provider://tv.plex.provider.metadata",
    )  # fmt: skip


def _agent(kind: Literal["movie", "show"]) -> str:
    return "series" if kind == "show" else "movie"


def _element(tag: str, **attributes: object) -> Element:
    return Element(tag, {name: str(value) for name, value in attributes.items() if value is not None})


def _viewed(user: User, item: Playable) -> dict[str, object]:
    state = user.states.get(item)
    if state is None:
        return {}
    return {
        "viewCount": state.count or None,
        "lastViewedAt": int(state.last_at) if state.last_at is not None else None,
        "viewOffset": int(state.offset_s * 1000) or None,
    }


def _film(film: Film, user: User, *, full: bool) -> Element:
    key = f"/library/metadata/{film.rating_key}"
    element = _element(
        "Video", ratingKey=film.rating_key, key=key, guid=film.guid, slug="x", studio="A Studio", type="movie",
        title=film.title, librarySectionTitle=film.library.name, librarySectionID=film.library.key,
        librarySectionKey=f"/library/sections/{film.library.key}", summary="A film.", year=film.year,
        thumb=f"{key}/thumb/1", duration=int(film.duration_s * 1000), addedAt=int(film.added_at),
        updatedAt=int(film.added_at), **_viewed(user, film),
    )  # fmt: skip
    _versions(element, film, full=full)
    SubElement(element, "Guid", id=f"tmdb://{film.rating_key}")
    return element


def _show(show: Show, user: User) -> Element:
    watched = [episode for episode in show.episodes if _count(user, episode)]
    return _element(
        "Directory", ratingKey=show.rating_key, key=f"/library/metadata/{show.rating_key}/children", guid=show.guid,
        type="show", title=show.title, librarySectionTitle=show.library.name, librarySectionID=show.library.key,
        librarySectionKey=f"/library/sections/{show.library.key}", index=1, leafCount=len(show.episodes),
        viewedLeafCount=len(watched), childCount=len(show.seasons), addedAt=int(show.added_at),
        updatedAt=int(show.added_at), lastViewedAt=_last_viewed(user, show.episodes),
    )  # fmt: skip


def _season(season: Season, user: User) -> Element:
    show = season.show
    return _element(
        "Directory", ratingKey=season.rating_key, key=f"/library/metadata/{season.rating_key}/children",
        parentRatingKey=show.rating_key, guid=f"plex://season/{season.rating_key:024x}", parentGuid=show.guid,
        type="season", title=f"Season {season.number}" if season.number else "Specials", parentTitle=show.title,
        parentKey=f"/library/metadata/{show.rating_key}", index=season.number, parentIndex=1,
        leafCount=len(season.episodes), viewedLeafCount=sum(1 for one in season.episodes if _count(user, one)),
        addedAt=int(show.added_at), lastViewedAt=_last_viewed(user, season.episodes),
    )  # fmt: skip


def _episode(episode: Episode, user: User, *, full: bool) -> Element:
    show, season = episode.show, episode.season
    key = f"/library/metadata/{episode.rating_key}"
    element = _element(
        "Video", ratingKey=episode.rating_key, key=key, parentRatingKey=season.rating_key,
        grandparentRatingKey=show.rating_key, guid=episode.guid, parentGuid=f"plex://season/{season.rating_key:024x}",
        grandparentGuid=show.guid, type="episode", title=episode.title,
        grandparentKey=f"/library/metadata/{show.rating_key}", parentKey=f"/library/metadata/{season.rating_key}",
        librarySectionTitle=show.library.name, librarySectionID=show.library.key,
        librarySectionKey=f"/library/sections/{show.library.key}", grandparentTitle=show.title,
        parentTitle=f"Season {season.number}", index=episode.number, parentIndex=season.number,
        thumb=f"{key}/thumb/1", parentThumb=f"/library/metadata/{season.rating_key}/thumb/1",
        duration=int(episode.duration_s * 1000), addedAt=int(episode.added_at), updatedAt=int(episode.added_at),
        **_viewed(user, episode),
    )  # fmt: skip
    _versions(element, episode, full=full)
    return element


def _versions(element: Element, item: Playable, *, full: bool) -> None:
    milliseconds = int(item.duration_s * 1000)
    for number, parts in enumerate(item.versions, 1):
        media = SubElement(element, "Media", {
            "id": f"{item.rating_key}{number}", "duration": str(milliseconds), "bitrate": "20000", "width": "3840",
            "height": "2160", "aspectRatio": "1.78", "audioChannels": "6", "audioCodec": "eac3",
            "videoCodec": VIDEO_CODEC, "videoResolution": "4k", "container": "mkv", "videoFrameRate": "24p",
        })  # fmt: skip
        for place, file in enumerate(parts, 1):
            identity = f"{item.rating_key}{number}{place}"
            part = SubElement(media, "Part", {
                "id": identity, "key": f"/library/parts/{identity}/1700000000/file.mkv",
                "duration": str(milliseconds), "file": file.path, "size": str(file.size), "container": "mkv",
            })  # fmt: skip
            if full:
                SubElement(part, "Stream", id="1", streamType="1", codec=VIDEO_CODEC, index="0", default="1")


def _count(user: User, item: Playable) -> int:
    state = user.states.get(item)
    return state.count if state else 0


def _last_viewed(user: User, items: Iterable[Playable]) -> int | None:
    times = [state.last_at for item in items if (state := user.states.get(item)) and state.last_at is not None]
    return int(max(times)) if times else None
