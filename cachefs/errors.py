"""Every exception that cachefs raises on purpose.

    CachefsError
    ├── UserError                the user can mend it; exit code 2
    │   └── ConfigError          cachefs.yaml or an override; carries every problem at once
    ├── CannotMount              exit code 3; says what is missing
    ├── CacheError               the SSD side failed; never reaches a reader (reads fall back)
    │   ├── CacheBusy            another daemon holds this cache folder
    │   ├── IndexDamaged         the index cannot be read
    │   └── IndexFull            there is no room to write the index
    ├── PlexError                the Plex side failed; degrades the component, never the mount
    │   ├── PlexUnreachable      no answer, or none in time
    │   ├── PlexRefused          the token was not accepted
    │   └── PlexAnswer           an answer that is not Plex's
    ├── SourceError (OSError)    the slow side failed; carries an errno for the caller of the system call
    │   ├── SourceTimeout        a call took longer than the source's timeout
    │   └── SourceOffline        the source is known to be away: fails at once
    └── NotRunning               no daemon answers on the control socket

Texts speak to the user: what failed, on which path or key, what to do. No text ever holds a token.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass


class CachefsError(Exception):
    """Root of the tree."""


class UserError(CachefsError):
    """Something the user wrote or asked cannot be done; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration: the dotted key (``cache.max_size``) and what to do."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class ConfigError(UserError):
    """All problems of one configuration, at once."""

    def __init__(self, origin: str, problems: tuple[Problem, ...]) -> None:
        self.origin = origin
        self.problems = problems
        super().__init__("\n".join(f"{origin}: {problem}" for problem in problems))


class CannotMount(CachefsError):
    """The mount cannot be made here; the text says what is missing."""


class CacheError(CachefsError):
    """The cache folder cannot do what was asked. ``number`` is the errno of a system call that needs it: one that
    changes a moved file."""

    def __init__(self, text: str, number: int = errno.EIO) -> None:
        super().__init__(text)
        self.number = number


class CacheBusy(CacheError):
    """Another daemon holds the cache folder."""


class IndexDamaged(CacheError):
    """The index file is not one that this version can read."""


class IndexFull(CacheError):
    """The SSD has no room for what is to be written into the index; what is in it can be read."""

    def __init__(self, text: str) -> None:
        super().__init__(text, errno.ENOSPC)


class PlexError(CachefsError):
    """The Plex server, or plex.tv, did not do what was asked."""


class PlexUnreachable(PlexError):
    """No answer, or none in time."""


class PlexRefused(PlexError):
    """The token was not accepted."""


class PlexAnswer(PlexError):
    """An answer that cannot be understood."""


class SourceError(CachefsError, OSError):
    """A call to a source failed; ``errno`` is what the caller of the system call gets."""


class SourceTimeout(SourceError):
    """A call took longer than the source's timeout."""

    def __init__(self, source: str, timeout_s: float) -> None:
        super().__init__(errno.EIO, f"source {source}: no answer within {timeout_s:g} s")


class SourceOffline(SourceError):
    """The source is known to be away."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(errno.EIO, f"source {source} is offline ({problem}); it is probed until it is back")


class NotRunning(UserError):
    """No daemon answers on the control socket."""
