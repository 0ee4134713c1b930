"""The frozen values that modules hand to each other, and the table of a cache entry's life.

Imports nothing of ours but ``ranges`` (pure). Times are seconds since the epoch as ``float`` unless the name says
``_ns``; sizes are bytes. Paths inside the union and inside a source are ``str`` decoded by ``os.fsdecode``
(undecodable bytes become surrogates), relative, without a leading slash; the empty string is the root.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NewType

from cachefs.ranges import Ranges

SourceName = NewType("SourceName", str)
UnionPath = NewType("UnionPath", str)
"""A path below the mount's root: ``TV/Show/S01E01.mkv``."""
PlexPath = NewType("PlexPath", str)
"""A path as the Plex server names it, absolute on the server's side: ``/data/tv/Show/S01E01.mkv``."""
UserName = NewType("UserName", str)

MOUNTS_BELOW = "\0mounts"
"""In place of a folder's path: under this the memory of folders keeps what is mounted below a source. No path holds a
NUL."""


@dataclass(frozen=True, slots=True, order=True)
class FileKey:
    """A file of the union: which source it lives on, and its path below that source's folder."""

    source: SourceName
    path: str

    def __str__(self) -> str:
        return f"{self.source}:{self.path}"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What makes a source file *that* file: a cached byte is served only while this is unchanged.

    ``inode`` and ``filesystem`` (a UUID; never ``st_dev``, which changes with mount order) are None where the file
    system does not keep them over a remount (FUSE, most network file systems); a None matches anything.
    """

    size: int
    mtime_ns: int
    inode: int | None = None
    filesystem: str | None = None

    def same_file(self, other: Fingerprint) -> bool:
        """Whether both describe the same bytes, as far as either knows."""
        if (self.size, self.mtime_ns) != (other.size, other.mtime_ns):
            return False
        pairs = ((self.inode, other.inode), (self.filesystem, other.filesystem))
        return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file as a source showed it: enough to copy it and to recognise it again.

    ``inode`` is the number the mount shows (``st_ino``): equal for hard links, so that a change through one name
    reaches the entries of the others.
    """

    key: FileKey
    fingerprint: Fingerprint
    inode: int
    links: int = 1

    @property
    def size(self) -> int:
        return self.fingerprint.size


# --- cache entries ---------------------------------------------------------------------------------------------------


class EntryState(enum.Enum):
    """Where a cache entry is in its life. The arrows are all there are:

        (nothing) ── begin ──► COPYING ── publish ──► CACHED ◄── move, restore ──► MOVED
                                  │                      │                           │
                                  └─── drop ─────────────┴── drop ──► (nothing) ◄────┘ deleted through the mount

    COPYING  bytes in ``ranges`` are on the SSD, in the partial file, and are served from there;
             survives a restart: the copy goes on where it stopped.
    CACHED   every byte is on the SSD, in the published file, whose name mirrors the source's.
    MOVED    the published file is the file itself: its source has it no more, or is about to give it up. Nothing
             drops it but a person who deletes the file; everything else restores it first.
    *drop* has a cause (``DropCause``). It takes effect in memory at once: no read that begins later is routed to the
    SSD; then the index row goes; the file on the SSD goes last. Recovery removes files that have no row.
    """

    COPYING = "copying"
    CACHED = "cached"
    MOVED = "moved"

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are in the published file."""
        return self is not EntryState.COPYING


class Phase(enum.Enum):
    """How far a file has moved. While it is neither here nor there, its source may still, or already, show the file
    that ``Home.fingerprint`` describes; what that file is then, the phase says."""

    LEAVING = "leaving"
    """The same bytes as on the SSD, about to be given up."""
    REPLACING = "replacing"
    """Another file, that a renaming of the moved one over it has replaced."""
    YIELDING = "yielding"
    """A file that a renaming has put in the place of the moved one, which is none any more."""
    AWAY = "away"
    """There is none."""
    RETURNING = "returning"
    """The same bytes as on the SSD, brought back."""


@dataclass(frozen=True, slots=True)
class Home:
    """What is remembered of a moved file's place at its source.

    ``fingerprint``: of the one file that may be there. ``birth_ns`` and ``inode`` are what the mount goes on showing.
    ``reserved``: the source keeps the emptied inode, so that its number stays the file's. ``digest``: SHA-256 of the
    content, empty once it was written to.
    """

    fingerprint: Fingerprint
    phase: Phase
    birth_ns: int = 0
    reserved: bool = False
    digest: str = ""


class DropCause(enum.Enum):
    """Why an entry ceased to be."""

    EVICTED = "evicted"
    CHANGED = "changed through the mount"
    REPLACED = "changed at its source"
    GONE = "deleted at its source"
    FAILED = "the SSD failed"
    ABANDONED = "no longer wanted while it was being copied"
    DAMAGED = "it was found to be damaged"
    DELETED = "deleted through the mount"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file on the SSD. A new value replaces the old one at every step; ``id`` is never used twice."""

    id: int
    source_file: SourceFile
    state: EntryState
    ranges: Ranges
    reason: str
    begun_at: float
    published_at: float | None = None
    last_read_at: float | None = None
    last_wanted_at: float | None = None
    watched_at: float | None = None
    home: Home | None = None
    """Of a moved file; None of every other."""

    @property
    def key(self) -> FileKey:
        return self.source_file.key

    @property
    def size(self) -> int:
        return self.source_file.size

    @property
    def fingerprint(self) -> Fingerprint:
        return self.source_file.fingerprint


class Visible(enum.Enum):
    """The value of ``user.cachefs.state``."""

    SOURCE = "source"
    PARTIAL = "partial"
    CACHED = "cached"


@dataclass(frozen=True, slots=True)
class Targets:
    """What a change through the mount touches: files by name, everything below folders, files by inode number."""

    keys: frozenset[FileKey] = frozenset()
    folders: frozenset[FileKey] = frozenset()
    inodes: frozenset[int] = frozenset()


# --- what people watch -----------------------------------------------------------------------------------------------


class InterestKind(enum.IntEnum):
    """Why a file may be wanted, in the order in which wants are served (lowest first)."""

    PLAYING = 0
    PINNED = 1
    ON_DECK = 2
    WATCHLIST = 3
    RECENTLY_ADDED = 4


@dataclass(frozen=True, slots=True)
class PlexFile:
    """One part of one version of a Plex item."""

    path: PlexPath
    size: int


@dataclass(frozen=True, slots=True)
class Interest:
    """One fact about who may want an item and why. ``ahead``: 0 the item itself, n the n-th episode after it."""

    kind: InterestKind
    user: UserName
    title: str
    """For people: ``Severance S02E05`` or ``Heat (1995)``."""
    files: tuple[PlexFile, ...]
    since: float
    """When the fact began: playback, last view, addition to the watchlist or library."""
    ahead: int = 0
    after_title: str = ""
    """For ``ahead`` > 0: what the user is at (``Severance S02E04``)."""
    rating_key: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody is playing something now."""

    key: str
    user: UserName
    title: str
    files: tuple[PlexFile, ...]
    started_at: float
    """When cachefs first saw this session."""
    position_s: float
    duration_s: float
    state: str
    """``playing``, ``paused`` or ``buffering``."""
    rating_key: str = ""

    @property
    def progress(self) -> float:
        """0 to 1."""
        return self.position_s / self.duration_s if self.duration_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class View:
    """A user finished an item (at least 90 % of that session)."""

    user: UserName
    title: str
    files: tuple[PlexFile, ...]
    at: float
    rating_key: str = ""


@dataclass(frozen=True, slots=True)
class UserReport:
    """Whether a user's interests could be read; ``problem`` is empty when they could."""

    user: UserName
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LibraryFolder:
    """A folder of a Plex library with a few of its real files, from which path mappings are learned."""

    library: str
    path: PlexPath
    samples: tuple[PlexFile, ...]


@dataclass(frozen=True, slots=True)
class PinnedTitle:
    """What a pinned title stands for now."""

    rating_key: str
    files: tuple[PlexFile, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that Plex said at one moment.

    ``complete`` is False when any user or list could not be read: what is then absent is unknown, not unwanted.
    """

    taken_at: float
    interests: tuple[Interest, ...] = ()
    sessions: tuple[Session, ...] = ()
    views: tuple[View, ...] = ()
    users: tuple[UserReport, ...] = ()
    folders: tuple[LibraryFolder, ...] = ()
    titles: tuple[PinnedTitle, ...] = ()
    """Those of the pinned titles that Plex has."""
    unknown_titles: frozenset[str] = frozenset()
    """The rating keys of those that it has no more."""
    complete: bool = True


class PlexEventKind(enum.Enum):
    PLAYBACK = "playback"
    """A session began, went on, paused or ended."""
    LIBRARY = "library"
    """Items were added, changed or removed, or watched flags changed."""
    POLL = "poll"
    """Nothing was heard; it is time to look."""
    CONNECTED = "connected"
    """The server is back: look at everything again."""


@dataclass(frozen=True, slots=True)
class PlexEvent:
    """A reason to look at Plex again; what changed is read by the next snapshot."""

    kind: PlexEventKind
    detail: str = ""


# --- planning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Want:
    """A file of the union that should be on the SSD, with the strongest reason first.

    Built from interests (paths mapped, file found at its source) and pins. ``follows`` is the video of a sidecar.
    """

    file: SourceFile
    kind: InterestKind
    ahead: int
    reason: str
    since: float
    users: tuple[UserName, ...] = ()
    follows: FileKey | None = None

    @property
    def key(self) -> FileKey:
        return self.file.key

    @property
    def rank(self) -> tuple[int, int, int, float]:
        """Sort key, most urgent first: kind, then how far ahead, the video before its sidecars, then the newest."""
        return (self.kind, self.ahead, int(self.follows is not None), -self.since)


@dataclass(frozen=True, slots=True)
class Watched:
    """A file that somebody finished."""

    key: FileKey
    user: UserName
    at: float


@dataclass(frozen=True, slots=True)
class Space:
    """What the cache may use, in bytes, percentages already resolved.

    ``used_bytes`` counts entries with their full size, copies in flight too. ``free_bytes`` is what the SSD's file
    system has left, minus what copies in flight have yet to write.
    """

    max_size_bytes: int
    min_free_bytes: int
    used_bytes: int
    free_bytes: int

    @property
    def room_bytes(self) -> int:
        """How many more bytes may be reserved; negative when a limit is already passed."""
        return min(self.max_size_bytes - self.used_bytes, self.free_bytes - self.min_free_bytes)

    @property
    def spared_bytes(self) -> int:
        """How much of it new copies leave, so that a tenth more than ``min_free`` is free: others write to the SSD as
        well, and what was copied to the brim would go with their next file, and come back when that goes."""
        to_begin = self.free_bytes - self.min_free_bytes - self.min_free_bytes // 10
        return max(self.room_bytes - to_begin, 0)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the cache holds, and which of it is in use."""

    entries: tuple[CacheEntry, ...] = ()
    open_files: frozenset[FileKey] = frozenset()
    space: Space = field(default_factory=lambda: Space(0, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class PlannedCopy:
    """Bring this file to the SSD. ``kind`` PLAYING is exempt from ``copying.hours``."""

    file: SourceFile
    kind: InterestKind
    reason: str

    @property
    def key(self) -> FileKey:
        return self.file.key


@dataclass(frozen=True, slots=True)
class PlannedEviction:
    """Remove this entry from the SSD. ``for_space`` is False when it goes whether room is needed or not."""

    key: FileKey
    size: int
    reason: str
    for_space: bool


@dataclass(frozen=True, slots=True)
class Skip:
    """A wanted file that is not copied, or an interest that leads to no file, and why."""

    what: str
    """The file's key, or Plex's path, or a title: whatever is known."""
    reason: str
    key: FileKey | None = None
    want: Want | None = None
    """What is wanted all the same, and only has no place now."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the cache should become. Copies are in the order in which to make them; evictions in the order to take
    them. ``kept`` are the wanted files that are cached already."""

    made_at: float
    copies: tuple[PlannedCopy, ...] = ()
    evictions: tuple[PlannedEviction, ...] = ()
    skips: tuple[Skip, ...] = ()
    kept: tuple[Want, ...] = ()
    waiting: str = ""
    """Why nothing, or only what is playing, is copied at this moment."""


# --- pins ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pin:
    """The user says: always. ``target`` is a union path (file or folder) or, when ``rating_key`` is set, a title; of
    one that several libraries have, the keys have commas between them."""

    target: str
    rating_key: str = ""
    created_at: float = 0.0
    stood_for: tuple[FileKey, ...] = ()
    """The files of a title, as Plex named them last: they stay pinned while Plex does not say."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """What became of a wish to pin. ``problem``: what keeps it from being on the SSD; empty when nothing does."""

    pin: Pin
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Evicted:
    """What became of a wish to evict: the files that went, and those that stay, each with the reason."""

    keys: tuple[FileKey, ...]
    left: tuple[Skip, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person said of one file last: that it be on the SSD now, or (``away``) that it be not."""

    key: FileKey
    at: float
    away: bool = False


# --- health ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """One background component as ``status`` shows it; ``problem`` is empty when it is well."""

    name: str
    problem: str = ""
    since: float = 0.0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """One source as ``status`` shows it."""

    name: SourceName
    path: str
    online: bool = True
    problem: str = ""
    threads_busy: int = 0


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """One copy in flight."""

    key: FileKey
    size: int
    done_bytes: int
    bytes_per_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class ReadCounters:
    """Reads that the daemon answered since it started, by where the bytes came from."""

    cache_reads: int = 0
    cache_bytes: int = 0
    source_reads: int = 0
    source_bytes: int = 0
    fallbacks: int = 0
    """Reads that the SSD failed and the source answered."""
    kernel_opens: int = 0
    """Opens of cached files whose reads the kernel serves from the SSD by itself; they are in no count above."""
    kernel_size: int = 0
    """The sizes of those files, added up."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that somebody holds open through the mount, and where its bytes come from now."""

    path: UnionPath
    served_from: Visible
    readers: int
    writers: int
    cache_bytes: int
    source_bytes: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a file is or is not on the SSD, as ``cachefs explain`` shows it."""

    path: UnionPath
    state: Visible
    size: int
    on_ssd_bytes: int
    reasons: tuple[str, ...]
    wanted: bool
    planned_position: int | None = None
    """Its place among the copies that the newest plan still has to make, 1 being next; None when not among them."""
    waiting: str = ""
    """Why its copy has not begun."""
    moved: bool = False
    """Whether the SSD holds the only file; ``state`` is as of any other that is cached."""


@dataclass(frozen=True, slots=True)
class Status:
    """All that ``cachefs status`` shows."""

    version: str
    mountpoint: str
    pid: int
    started_at: float
    plex: ComponentHealth
    plex_url: str
    users: tuple[UserReport, ...]
    components: tuple[ComponentHealth, ...]
    sources: tuple[SourceHealth, ...]
    space: Space
    entries_cached: int
    entries_copying: int
    copies: tuple[CopyProgress, ...]
    reads: ReadCounters
    sessions: tuple[Session, ...]
    open_files: tuple[OpenFile, ...]
    backing_files: int = 0
    """Files of the SSD that the kernel reads by itself at this moment."""
    fast_path: str = ""
    """Why the kernel does not read cached files by itself; empty when it does."""
    waiting: str = ""
    """Why nothing, or only what is playing, is copied at this moment."""
    cache_problem: str = ""
    """What keeps the SSD from being used; empty when nothing does."""
    notes: tuple[str, ...] = ()
    """Things worth knowing that are no failure: a path mapping that was learned, a skipped user."""
    entries_moved: int = 0
    """Those of which the SSD holds the only file, also while it is away; ``moved_bytes``: their sizes."""
    moved_bytes: int = 0
    moved_away: int = 0
    """Those of the moved ones that are away with the SSD, and cannot be read until it is back."""
