"""Which episodes come next, and which are unwatched, as one user sees them, with few requests.

A season is asked for once per snapshot and user; the list of seasons only when a season's own episodes do not
suffice. So an On Deck episode costs one request, three when its season ends; never a whole show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cachefs.plex.connection import Item, PlexMissing, items
from cachefs.plex.items import key_of, moment, whole

_MAX_SEASONS = 4
"""How many further seasons may be looked into for one episode."""
_BATCH = 100


class Episodes:
    """The shows of one server as one user sees them, during one snapshot."""

    def __init__(self, server: Item) -> None:
        self._server = server
        self._seasons: dict[str, list[Item]] = {}
        self._episodes: dict[str, list[Item]] = {}

    def by_keys(self, keys: Iterable[str]) -> list[Item]:
        """The items with these rating keys, all in one request (up to 100); those that are gone are left out."""
        wanted = list(dict.fromkeys(keys))
        found: list[Item] = []
        for start in range(0, len(wanted), _BATCH):
            batch = ",".join(wanted[start : start + _BATCH])
            try:
                found += items(self._server, f"/library/metadata/{batch}")
            except PlexMissing:
                continue
        return found

    def following(self, episode: Item, count: int) -> list[Item]:
        """The next ``count`` episodes, over the ends of seasons. After a special come specials of season 0 only."""
        season = season_key(episode)
        if count <= 0 or season is None:
            return []
        found = _after(self.of_season(season), episode)
        if len(found) < count and whole(episode.parentIndex):
            for later in self._later_seasons(episode)[:_MAX_SEASONS]:
                found += self.of_season(key_of(later))
                if len(found) >= count:
                    break
        return found[:count]

    def last_viewed(self, episode: Item) -> float | None:
        """When the user last saw this episode or the one before it: for an episode that is next up, that is the age
        of its being next."""
        season = season_key(episode)
        own = moment(episode.lastViewedAt)
        if season is None:
            return own
        before = _before(self.of_season(season), episode)
        if before is not None:
            seen = moment(before.lastViewedAt)
        elif own is None:
            seen = self._last_viewed_earlier_season(episode)
        else:
            seen = None
        return max((at for at in (own, seen) if at is not None), default=None)

    def unwatched(self, show: str, count: int) -> list[Item]:
        """The first ``count`` episodes that the user has not seen, specials aside."""
        found: list[Item] = []
        for season in self.of_show(show):
            total, seen = whole(season.leafCount), whole(season.viewedLeafCount)
            if not whole(season.index) or (total is not None and seen is not None and seen >= total):
                continue
            found += [one for one in self.of_season(key_of(season)) if not whole(one.viewCount)]
            if len(found) >= count:
                break
        return found[:count]

    def of_season(self, key: str) -> list[Item]:
        """The season's episodes in Plex's order."""
        if key not in self._episodes:
            children = items(self._server, f"/library/metadata/{key}/children")
            self._episodes[key] = [child for child in children if child.type == "episode"]
        return list(self._episodes[key])

    def of_show(self, key: str) -> list[Item]:
        """The show's seasons by number."""
        if key not in self._seasons:
            children = items(self._server, f"/library/metadata/{key}/children", params={"excludeAllLeaves": 1})
            seasons = [child for child in children if child.type == "season"]
            self._seasons[key] = sorted(seasons, key=lambda season: whole(season.index) or 0)
        return list(self._seasons[key])

    def all_of_show(self, key: str) -> list[Item]:
        """Every episode of the show, specials too: for a pin."""
        return items(self._server, f"/library/metadata/{key}/allLeaves", limit=5000)

    def _later_seasons(self, episode: Item) -> list[Item]:
        return [one for one in self._siblings(episode) if (whole(one.index) or 0) > (whole(episode.parentIndex) or 0)]

    def _last_viewed_earlier_season(self, episode: Item) -> float | None:
        number = whole(episode.parentIndex) or 0
        earlier = [one for one in self._siblings(episode) if 0 < (whole(one.index) or 0) < number]
        return moment(earlier[-1].lastViewedAt) if earlier else None

    def _siblings(self, episode: Item) -> list[Item]:
        show = whole(episode.grandparentRatingKey)
        return self.of_show(str(show)) if show is not None else []


def season_key(episode: Item) -> str | None:
    """The rating key of the episode's season. Where seasons are hidden Plex leaves it out, and plexapi asks."""
    key = whole(episode.parentRatingKey)
    return str(key) if key is not None else None


def _after(season: Sequence[Item], episode: Item) -> list[Item]:
    place = _place(season, episode)
    if place is not None:
        return list(season[place + 1 :])
    number = whole(episode.index) or 0
    return [one for one in season if (whole(one.index) or 0) > number]


def _before(season: Sequence[Item], episode: Item) -> Item | None:
    place = _place(season, episode)
    return season[place - 1] if place else None


def _place(season: Sequence[Item], episode: Item) -> int | None:
    return next((place for place, one in enumerate(season) if one.ratingKey == episode.ratingKey), None)
