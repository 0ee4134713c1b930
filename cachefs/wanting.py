"""From what Plex said to what should be on the SSD: one item per Plex file, with the reason a person understands.

Called by planning after every snapshot; what it returns still carries Plex's paths. Pure: decides by the policy which
interests count, merges those of several people, and says why the others do not count. It maps no path and knows
nothing of the cache.

An interest is *spent* once its own user has finished the item after it began: a film that Ben has watched is no
longer wanted for being on Ben's watchlist, and one that he starts again is. What is playing or pinned is never spent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cachefs.model import Interest, InterestKind, PlexFile, PlexPath, Session, Skip, Snapshot, UserName, View
from cachefs.units import format_duration

_HOUR_S = 3600.0
_DAY_S = 86400.0
_LASTING = frozenset({InterestKind.PLAYING, InterestKind.PINNED})
_POLICY_KEYS = {
    InterestKind.PLAYING: "playing",
    InterestKind.ON_DECK: "on_deck",
    InterestKind.WATCHLIST: "watchlist",
    InterestKind.RECENTLY_ADDED: "recently_added",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Which interests count. A maximum age of None never expires; pins always count."""

    playing: bool = True
    playing_after_s: float = 30.0
    on_deck: bool = True
    on_deck_max_age_s: float | None = None
    watchlist: bool = True
    watchlist_max_age_s: float | None = None
    recently_added: bool = False
    recently_added_max_age_s: float | None = None

    def enabled(self, kind: InterestKind) -> bool:
        return {
            InterestKind.PLAYING: self.playing,
            InterestKind.ON_DECK: self.on_deck,
            InterestKind.WATCHLIST: self.watchlist,
            InterestKind.RECENTLY_ADDED: self.recently_added,
            InterestKind.PINNED: True,
        }[kind]

    def max_age_s(self, kind: InterestKind) -> float | None:
        return {
            InterestKind.ON_DECK: self.on_deck_max_age_s,
            InterestKind.WATCHLIST: self.watchlist_max_age_s,
            InterestKind.RECENTLY_ADDED: self.recently_added_max_age_s,
        }.get(kind)


@dataclass(frozen=True, slots=True)
class WantedItem:
    """One Plex file that should be on the SSD.

    ``kind``, ``ahead`` and ``since`` are those of the strongest interest; ``users`` are all who have one. ``pinned``
    holds whatever the strongest interest is.
    """

    file: PlexFile
    kind: InterestKind
    ahead: int
    reason: str
    since: float
    users: tuple[UserName, ...] = ()
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class WantedItems:
    """``items`` are the most urgent first. ``next_change_at``: when a session will have lasted long enough."""

    items: tuple[WantedItem, ...] = ()
    skips: tuple[Skip, ...] = ()
    next_change_at: float | None = None


@dataclass(frozen=True, slots=True)
class WatchedFile:
    """A Plex file that somebody finished."""

    file: PlexFile
    user: UserName
    at: float


def wanted_items(snapshot: Snapshot, policy: Policy, now: float) -> WantedItems:
    """What the snapshot's interests and sessions come to under this policy."""
    interests = _interests(snapshot)
    views = _by_item(snapshot.views)
    counted: list[Interest] = []
    refused: list[tuple[Interest, str]] = []
    for interest in interests:
        problem = _problem(interest, snapshot.sessions, views, policy, now)
        if problem:
            refused.append((interest, problem))
        else:
            counted.append(interest)
    items = _merge(counted, now)
    wanted = {item.file.path for item in items}
    skips = (
        Skip(what=interest.title, reason=problem)
        for interest, problem in refused
        if not interest.files or any(file.path not in wanted for file in interest.files)
    )
    dues = (_counts_at(interest, snapshot.sessions, policy) for interest in interests if interest.files)
    next_change_at = min((at for at in dues if at > now), default=None)
    return WantedItems(items, tuple(dict.fromkeys(skips)), next_change_at)


def watched_files(snapshot: Snapshot) -> tuple[WatchedFile, ...]:
    """Every file of every view, the latest view of a user and file only."""
    latest: dict[tuple[PlexPath, UserName], WatchedFile] = {}
    for view in sorted(snapshot.views, key=lambda view: view.at):
        for file in view.files:
            latest[file.path, view.user] = WatchedFile(file, view.user, view.at)
    return tuple(latest.values())


# --- which interests count -------------------------------------------------------------------------------------------


def _interests(snapshot: Snapshot) -> tuple[Interest, ...]:
    """The snapshot's interests, and one for each session's own item, which may not be among them."""
    playing = (
        Interest(
            kind=InterestKind.PLAYING,
            user=session.user,
            title=session.title,
            files=session.files,
            since=session.started_at,
            rating_key=session.rating_key,
        )
        for session in snapshot.sessions
    )
    return (*playing, *snapshot.interests)


def _by_item(views: Iterable[View]) -> Mapping[str, list[View]]:
    """By rating key, not by file: two episodes in one file are finished one after the other."""
    found: dict[str, list[View]] = {}
    for view in views:
        found.setdefault(view.rating_key, []).append(view)
    return found


def _problem(
    interest: Interest,
    sessions: Sequence[Session],
    views: Mapping[str, Sequence[View]],
    policy: Policy,
    now: float,
) -> str:
    """Why this interest does not count; empty when it does."""
    key = _POLICY_KEYS.get(interest.kind, "")
    if not policy.enabled(interest.kind):
        return f"{_fact(interest, now)}, but policy.{key} is switched off"
    if not interest.files:
        return f"{_fact(interest, now)}, but Plex names no file for it"
    if now < _counts_at(interest, sessions, policy):
        lasted = format_duration(max(now - _started_at(interest, sessions), 0.0))
        after = format_duration(policy.playing_after_s)
        return f"{_who(interest)} has been watching for {lasted}; it counts after {after} (policy.playing.after)"
    finished_at = _finished_at(interest, views)
    if finished_at is not None:
        return f"{_fact(interest, now)}, but {_who(interest)} finished it {_ago(now - finished_at)}"
    max_age_s = policy.max_age_s(interest.kind)
    if max_age_s is not None and 0 < interest.since < now - max_age_s:
        since = "" if interest.kind is InterestKind.RECENTLY_ADDED else f" since {_age(now - interest.since)}"
        return f"{_fact(interest, now)}{since}, older than policy.{key}.max_age ({format_duration(max_age_s)})"
    return ""


def _who(interest: Interest) -> str:
    return interest.user or "somebody"


def _fact(interest: Interest, now: float) -> str:
    return _reason(interest, (interest.user,), now)


def _counts_at(interest: Interest, sessions: Sequence[Session], policy: Policy) -> float:
    """From when on an interest counts: at once, unless it comes from a session that may be a wrong click."""
    if interest.kind is not InterestKind.PLAYING or not policy.playing:
        return -math.inf
    return _started_at(interest, sessions) + policy.playing_after_s


def _started_at(interest: Interest, sessions: Sequence[Session]) -> float:
    """When the session behind an interest began: the longest of the user's sessions that fit, else ``since``."""
    fitting = [session.started_at for session in sessions if _belongs(interest, session)]
    return min(fitting, default=interest.since)


def _belongs(interest: Interest, session: Session) -> bool:
    if interest.user != session.user:
        return False
    if interest.ahead:
        return interest.after_title == session.title
    if interest.rating_key and session.rating_key:
        return interest.rating_key == session.rating_key
    return interest.title == session.title


def _finished_at(interest: Interest, views: Mapping[str, Sequence[View]]) -> float | None:
    """When the interest's own user finished the item after the interest began; None while it is not spent.

    What was added lately is nobody's own: it is spent once anybody has finished it.
    """
    if interest.kind in _LASTING:
        return None
    return max(
        (
            view.at
            for view in views.get(interest.rating_key, ())
            if (view.user == interest.user or interest.kind is InterestKind.RECENTLY_ADDED)
            and view.at >= interest.since
        ),
        default=None,
    )


# --- merging and wording ---------------------------------------------------------------------------------------------


def _merge(interests: Iterable[Interest], now: float) -> tuple[WantedItem, ...]:
    per_path: dict[PlexPath, list[Interest]] = {}
    files: dict[PlexPath, PlexFile] = {}
    for interest in sorted(interests, key=lambda interest: (interest.kind, interest.ahead, -interest.since)):
        for file in interest.files:
            files.setdefault(file.path, file)
            per_path.setdefault(file.path, []).append(interest)
    items = [_item(files[path], found, now) for path, found in per_path.items()]
    return tuple(sorted(items, key=lambda item: (item.kind, item.ahead, -item.since, item.file.path)))


def _item(file: PlexFile, interests: Sequence[Interest], now: float) -> WantedItem:
    """``interests`` are all that name this file, the strongest first."""
    strongest = interests[0]
    reasons = []
    for kind in dict.fromkeys(interest.kind for interest in interests):
        first = next(interest for interest in interests if interest.kind is kind)
        same = [one for one in interests if (one.kind, one.ahead) == (kind, first.ahead)]
        reasons.append(_reason(first, _users(same), now))
    return WantedItem(
        file=file,
        kind=strongest.kind,
        ahead=strongest.ahead,
        reason=f"{strongest.title}: {'; also '.join(reasons)}",
        since=strongest.since,
        users=_users(interests),
        pinned=any(interest.kind is InterestKind.PINNED for interest in interests),
    )


def _reason(interest: Interest, users: Sequence[UserName], now: float) -> str:
    """The fact in words, without the item's title."""
    people = _and(users)
    verb = "are" if len(users) > 1 else "is"
    match interest.kind:
        case InterestKind.PLAYING if interest.ahead:
            return f"{_position(interest)} what {people} {verb} watching"
        case InterestKind.PLAYING:
            return f"{people} {verb} watching it"
        case InterestKind.ON_DECK if interest.ahead:
            behind = interest.after_title or "what is"
            return f"{_position(interest)} {behind}, On Deck for {people}"
        case InterestKind.ON_DECK:
            return f"On Deck for {people}"
        case InterestKind.WATCHLIST:
            return f"on {people}'s watchlist" if len(users) < 2 else f"on the watchlists of {people}"
        case InterestKind.RECENTLY_ADDED:
            return f"recently added {_ago(now - interest.since)}" if interest.since > 0 else "recently added"
        case InterestKind.PINNED:
            return "pinned"


def _position(interest: Interest) -> str:
    return "next after" if interest.ahead == 1 else f"{interest.ahead} episodes after"


def _users(interests: Iterable[Interest]) -> tuple[UserName, ...]:
    return tuple(dict.fromkeys(interest.user for interest in interests if interest.user))


def _and(users: Sequence[UserName]) -> str:
    if len(users) < 2:
        return "".join(users) or "somebody"
    return f"{', '.join(users[:-1])} and {users[-1]}"


def _age(seconds: float) -> str:
    """Whole days, or whole hours, so that a reason does not change with every plan."""
    unit = _DAY_S if seconds >= _DAY_S else _HOUR_S
    return format_duration(seconds // unit * unit) if seconds >= _HOUR_S else "less than 1h"


def _ago(seconds: float) -> str:
    return f"{_age(seconds)} ago"
