"""Letting the rows follow the files: what a moved file says of itself is the truth, whatever the index says of it.

Called by ``cache.recovery`` at a start, in a worker thread. It decides from rows and labels, and writes labels that
are missing; the rows are its caller's, since the index may be full.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cachefs.cache import inside, label, moved_disk
from cachefs.cache.adoption import key_of, label_of, moved_entry
from cachefs.cache.folder import Contents, Folder
from cachefs.cache.label import Label
from cachefs.model import CacheEntry, EntryState
from cachefs.paths import cache_path
from cachefs.ranges import Ranges

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Following:
    """The entries as the files have it, what of that the index has yet to learn, and the files that are missing what
    they should say."""

    entries: dict[int, CacheEntry]
    before: tuple[CacheEntry, ...] = ()
    """As the index has them."""
    changed: dict[int, CacheEntry] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    unlabelled: list[CacheEntry] = field(default_factory=list)

    def put(self, entry: CacheEntry) -> None:
        self.entries[entry.id] = self.changed[entry.id] = entry

    def drop(self, entry_id: int) -> None:
        self.entries.pop(entry_id)
        self.gone.add(entry_id)

    def forget(self, entry: CacheEntry) -> None:
        """As ``drop``, of what may just have been put."""
        self.drop(entry.id)
        self.changed.pop(entry.id, None)
        self.unlabelled = [other for other in self.unlabelled if other.id != entry.id]


def follow(root: str, rows: Iterable[CacheEntry], contents: Contents, next_id: int, *, doubtful: bool) -> Following:
    """Look at what the files say that no row knows, and at those of moved rows; ``doubtful``: at all of them, since the
    index may be an older one, or lack what came last."""
    before = tuple(rows)
    found = Following({row.id: row for row in before}, before)
    known = {cache_path(row.key): row for row in found.entries.values() if row.state.is_whole}
    lost = {row.id for name, row in known.items() if row.home is not None and name not in contents.published}
    suspects = _claimed(root) if doubtful else frozenset[str]()
    for name in contents.published:
        row = known.get(name)
        if row is not None and row.home is None and name not in suspects and not lost:
            continue
        key = key_of(name)
        try:
            said = label_of(root, name, key) if key is not None else None
        except OSError:
            continue  # as the row has it; without one it stays for whoever can read it
        if said is not None and said.home is not None:
            next_id += _follow_moved(found, row, said, lost, next_id)
        elif row is not None and row.home is not None:
            if said is not None and doubtful:
                log.info("%s is at its source again, and the index does not know it", row.key)
                found.put(_copy(row, said))
            elif said is None:
                found.unlabelled.append(row)
    _leave_out_twins(found, contents)
    return found


def _leave_out_twins(found: Following, contents: Contents) -> None:
    """No two files are one inode: a second one that says so was put back from a copy of the cache folder. It stays, and
    is used for nothing."""
    before = {entry.source_file.inode: entry for entry in found.before if entry.home is not None}
    first: dict[int, CacheEntry] = {}
    for entry in list(found.entries.values()):
        if entry.home is None or cache_path(entry.key) not in contents.published:
            continue
        number = entry.source_file.inode
        other = first.setdefault(number, entry)
        if other is entry:
            continue
        known = before.get(number)
        kept, twin = (entry, other) if known is not None and known.key == entry.key else (other, entry)
        first[number] = kept
        found.forget(twin)
        log.error(
            "%s on the SSD says that it is the very file that is %s: it is kept there and not used; compare the two, "
            "and remove it",
            cache_path(twin.key),
            kept.key,
        )


def _claimed(root: str) -> frozenset[str]:
    """Files whose labels are worth to be read."""
    named = inside.attributes(root, "files", label.NAME)
    return frozenset(name for name, value in named if not isinstance(value, bytes) or label.claims_to_be_moved(value))


def _follow_moved(found: Following, row: CacheEntry | None, said: Label, lost: set[int], next_id: int) -> int:
    """A file says that it was moved, and ``row`` is that of its name. Returns how many new numbers were used."""
    if row is not None and row.home is not None and row.id == said.entry_id:
        if row.source_file.inode != said.file.inode:  # an older index: the number was given to another file since
            found.put(_moved(row, said))
        elif row.home != said.home:
            found.put(replace(row, home=said.home))
        return 0
    if said.entry_id in lost:
        if row is not None:
            found.drop(row.id)
        lost.discard(said.entry_id)
        before = found.entries[said.entry_id]
        inode = before.source_file.inode
        found.put(_moved(before, replace(said, file=replace(said.file, inode=inode))))
        return 0
    if row is not None and row.home is not None:  # an older index: another file had the name then
        found.put(_moved(row, said))
        found.unlabelled.append(found.entries[row.id])
        return 0
    log.warning("%s was moved to the SSD, and the index does not know it: it is found again", said.file.key)
    moved = moved_entry(row.id if row is not None else next_id, said)
    if row is not None:
        moved = _moved(row, replace(said, home=moved.home))
    for other in [entry for entry in found.entries.values() if entry.key == said.file.key]:
        found.drop(other.id)
    found.gone.discard(moved.id)
    found.put(moved)
    if moved.id != said.entry_id:
        found.unlabelled.append(moved)
    return int(row is None)


def _moved(row: CacheEntry, said: Label) -> CacheEntry:
    return replace(row, source_file=said.file, state=EntryState.MOVED, ranges=_all(said), home=said.home)


def _copy(row: CacheEntry, said: Label) -> CacheEntry:
    return replace(row, source_file=said.file, state=EntryState.CACHED, ranges=_all(said), home=None)


def _all(said: Label) -> Ranges:
    return Ranges.of([(0, said.file.size)])


def write_labels(folder: Folder, entries: Iterable[CacheEntry], sizes: Mapping[str, int]) -> None:
    """Let moved files say again what they should: an index may be lost, and labels go where nobody copies them."""
    written = 0
    for entry in entries:
        if sizes.get(cache_path(entry.key), -1) < 0:
            continue
        try:
            if not moved_disk.relabel(folder, Label(entry.source_file, entry.begun_at, entry.home, entry.id)):
                break  # nor will the SSD take the others
        except OSError as error:
            log.debug("%s cannot be labelled: %s", entry.key, error)
            continue
        written += 1
    if written:
        log.info("moved files that say again that they are the only ones: %d", written)
