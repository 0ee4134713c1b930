"""Making entries anew from the files themselves: the published files that can say whose copies they are.

Called by ``cache.recovery`` at a start, in a worker thread, where there is no index, and for moved files that it does
not know. A label is written when the copy is complete, is worth nothing once the file was written to, and holds the
fingerprint of the source's file. So what is adopted is served only after the source has shown that very file, as after
any restart. A moved file's label holds whatever is written to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

from cachefs.cache import inside, label
from cachefs.cache.folder import Contents
from cachefs.model import CacheEntry, EntryState, FileKey, Phase, SourceName
from cachefs.paths import cache_path
from cachefs.ranges import Ranges

REASON = "it was on the SSD when the index was lost"


def adopt(root: str, contents: Contents, sources: frozenset[SourceName], now: float) -> Iterator[CacheEntry]:
    """Entries for the published files with a valid label, numbered from 1. ``now`` stands for the time of publication:
    nobody knows any more when they were last wanted, and they are to be kept as if that had been just now. Moved files
    are found, of whatever source they are."""
    entry_id = 0
    for name, size in contents.published.items():
        key = key_of(name)
        found = label_of(root, name, key) if key is not None and size >= 0 else None
        if found is None or (found.file.key.source not in sources and found.home is None):
            continue
        entry_id += 1
        if found.home is not None:
            yield moved_entry(entry_id, found)
            continue
        whole = Ranges.of([(0, size)])
        yield CacheEntry(entry_id, found.file, EntryState.CACHED, whole, REASON, found.begun_at, published_at=now)


def moved_entry(entry_id: int, found: label.Label) -> CacheEntry:
    """Of a moved file that no row knows: how far it had moved is looked at anew."""
    if found.home is None:
        raise ValueError(f"{found.file.key} was not moved")
    home = found.home if found.home.phase is not Phase.AWAY else replace(found.home, phase=Phase.LEAVING)
    return CacheEntry(
        entry_id,
        found.file,
        EntryState.MOVED,
        Ranges.of([(0, found.file.size)]),
        REASON,
        found.begun_at,
        published_at=time.time(),
        home=home,
    )


def key_of(name: str) -> FileKey | None:
    """Whose copy a name below the cache folder stands for."""
    if name.count("/") < 2:
        return None
    _, source, path = name.split("/", 2)
    key = FileKey(SourceName(source), path)
    return key if cache_path(key) == name else None


def is_moved(root: str, name: str) -> bool:
    """Whether a file below the cache folder says of itself that it was moved."""
    key = key_of(name)
    found = label_of(root, name, key) if key is not None else None
    return found is not None and found.home is not None


def label_of(root: str, name: str, key: FileKey) -> label.Label | None:
    """What a published file says of itself."""
    try:
        number = inside.open_file(root, name)
    except OSError:
        return None
    try:
        return label.read(number, key)
    finally:
        os.close(number)
