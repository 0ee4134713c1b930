"""One snapshot, from the first request to the last. Blocking: ``PlexClient`` runs it in a worker thread.

Raises ``PlexError`` when the server itself is away, refuses the owner's token or talks nonsense about who plays what;
everything else that cannot be read is noted on the user it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cachefs.errors import PlexRefused
from cachefs.model import Snapshot
from cachefs.plex.connection import Connection, Item, translated
from cachefs.plex.episodes import Episodes
from cachefs.plex.libraries import read_folders
from cachefs.plex.lists import read_on_deck, read_pinned, read_recently_added, read_watchlist
from cachefs.plex.memory import Memory, People, Person
from cachefs.plex.people import everybody, owner_alone
from cachefs.plex.round import Round
from cachefs.plex.sessions import read_history, read_sessions
from cachefs.plex.values import Ask, PlexSettings

_PEOPLE_VALID_S = 3600.0


@dataclass(frozen=True, slots=True)
class Gathered:
    """A snapshot, and what to remember for the next one."""

    snapshot: Snapshot
    memory: Memory


def gather(connection: Connection, settings: PlexSettings, ask: Ask, memory: Memory, now: float) -> Gathered:
    """Ask Plex everything that ``ask`` wants to know."""
    server = connection.server(settings.token)
    with translated(settings.origin):
        round = Round(settings, ask, connection, server, memory, now)
        read_people(round)
        episodes = Episodes(server)
        sessions = read_sessions(round, episodes)
        _read_lists(round, episodes)
        folders = read_folders(round)
        if ask.recently_added_max_age_s is not None:
            read_recently_added(round, folders.sections, ask.recently_added_max_age_s)
        if ask.pinned:
            read_pinned(round, episodes)
        views = read_history(round, episodes)
    snapshot = Snapshot(
        taken_at=now,
        interests=tuple(round.interests),
        sessions=sessions,
        views=views,
        users=round.reports(),
        folders=folders.folders,
        titles=tuple(round.titles),
        unknown_titles=round.unknown_titles,
        complete=round.complete,
    )
    return Gathered(snapshot, round.memory)


def read_people(round: Round, *, anew: bool = False) -> None:
    """Know whose lists to read: as remembered for an hour, or asked ``anew``. Without plex.tv: those known before."""
    known = round.memory.people
    if known is None or anew or round.now - known.read_at >= _PEOPLE_VALID_S:
        fresh = owner_alone(round.server, round.settings.token, round.now, complete=not round.server.myPlex)
        known = _merged(fresh, known)
        round.memory = replace(round.memory, people=known)
    if not known.complete:
        _ask_cloud_for_people(round, known)
    for person in round.people.persons:
        if person.problem:
            round.note_lasting(person.name, person.problem)


def _ask_cloud_for_people(round: Round, known: People) -> None:
    if not (round.ask.on_deck or round.ask.watchlist):
        return
    if trouble := round.cloud_trouble(round.owner):
        round.note(round.owner, f"home users: {trouble}")
        return
    with round.reading_cloud(round.owner, "home users"):
        round.memory = replace(round.memory, people=everybody(round.connection, round.server, known), cloud={})


def _merged(fresh: People, known: People | None) -> People:
    """The owner as the server knows him now, the home users as they were known."""
    others = known.persons[1:] if known is not None else ()
    return replace(fresh, persons=(fresh.persons[0], *others))


def _read_lists(round: Round, episodes: Episodes) -> None:
    """Everybody's lists. Where a remembered token is refused, the tokens are asked for anew, once."""
    if not (round.ask.on_deck or round.ask.watchlist):
        return
    remembered = round.people.read_at < round.now
    refused = [
        person for person in round.people.persons if not _read_person(round, person, episodes, last=not remembered)
    ]
    if not refused:
        return
    read_people(round, anew=True)
    names = {person.name for person in refused}
    for person in round.people.persons:
        if person.name in names:
            _read_person(round, person, episodes, last=True)


def _read_person(round: Round, person: Person, owners: Episodes, *, last: bool) -> bool:
    """One person's lists; False when the token was refused (on the ``last`` try that is noted)."""
    if not person.token:
        return True
    before = len(round.interests)
    try:
        with round.reading(person.name, "lists"):
            server, episodes = _in_name_of(round, person, owners)
            if round.ask.on_deck:
                read_on_deck(round, person, server, episodes)
            if round.ask.watchlist:
                read_watchlist(round, person, server, episodes)
    except PlexRefused as error:
        if last or person.is_owner:
            round.note(person.name, str(error))
            return True
        del round.interests[before:]
        return False
    return True


def _in_name_of(round: Round, person: Person, owners: Episodes) -> tuple[Item, Episodes]:
    if person.is_owner:
        return round.server, owners
    server = round.connection.server(person.token)
    return server, Episodes(server)
