"""A stand-in Plex server: Plex's real XML over HTTP and its websocket, always read through the real plexapi.

It runs in threads of its own; every method below may be called from any thread, from trio code too (they only change
memory and send small messages). One port answers as the server *and* as plex.tv, discover and metadata: give its
``url`` as ``plex.url`` and as ``plex.cloud_url``. The token of the owner is ``token``.

    with run_stand_in_plex() as plex:
        tv = plex.add_library("TV", "show", "/data/TV")              # Plex's own paths, whatever the mount calls them
        show = plex.add_show(tv, "Severance")
        first = plex.add_episode(show, 1, 1, "Good News", "/data/TV/Severance/S01E01.mkv", size=1000)
        films = plex.add_library("Films", "movie", "/data/Films")
        heat = plex.add_film(films, "Heat", 1995, "/data/Films/Heat (1995).mkv", size=1000)
        plex.add_version(heat, "/data/Films/Heat 4K.mkv", 5000)      # another Media; add_part: another Part of it
        plex.remove(heat)

        kid = plex.add_user("kid", "kid-token")                      # a home user; token=None: plex.tv has none
        plex.on_deck(None, first)                                    # None or plex.owner: the owner; or a name
        plex.off_deck(None, first)
        plex.watchlist("kid", heat)            ; plex.unwatchlist("kid", heat)
        plex.mark_watched("kid", first)                              # history, view count, next episode on deck

        session = plex.play("kid", first)                            # notifies over the websocket, like all below
        session.advance(0.5) ; session.pause() ; session.resume()
        session.stop()                                               # at 90 % or more: watched; before: on deck
        session.finish()                                             # to the end, then stop

        plex.stop_server() ; plex.start_server()                     # same port
        plex.requests / plex.clear_requests() / plex.count("/library/metadata")
        plex.wait_until_listening()                                  # a websocket is open (blocks this thread)
        plex.misbehave("/library/onDeck", status=500)                # and html=, drip_s=, hang=…; plex.behave()

To try things by hand over real folders: ``python -m tests.standin.plex_folders``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, TypeVar

from tests.standin import plex_routes
from tests.standin.plex_http import Misbehaviour, Wire
from tests.standin.plex_routes import MACHINE, NAME, VERSION, Answer, Request
from tests.standin.plex_world import (
    Episode,
    File,
    Film,
    Item,
    Library,
    Play,
    Playable,
    Season,
    Show,
    User,
    World,
    now,
)

__all__ = ["MACHINE", "NAME", "VERSION", "Answer", "PlayingSession", "Request", "StandInPlex", "run_stand_in_plex"]

WATCHED_AT = 0.9
_AnyItem = TypeVar("_AnyItem", Film, Show, Season, Episode)
HTML_LOGIN = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><form>Password</form></body></html>"


class StandInPlex:
    """The server and what is in it. Build it with ``run_stand_in_plex``, or call ``stop_server`` yourself."""

    def __init__(self, port: int = 0, owner: str = "owner", token: str = "owner-token", *, tls: bool = False) -> None:
        self.owner = owner
        self.token = token
        self._lock = threading.RLock()
        self._world = World(owner, token)
        self._requests: list[Request] = []
        self._misbehaviours: list[Misbehaviour] = []
        self._wire: Wire | None = None
        self._port = port
        self._tls = tls
        self.start_server()

    # --- the server ---------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def start_server(self) -> None:
        """Listen (again), on the same port as before."""
        if self._wire is None:
            self._wire = Wire(self._port, self._respond, self._admit, tls=self._tls)
            self._port = self._wire.port

    def stop_server(self) -> None:
        """Stop listening and break every connection; what the server knows stays."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    stop, start = stop_server, start_server

    def wait_until_listening(self, count: int = 1, timeout_s: float = 10.0) -> bool:
        """Block until ``count`` websockets are open; False when it took too long."""
        return self._wire is not None and self._wire.wait_for_listeners(count, timeout_s)

    def wait_until_nobody_listens(self, timeout_s: float = 10.0) -> bool:
        """Block until no websocket is open any more."""
        return self._wire is None or self._wire.wait_for_silence(timeout_s)

    def drop_websockets(self) -> None:
        if self._wire is not None:
            self._wire.drop_listeners()

    def send_raw(self, text: str) -> None:
        """Send any text over the websockets."""
        if self._wire is not None:
            self._wire.broadcast(text)

    @property
    def requests(self) -> tuple[Request, ...]:
        """Everything asked so far, websocket handshakes included."""
        with self._lock:
            return tuple(self._requests)

    def count(self, prefix: str = "/") -> int:
        """How many requests had a path that begins with ``prefix``."""
        return sum(1 for request in self.requests if request.path.startswith(prefix))

    def clear_requests(self) -> None:
        with self._lock:
            self._requests.clear()

    def misbehave(
        self,
        prefix: str,
        *,
        status: int = 200,
        body: bytes = HTML_LOGIN,
        content_type: str = "text/html",
        headers: tuple[tuple[str, str], ...] = (),
        drip_s: float = 0.0,
        drip_head: bool = False,
        hang: bool = False,
        hang_up: bool = False,
        host: str = "",
        token: str = "",
    ) -> None:
        """Answer requests below ``prefix`` with this instead; ``host``: those meant for ``plex.tv`` and the like;
        ``token``: those of one user."""
        answer = Answer(status, body, content_type, headers)
        with self._lock:
            self._misbehaviours.append(Misbehaviour(prefix, answer, drip_s, drip_head, hang, hang_up, host, token))

    def behave(self) -> None:
        with self._lock:
            self._misbehaviours.clear()

    # --- the library --------------------------------------------------------------------------------------------------

    def add_library(self, name: str, kind: Literal["movie", "show"], *locations: str) -> Library:
        with self._lock:
            library = Library(self._world.number(), name, kind, list(locations))
            self._world.libraries.append(library)
            return library

    def add_film(self, library: Library, title: str, year: int, path: str, size: int, guid: str | None = None) -> Film:
        with self._lock:
            key = self._world.number()
            film = Film(key, library, title, year, guid or f"plex://movie/{key:024x}", [[File(path, size)]], now())
            library.films.append(film)
            return self._added(film)

    def add_show(self, library: Library, title: str, guid: str | None = None) -> Show:
        with self._lock:
            key = self._world.number()
            show = Show(key, library, title, guid or f"plex://show/{key:024x}", now())
            library.shows.append(show)
            return self._added(show)

    def add_episode(self, show: Show, season: int, number: int, title: str, path: str, size: int) -> Episode:
        with self._lock:
            if season not in show.seasons:
                show.seasons[season] = Season(self._world.number(), show, season)
                self._added(show.seasons[season])
            key = self._world.number()
            guid = f"plex://episode/{key:024x}"
            episode = Episode(key, show.seasons[season], number, title, guid, [[File(path, size)]], now())
            show.seasons[season].episodes.append(episode)
            return self._added(episode)

    def add_version(self, item: Playable, path: str, size: int) -> None:
        """Another version (Media) of the item."""
        with self._lock:
            item.versions.append([File(path, size)])
        self._timeline(item, 5)

    def add_part(self, item: Playable, path: str, size: int) -> None:
        """Another part of the item's first version."""
        with self._lock:
            item.versions[0].append(File(path, size))
        self._timeline(item, 5)

    def remove(self, item: Playable) -> None:
        """Take an item out of the library, off every list."""
        with self._lock:
            del self._world.items[item.rating_key]
            if isinstance(item, Film):
                item.library.films.remove(item)
            else:
                item.season.episodes.remove(item)
            for user in self._world.users.values():
                user.on_deck.pop(item, None)
        self._timeline(item, 9)

    # --- people -------------------------------------------------------------------------------------------------------

    def add_user(
        self, name: str, token: str | None, *, home: bool = True, protected: bool = False, title: str = ""
    ) -> User:
        """A home user (or a friend). ``token`` is what this server accepts; None: plex.tv knows none. ``title``: what
        plex.tv calls the user, if not ``name``."""
        with self._lock:
            number = 900001 + self._world.number()
            user = User(number, number, name, token, home, protected, title)
            self._world.users[name] = user
            return user

    def set_token(self, name: str, token: str | None) -> None:
        """Another token for a user: the old one is refused from now on."""
        with self._lock:
            self._world.user(name).token = token

    def revoke_cloud_token(self, name: str) -> None:
        """plex.tv refuses the token that it gave for this user so far."""
        with self._lock:
            self._world.user(name).cloud_generation += 1

    def on_deck(self, user: str | None, item: Playable, at: float | None = None, viewed: bool = True) -> None:
        """Put an item on deck; ``viewed``: begun at ``at``; otherwise it is next up and was never played."""
        with self._lock:
            who = self._world.user(user)
            moment = now() if at is None else at
            who.on_deck[item] = moment
            if viewed:
                who.state(item).last_at, who.state(item).offset_s = moment, 60.0
        self._timeline(item, 5)

    def off_deck(self, user: str | None, item: Playable) -> None:
        with self._lock:
            self._world.user(user).on_deck.pop(item, None)
        self._timeline(item, 5)

    def watchlist(self, user: str | None, item: Film | Show, at: float | None = None) -> None:
        with self._lock:
            self._world.user(user).watchlist[item] = now() if at is None else at

    def unwatchlist(self, user: str | None, item: Film | Show) -> None:
        with self._lock:
            self._world.user(user).watchlist.pop(item, None)

    def mark_watched(self, user: str | None, item: Playable, at: float | None = None) -> None:
        with self._lock:
            self._world.watched(self._world.user(user), item, now() if at is None else at)
        self._timeline(item, 5)

    def play(self, user: str | None, item: Playable) -> PlayingSession:
        with self._lock:
            play = Play(self._world.number(), self._world.user(user), item)
            self._world.plays.append(play)
        self.show_progress(play)
        return PlayingSession(self, play)

    def scanned(self, library: Library) -> None:
        """Say over the websocket that a scan of the library has ended."""
        activity = {"uuid": "scan", "type": "library.update.section", "title": library.name, "progress": 100}
        self._notify("activity", "ActivityNotification", [{"event": "ended", "uuid": "scan", "Activity": activity}])

    # --- for PlayingSession -------------------------------------------------------------------------------------------

    def move(self, play: Play, *, state: str | None = None, position_s: float | None = None) -> None:
        with self._lock:
            play.state = state or play.state
            play.position_s = play.position_s if position_s is None else position_s
        self.show_progress(play)

    def end(self, play: Play) -> None:
        with self._lock:
            if play not in self._world.plays:
                return
            self._world.plays.remove(play)
            progress = play.position_s / play.item.duration_s
            if progress >= WATCHED_AT:
                self._world.watched(play.user, play.item, now())
            elif progress > 0:
                state = play.user.state(play.item)
                state.last_at, state.offset_s = now(), play.position_s
                play.user.on_deck[play.item] = now()
            play.state = "stopped"
        self.show_progress(play)

    def show_progress(self, play: Play) -> None:
        """The message that Plex sends at every change and about every ten seconds."""
        entry: dict[str, object] = {
            "sessionKey": str(play.key), "clientIdentifier": f"player-{play.key}", "guid": "", "url": "",
            "ratingKey": str(play.item.rating_key), "key": f"/library/metadata/{play.item.rating_key}",
            "viewOffset": int(play.position_s * 1000), "playQueueItemID": 1, "state": play.state,
        }  # fmt: skip
        self._notify("playing", "PlaySessionStateNotification", [entry])

    # --- inside -------------------------------------------------------------------------------------------------------

    def _added(self, item: _AnyItem) -> _AnyItem:
        self._world.items[item.rating_key] = item
        self._timeline(item, 5)
        return item

    def _timeline(self, item: Item, state: int) -> None:
        section = item.show.library.key if isinstance(item, Season) else item.library.key
        entry: dict[str, object] = {
            "identifier": "com.plexapp.plugins.library", "sectionID": str(section), "itemID": str(item.rating_key),
            "type": 1, "state": state, "title": "x", "updatedAt": int(now()),
        }  # fmt: skip
        self._notify("timeline", "TimelineEntry", [entry])

    def _notify(self, kind: str, name: str, entries: list[dict[str, object]]) -> None:
        if self._wire is not None:
            self._wire.notify(kind, name, entries)

    def _respond(self, request: Request) -> Answer | Misbehaviour:
        with self._lock:
            self._requests.append(request)
            wrong = next((each for each in self._misbehaviours if each.applies(request)), None)
            if wrong is None:
                return plex_routes.answer(self._world, request)
            return replace(wrong, answer=plex_routes.answer(self._world, request)) if wrong.hang_up else wrong

    def _admit(self, request: Request) -> bool:
        with self._lock:
            self._requests.append(request)
            return self._world.by_server_token(request.token) is not None


class PlayingSession:
    """Somebody playing something on the stand-in."""

    def __init__(self, plex: StandInPlex, play: Play) -> None:
        self._plex = plex
        self._play = play

    @property
    def key(self) -> int:
        return self._play.key

    def advance(self, fraction: float) -> None:
        """Play on to ``fraction`` (0 to 1) of the item."""
        self._plex.move(self._play, position_s=fraction * self._play.item.duration_s)

    def pause(self) -> None:
        self._plex.move(self._play, state="paused")

    def resume(self) -> None:
        self._plex.move(self._play, state="playing")

    def stop(self) -> None:
        """End the session: at 90 % or more the item is watched, before that it is on deck."""
        self._plex.end(self._play)

    def finish(self) -> None:
        """Play to the end, and stop."""
        self.advance(1.0)
        self.stop()


@contextmanager
def run_stand_in_plex(
    port: int = 0, owner: str = "owner", token: str = "owner-token", *, tls: bool = False
) -> Iterator[StandInPlex]:
    """A running stand-in on a free port (or ``port``), gone at the end of the block."""
    plex = StandInPlex(port, owner, token, tls=tls)
    try:
        yield plex
    finally:
        plex.stop_server()
