"""What one person has on deck and on the watchlist, and what the library says by itself: new items, and pins.

Every list is asked in the name of its user, so that watched and unwatched are that user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType

from cachefs.model import Interest, InterestKind, PinnedTitle, UserName
from cachefs.plex.connection import Item, PlexMissing, items, watchlisted_at
from cachefs.plex.episodes import Episodes
from cachefs.plex.items import PLAYABLE, ahead_of, files_of, key_of, moment, playable, title_of
from cachefs.plex.memory import GuidMatch, Person, Section, Watchlist, Wished, WishKey, with_entry
from cachefs.plex.round import Round

NOBODY = UserName("")
_WATCHLIST_ITEMS = 300
"""Each is looked for in the library, one request every so often."""
_MATCH_VALID_S = 3600.0
_NO_MATCH_VALID_S = 600.0
_PAGE = 100
_PAGES = 5


def read_on_deck(round: Round, person: Person, server: Item, episodes: Episodes) -> None:
    """On Deck and Continue Watching are the same list on most servers, and not on all: both are read."""
    with round.reading(person.name, "On Deck"):
        listed = [*_continue_watching(server), *items(server, "/library/onDeck")]
        for item in {key_of(one): one for one in playable(listed)}.values():
            with round.reading(person.name, f"what follows {title_of(item)}"):
                round.interests += _on_deck(round, person, item, episodes)


def read_watchlist(round: Round, person: Person, server: Item, episodes: Episodes) -> None:
    """The films of the watchlist that the library has, and the first unwatched episodes of its shows."""
    if not person.cloud_token:
        return
    account = _Account(round, person)
    wished = _entries(round, person, account)
    with round.reading(person.name, "watchlist"):
        matched = [(wish, keys) for wish in wished if (keys := _matches(round, wish))]
        since = {wish.guid: account.wished_at(wish.guid) for wish, _ in matched}
        films = {key: since[wish.guid] for wish, keys in matched if wish.kind == "movie" for key in keys}
        for item in episodes.by_keys(films):
            at = films.get(key_of(item), round.now)
            round.interests.append(_interest(InterestKind.WATCHLIST, person.name, item, at))
        for wish, keys in matched:
            if wish.kind == "show":
                round.interests += _unwatched(round, person, keys, since[wish.guid], episodes)


def read_recently_added(round: Round, sections: Iterable[Section], max_age_s: float) -> None:
    """The films and episodes that came to the library within ``max_age_s``, the newest first."""
    for section in sections:
        with round.reading(round.owner, f"recently added to {section.title}"):
            for item, at in _newer_than(round, section, round.now - max_age_s):
                round.interests.append(_interest(InterestKind.RECENTLY_ADDED, NOBODY, item, at))


def read_pinned(round: Round, episodes: Episodes) -> None:
    """All that the pinned titles stand for, of which each may be in several libraries."""
    with round.reading(round.owner, "pinned titles"):
        keys = {pin: pin.split(",") for pin in round.ask.pinned}
        found = {key_of(item): item for item in episodes.by_keys(key for several in keys.values() for key in several)}
        for pin, several in keys.items():
            stands_for = [one for key in several if key in found for one in _all_of(found[key], episodes)]
            for one in stands_for:
                at = moment(one.addedAt) or round.now
                round.interests.append(_interest(InterestKind.PINNED, NOBODY, one, at))
            if any(key in found for key in several):
                files = tuple(file for one in stands_for for file in files_of(one))
                round.titles.append(PinnedTitle(pin, files))
        round.unknown_titles = frozenset(keys) - {title.rating_key for title in round.titles}


def _continue_watching(server: Item) -> list[Item]:
    """Older servers do not have it."""
    try:
        return items(server, "/hubs/continueWatching/items")
    except PlexMissing:
        return []


def _on_deck(round: Round, person: Person, item: Item, episodes: Episodes) -> list[Interest]:
    """The item and what follows. ``since``: the last view, of the episode before it if that is later."""
    if item.type == "movie":
        at = moment(item.lastViewedAt)
        return [_interest(InterestKind.ON_DECK, person.name, item, round.now if at is None else at)]
    at = episodes.last_viewed(item)
    base = _interest(InterestKind.ON_DECK, person.name, item, round.now if at is None else at)
    following = episodes.following(item, round.ask.next_episodes_on_deck)
    return [base, *(ahead_of(base, one, place) for place, one in enumerate(following, 1))]


def _unwatched(round: Round, person: Person, shows: Sequence[str], since: float, episodes: Episodes) -> list[Interest]:
    found: list[Interest] = []
    for show in shows:
        try:
            listed = episodes.unwatched(show, round.ask.watchlist_episodes)
        except PlexMissing:  # a library that this user does not see
            continue
        for place, one in enumerate(listed):
            base = _interest(InterestKind.WATCHLIST, person.name, one, since)
            after = f"{one.grandparentTitle}" if place else ""
            found.append(replace(base, ahead=place, after_title=after))
    return found


class _Account:
    """A person's plex.tv account, opened when it is first needed."""

    def __init__(self, round: Round, person: Person) -> None:
        self._round = round
        self._person = person
        self._opened: Item = None

    def watchlist(self) -> list[Item]:
        account = self._account()
        key = f"{account.DISCOVER}/library/sections/watchlist/all"
        return items(account, key, limit=_WATCHLIST_ITEMS, params={"sort": "watchlistedAt:desc"})

    def wished_at(self, guid: str) -> float:
        """When the item came to the watchlist. The list does not say: plex.tv is asked once for each item."""
        round, key = self._round, WishKey(self._person.name, guid)
        known = round.memory.wished_at.get(key)
        if known is not None or round.cloud_trouble(self._person.name):
            return round.now if known is None else known
        with round.reading_cloud(self._person.name, "watchlist"):
            try:
                at = moment(watchlisted_at(self._account(), guid))
            except PlexMissing:
                at = None
            known = round.now if at is None else at
            round.memory = replace(round.memory, wished_at=with_entry(round.memory.wished_at, key, known))
        return round.now if known is None else known

    def _account(self) -> Item:
        if self._opened is None:
            self._opened = self._round.connection.account(self._person.cloud_token)
        return self._opened


def _entries(round: Round, person: Person, account: _Account) -> tuple[Wished, ...]:
    """The watchlist as it is, or as it last was while plex.tv is away."""
    known = round.memory.watchlists.get(person.name)
    if known is not None and round.now - known.read_at < round.settings.watchlist_every_s:
        return known.entries
    if trouble := round.cloud_trouble(person.name):
        round.note(person.name, f"watchlist: {trouble}")
        return known.entries if known else ()
    with round.reading_cloud(person.name, "watchlist"):
        found = tuple(_wished(account.watchlist()))
        lists = with_entry(round.memory.watchlists, person.name, Watchlist(found, round.now))
        guids = {wish.guid for wish in found}
        moments = {
            key: at for key, at in round.memory.wished_at.items() if key.user != person.name or key.guid in guids
        }
        round.memory = replace(round.memory, watchlists=lists, wished_at=MappingProxyType(moments))
        return found
    return known.entries if known else ()


def _wished(listed: Iterable[Item]) -> Iterable[Wished]:
    for item in listed:
        if item.type in ("movie", "show") and isinstance(item.guid, str) and item.guid.startswith("plex://"):
            yield Wished(item.guid, item.type)


def _matches(round: Round, wish: Wished) -> tuple[str, ...]:
    """The library's items with this guid; asked again after a while, sooner when there were none."""
    known = round.memory.matches.get(wish.guid)
    if known is not None:
        valid_s = _MATCH_VALID_S if known.keys else _NO_MATCH_VALID_S
        if round.now - known.asked_at < valid_s:
            return known.keys
    params = {"guid": wish.guid, "type": 1 if wish.kind == "movie" else 2}
    keys = tuple(key_of(item) for item in items(round.server, "/library/all", params=params) if item.guid == wish.guid)
    matches = with_entry(round.memory.matches, wish.guid, GuidMatch(keys, round.now))
    round.memory = replace(round.memory, matches=matches)
    return keys


def _newer_than(round: Round, section: Section, cutoff: float) -> Iterable[tuple[Item, float]]:
    params = {"type": 1 if section.kind == "movie" else 4, "sort": "addedAt:desc"}
    for page in range(_PAGES):
        key = f"/library/sections/{section.key}/all"
        listed = items(round.server, key, start=page * _PAGE, limit=_PAGE, params=params)
        for item in listed:
            at = moment(item.addedAt)
            if at is None or at < cutoff:
                return
            yield item, at
        if len(listed) < _PAGE:
            return


def _all_of(item: Item, episodes: Episodes) -> list[Item]:
    if item.type == "show":
        return episodes.all_of_show(key_of(item))
    if item.type == "season":
        return episodes.of_season(key_of(item))
    return [item] if item.type in PLAYABLE else []


def _interest(kind: InterestKind, user: UserName, item: Item, since: float) -> Interest:
    return Interest(kind, user, title_of(item), files_of(item), since, rating_key=key_of(item))
