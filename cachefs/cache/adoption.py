"""Making a lost index anew: the published files that can say whose copies they are become entries again.

Called by ``cache.recovery`` at a start, in a worker thread, and only when there is no index. A label is written when
the copy is complete, is worth nothing once the file was written to, and holds the fingerprint of the source's file. So
what is adopted is served only after the source has shown that very file, as after any restart.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from cachefs.cache import inside, label
from cachefs.cache.folder import Contents
from cachefs.model import CacheEntry, EntryState, FileKey, SourceName
from cachefs.ranges import Ranges

REASON = "it was on the SSD when the index was lost"


def adopt(root: str, contents: Contents, sources: frozenset[SourceName], now: float) -> Iterator[CacheEntry]:
    """Entries for the published files with a valid label, numbered from 1. ``now`` stands for the time of publication:
    nobody knows any more when they were last wanted, and they are to be kept as if that had been just now."""
    entry_id = 0
    for name, size in contents.published.items():
        _, source, path = name.split("/", 2) if name.count("/") > 1 else (name, "", "")
        key = FileKey(SourceName(source), path)
        if size < 0 or key.source not in sources:
            continue
        found = _label_of(root, name, key)
        if found is not None:
            entry_id += 1
            whole = Ranges.of([(0, size)])
            yield CacheEntry(entry_id, found.file, EntryState.CACHED, whole, REASON, found.begun_at, published_at=now)


def _label_of(root: str, name: str, key: FileKey) -> label.Label | None:
    try:
        number = inside.open_file(root, name)
    except OSError:
        return None
    try:
        return label.read(number, key)
    finally:
        os.close(number)
