"""What the cache holds, in memory: the entries by name, by id, by inode number and by folder, and what they take up.

Used by ``cache.store`` only, on the event loop: it is asked on every read, so every look-up is O(1), and everything
happens between two awaits. No disk, no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from cachefs.model import CacheEntry, EntryState, FileKey, Targets
from cachefs.paths import folders_above


class Holdings:
    """Live entries, and doomed ones: those that are dropped already, but whose files still take up space."""

    def __init__(self, entries: Iterable[CacheEntry] = ()) -> None:
        self.live: dict[FileKey, CacheEntry] = {}
        self.doomed: dict[int, CacheEntry] = {}
        self.used_bytes = 0
        """Full sizes of all entries, doomed ones included."""
        self.unwritten_bytes = 0
        """What the copies in flight have yet to write."""
        self._names: dict[int, FileKey] = {}
        self._by_inode: dict[int, set[FileKey]] = {}
        self._below: Counter[FileKey] = Counter()
        self._inside: Counter[FileKey] = Counter()
        self._read_at: dict[FileKey, float] = {}
        for entry in entries:
            self.add(entry)

    def by_id(self, entry_id: int) -> CacheEntry | None:
        key = self._names.get(entry_id)
        return None if key is None else self.live[key]

    def add(self, entry: CacheEntry) -> None:
        self.live[entry.key] = entry
        self._names[entry.id] = entry.key
        self._by_inode.setdefault(entry.source_file.inode, set()).add(entry.key)
        self._below.update(folders_above(entry.key))
        self._inside[_folder_of(entry.key)] += 1
        self.used_bytes += entry.size
        self.unwritten_bytes += _unwritten(entry)

    def update(self, entry: CacheEntry) -> None:
        """Put a new value in the place of the one with the same id."""
        before = self.live[entry.key]
        self.live[entry.key] = entry
        self.unwritten_bytes += _unwritten(entry) - _unwritten(before)
        if entry.source_file.inode != before.source_file.inode:
            self._forget_inode(before)
            self._by_inode.setdefault(entry.source_file.inode, set()).add(entry.key)

    def resize(self, entry: CacheEntry) -> None:
        """As ``update``, for a file that has another size."""
        self.used_bytes += entry.size - self.live[entry.key].size
        self.update(entry)

    def rename(self, entry: CacheEntry, renamed: CacheEntry) -> None:
        """Put an entry under another name, which none has."""
        read_at = self._read_at.pop(entry.key, None)
        current = self.live[entry.key]
        self.doom(entry)
        del self.doomed[entry.id]
        self.used_bytes -= current.size
        self.add(renamed)
        if read_at is not None:
            self._read_at[renamed.key] = read_at

    def doom(self, entry: CacheEntry) -> None:
        """Take an entry out of everything but the space it uses."""
        current = self.live.pop(entry.key)
        del self._names[entry.id]
        self._forget_inode(current)
        self._read_at.pop(entry.key, None)
        folder = _folder_of(entry.key)
        self._inside[folder] -= 1
        if not self._inside[folder]:
            del self._inside[folder]
        for folder in folders_above(entry.key):
            self._below[folder] -= 1
            if not self._below[folder]:
                del self._below[folder]
        self.unwritten_bytes -= _unwritten(current)
        self.doomed[entry.id] = current

    def removed(self, entry_id: int) -> None:
        """The files of a doomed entry are gone."""
        entry = self.doomed.pop(entry_id, None)
        if entry is not None:
            self.used_bytes -= entry.size

    def matching(self, targets: Targets) -> list[CacheEntry]:
        """The live entries that a change touches. Linear only when a folder that holds entries is named."""
        keys = {key for key in targets.keys if key in self.live}
        for inode in targets.inodes:
            keys |= self._by_inode.get(inode, set())
        for folder in targets.folders:
            keys.update(entry.key for entry in self.below(folder))
            if folder in self.live:
                keys.add(folder)
        return [self.live[key] for key in keys]

    def of_number(self, inode: int) -> list[CacheEntry]:
        """The live entries of a file, under whatever name."""
        return [self.live[key] for key in self._by_inode.get(inode, ())]

    def below(self, folder: FileKey) -> list[CacheEntry]:
        """The live entries below a folder."""
        if folder not in self._below:
            return []
        prefix = f"{folder.path}/" if folder.path else ""
        return [
            entry for key, entry in self.live.items() if key.source == folder.source and key.path.startswith(prefix)
        ]

    def holds_in(self, folder: FileKey) -> bool:
        """Whether there is a live entry of a file in this folder itself."""
        return folder in self._inside

    def in_the_way(self, key: FileKey) -> list[CacheEntry]:
        """Entries that cannot be true when ``key`` is a file: of the folders it is in, and of files below it."""
        above = [self.live[folder] for folder in folders_above(key) if folder in self.live]
        return above + self.below(key)

    def read(self, key: FileKey, at: float) -> None:
        """Note a read. Cheap: the entry's value is made anew only when somebody asks for all of them."""
        if key in self.live:
            self._read_at[key] = at

    def settle_reads(self) -> list[CacheEntry]:
        """Write the noted reads into the entries; returns those that changed."""
        changed = []
        for key, at in self._read_at.items():
            entry = replace(self.live[key], last_read_at=at)
            self.live[key] = entry
            changed.append(entry)
        self._read_at.clear()
        return changed

    def _forget_inode(self, entry: CacheEntry) -> None:
        keys = self._by_inode[entry.source_file.inode]
        keys.discard(entry.key)
        if not keys:
            del self._by_inode[entry.source_file.inode]


def _unwritten(entry: CacheEntry) -> int:
    return entry.size - entry.ranges.total if entry.state is EntryState.COPYING else 0


def _folder_of(key: FileKey) -> FileKey:
    return FileKey(key.source, key.path.rpartition("/")[0])
