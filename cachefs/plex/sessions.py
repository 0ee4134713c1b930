"""Who is playing what now, what comes after it, and who has finished what.

A view is a row of Plex's watch history, or a session that this program saw reach 90 % before it ended. Never the
played flag: it says *ever*, and would take a rewatch away from the viewer.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from types import MappingProxyType

from cachefs.model import Interest, InterestKind, Session, UserName, View
from cachefs.plex.connection import Item, items
from cachefs.plex.episodes import Episodes
from cachefs.plex.items import ahead_of, files_of, key_of, moment, playable, title_of, whole
from cachefs.plex.memory import History, SeenSession
from cachefs.plex.round import Round

WATCHED = 0.9
_HISTORY_ROWS = 2000
"""Music counts as well: a household that listens all day has some hundred a week."""
_FILES_FOR_S = 7 * 86400.0
"""Views that are older have no files: nothing is evicted for them any more, they only say what is done with."""
_ALL_ANEW_S = 6 * 3600.0
_LATE_S = 86400.0
"""What was watched on a train is told later. After as long as this it is found when all is read anew."""


def read_sessions(round: Round, episodes: Episodes) -> tuple[Session, ...]:
    """The sessions of now; remembers them, and turns finished ones that ended into views."""
    playing = playable(items(round.server, "/status/sessions"))
    known = {key_of(item): item for item in episodes.by_keys(key_of(one) for one in playing)}
    sessions = tuple(_session(round, one, known.get(key_of(one), one)) for one in playing)
    seen = {session.key: _seen(round.memory.sessions.get(session.key), session) for session in sessions}
    ended = tuple(
        View(last.user, last.title, last.files, round.now, last.rating_key)
        for key, last in round.memory.sessions.items()
        if key not in seen and last.furthest >= WATCHED
    )
    recent = tuple(view for view in round.memory.ended if view.at >= round.now - round.ask.views_max_age_s)
    round.memory = replace(round.memory, sessions=MappingProxyType(seen), ended=recent + ended)
    if round.ask.playing:
        for session in sessions:
            _want(round, session, known.get(session.rating_key), episodes)
    return sessions


def read_history(round: Round, episodes: Episodes) -> tuple[View, ...]:
    """The views: those of the watch history, whose rows name no files, and of the sessions that were seen to end."""
    with round.reading(round.owner, "watch history"):
        round.memory = replace(round.memory, history=_history(round, episodes))
    known = (view for view in round.memory.history.views.values() if view is not None)
    return (*known, *round.memory.ended)


def _history(round: Round, episodes: Episodes) -> History:
    """What is new is added to what was read before; now and then all is read anew."""
    oldest, known = max(round.now - round.ask.views_max_age_s, 0.0), round.memory.history
    anew = round.now - known.read_at >= _ALL_ANEW_S
    since = oldest if anew else max(oldest, known.newest - _LATE_S)
    rows = {_row_key(row): row for row in playable(round.server.history(_HISTORY_ROWS, datetime.fromtimestamp(since)))}
    fresh = {key: row for key, row in rows.items() if key not in known.views}
    young = [key_of(row) for row in fresh.values() if (moment(row.viewedAt) or 0.0) > round.now - _FILES_FOR_S]
    found: dict[str, Item | None] = dict.fromkeys(young) | {key_of(item): item for item in episodes.by_keys(young)}
    views = {key: _view(round, row, found.get(key_of(row), row)) for key, row in fresh.items()}
    kept = {key: view for key, view in known.views.items() if key in rows or (view and not anew and view.at >= oldest)}
    return History(MappingProxyType(kept | views), round.now if anew else known.read_at)


def _session(round: Round, playing: Item, item: Item) -> Session:
    """``item`` is the same film or episode from the library: a transcoded session names no file."""
    user = playing._data.find("User")
    player = playing._data.find("Player")
    number = user.attrib.get("id", "")
    known_name = round.people.name_of(int(number)) if number.isdigit() else None
    name = known_name or UserName(user.attrib.get("title") or "somebody")
    key = f"{playing.sessionKey}:{key_of(playing)}:{number}"
    before = round.memory.sessions.get(key)
    return Session(
        key=key,
        user=name,
        title=title_of(item),
        files=files_of(item),
        started_at=before.first_seen_at if before else round.now,
        position_s=(whole(playing.viewOffset) or 0) / 1000,
        duration_s=(whole(playing.duration) or 0) / 1000,
        state=player.attrib.get("state", "playing") if player is not None else "playing",
        rating_key=key_of(playing),
    )


def _seen(before: SeenSession | None, session: Session) -> SeenSession:
    furthest = max(before.furthest if before else 0.0, session.progress)
    return SeenSession(session.started_at, furthest, session.user, session.title, session.files, session.rating_key)


def _want(round: Round, session: Session, item: Item | None, episodes: Episodes) -> None:
    playing = Interest(
        kind=InterestKind.PLAYING,
        user=session.user,
        title=session.title,
        files=session.files,
        since=session.started_at,
        rating_key=session.rating_key,
    )
    round.interests.append(playing)
    if item is None or item.type != "episode":
        return
    with round.reading(session.user, f"what follows {session.title}"):
        following = episodes.following(item, round.ask.next_episodes_playing)
        round.interests += [ahead_of(playing, one, place) for place, one in enumerate(following, 1)]


def _row_key(row: Item) -> str:
    return f"{row.historyKey}:{row.ratingKey}:{row.accountID}"


def _view(round: Round, row: Item, item: Item | None) -> View | None:
    """``item``: the same from the library, or the row itself, which names no file. None for what is not there."""
    at = moment(row.viewedAt)
    if item is None or at is None:
        return None
    return View(round.people.name_of(row.accountID) or UserName(""), title_of(item), files_of(item), at, key_of(row))
