"""What the union tells of files, and how it is known. Values, and the words for how long they hold.

Used by ``union`` and those who ask it.
"""

from __future__ import annotations

import enum
import errno
import os
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cachefs.fs import leaves
from cachefs.fs.inodes import Node
from cachefs.fs.reach import Ref
from cachefs.fs.source import Source
from cachefs.fs.stat import Stat
from cachefs.model import CacheEntry, FileKey, Fingerprint, SourceFile

VIRTUAL_S = 60.0
"""The root over several sources changes only with the configuration."""
BELIEVED_S = 3600.0
"""How long the kernel may believe what it was told of a watched folder: a change is told to it as it happens."""
UNSURE_S = 0.5
"""How long it may believe what was already changing while the source was asked."""

RESERVED = ".cachefs-moved"
"""Of every source's root: what is kept of moved files. The mount shows no such name anywhere (leaves.c too)."""

_ABSENT_MAJOR = 0xFFF
"""Of device numbers that stand for a tag (leaves.c)."""


class Witness(Protocol):
    """Who wants to know what a source showed. Synchronous and quick: it is told of every file seen."""

    def observe(self, file: SourceFile) -> object: ...

    def gone(self, key: FileKey) -> object: ...

    def get(self, key: FileKey) -> object | None:
        """None for a file that it holds nothing of: it need not be told."""
        ...

    def is_confirmed(self, key: FileKey, size: int, mtime_ns: int) -> bool:
        """Whether it holds this very file, and its source has shown it since the start."""
        ...

    def holds_in(self, folder: FileKey) -> bool:
        """Whether it holds anything of a file in this folder itself."""
        ...


class Found(NamedTuple):
    """A node and its attributes of this moment; how long the kernel may believe its name, and them."""

    node: Node
    stat: Stat
    name_s: float
    attributes_s: float


def not_there(name: str) -> FileNotFoundError:
    """There is no such name. The kernel is never told to remember that: whoever makes a file behind the mount, and
    looks at once for it in the mount, must find it. To ask again costs little (leaves.c)."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it is now, and as it was known before (None: the kernel does not know it). ``named``: the kernel knew
    it by this name."""

    node: Node
    stat: Stat
    before: Stat | None
    named: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """A folder, all names in it, and what the first of them are; a name that was gone by then has nothing."""

    own: Found
    names: list[str]
    children: dict[str, Found]


class Told(enum.Enum):
    """How something is known: seen just now; remembered, and certainly still so; remembered of a source that is
    away."""

    SEEN = "seen"
    CERTAIN = "certain"
    REMEMBERED = "remembered"


@dataclass(frozen=True, slots=True)
class Reading:
    """A folder as it was read; ``changes``: the count of its watch for which this is true; -1 when it may be true no
    more."""

    source: Source
    listing: leaves.Listing
    changes: int
    kind: Told


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node lives: its source and every key under which it was seen, the likeliest first."""

    source: Source
    keys: tuple[FileKey, ...]
    ref: Ref
    moved: CacheEntry | None = None
    """Of a file that lives on the SSD: ``source`` is that then."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """A file system of a source, and the tag that its inode numbers carry."""

    tag: int
    filesystem: str | None
    local: bool


def absent(dev: int) -> Tagged:
    """The device of a file that is only remembered, while none of its kind is there: its tag is all that is known."""
    return Tagged(tag_in(dev) or 0, None, local=False)


def absent_dev(tag: int) -> int:
    """The device number that stands for a tag."""
    return os.makedev(_ABSENT_MAJOR, tag)


def tag_in(dev: int) -> int | None:
    return os.minor(dev) if os.major(dev) == _ABSENT_MAJOR else None


def source_file(key: FileKey, number: int, seen: Stat, device: Tagged) -> SourceFile:
    lasting = device.filesystem is not None
    fingerprint = Fingerprint(seen.size, seen.mtime_ns, seen.ino if lasting else None, device.filesystem)
    return SourceFile(key, fingerprint, number, seen.nlink)
