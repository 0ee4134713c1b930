"""One snapshot, from the first request to the last. Blocking: ``PlexClient`` runs it in a worker thread.

Raises ``PlexError`` when the server itself is away, refuses the owner's token or talks nonsense about who plays what;
everything else that cannot be read is noted on the user it belongs to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from cachefs.errors import PlexRefused
from cachefs.model import Snapshot
from cachefs.plex.connection import Connection, Item, translated
from cachefs.plex.episodes import Episodes
from cachefs.plex.libraries import read_folders
from cachefs.plex.lists import read_on_deck, read_pinned, read_recently_added, read_watchlist
from cachefs.plex.memory import Lists, Memory, People, Person, with_entry
from cachefs.plex.people import everybody, owner_alone
from cachefs.plex.round import Round
from cachefs.plex.sessions import read_history, read_sessions
from cachefs.plex.values import Ask, PlexSettings

_PEOPLE_VALID_S = 3600.0
_LISTS_VALID_S = 600.0
_LISTS_WITHIN = 0.5
"""Of the deadline: what was not read by then is taken as it was, and is the first to be read with the next look."""


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
    """Everybody's lists, as they are or were lately. Where a remembered token is refused, the tokens are asked for
    anew, once."""
    if not (round.ask.on_deck or round.ask.watchlist):
        return
    remembered = round.people.read_at < round.now
    due = [person for person in _longest_ago_first(round) if not _recall(round, person)]
    refused = [person for person in due if not _read_person(round, person, episodes, last=not remembered)]
    if not refused:
        return
    read_people(round, anew=True)
    names = {person.name for person in refused}
    for person in round.people.persons:
        if person.name in names:
            _read_person(round, person, episodes, last=True)


def _longest_ago_first(round: Round) -> list[Person]:
    known = round.memory.lists
    return sorted(
        round.people.persons, key=lambda person: known[person.name].read_at if person.name in known else float("-inf")
    )


def _recall(round: Round, person: Person) -> bool:
    """Take a person's lists as they were, if that is not long ago for what it costs to read them all."""
    took_s = sum(lists.took_s for lists in round.memory.lists.values())
    known = _known(round, person)
    if known is None or round.now - known.read_at >= min(took_s * round.settings.lists_valid, _LISTS_VALID_S):
        return False
    round.interests += known.interests
    return True


def _known(round: Round, person: Person) -> Lists | None:
    known = round.memory.lists.get(person.name)
    return known if known is not None and known.ask == round.ask.lists else None


def _read_person(round: Round, person: Person, owners: Episodes, *, last: bool) -> bool:
    """One person's lists; False when the token was refused (on the ``last`` try that is noted)."""
    if not person.token:
        return True
    began_at, before, complete = time.monotonic(), len(round.interests), round.complete
    if began_at - round.began_at > round.settings.deadline_s * _LISTS_WITHIN:
        known = _known(round, person)
        round.interests += known.interests if known is not None else ()
        if known is None:
            round.note(person.name, "the lists were not read yet: Plex answers slowly")
        return True
    round.complete = True
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
    finally:
        read, round.complete = round.complete, round.complete and complete
    if read:
        took_s = time.monotonic() - began_at
        lists = Lists(round.ask.lists, tuple(round.interests[before:]), round.now, took_s)
        round.memory = replace(round.memory, lists=with_entry(round.memory.lists, person.name, lists))
    return True


def _in_name_of(round: Round, person: Person, owners: Episodes) -> tuple[Item, Episodes]:
    if person.is_owner:
        return round.server, owners
    server = round.connection.server(person.token)
    return server, Episodes(server)
