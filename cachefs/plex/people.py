"""Whose lists are read: the owner, and every home user for whom plex.tv gives the owner a token.

Called by ``gather`` at most hourly, or when a token was refused. A user without a token is skipped with the reason:
plexapi would make a server with no token, and that speaks for whoever the server thinks is asking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from cachefs.errors import PlexRefused
from cachefs.model import UserName
from cachefs.plex.connection import Connection, Item, home_users, shared_tokens, switched_token, translated
from cachefs.plex.memory import People, Person

OWNER_ACCOUNT = 1
"""The owner's number among a server's own accounts."""
NO_TOKEN = "plex.tv has no token of this user for this server; share a library with the user"


def owner_alone(server: Item, token: str, now: float, *, complete: bool) -> People:
    """The people as far as the server itself knows them."""
    accounts = account_names(server)
    name = accounts.get(OWNER_ACCOUNT, UserName("owner"))
    owner = Person(name, OWNER_ACCOUNT, token, token if server.myPlex else "", is_owner=True)
    return People((owner,), accounts, now, complete)


def everybody(connection: Connection, server: Item, known: People) -> People:
    """``known`` (the owner) and the home users. Raises ``PlexError`` when plex.tv cannot be asked."""
    owner = known.persons[0]
    with translated("plex.tv"):
        account = connection.account(owner.token)
        tokens = shared_tokens(account, server.machineIdentifier)
        users = home_users(account)
        calls = Counter((owner.name, *map(_title, users)))
        names = (_title(user) if calls[_title(user)] == 1 else f"{_title(user)} ({user.id})" for user in users)
        persons = tuple(_person(account, user, UserName(name), tokens) for user, name in zip(users, names, strict=True))
    return replace(known, persons=(owner, *persons), complete=True)


def account_names(server: Item) -> Mapping[int, UserName]:
    """The names of the server's accounts, by the numbers that sessions and the watch history have."""
    return {account.id: UserName(account.name) for account in server.systemAccounts() if account.name}


def _title(user: Item) -> str:
    return user.title or user.username or str(user.id)


def _person(account: Item, user: Item, name: UserName, tokens: Mapping[int, str]) -> Person:
    token = tokens.get(user.id, "")
    if not token:
        return Person(name, user.id, "", "", NO_TOKEN)
    if user.protected:
        return Person(name, user.id, token, "", "the watchlist is not read: the user has a PIN")
    try:
        cloud_token = switched_token(account, user.id)
    except PlexRefused:
        cloud_token = ""
    problem = "" if cloud_token else "the watchlist is not read: plex.tv refuses it"
    return Person(name, user.id, token, cloud_token, problem)
