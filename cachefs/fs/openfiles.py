"""What ``routing`` keeps of open files: one ``OpenInode`` for each inode, one ``Handle`` for each open(2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from cachefs.descriptors import Descriptor
from cachefs.fs.backing import Backing
from cachefs.fs.inodes import Node
from cachefs.fs.modes import Mode
from cachefs.fs.offers import Offer
from cachefs.fs.source import Source
from cachefs.fs.underway import Underway
from cachefs.model import FileKey


@dataclass(slots=True, eq=False)
class SsdSide:
    """The SSD file of one entry, open for reading in one life of the SSD. ``whole``: the last read found it published
    and without fault."""

    entry_id: int
    descriptor: Descriptor
    life: int = 0
    whole: bool = False


@dataclass(slots=True, eq=False)
class OpenInode:
    """All that the open handles of one inode share."""

    node: Node
    source: Source
    keys: tuple[FileKey, ...]
    mode: Mode = Mode.IDLE
    backing: Backing | None = None
    """In passthrough mode: what the kernel reads."""
    from_source: Descriptor | None = None
    from_ssd: SsdSide | None = None
    readers: int = 0
    writers: int = 0
    cache_bytes: int = 0
    source_bytes: int = 0
    touched_at: float = float("-inf")
    changed: bool = False
    """Through the mount, since it was opened: what the SSD had of it is its content no more."""
    opening: trio.Lock = field(default_factory=trio.Lock)
    underway: Underway = field(default_factory=Underway)

    @property
    def kept_by_ssd(self) -> Descriptor | None:
        """The whole content of a file that was deleted or replaced behind the mount: who has it open goes on reading
        the file that was opened, as on any file system."""
        side = self.from_ssd
        return side.descriptor if side is not None and side.whole and not self.changed else None


@dataclass(slots=True, eq=False)
class Handle:
    """One open(2) of the mount. ``own`` is a writer's descriptor on the source; readers share the inode's.

    ``appends``: with O_APPEND, which ``own`` has not: pages of a mapping are written back through it as well.
    ``offer``: that was withdrawn, of which so many handles are still open."""

    inode: OpenInode
    own: Descriptor | None = None
    appends: bool = False
    unbar: Callable[[], object] | None = None
    offer: Offer | None = None
    opens: int = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """What the kernel is told: the handle's number (which may name a backing file, see ``channel``), whether the pages
    it has are still the file's, and whether it must ask the daemon for every read and write."""

    handle: int
    keep_cache: bool = False
    direct_io: bool = False
