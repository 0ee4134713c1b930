"""The story of the demo, act by act, a measurement, and what must have been true for it to have happened.

``tell`` is called by ``__main__``. An act that does not come about in its time ends the story; a fact that turns out
otherwise is noted, and the story goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.demo.scene import AFTER_S, DISK, FILM_ON_WATCHLIST, FRIEND, KEEP_WATCHED_S, OWNER, Scene
from tests.demo.screen import Screen
from tests.demo.stop import Stop
from tests.demo.view import Audience, View, look
from tests.demo.viewing import Viewer, scan, viewer
from tests.standin.library import SampleFile
from tests.standin.plex import PlayingSession

LOOK_EVERY_S = 0.2
ADVANCE_EVERY_S = 1.0
PLAN_EVERY_S = 1.5
"""A plan asks Plex anew; oftener would be a load of the demo's own making."""
STREAM_BYTES_PER_S = 2.5e6
"""20 Mbit/s; one episode of the sample library lasts thirteen seconds."""
AT_ONCE_S = 0.5

SHOW = "Slow Tides"
FILM_ON_DECK, FILM_OF_NOBODY = "Cold Platter (1987)", "Seek Time (2004)"


class StoryEnded(Exception):
    """An act did not come about; the text says what was missing."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One file read from beginning to end, as fast as it came."""

    name: str
    first_byte_s: float
    bytes_per_s: float
    operations: int
    wake_ups: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left when the story is over; it happened when nothing is ``missing``."""

    missing: tuple[str, ...]
    measurements: tuple[Measurement, ...]


@dataclass(slots=True)
class Story:
    """The storyteller: where it is, who watches, and what has turned out wrong."""

    scene: Scene
    screen: Screen
    stop: Stop
    missing: list[str] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    audience: Audience | None = None
    session: PlayingSession | None = None
    advanced_at: float = 0.0

    def tell(self) -> Outcome:
        """All of it. ``Stopped`` when somebody asks the demo to end."""
        try:
            self._watchlist()
            self._first_episode()
            self._on_deck()
            self._next_episode()
            self._watched()
            self._measure_both()
        except StoryEnded as ended:
            self.missing.append(str(ended))
        return Outcome(tuple(self.missing), tuple(self.measurements))

    # --- the acts ---

    def _watchlist(self) -> None:
        self.screen.act(
            f"Before: Plex looks through its library, and {FRIEND} has a film on the watchlist, which goes to the SSD."
        )
        with scan(self.scene.cachefs.mountpoint) as scanning:
            self._until(lambda _: scanning.poll() is not None, 30, "Plex's look through its library")
        wanted = self._film(FILM_ON_WATCHLIST).path
        self._until(lambda view: view.is_cached(wanted), 60, f"{FILM_ON_WATCHLIST} on the SSD", with_plan=True)
        self._until(View.is_settled, 20, "the end of all copying", with_plan=True)

    def _first_episode(self) -> None:
        episodes = self._videos()
        self.screen.act(f"1. {OWNER} starts {SHOW} S01E01. The disk is asleep.")
        self.scene.disk.sleep()
        with self._watching(f"{SHOW} S01E01", STREAM_BYTES_PER_S) as anna:
            self._until(lambda _: anna.report.first_byte_s is not None, 20, "the first byte of the first episode")
            waited_s = anna.report.first_byte_s or 0.0
            self.screen.say(f"first byte after {waited_s:.1f} s: the disk had to wake up")
            self._fact(waited_s >= 0.9 * DISK.wake_up_s, "the first episode did not wait for the disk to wake up")
            self.screen.act(
                f"2. cachefs saw the session; after {AFTER_S} s it copies this episode and the next two to the SSD, "
                "and the running stream moves there."
            )
            self._until(lambda view: view.is_cached(episodes[0]), 40, f"{SHOW} S01E01 on the SSD", with_plan=True)
            self._fact(anna.running, "the first episode was on the SSD only after it had been watched")
            self._until(lambda view: view.moved_to_ssd(episodes[0]), 10, "the running stream on the SSD")
            self._until(lambda view: view.is_cached(*episodes[:3]), 40, "the next two episodes on the SSD", True)
            self._until(lambda _: not anna.running, 40, "the end of the first episode")
        self._fact(anna.saw_it_right, "the first episode was not read right to its end")

    def _on_deck(self) -> None:
        self.screen.act(
            f"3. {FRIEND} stops in the middle of {FILM_ON_DECK}, {OWNER} has finished her episode: what is now On Deck "
            "goes to the SSD, with the next episodes, across the end of the season."
        )
        self.scene.plex.on_deck(FRIEND, self.scene.items.films[FILM_ON_DECK])
        wanted = (self._film(FILM_ON_DECK).path, *self._videos()[1:])
        self._until(lambda view: view.is_cached(*wanted), 60, "the film On Deck and the next episodes on the SSD", True)
        self._until(View.is_settled, 20, "the end of all copying", with_plan=True)

    def _next_episode(self) -> None:
        self.screen.act(f"4. {OWNER} starts the next episode. The disk is asleep, and sleeps on.")
        self.scene.disk.sleep()
        self.scene.disk.reset()
        with self._watching(f"{SHOW} S01E02", 2 * STREAM_BYTES_PER_S) as anna:
            self._until(lambda _: anna.report.first_byte_s is not None, 20, "the first byte of the next episode")
            waited_s = anna.report.first_byte_s or 0.0
            self.screen.say(f"first byte after {waited_s * 1000:.0f} ms, from the SSD")
            self._fact(waited_s < AT_ONCE_S, f"the next episode began after {waited_s:.1f} s only")
            view = self._until(lambda _: not anna.running, 40, "the end of the next episode")
        self._fact(anna.saw_it_right, "the next episode was not read right to its end")
        self._fact(view.disk.asleep, "the disk was woken by an episode that is on the SSD")
        self._fact(
            view.disk.total == 0, f"the disk was asked for an episode that is on the SSD: {dict(view.disk.operations)}"
        )

    def _watched(self) -> None:
        first, second, third = self._videos()[:3]
        self.screen.act(f"5. Both episodes are watched; {KEEP_WATCHED_S} s later they leave the SSD.")
        view = self._until(lambda view: view.is_absent(first, second), KEEP_WATCHED_S + 30, "watched episodes evicted")
        self._fact(view.is_cached(third), "the third episode was evicted, though it is next")

    def _measure_both(self) -> None:
        self.screen.act("6. Two films of the same size, read as fast as they come; the disk is asleep each time.")
        self.scene.forget_in_memory(self._film(FILM_ON_WATCHLIST))
        slow = self._measure("slow disk", FILM_OF_NOBODY)
        cached = self._measure("SSD", FILM_ON_WATCHLIST)
        self._fact(slow.operations > 0, "reading an uncached film did not reach the disk")
        self._fact(cached.operations == 0, "reading a cached film reached the disk")
        self._fact(cached.first_byte_s < slow.first_byte_s, "the SSD was not faster than the disk")

    def _measure(self, name: str, title: str) -> Measurement:
        self.scene.disk.sleep()
        self.scene.disk.reset()
        with viewer(self.scene.cachefs.mountpoint, self._film(title)) as reader:
            view = self._until(lambda _: not reader.running, 40, f"{title} read from the {name}")
        self._fact(reader.saw_it_right, f"{title} was not read right from the {name}")
        report = reader.report
        first_byte_s, disk = report.first_byte_s or 0.0, view.disk
        self.measurements.append(Measurement(name, first_byte_s, report.bytes_per_s, disk.total, disk.wake_ups))
        return self.measurements[-1]

    # --- inside ---

    @contextmanager
    def _watching(self, name: str, bytes_per_s: float) -> Iterator[Viewer]:
        """The owner plays an episode of the show: a session in Plex and a viewer at the mount; watched at the end."""
        session = self.scene.plex.play(OWNER, self.scene.items.episodes[name])
        episode = next(each for each in self.scene.library.show(SHOW).episodes if each.name == name)
        with viewer(self.scene.cachefs.mountpoint, episode.video, bytes_per_s) as watching:
            self.audience, self.session = Audience(OWNER, name, watching), session
            try:
                yield watching
            finally:
                self.audience = self.session = None
        session.finish()

    def _fact(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            self.missing.append(otherwise)
            self.screen.say(f"NOT SO: {otherwise}")

    def _until(self, reached: Callable[[View], bool], within_s: float, what: str, with_plan: bool = False) -> View:
        """Look again and again, let Plex know how far the stream is, and return the look at which it was reached."""
        deadline = time.monotonic() + within_s
        plan, planned_at = None, float("-inf")
        while True:
            if with_plan and time.monotonic() - planned_at > PLAN_EVERY_S:
                plan, planned_at = self.scene.control.plan(), time.monotonic()
            view = look(self.scene, self.audience, plan)
            self.screen.show(view)
            self._advance()
            if reached(view):
                return view
            if time.monotonic() > deadline:
                raise StoryEnded(f"not within {within_s:.0f} s: {what}")
            self.stop.wait(LOOK_EVERY_S)

    def _advance(self) -> None:
        if self.session and self.audience and time.monotonic() - self.advanced_at > ADVANCE_EVERY_S:
            self.session.advance(self.audience.viewer.progress)
            self.advanced_at = time.monotonic()

    def _videos(self) -> list[str]:
        return [episode.video.path for episode in self.scene.library.show(SHOW).episodes]

    def _film(self, name: str) -> SampleFile:
        return next(film.video for film in self.scene.library.films if film.name == name)
