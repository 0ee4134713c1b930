"""Which open files are offered to further readers (``offers``), and what became of the handles that were given out.

Used by ``routing`` only, on the event loop. An offer counts as one reader of its inode, so that its descriptors stay
open for whoever opens it next; it is withdrawn when anything about the file changes, and some seconds after its last
close.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cachefs.descriptors import Descriptor
from cachefs.fs.modes import Mode
from cachefs.fs.offers import Offer
from cachefs.fs.openfiles import Handle, Opening, OpenInode, SsdSide
from cachefs.model import FileKey, Targets
from cachefs.status import Counters

_MOST = 256
_IDLE_S = 3.0


@dataclass(slots=True)
class _Standing:
    """``reads_from``: what reads are answered from; in use until the offer is withdrawn."""

    inode: OpenInode
    offer: Offer
    reads_from: Descriptor | None
    from_ssd: bool


class Offered:
    """All offers that stand. ``let_go`` is told of an inode that has one reader less, ``used`` of one that was opened
    or read."""

    def __init__(
        self,
        handles: dict[int, Handle],
        counters: Counters,
        let_go: Callable[[OpenInode], None],
        used: Callable[[OpenInode], None],
    ) -> None:
        self._handles = handles
        self._counters = counters
        self._let_go = let_go
        self._used = used
        self._standing: dict[int, _Standing] = {}

    def opening(self, inode: OpenInode, holds_s: float, *, keep_cache: bool, side: SsdSide | None) -> Opening | None:
        """Answer an open for reading with an offer, made or renewed; None where there can be none. ``side``: the SSD
        has it all, and is in force."""
        through = inode.mode is Mode.PASSTHROUGH
        standing = self._standing.get(inode.node.number)
        if standing is not None and (standing.inode is not inode or standing.offer.passthrough is not through):
            self.withdraw(standing.inode)
            standing = None
        if standing is None:
            standing = self._make(inode, holds_s, side, through=through)
        else:
            standing.offer.renew(holds_s)
        if standing is None:
            return None
        standing.offer.opened()
        return Opening(standing.offer.handle, keep_cache)

    def _make(self, inode: OpenInode, holds_s: float, side: SsdSide | None, *, through: bool) -> _Standing | None:
        if len(self._standing) >= _MOST and not self._make_room():
            return None
        held = inode.backing
        reads_from = None if through else side.descriptor if side is not None else inode.from_source
        if (held is None) if through else (reads_from is None):
            return None
        backing_id = held.id if through and held is not None else None
        offer = Offer.make(inode.node.number, backing_id, reads_from.number if reads_from else -1, holds_s)
        if offer is None:
            return None
        if reads_from is not None:
            reads_from.acquire()
        inode.readers += 1
        self._handles[offer.handle] = Handle(inode)
        made = self._standing[inode.node.number] = _Standing(inode, offer, reads_from, side is not None)
        return made

    def _make_room(self) -> bool:
        """Withdraw the offer that was made first of those that nobody has open."""
        for standing in self._standing.values():
            if self._collect(standing)[0] == 0:
                self.withdraw(standing.inode)
                return True
        return False

    def withdraw(self, inode: OpenInode) -> None:
        """Python answers everything of this inode from now on, the handles that are open included."""
        standing = self._standing.get(inode.node.number)
        if standing is None or standing.inode is not inode:
            return
        opens, _ = self._collect(standing)
        del self._standing[inode.node.number]
        standing.offer.withdraw()
        if standing.reads_from is not None:
            standing.reads_from.release()  # the inode has its own use of it
        handle = self._handles[standing.offer.handle]
        handle.offer, handle.opens = standing.offer, opens
        inode.readers += opens - 1
        if not opens:
            self._end(standing.offer)
        self._let_go(inode)

    def withdraw_all(self, targets: Targets) -> None:
        """Withdraw what a change touches."""
        for standing in list(self._standing.values()):
            inode = standing.inode
            if inode.node.number in targets.inodes or any(_names(targets, key) for key in inode.keys):
                self.withdraw(inode)

    def withdraw_key(self, key: FileKey) -> None:
        """An entry of this key was published or dropped."""
        for standing in list(self._standing.values()):
            if key in standing.inode.keys:
                self.withdraw(standing.inode)

    def released(self, handle: Handle) -> bool:
        """One handle of a withdrawn offer was closed; whether there is another of this number."""
        if handle.offer is None:
            return False
        handle.opens -= 1
        if handle.opens:
            return True
        self._end(handle.offer)
        return False

    def _end(self, offer: Offer) -> None:
        self._handles.pop(offer.handle, None)
        offer.end()

    def withdraw_idle(self) -> None:
        """Withdraw what nobody has had open for some seconds; bring the counters up to date."""
        for standing in list(self._standing.values()):
            opens, idle_s = self._collect(standing)
            if not opens and idle_s >= _IDLE_S:
                self.withdraw(standing.inode)

    def readers(self, inode: OpenInode) -> int:
        """How many handles are open for reading."""
        standing = self._standing.get(inode.node.number)
        return inode.readers if standing is None else inode.readers - 1 + self._collect(standing)[0]

    def lingering(self) -> Iterator[FileKey]:
        """Keys of files that nobody has really open."""
        for standing in list(self._standing.values()):
            if not standing.inode.writers and not self.readers(standing.inode):
                yield from standing.inode.keys

    def _collect(self, standing: _Standing) -> tuple[int, float]:
        """Count what happened; returns how many handles are open, and for how long there has been none."""
        usage, inode = standing.offer.usage(), standing.inode
        if standing.offer.passthrough:
            size = inode.node.version[0] if inode.node.version is not None else 0
            self._counters.add_kernel_open(size, usage.opens)
        elif standing.from_ssd:
            inode.cache_bytes += usage.bytes
            self._counters.add_cache_read(usage.bytes, usage.reads)
        else:
            inode.source_bytes += usage.bytes
            self._counters.add_source_read(usage.bytes, usage.reads)
        if usage.opens or usage.reads:
            self._used(inode)
        return usage.open, usage.idle_s


def _names(targets: Targets, key: FileKey) -> bool:
    if key in targets.keys:
        return True
    return any(
        key.source == folder.source and (not folder.path or key.path.startswith(f"{folder.path}/"))
        for folder in targets.folders
    )
