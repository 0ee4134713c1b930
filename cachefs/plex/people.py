"""Whose lists are read: the owner, and every home user for whom plex.tv gives the owner a token.

Called by ``gather`` at most hourly, or when a token was refused. A user without a token is skipped with the reason:
plexapi would make a server with no token, and that speaks for whoever the server thinks is asking.
"""

from __future__ import annotations

from collections.abc import Mapping

from cachefs.errors import PlexRefused
from cachefs.model import UserName
from cachefs.plex.connection import Connection, Item, home_users, shared_tokens, switched_token, translated
from cachefs.plex.memory import People, Person

OWNER_ACCOUNT = 1
"""The owner's number among a server's own accounts."""
NO_TOKEN = "plex.tv has no token of this user for this server; share a library with the user"


def owner_alone(server: Item, token: str, now: float, *, complete: bool) -> People:
    """The people as far as the server itself knows them."""
    names = account_names(server)
    name = names.get(OWNER_ACCOUNT, UserName("owner"))
    owner = Person(name, token, token if server.myPlex else "", is_owner=True)
    return People((owner,), names, now, complete)


def everybody(connection: Connection, server: Item, known: People) -> People:
    """``known`` (the owner) and the home users. Raises ``PlexError`` when plex.tv cannot be asked."""
    owner = known.persons[0]
    with translated("plex.tv"):
        account = connection.account(owner.token)
        tokens = shared_tokens(account, server.machineIdentifier)
        persons = tuple(_person(account, user, tokens) for user in home_users(account))
    return People((owner, *persons), known.names, known.read_at)


def account_names(server: Item) -> Mapping[int, UserName]:
    """The names of the server's accounts: the same in sessions and in the watch history."""
    return {account.id: UserName(account.name) for account in server.systemAccounts() if account.name}


def _person(account: Item, user: Item, tokens: Mapping[int, str]) -> Person:
    name = UserName(user.title or user.username or str(user.id))
    token = tokens.get(user.id, "")
    if not token:
        return Person(name, "", "", NO_TOKEN)
    if user.protected:
        return Person(name, token, "", "the watchlist is not read: the user has a PIN")
    try:
        cloud_token = switched_token(account, user.id)
    except PlexRefused:
        cloud_token = ""
    return Person(name, token, cloud_token, "" if cloud_token else "the watchlist is not read: plex.tv refuses it")
