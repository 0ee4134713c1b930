"""Who is playing what now, what comes after it, and who has finished what.

A view is a row of Plex's watch history, or a session that this program saw reach 90 % before it ended. Never the
played flag: it says *ever*, and would take a rewatch away from the viewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType

from cachefs.model import Interest, InterestKind, Session, UserName, View
from cachefs.plex.connection import Item, items
from cachefs.plex.episodes import Episodes
from cachefs.plex.items import ahead_of, files_of, key_of, moment, playable, title_of, whole
from cachefs.plex.memory import SeenSession
from cachefs.plex.round import Round

WATCHED = 0.9
_HISTORY_ROWS = 200


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
        since = datetime.fromtimestamp(max(round.now - round.ask.views_max_age_s, 0.0))
        rows = playable(round.server.history(_HISTORY_ROWS, since))
        known = round.memory.history
        fresh = [row for row in rows if _row_key(row) not in known]
        found = {key_of(item): item for item in episodes.by_keys(key_of(row) for row in fresh)}
        views = {_row_key(row): known.get(_row_key(row)) or _view(round, row, found) for row in rows}
        kept = {key: view for key, view in views.items() if view is not None}
        round.memory = replace(round.memory, history=MappingProxyType(kept))
    return (*round.memory.history.values(), *round.memory.ended)


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


def _view(round: Round, row: Item, found: Mapping[str, Item]) -> View | None:
    """None for what the library no longer has."""
    item = found.get(key_of(row))
    at = moment(row.viewedAt)
    if item is None or at is None:
        return None
    user = round.people.name_of(row.accountID) or UserName("")
    return View(user, title_of(item), files_of(item), at, key_of(item))
