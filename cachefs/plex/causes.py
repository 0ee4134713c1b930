"""What lies behind an error of requests, urllib3 or trio: they wrap and chain in many ways."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator

_MOST = 50


def within(error: BaseException) -> Iterator[BaseException]:
    """The error and whatever it wraps, the outermost first."""
    seen: list[object] = [error]
    for each in seen:
        if not isinstance(each, BaseException):
            continue
        yield each
        if len(seen) < _MOST:
            inner = each.exceptions if isinstance(each, BaseExceptionGroup) else each.args
            seen += [*inner, each.__cause__, each.__context__, getattr(each, "reason", None)]


def words_for(error: BaseException) -> str:
    """Why a connection failed, in the operating system's words: ``: Connection refused``, or nothing. Texts of
    libraries are never used: they hold URLs."""
    found = (_words(each) for each in within(error) if isinstance(each, OSError) and each.strerror)
    return next((f": {words}" for words in found), "")


def _words(error: OSError) -> str:
    """Not always ``strerror``, which trio fills with an address as Python writes it."""
    own = isinstance(error, (socket.gaierror, ssl.SSLError)) or not error.errno
    return str(error.strerror) if own else os.strerror(error.errno or 0)
