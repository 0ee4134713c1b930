"""The places at the sources that moved files leave and come back to, as ``cache`` knows them, and what keeps one there.

Of ``moving`` and its parts. The places themselves are ``fs.homes``'s.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Set
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar, TypeVarTuple

from cachefs.cache.full import NO_ROOM
from cachefs.descriptors import Descriptor
from cachefs.model import FileKey, Fingerprint, SourceFile, SourceName

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TAKEN = (
    "another file has its place at its source. Both are kept, and the mount shows the one on the SSD: "
    "rename one of them (this one through the mount), then run cachefs restore again"
)

FOLDER_GONE = (
    "its folder is gone at its source, so the mount does not show it. The SSD keeps it, and cachefs restore brings it "
    "back with its folder"
)


def text_of(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def why_not_home(error: Exception) -> str:
    """What keeps a moved file from its source, for people."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"its source has no room for it ({text_of(error)})"
    return text_of(error)


NOTHING_DONE = frozenset({errno.EBUSY, errno.ESTALE, errno.EXDEV, errno.EPERM, errno.EACCES})
"""Errors of ``Homes.take_away`` after which the source has the file as before."""


class Stays(Exception):
    """A file is not moved, or not restored, now; the text says why, for people."""


class InUse(Stays):
    """Somebody writes it just now."""


class Conflict(Stays):
    """Another file has the place of a moved one."""


class AtHome(Protocol):
    """A file at its source."""

    @property
    def file(self) -> SourceFile: ...

    @property
    def birth_ns(self) -> int: ...

    @property
    def ctime_ns(self) -> int: ...


class Homes(Protocol):
    """The places at the sources; see ``fs.homes``. Everything raises ``OSError``."""

    def is_ready(self, key: FileKey, /) -> bool: ...

    async def change(self, key: FileKey, function: Callable[[*Ts], T], /, *args: *Ts) -> T: ...

    async def look(self, key: FileKey, /, *, durable: bool = False) -> AtHome | None: ...

    async def has_folder(self, key: FileKey, /) -> bool: ...

    async def take_away(self, key: FileKey, kept: int | None, seen: SourceFile, ctime_ns: int, /) -> bool: ...

    async def finish(self, key: FileKey, kept: int, left: Fingerprint, /) -> None: ...

    async def open_return(self, key: FileKey, kept: int, /) -> Descriptor: ...

    async def identify(self, key: FileKey, returning: Descriptor, /) -> SourceFile: ...

    async def arrive(self, key: FileKey, kept: int, returning: Descriptor, /) -> None: ...

    async def let_go(self, key: FileKey, kept: int, /, *, keep: bool) -> None: ...

    async def set_aside(self, key: FileKey, kept: int, /) -> None: ...

    async def tidy(self, name: SourceName, moved: Callable[[], Set[int]], /) -> None: ...

    async def filled(self, key: FileKey, /) -> frozenset[int]: ...


Hold = Callable[[FileKey], AbstractAsyncContextManager[bool]]
"""Nobody begins to change the file within; False when somebody is changing it already."""
