"""What the cache should become: one pure function from wants, inventory, room and time to a Plan.

Called by planning after every look at Plex, and for a dry run. It touches no disk, no clock and no Plex, and changes
nothing: whoever gets the Plan carries it out. The same request after the plan was carried out gives a plan with
nothing to do.

How room is given away
    Everything that may be on the SSD stands in one line, and gets its size of the room while there is room:

    1. what is never evicted: playing, pinned or open (with its sidecars), as far as it is on the SSD;
    2. wanted files by class, which is ``(kind, ahead)`` of the want; within a class what is cached comes before what
       is being copied, and that before what is not there. So a copy never displaces its equals, only what is wanted
       less, and what was displaced never comes back by displacing in turn;
    3. what nobody wants, with what is left.

    A wanted file that gets no room is skipped, or evicted if it is there; the line goes on behind it, so that a
    smaller file may still fit. Entries of the third kind go only when the first two need their room. What is not there
    yet leaves a bit more room than what is (``Space.spared_bytes``), or it would come and go with what others write.

Value for its size
    Wanted entries of one class are worth the same. The smallest that gives enough room goes, if there is one; else the
    largest first, so that few go.
    Entries that nobody wants are worth less the longer they have lain unused, so the highest ``size * idle time``
    goes first: 40 GiB unused for a day go before 1 GiB unused for a month. Unfinished copies go before either.

Sidecars (subtitles, artwork) follow their video: they are in its class or below, stand right behind it, get no room
when it got none, and leave with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import groupby

from cachefs.model import (
    CacheEntry,
    EntryState,
    FileKey,
    InterestKind,
    Inventory,
    Plan,
    PlannedCopy,
    PlannedEviction,
    Skip,
    Want,
    Watched,
)
from cachefs.sidecars import is_video, videos_of
from cachefs.units import format_duration, format_size

_Class = tuple[int, int]
_Place = tuple[int, int, int, float, FileKey, bool, FileKey]
"""Class (kind, ahead); tier; the order within; the video; whether it is a sidecar of that; the key, so that every order
is the same each time."""

_TIER_CACHED, _TIER_COPYING, _TIER_ABSENT = range(3)
_IN_USE = "in use"
_CALLED = {
    InterestKind.PLAYING: "for what is playing or was asked for",
    InterestKind.PINNED: "pinned",
    InterestKind.ON_DECK: "On Deck",
    InterestKind.WATCHLIST: "on watchlists",
    InterestKind.RECENTLY_ADDED: "recently added",
}
"""What is in the way, as people call it."""
_UNKNOWN_CLASS: _Class = (InterestKind.ON_DECK, 0)
"""While some user's lists cannot be read, what was wanted until lately is taken to be On Deck for that user."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """All that a plan is made from.

    ``wants`` may name a file several times (a pin and an interest, a sidecar of two versions). ``skips`` are those
    found earlier, passed through. ``playing`` are the files of all sessions, also of those too young to be wanted;
    ``pinned`` are pinned files whose want says something stronger. ``complete`` False: absence proves nothing.
    ``away``: Plex does not answer, so that nothing goes for time alone.
    """

    wants: tuple[Want, ...]
    skips: tuple[Skip, ...]
    watched: tuple[Watched, ...]
    playing: frozenset[FileKey]
    inventory: Inventory
    keep_watched_s: float
    complete: bool
    now: float
    pinned: frozenset[FileKey] = frozenset()
    away: bool = False


@dataclass(frozen=True, slots=True)
class _Scene:
    """The request, indexed. ``leaders``: sidecar → its video, for wants and entries alike."""

    request: PlanRequest
    wants: Mapping[FileKey, Want]
    entries: Mapping[FileKey, CacheEntry]
    leaders: Mapping[FileKey, FileKey]
    views: Mapping[FileKey, Watched]
    safe: frozenset[FileKey]
    pinned: frozenset[FileKey]

    def leader(self, key: FileKey) -> FileKey:
        return self.leaders.get(key, key)

    def is_current(self, entry: CacheEntry) -> bool:
        """Whether the entry holds the file that is wanted; True when nobody has looked at the source."""
        want = self.wants.get(entry.key)
        return want is None or entry.fingerprint.same_file(want.file.fingerprint)

    def is_wanted(self, key: FileKey) -> bool:
        return key in self.wants or self.leader(key) in self.wants


@dataclass(frozen=True, slots=True)
class _Left:
    """The room that a want found, and how much of it others have, by what they are called."""

    room_bytes: int
    taken: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Places:
    """Who gets room. ``room_left``: what there was for each want that got none."""

    accepted: frozenset[FileKey]
    room_left: Mapping[FileKey, _Left]
    used_bytes: int
    budget_bytes: int


def plan(request: PlanRequest) -> Plan:
    """The copies to make, the entries to remove and the wants that get nothing, each with its reason."""
    scene = _look(request)
    expired = _expired(scene)
    staying = {key: entry for key, entry in scene.entries.items() if key not in {gone.key for gone in expired}}
    places = _give_room(scene, staying)
    evictions = (*expired, *_make_room(scene, staying, places))
    leaving = {eviction.key for eviction in evictions}
    ordered = _ordered(scene)
    kept = [want for want in ordered if _is_cached(staying, want.key) and want.key not in leaving]
    copies = [want for want in ordered if want.key in places.accepted and not _is_cached(staying, want.key)]
    return Plan(
        made_at=request.now,
        copies=tuple(PlannedCopy(want.file, want.kind, want.reason) for want in copies),
        evictions=evictions,
        skips=(*request.skips, *_skips(scene, ordered, staying, places)),
        kept=tuple(want for want in kept if scene.is_current(staying[want.key])),
    )


# --- looking ---------------------------------------------------------------------------------------------------------


def _look(request: PlanRequest) -> _Scene:
    wants: dict[FileKey, Want] = {}
    for want in sorted(request.wants, key=lambda want: (want.rank, want.key)):
        wants.setdefault(want.key, want)
    entries = {entry.key: entry for entry in request.inventory.entries}
    leaders = _leaders(wants, entries)
    pinned = {want.key for want in request.wants if want.kind is InterestKind.PINNED} | request.pinned
    safe = pinned | request.playing | request.inventory.open_files
    safe |= {key for key, leader in leaders.items() if leader in safe}
    views: dict[FileKey, Watched] = {}
    for view in sorted(request.watched, key=lambda view: view.at):
        views[view.key] = view
    return _Scene(request, wants, entries, leaders, views, frozenset(safe), frozenset(pinned))


def _leaders(wants: Mapping[FileKey, Want], entries: Mapping[FileKey, CacheEntry]) -> dict[FileKey, FileKey]:
    """The video of every sidecar: as its want says, else as the names in its folder say.

    A wanted sidecar follows a wanted video only: with another, or pinned by itself, it is a file like any other.
    """
    videos: dict[tuple[str, str], list[str]] = {}
    for key in sorted({*wants, *entries}):
        folder, name = _split(key)
        if is_video(name):
            videos.setdefault((key.source, folder), []).append(name)
    leaders: dict[FileKey, FileKey] = {}
    for key in {*wants, *entries}:
        folder, name = _split(key)
        want = wants.get(key)
        if want is not None and want.follows is not None:
            found = [want.follows]
        elif is_video(name) or (want is not None and want.kind is InterestKind.PINNED):
            continue
        else:
            beside = videos.get((key.source, folder), ())
            found = [FileKey(key.source, folder + video) for video in videos_of(name, beside)]
        found = [video for video in found if video in wants or want is None]
        if found:
            leaders[key] = min(found, key=lambda video: (video not in wants, video))
    return leaders


def _split(key: FileKey) -> tuple[str, str]:
    """The folder with its slash, and the name."""
    folder, slash, name = key.path.rpartition("/")
    return folder + slash, name


# --- what goes whether room is needed or not -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Due:
    """From when on an entry is to go, and why."""

    at: float
    reason: str


def _expired(scene: _Scene) -> tuple[PlannedEviction, ...]:
    """What is stale, was watched, or is no longer wanted; sidecars after their video."""
    request = scene.request
    found = []
    for entry in scene.entries.values():
        if not scene.is_current(entry):
            if entry.key not in request.inventory.open_files:
                found.append(_eviction(entry, "it has changed at its source since it was copied", for_space=False))
            continue
        due = _due(scene, entry)
        if due is not None and due.at <= request.now:
            found.append(_eviction(entry, due.reason, for_space=False))
    return tuple(sorted(found, key=lambda eviction: (eviction.key in scene.leaders, eviction.key)))


def _due(scene: _Scene, entry: CacheEntry) -> _Due | None:
    """When time alone will evict an entry: never while it is wanted, playing, pinned or open."""
    if scene.request.away or scene.is_wanted(entry.key) or entry.key in scene.safe:
        return None
    leader = scene.entries.get(scene.leader(entry.key), entry)
    if leader is not entry:
        due = _due(scene, leader)
        return None if due is None else _Due(due.at, f"it goes with {_split(leader.key)[1]}: {due.reason}")
    watched, unwanted = _watched_due(scene, entry), _unwanted_due(scene, entry)
    if watched is not None and watched.at <= scene.request.now:
        return watched  # who finished it says more than that nobody wants it
    dues = [due for due in (watched, unwanted) if due is not None]
    return min(dues, key=lambda due: due.at, default=None)


def _watched_due(scene: _Scene, entry: CacheEntry) -> _Due | None:
    """A view from before the copy began says nothing: the file was wanted again after it."""
    request = scene.request
    view = scene.views.get(entry.key)
    at = max(entry.watched_at or 0.0, view.at if view is not None else 0.0)
    if not at or at < entry.begun_at:
        return None
    since = at if request.complete else max(at, _last_wanted_at(entry))
    who = f" by {view.user}" if view is not None and view.user and view.at >= at else ""
    ago, keep = format_duration(max(request.now - at, 0.0)), format_duration(request.keep_watched_s)
    return _Due(since + request.keep_watched_s, f"watched{who} {ago} ago, and kept for {keep}")


def _unwanted_due(scene: _Scene, entry: CacheEntry) -> _Due | None:
    if not scene.request.complete:
        return None
    since = _last_wanted_at(entry)
    ago = format_duration(max(scene.request.now - since, 0.0))
    return _Due(since + scene.request.keep_watched_s, f"nobody has wanted it for {ago}")


def _last_wanted_at(entry: CacheEntry) -> float:
    return entry.last_wanted_at or entry.published_at or entry.begun_at


# --- who gets room ---------------------------------------------------------------------------------------------------


def _give_room(scene: _Scene, staying: Mapping[FileKey, CacheEntry]) -> _Places:
    """Everything with a class stands in line, as the module says; what is safe is served before the line."""
    fixed = {key for key, entry in staying.items() if key in scene.safe or not scene.is_current(entry)}
    budget = sum(entry.size for entry in scene.entries.values()) + scene.request.inventory.space.room_bytes
    used = sum(staying[key].size for key in fixed)
    accepted = {key for key in fixed if scene.is_current(staying[key])}
    room_left: dict[FileKey, _Left] = {}
    taken: dict[str, int] = {}
    for key in fixed:
        called = _CALLED[InterestKind.PINNED] if scene.leader(key) in scene.pinned else _IN_USE
        taken[called] = taken.get(called, 0) + staying[key].size
    line = _line(scene, staying, fixed)
    spared = scene.request.inventory.space.spared_bytes
    for (*_, tier), block in groupby(sorted(line.values()), key=lambda place: place[:3]):
        places = list(block)
        losers = _losers(scene, places, budget - used) if tier == _TIER_CACHED else ()
        room = budget - (spared if tier == _TIER_ABSENT else 0)
        for place in places:
            key, size = place[-1], _size(scene, place[-1])
            leader = scene.leader(key)
            follows_nothing = leader == key or (leader not in line and leader not in fixed)
            if (follows_nothing or leader in accepted) and used + size <= room and key not in losers:
                used += size
                accepted.add(key)
                called = _CALLED[InterestKind(place[0])]
                taken[called] = taken.get(called, 0) + size
            else:
                room_left[key] = _Left(max(room - used, 0), tuple(taken.items()))
    return _Places(frozenset(accepted), room_left, used, budget)


def _losers(scene: _Scene, places: Iterable[_Place], room_bytes: int) -> Set[FileKey]:
    """Of cached entries that are wanted alike, those that leave enough room for the others: see the module."""
    sizes: dict[FileKey, int] = {}
    for place in places:
        sizes[place[4]] = sizes.get(place[4], 0) + _size(scene, place[-1])
    excess, lost = sum(sizes.values()) - room_bytes, set()
    while excess > 0 and sizes:
        by_size = sorted(sizes, key=lambda leader: (sizes[leader], leader))
        leader = next((leader for leader in by_size if sizes[leader] >= excess), by_size[-1])
        lost.add(leader)
        excess -= sizes.pop(leader)
    return {place[-1] for place in places if place[4] in lost}


def _line(scene: _Scene, staying: Mapping[FileKey, CacheEntry], fixed: Set[FileKey]) -> dict[FileKey, _Place]:
    """The places of all wants, sidecars of wanted videos, and what may be wanted for all that is known."""
    classes = {key: _class(scene, staying, key) for key in {*scene.wants, *staying} - fixed}
    line: dict[FileKey, _Place] = {}
    for key, rank in classes.items():
        if rank is not None:
            leader = scene.leader(key)
            line[key] = _place(scene, staying, key, leader if classes.get(leader) == rank else key, rank)
    return line


def _class(scene: _Scene, staying: Mapping[FileKey, CacheEntry], key: FileKey) -> _Class | None:
    """The class of a want, of a sidecar never better than its video's; None for what nobody is known to want."""
    both = (scene.wants.get(key), scene.wants.get(scene.leader(key)))
    classes: list[_Class] = [(want.kind, want.ahead) for want in both if want is not None]
    if classes:
        return max(classes)
    lately = scene.request.now - scene.request.keep_watched_s
    entry = staying.get(scene.leader(key), staying[key])
    if not scene.request.complete and _last_wanted_at(entry) > lately:
        return _UNKNOWN_CLASS
    return None


def _place(scene: _Scene, staying: Mapping[FileKey, CacheEntry], key: FileKey, leader: FileKey, rank: _Class) -> _Place:
    """``leader``: the video behind which it stands, or the file itself."""
    tier = max(_tier(staying.get(key)), _tier(staying.get(leader)))
    want = scene.wants.get(leader)
    order = -want.since if want is not None else 0.0
    if tier == _TIER_CACHED:
        order = float(staying[leader].size)
    return (*rank, tier, order, leader, key != leader, key)


def _tier(entry: CacheEntry | None) -> int:
    if entry is None:
        return _TIER_ABSENT
    return _TIER_CACHED if entry.state.is_whole else _TIER_COPYING


def _size(scene: _Scene, key: FileKey) -> int:
    want = scene.wants.get(key)
    return want.file.size if want is not None else scene.entries[key].size


# --- what goes to make room ------------------------------------------------------------------------------------------


def _make_room(scene: _Scene, staying: Mapping[FileKey, CacheEntry], places: _Places) -> tuple[PlannedEviction, ...]:
    """What nobody wants, as far as its room is needed; then what is wanted and got none, least wanted first.

    What has to go for the limits alone, without any copy, does not wait for one: its ``for_space`` is False.
    """
    over = sum(entry.size for entry in staying.values()) - places.budget_bytes
    losers = [staying[key] for key in reversed([*places.room_left]) if key in staying]
    evictions = []
    for entry in (*_spare(scene, staying, places), *losers):
        if over > 0:
            why = f"the cache is {format_size(over)} over its limits"
        else:
            why = "room is needed for what is wanted more"
        evictions.append(_eviction(entry, f"{why}; {_loss(scene, entry)}", for_space=over <= 0))
        over -= entry.size
    return tuple(evictions)


def _spare(scene: _Scene, staying: Mapping[FileKey, CacheEntry], places: _Places) -> list[CacheEntry]:
    """Of what has no place in the line, as much as must go, with the sidecars of what goes."""
    spare = {
        key: entry
        for key, entry in staying.items()
        if key not in places.accepted and key not in places.room_left and scene.is_current(entry)
    }
    excess = places.used_bytes + sum(entry.size for entry in spare.values()) - places.budget_bytes
    leaving: dict[FileKey, CacheEntry] = {}
    for entry in _cheapest_first(scene, spare):
        if excess > 0 or scene.leader(entry.key) in leaving:
            leaving[entry.key] = entry
            excess -= entry.size
    return list(leaving.values())


def _cheapest_first(scene: _Scene, spare: Mapping[FileKey, CacheEntry]) -> list[CacheEntry]:
    """By value for size, each sidecar right behind its video."""

    def order(entry: CacheEntry) -> tuple[bool, float, FileKey, bool, FileKey]:
        leader = spare.get(scene.leader(entry.key), entry)
        worth = -leader.size * _idle_s(scene, leader)
        return leader.state.is_whole, worth, leader.key, entry is not leader, entry.key

    return sorted(spare.values(), key=order)


def _idle_s(scene: _Scene, entry: CacheEntry) -> float:
    times = (entry.begun_at, entry.published_at, entry.last_read_at, entry.last_wanted_at)
    return max(scene.request.now - max(at for at in times if at is not None), 0.0)


def _loss(scene: _Scene, entry: CacheEntry) -> str:
    want = scene.wants.get(entry.key)
    if want is not None:
        return f"wanted less: {want.reason}"
    leader = scene.leader(entry.key)
    if leader != entry.key:
        return f"it goes with {_split(leader)[1]}"
    return f"nobody is known to want it, last used {format_duration(_idle_s(scene, entry))} ago"


# --- wording and order -----------------------------------------------------------------------------------------------


def _skips(
    scene: _Scene, ordered: Iterable[Want], staying: Mapping[FileKey, CacheEntry], places: _Places
) -> Iterable[Skip]:
    for want in ordered:
        entry, leader = staying.get(want.key), scene.leader(want.key)
        if entry is not None and not scene.is_current(entry):
            reason = "it has changed at its source, and its older copy is still open"
            yield Skip(str(want.key), reason, want.key, want)
        elif entry is None and want.key in places.room_left:
            if leader != want.key and leader not in places.accepted:
                reason = f"it goes with {_split(leader)[1]}, which is not copied"
            else:
                reason = _no_room(want, places.room_left[want.key])
            yield Skip(str(want.key), reason, want.key, want)


def _no_room(want: Want, left: _Left) -> str:
    reason = f"needs {format_size(want.file.size)}, only {format_size(left.room_bytes)} can be freed for it"
    taken = ", ".join(f"{format_size(size)} {called}" for called, size in left.taken if size)
    return f"{reason}; in the way: {taken}" if taken else reason


def _ordered(scene: _Scene) -> list[Want]:
    """The wants in the order in which to copy them: by rank, among equals what was begun already, and each sidecar
    right behind its video."""

    def order(want: Want) -> tuple[int, int, bool, tuple[int, int, int, float], FileKey, bool, FileKey]:
        video = scene.wants.get(scene.leader(want.key), want)
        if (video.kind, video.ahead) != (want.kind, want.ahead):
            video = want
        entry = scene.entries.get(video.key)
        begun = entry is not None and entry.state is EntryState.COPYING and scene.is_current(entry)
        return want.kind, want.ahead, not begun, video.rank, video.key, want is not video, want.key

    return sorted(scene.wants.values(), key=order)


def _is_cached(staying: Mapping[FileKey, CacheEntry], key: FileKey) -> bool:
    entry = staying.get(key)
    return entry is not None and entry.state.is_whole


def _eviction(entry: CacheEntry, reason: str, *, for_space: bool) -> PlannedEviction:
    return PlannedEviction(entry.key, entry.size, reason, for_space)
