"""One snapshot in the making: what is asked, what was found so far, and what could not be read.

Made by ``gather`` in its worker thread, handed to the modules that read one thing each (``sessions``, ``lists``,
``libraries``), gone when the snapshot is done. Mutable, and never seen by two threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cachefs.errors import PlexError, PlexRefused, PlexUnreachable
from cachefs.model import Interest, PinnedTitle, UserName, UserReport
from cachefs.plex.connection import Connection, Item, translated
from cachefs.plex.memory import EVERYBODY, CloudTrouble, Memory, People, with_entry
from cachefs.plex.values import Ask, PlexSettings


@dataclass(slots=True)
class Round:
    """``server`` speaks for the owner. ``problems`` are per user, in the order found."""

    settings: PlexSettings
    ask: Ask
    connection: Connection
    server: Item
    memory: Memory
    now: float
    interests: list[Interest] = field(default_factory=list)
    titles: list[PinnedTitle] = field(default_factory=list)
    unknown_titles: frozenset[str] = frozenset()
    began_at: float = field(default_factory=time.monotonic)
    problems: dict[UserName, list[str]] = field(default_factory=dict)
    complete: bool = True

    @property
    def people(self) -> People:
        if self.memory.people is None:
            raise AssertionError("the people are read before their lists")
        return self.memory.people

    @property
    def owner(self) -> UserName:
        return self.people.persons[0].name

    def cloud_trouble(self, user: UserName) -> str:
        """Why plex.tv is left alone in this user's name, because it failed lately; empty when it is not."""
        known = (self.memory.cloud.get(who) for who in (EVERYBODY, user))
        return next((trouble.problem for trouble in known if trouble and self.now < trouble.until), "")

    def note(self, user: UserName, problem: str) -> None:
        """Something of this user is unknown now that should be known."""
        self.complete = False
        self.note_lasting(user, problem)

    def note_lasting(self, user: UserName, problem: str) -> None:
        """Something of this user is never read, for a reason that will not pass by itself: the rest is complete."""
        found = self.problems.setdefault(user, [])
        if problem not in found:
            found.append(problem)

    @contextmanager
    def reading(self, user: UserName, what: str) -> Iterator[None]:
        """Around one list of the server's: an unreadable one is noted, a server that is away ends the snapshot."""
        try:
            with translated(self.server.party):
                yield
        except (PlexUnreachable, PlexRefused):
            raise
        except PlexError as error:
            self.note(user, f"{what}: {error}")

    @contextmanager
    def reading_cloud(self, user: UserName, what: str) -> Iterator[None]:
        """Around what plex.tv is asked: its failure is noted, and then it is left alone for a while."""
        try:
            with translated("plex.tv"):
                yield
        except PlexError as error:
            who = user if isinstance(error, PlexRefused) else EVERYBODY
            trouble = CloudTrouble(str(error), self.now + self.settings.cloud_retry_s)
            self.memory = replace(self.memory, cloud=with_entry(self.memory.cloud, who, trouble))
            self.note(user, f"{what}: {error}")

    def reports(self) -> tuple[UserReport, ...]:
        """Everybody whose lists are read, and whoever else something could not be read of."""
        names = dict.fromkeys((*(person.name for person in self.people.persons), *self.problems))
        return tuple(UserReport(name, "; ".join(self.problems.get(name, ()))) for name in names)
