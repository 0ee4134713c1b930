"""What the sources said when they were last asked about a file or a folder: each question may wake a disk.

Called by ``resolving`` alone. Does not decide what is asked.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from cachefs.errors import SourceError
from cachefs.model import FileKey

log = logging.getLogger(__name__)

V = TypeVar("V")

_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""With EINVAL (neither file nor folder), what a source says of a file that it does not have."""
ASK_AGAIN_S = 600.0
_MOST = 50_000


@dataclass(slots=True)
class _Seen(Generic[V]):
    value: V
    at: float
    used_at: float
    certain: bool
    """Whether the source said so; False when it failed, with an error that does not tell."""


class Lookups(Generic[V]):
    """Answers by key, on trio's clock. What nobody has wanted to know for ten minutes is given up by ``tidy``."""

    def __init__(self, ask: Callable[[FileKey], Awaitable[V]], nothing: V) -> None:
        """``nothing``: what is taken for the answer where there is none."""
        self._ask = ask
        self._nothing = nothing
        self._seen: dict[FileKey, _Seen[V]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    async def look(self, key: FileKey) -> V:
        """The answer, asked for at most once in ten minutes. Raises ``SourceError``, which is not remembered: it fails
        fast until it is back, which may be in a second."""
        now = trio.current_time()
        seen = self._seen.get(key)
        if seen is None or now - seen.at > ASK_AGAIN_S:
            try:
                self.note(key, await self._ask(key))
            except SourceError:
                raise
            except OSError as error:
                log.debug("%s: %s", key, error)
                certain = isinstance(error, _NOT_THERE) or error.errno == errno.EINVAL
                self.note(key, self._nothing, certain=certain)
            seen = self._seen[key]
        seen.used_at = now
        return seen.value

    def last(self, key: FileKey) -> V:
        """The last answer, however old it is; nobody is asked."""
        seen = self._seen.get(key)
        if seen is None:
            return self._nothing
        seen.used_at = trio.current_time()
        return seen.value

    def is_gone(self, key: FileKey) -> bool:
        """Whether the source itself said that there is nothing when it was asked last."""
        seen = self._seen.get(key)
        return seen is not None and seen.value == self._nothing and seen.certain

    def note(self, key: FileKey, value: V, *, certain: bool = True) -> None:
        """Somebody has just seen this."""
        if len(self._seen) >= _MOST:
            self._seen.clear()
        now = trio.current_time()
        self._seen[key] = _Seen(value, now, now, certain)

    def drop(self, key: FileKey) -> None:
        self._seen.pop(key, None)

    def outdate(self, is_meant: Callable[[FileKey], bool] = lambda _: True) -> None:
        """Ask about each of these again when somebody wants to know."""
        for key, seen in self._seen.items():
            if is_meant(key):
                seen.at = float("-inf")

    def tidy(self) -> None:
        """To be called once what is still of use was looked at."""
        oldest = trio.current_time() - ASK_AGAIN_S
        self._seen = {key: seen for key, seen in self._seen.items() if seen.used_at >= oldest}
