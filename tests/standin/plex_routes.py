"""Which request of the stand-in leads to which answer: the server's own routes, and those of plex.tv and discover.

``answer`` is called by ``plex_http`` under the stand-in's lock. A request's ``Host`` says for whom it was meant:
``*.plex.tv`` for the cloud, anything else for the server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote
from xml.etree.ElementTree import Element, SubElement

from tests.standin import plex_xml as xml
from tests.standin.plex_world import OWNER_ACCOUNT, Episode, Film, Item, Season, Show, User, World

MACHINE = "5tandin0000000000000000000000000000000001"
NAME = "Stand-in"
VERSION = "1.41.3.9314-a0bfb8370"


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    token: str
    target: str
    """Path and query exactly as sent."""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def cloud(self) -> bool:
        return self.host.split(":")[0].endswith("plex.tv")


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    content_type: str = "text/xml;charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class _Refuse(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


def answer(world: World, request: Request) -> Answer:
    """What Plex says to ``request``."""
    try:
        handler = _cloud if request.cloud else _server
        return Answer(body=xml.document(handler(world, request)))
    except _Refuse as refused:
        return Answer(refused.status, b"<html><head><title>No</title></head></html>", "text/html")


# --- the server -------------------------------------------------------------------------------------------------------


def _server(world: World, request: Request) -> Element:
    if request.path == "/identity":
        return xml.container(claimed=1, machineIdentifier=MACHINE, version=VERSION)
    user = world.by_server_token(request.token)
    if user is None:
        raise _Refuse(401)
    for pattern, handler in _ROUTES:
        if found := re.fullmatch(pattern, request.path):
            return handler(world, user, request, *found.groups())
    raise _Refuse(404)


def _root(world: World, user: User, request: Request) -> Element:
    return xml.container(
        friendlyName=NAME, machineIdentifier=MACHINE, version=VERSION, myPlex=1, myPlexMappingState="mapped",
        myPlexSigninState="ok", myPlexSubscription=1, myPlexUsername=f"{world.owner.name}@example.com",
        platform="Linux", transcoderActiveVideoSessions=0, multiuser=1, updatedAt=1700000000,
    )  # fmt: skip


def _accounts(world: World, user: User, request: Request) -> Element:
    _only_owner(user)
    nobody = Element("Account", id="0", key="/accounts/0", name="")
    return xml.container([nobody, *(xml.account(each) for each in world.users.values())], identifier=xml.LIBRARY)


def _library(world: World, user: User, request: Request) -> Element:
    return xml.container(title1="Plex Library", identifier=xml.LIBRARY, mediaTagVersion=1700000000)


def _sections(world: World, user: User, request: Request) -> Element:
    return xml.container((xml.section(library) for library in world.libraries), title1="Plex Library", allowSync=0)


def _section_items(world: World, user: User, request: Request, key: str) -> Element:
    library = next((library for library in world.libraries if library.key == int(key)), None)
    if library is None:
        raise _Refuse(404)
    kind = request.query.get("type", "1" if library.kind == "movie" else "2")
    kinds: dict[str, list[Item]] = {"1": [*library.films], "2": [*library.shows], "4": [*library.episodes]}
    items = kinds.get(kind, [])
    if request.query.get("sort") == "addedAt:desc":
        items.sort(key=_added_at, reverse=True)
    return _page(items, user, request, librarySectionID=library.key, librarySectionTitle=library.name)


def _all_items(world: World, user: User, request: Request) -> Element:
    guid, kind = request.query.get("guid"), request.query.get("type")
    items: Iterable[Item] = (item for item in world.items.values() if isinstance(item, Film | Show | Episode))
    kinds: dict[str | None, type] = {"1": Film, "2": Show, "4": Episode}
    if kind is not None:
        items = (item for item in items if isinstance(item, kinds[kind]))
    if guid is not None:
        items = (item for item in items if isinstance(item, Film | Show | Episode) and item.guid == guid)
    return _page(list(items), user, request)


def _on_deck(world: World, user: User, request: Request) -> Element:
    items = sorted(user.on_deck, key=user.on_deck.__getitem__, reverse=True)
    return _page([*items], user, request)


def _metadata(world: World, user: User, request: Request, keys: str) -> Element:
    items = [world.items[int(key)] for key in keys.split(",") if int(key) in world.items]
    if not items:
        raise _Refuse(404)
    full = [xml.show_item(item, user, full=True) for item in items]
    return xml.container(full, identifier=xml.LIBRARY, allowSync=1)


def _children(world: World, user: User, request: Request, key: str) -> Element:
    item = world.items.get(int(key))
    children: list[Item] = []
    if isinstance(item, Show):
        children = [item.seasons[number] for number in sorted(item.seasons)]
    elif isinstance(item, Season):
        children = list(item.in_order)
    elif item is None:
        raise _Refuse(404)
    if (index := request.query.get("index")) is not None:
        children = [child for child in children if _index(child) == int(index)]
    return _page(children, user, request)


def _leaves(world: World, user: User, request: Request, key: str) -> Element:
    item = world.items.get(int(key))
    if not isinstance(item, Show):
        raise _Refuse(404)
    return _page(list(item.episodes), user, request)


def _play_sessions(world: World, user: User, request: Request) -> Element:
    _only_owner(user)
    return xml.container(xml.session(play) for play in world.plays)


def _history(world: World, user: User, request: Request) -> Element:
    _only_owner(user)
    since = float(request.query.get("viewedAt>", "0"))
    rows = sorted((row for row in world.history if row.at >= since), key=lambda row: -row.at)
    start, size = _window(request, len(rows))
    shown = [xml.history_row(row) for row in rows[start : start + size]]
    return xml.container(shown, totalSize=len(rows), offset=start)


def _search(world: World, user: User, request: Request) -> Element:
    wanted = request.query.get("query", "").casefold()
    found = [item for item in world.items.values() if not isinstance(item, Season) and wanted in item.title.casefold()]
    hubs = []
    for kind, of in (("movie", Film), ("show", Show), ("episode", Episode)):
        elements = [xml.show_item(item, user) for item in found if isinstance(item, of)]
        hub = Element("Hub", hubIdentifier=kind, type=kind, title=kind, size=str(len(elements)), hubKey="", key="")
        hub.extend(elements)
        hubs.append(hub)
    return xml.container(hubs, identifier="com.plexapp.plugins.search")


_Handler = Callable[..., Element]
_ROUTES: tuple[tuple[str, _Handler], ...] = (
    (r"/", _root),
    (r"/accounts", _accounts),
    (r"/library/?", _library),
    (r"/library/sections/?", _sections),
    (r"/library/sections/(\d+)/all", _section_items),
    (r"/library/all", _all_items),
    (r"/library/onDeck", _on_deck),
    (r"/hubs/continueWatching/items", _on_deck),
    (r"/library/metadata/([\d,]+)", _metadata),
    (r"/library/metadata/(\d+)/children", _children),
    (r"/library/metadata/(\d+)/(?:allLeaves|grandchildren)", _leaves),
    (r"/status/sessions", _play_sessions),
    (r"/status/sessions/history/all", _history),
    (r"/hubs/search", _search),
)


def _page(items: list[Item], user: User, request: Request, **attributes: object) -> Element:
    start, size = _window(request, len(items))
    shown = [xml.show_item(item, user) for item in items[start : start + size]]
    return xml.container(
        shown, identifier=xml.LIBRARY, totalSize=len(items), offset=start, allowSync=1, **attributes
    )  # fmt: skip


def _window(request: Request, total: int) -> tuple[int, int]:
    start = request.headers.get("x-plex-container-start", "0")
    size = request.headers.get("x-plex-container-size", str(total))
    return int(start), int(size)


def _only_owner(user: User) -> None:
    if not user.owner:
        raise _Refuse(403)


def _index(item: Item) -> int:
    return item.number if isinstance(item, Season | Episode) else 1


def _added_at(item: Item) -> float:
    return item.show.added_at if isinstance(item, Season) else item.added_at


# --- plex.tv, discover, metadata --------------------------------------------------------------------------------------


def _cloud(world: World, request: Request) -> Element:
    user = world.by_cloud_token(request.token)
    if user is None:
        raise _Refuse(401)
    host = request.host.split(":")[0]
    if host == "discover.provider.plex.tv" and request.path == "/library/sections/watchlist/all":
        items = sorted(user.watchlist, key=lambda item: -user.watchlist[item])
        start, size = _window(request, len(items))
        shown = [xml.watchlist_item(item) for item in items[start : start + size]]
        return xml.container(shown, totalSize=len(items), offset=start, librarySectionID="watchlist")
    if host == "metadata.provider.plex.tv":
        return _online_metadata(user, request)
    if host in ("plex.tv", "clients.plex.tv"):
        return _account_service(world, user, request)
    raise _Refuse(404)


def _online_metadata(user: User, request: Request) -> Element:
    if request.path == "/":
        return xml.container(friendlyName="metadata", identifier="tv.plex.provider.metadata")
    found = re.fullmatch(r"/library/metadata/([0-9a-f]+)/userState", request.path)
    item = next((item for item in user.watchlist if found and item.guid.endswith(found[1])), None)
    if found is None or item is None:
        raise _Refuse(404)
    state = Element("UserState", ratingKey=found[1], watchlistedAt=str(int(user.watchlist[item])), viewCount="0")
    return xml.container([state])


def _account_service(world: World, user: User, request: Request) -> Element:
    if request.path == "/api/v2/user":
        return _signed_in(user)
    if found := re.fullmatch(r"/api/home/users/(\d+)/switch", request.path):
        other = next((each for each in world.users.values() if each.cloud_id == int(found[1])), None)
        if request.method != "POST" or other is None:
            raise _Refuse(404)
        if not user.owner or other.protected:
            raise _Refuse(401)
        return Element("user", id=str(other.cloud_id), title=other.name, authenticationToken=other.cloud_token)
    if not user.owner:
        raise _Refuse(401)
    others = [each for each in world.users.values() if not each.owner]
    if request.path in ("/api/users/", "/api/users", "/api/home/users", "/api/v2/home/users"):
        home_only = "home" in request.path
        return xml.container(
            (_account_user(each) for each in others if each.home or not home_only), friendlyName="myPlex",
            identifier="com.plexapp.plugins.myplex", machineIdentifier="plex.tv",
        )  # fmt: skip
    if request.path == f"/api/servers/{MACHINE}/shared_servers":
        shares = (_share(each) for each in others if each.token is not None)
        return xml.container(shares, friendlyName="myPlex", machineIdentifier=MACHINE)
    raise _Refuse(404)


def _signed_in(user: User) -> Element:
    element = Element(
        "user", id=str(user.cloud_id), uuid=f"uuid-{user.cloud_id}", username=user.name, title=user.name,
        email=f"{user.name}@example.com", friendlyName=user.name, authToken=user.cloud_token, scrobbleTypes="",
        home="1", homeAdmin="1" if user.owner else "0", guest="0", restricted="0", protected="0", homeSize="3",
    )  # fmt: skip
    SubElement(element, "subscription", active="1", status="Active", plan="lifetime", subscribedAt="")
    SubElement(element, "profile", autoSelectAudio="1", defaultAudioLanguage="en", autoSelectSubtitle="0")
    return element


def _account_user(user: User) -> Element:
    element = Element(
        "User", id=str(user.cloud_id), title=user.title or user.name, username=user.name if not user.home else "",
        email=f"{user.name}@example.com" if not user.home else "", home="1" if user.home else "0", restricted="0",
        protected="1" if user.protected else "0", thumb="https://plex.tv/users/x/avatar", allowSync="0",
    )  # fmt: skip
    SubElement(element, "Server", id=str(user.cloud_id + 5000), serverId="77", machineIdentifier=MACHINE, name=NAME,
               lastSeenAt="1700000000", numLibraries="2", allLibraries="1", owned="1", pending="0")  # fmt: skip
    return element


def _share(user: User) -> Element:
    return Element(
        "SharedServer", id=str(user.cloud_id + 5000), username=user.name, userID=str(user.cloud_id),
        accessToken=user.token or "", name=NAME, acceptedAt="1700000000", invitedAt="1700000000", allLibraries="1",
    )  # fmt: skip


def target_of(path: str) -> tuple[str, dict[str, str]]:
    """Path and query of a request target; Plex's own filters hold signs such as ``viewedAt>=``."""
    path, _, text = path.partition("?")
    query = {}
    for pair in filter(None, text.split("&")):
        name, _, value = pair.partition("=")
        query[unquote(name)] = unquote(value.replace("+", " "))
    return unquote(path), query


__all__ = ["MACHINE", "NAME", "OWNER_ACCOUNT", "VERSION", "Answer", "Request", "answer", "target_of"]
