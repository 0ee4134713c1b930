"""HTTP to Plex: the only module that imports plexapi.

Built for one call of ``PlexClient`` and used in its worker thread only, but for ``abort``. It sees to it that

* an answer has a size limit, and one that is no answer of Plex's is a ``PlexAnswer``;
* the token travels in a header, to the server or plex.tv and nowhere else: no redirect is followed, no key that an
  answer holds can lead to another host, and no error text of requests, urllib3 or plexapi is passed on;
* plexapi never asks again by itself when an attribute is empty (its *autoreload*);
* what hangs ends: ``abort`` breaks every connection, and plex.tv has its own, smaller share of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, ParseError

import plexapi
import requests
from plexapi.exceptions import NotFound, PlexApiException
from plexapi.myplex import MyPlexAccount, UserState
from plexapi.server import PlexServer

from cachefs.errors import PlexAnswer, PlexError, PlexRefused, PlexUnreachable
from cachefs.plex.causes import words_for
from cachefs.plex.values import PlexSettings, origin_of
from cachefs.plex.wire import CLOUD_HOSTS, RECEIVE_TIMEOUT_S, Adapter

Item = Any
"""A plexapi object (untyped there): a film, show, season, episode, session or history row."""

# Replaces what a plexapi config.ini of this user says: it could show tokens in logs or supply another server's.
plexapi.CONFIG.data = {"plexapi": {"autoreload": "false"}}


class PlexMissing(PlexAnswer):
    """Plex does not know what was asked for (404)."""


class Connection:
    """The connections of one call. ``close`` when done; ``abort`` from another thread to end it now."""

    def __init__(self, settings: PlexSettings) -> None:
        self._settings = settings
        self._adapter = Adapter(settings)
        self._session = requests.Session()
        self._session.mount("https://", self._adapter)
        self._session.mount("http://", self._adapter)

    def server(self, token: str) -> Item:
        """The server as the owner of ``token`` sees it. Asks for its root, so that a wrong token shows here."""
        _need(token)
        with translated(self._settings.origin):
            return _Server(self._settings.url, token, session=self._session, timeout=RECEIVE_TIMEOUT_S)  # type: ignore[no-untyped-call]

    def account(self, token: str) -> Item:
        """The plex.tv account of ``token``."""
        _need(token)
        with translated("plex.tv"):
            account = _Account(token=token, session=self._session, timeout=RECEIVE_TIMEOUT_S)  # type: ignore[no-untyped-call]
        if not account.authToken:
            raise PlexAnswer("plex.tv gave an answer that names no account")
        return account

    def abort(self) -> None:
        """Break every connection and refuse new ones: whatever waits for an answer gets an error now. Any thread."""
        self._adapter.abort()

    def close(self) -> None:
        self._session.close()


def items(
    server: Item, key: str, *, start: int = 0, limit: int = 1000, params: Mapping[str, object] | None = None
) -> list[Item]:
    """What a key of the server (or an address of an account's service) lists, at most ``limit`` items."""
    return list(server.fetchItems(key, container_start=start, maxresults=limit, params=dict(params or {})))


def home_users(account: Item) -> list[Item]:
    """The home users of the account, without its owner."""
    return [user for user in account.users() if user.home]


def shared_tokens(account: Item, machine: str) -> dict[int, str]:
    """The tokens that plex.tv has for this server, by account number.

    plexapi's ``user.get_token`` asks the same once for every user, and answers None when the request failed, as if
    there were no token.
    """
    shares = account.query(account.FRIENDINVITE.format(machineId=machine))
    found = ((share.attrib.get("userID", ""), share.attrib.get("accessToken")) for share in shares)
    return {int(number): token for number, token in found if token and number.isdigit()}


def switched_token(account: Item, number: int) -> str:
    """The plex.tv token of a home user without a PIN; empty when plex.tv gives none."""
    answer = account.query(f"{account.HOMEUSERS}/{number}/switch", method=account._session.post)
    return answer.attrib.get("authenticationToken") or ""


def watchlisted_at(account: Item, guid: str) -> Item:
    """When the account's owner put ``guid`` on the watchlist (a datetime), or None."""
    data = account.query(f"{account.METADATA}/library/metadata/{guid.rsplit('/', 1)[-1]}/userState")
    state = account.findItem(data, cls=UserState)
    return state.watchlistedAt if state is not None else None


# --- plexapi, made safe ----------------------------------------------------------------------------------------------


class _Server(PlexServer):
    """A server whose token is never in a URL, and whose answers are Plex's."""

    @property
    def party(self) -> str:
        return origin_of(self._baseurl)

    def url(self, key: str, includeToken: bool | None = None) -> str:
        if not key.startswith("/"):
            raise PlexAnswer(f"{self.party} names an item by something that is no path")
        return f"{self._baseurl}{key}"

    def query(self, key: str, *args: Any, **kwargs: Any) -> Element:
        with translated(self.party):
            data = super().query(key, *args, **kwargs)  # type: ignore[no-untyped-call]
        if not isinstance(data, Element) or data.tag != "MediaContainer":
            raise PlexAnswer(f"{self.party} gives answers that are not a Plex server's; is plex.url right?")
        return data

    def _headers(self, **kwargs: str) -> dict[str, str]:
        return _named(super()._headers(**kwargs))  # type: ignore[no-untyped-call]


class _Account(MyPlexAccount):
    """An account whose answers are XML, whatever else plexapi would take."""

    party = "plex.tv"

    def query(self, url: str, *args: Any, **kwargs: Any) -> Element:
        if urlsplit(url).netloc not in CLOUD_HOSTS:
            raise PlexAnswer("plex.tv names an item by an address elsewhere")
        with translated(self.party):
            data = super().query(url, *args, **kwargs)  # type: ignore[no-untyped-call]
        if not isinstance(data, Element) or data.tag == "html":
            raise PlexAnswer("plex.tv gave an answer that cannot be understood")
        return data

    def _headers(self, **kwargs: str) -> dict[str, str]:
        return _named(super()._headers(**kwargs))  # type: ignore[no-untyped-call]


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {**headers, "X-Plex-Product": "cachefs"}


def _need(token: str) -> None:
    """plexapi takes an empty token for "find one yourself", and would speak for somebody else."""
    if not token:
        raise PlexRefused("there is no token to show to Plex; set plex.token or plex.token_file")


# --- errors -----------------------------------------------------------------------------------------------------------


@contextmanager
def translated(party: str) -> Iterator[None]:
    """Foreign errors become ours, in the name of ``party``. Their texts are dropped: they hold URLs and pieces of
    answers. To be put around everything that uses plexapi's objects: they parse when they are read."""
    try:
        yield
    except PlexError:
        raise
    except NotFound:
        raise PlexMissing(f"{party} does not know what was asked for") from None
    except requests.exceptions.SSLError:
        raise PlexUnreachable(f"{party} does not speak TLS, or shows a certificate that is not accepted") from None
    except requests.exceptions.Timeout:
        raise PlexUnreachable(f"{party} does not answer in time") from None
    except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise PlexUnreachable(f"{party} cannot be reached{words_for(error)}") from None
    except (requests.exceptions.RequestException, PlexApiException, ParseError) as error:
        raise PlexAnswer(f"{party} gave an answer that cannot be understood ({type(error).__name__})") from None
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        place = f"{type(error).__name__} in {_place(error)}"
        raise PlexAnswer(f"{party} gave an answer that cannot be understood ({place})") from None


def _place(error: BaseException) -> str:
    """The innermost function that failed: enough to find our own mistake, free of data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_name if trace is not None else "?"
